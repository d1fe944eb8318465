"""A download's end before its time: asked for by another thread, noticed even while nothing comes."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from slm_local.errors import Interrupted
from slm_local.generation import Control

if TYPE_CHECKING:
    import httpx

POLL_S = 0.2
"""Windows hears Ctrl-C between waits, not in them."""


class Stop:
    """Knows whether to go on; ends a read that waits for bytes, and a wait for a further try."""

    def __init__(self, control: Control | None) -> None:
        self._asked = threading.Event()
        self._socket: socket.socket | None = None
        if control is not None:
            control.on_cancel(self._end)

    def check(self) -> None:
        """Raise `Interrupted` where the download is to end."""
        if self._asked.is_set():
            raise Interrupted("the download was stopped")

    def wait(self, seconds: float) -> None:
        """Wait, unless it is to end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._asked.wait(min(POLL_S, left))
            self.check()

    def watch(self, response: httpx.Response | None) -> None:
        """Have this response's reads end when the download is to end."""
        stream = response.extensions.get("network_stream") if response is not None else None
        self._socket = stream.get_extra_info("socket") if stream is not None else None
        if self._asked.is_set():
            self._end()

    def _end(self) -> None:
        self._asked.set()
        if (watched := self._socket) is not None:
            with suppress(OSError):  # closed already; the plain one, since a TLS socket's own may not be used by two
                socket.socket.shutdown(watched, socket.SHUT_RDWR)
