"""Runs the app on a socket until the process is told to end; what is under way is ended, not waited for."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from slm_local.errors import UsageError

BACKLOG = 512
LEAVE_S = 3
"""How long answers that were ended may take to say so."""
KEPT_CONNECTION_S = 75
"""How long an idle connection is kept: longer than clients keep theirs, so that it is they who close."""


class AppServer(uvicorn.Server):
    """Uvicorn's server, which ends what is under way before it waits for it."""

    def __init__(self, app: FastAPI, end: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="critical",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=KEPT_CONNECTION_S,
                timeout_graceful_shutdown=LEAVE_S,
            )
        )
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is under way, tell the clients, and close."""
        ending = asyncio.create_task(asyncio.to_thread(self._end))
        await super().shutdown(sockets)
        await ending


def listen(host: str, port: int) -> socket.socket:
    """Open a port; 0 is any free one. Errors: `UsageError` naming it where it is taken or may not be had."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # asyncio looks at the protocol's number before it sends small packets at once: without it each waits 40 ms
        listening = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            if sys.platform != "win32":  # there it would let two servers have one port
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise UsageError(
            f"port {port} of {host} can't be had: {error.strerror or error}",
            hint=f"slm serve --port {port + 1 if port < 65535 else 0}",
        ) from error
    return listening


def run_app(app: FastAPI, listening: socket.socket, end: Callable[[], None]) -> None:
    """Answer on a socket until told to end (SIGINT, SIGTERM); `end` then ends what is under way."""
    AppServer(app, end).run(sockets=[listening])
