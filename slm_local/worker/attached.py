"""The client's end of a server of the same user: finds it, opens a model there, and is a channel to its engine.

Both sides prove that they know the key in the server's file, which only the user can read; it is never sent.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from slm_local import config, errors, generation, model
from slm_local.config import Settings
from slm_local.errors import FailureRecord, Interrupted, SlmError, WorkerCrashed, error_of
from slm_local.generation import Control, ModelFacts
from slm_local.model import Plan
from slm_local.worker.wire import Wire

HOST = "127.0.0.1"
CONNECT_S = 5.0
"""Longest wait for a server on this machine to take a connection and prove itself."""

STALL_S = 60.0
"""Longest time for which a client may take nothing of what it is sent, as one that was stopped by Ctrl-Z."""

AGAIN = "again: without the server the model is opened here"

LINK = Wire(generation, errors, config, model)
"""What a server and its clients speak; it holds all that a pipe does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFile:
    """What a server writes down for the user's own clients."""

    pid: int
    port: int
    """Of the link, on loopback."""
    key: str
    version: str
    """Of slm: only the same one is spoken to."""
    address: str | None
    """Where it answers HTTP; None: nowhere."""


def read_server_file(file: Path) -> ServerFile | None:
    """Return what a server wrote; None where none did, or not so that it can be understood."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        address = values["address"]
        return ServerFile(
            pid=int(values["pid"]),
            port=int(values["port"]),
            key=str(values["key"]),
            version=str(values["version"]),
            address=None if address is None else str(address),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_up(file: Path) -> bool:
    """Tell whether a server listens where a file says; the file of one that is gone is removed."""
    server = read_server_file(file)
    if server is None:
        return False
    try:
        socket.create_connection((HOST, server.port), CONNECT_S).close()
    except ConnectionRefusedError:
        forget(file, server)
        return False
    except OSError:
        return False
    return True


def forget(file: Path, server: ServerFile) -> None:
    """Remove the file of a server that is gone, if no other has put its own there since."""
    if read_server_file(file) == server:
        with contextlib.suppress(OSError):
            file.unlink()


def proof(key: str, side: str, asked: str, given: str) -> str:
    """Return what only who knows the key can say to two nonces; `side` keeps one's words from being the other's."""
    return hmac.new(key.encode(), f"{side} {asked} {given}".encode(), "sha256").hexdigest()


class Link:
    """A connection with a server, both sides proved. Lines may be written by several threads, read by one."""

    def __init__(self, server: ServerFile) -> None:
        """Connect. Errors: OSError where nobody is there, or somebody else."""
        self._socket = socket.create_connection((HOST, server.port), CONNECT_S)
        self.lines: BinaryIO = self._socket.makefile("rb")
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._greet(server)
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise ConnectionAbortedError("whoever listens there is not the server") from error
        except BaseException:
            self.close()
            raise
        self._socket.settimeout(None)

    def _greet(self, server: ServerFile) -> None:
        asked = secrets.token_hex(16)
        self.send({"op": "hello", "nonce": asked})
        answer = json.loads(self.lines.readline(4096))
        given = str(answer["nonce"])
        if not hmac.compare_digest(str(answer["proof"]), proof(server.key, "server", asked, given)):
            raise ValueError("it does not know the key")
        self.send({"op": "proof", "proof": proof(server.key, "client", asked, given)})

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. Errors: OSError."""
        self.write(LINK.to_line(message))

    def write(self, line: bytes) -> None:
        """Send a line. Errors: OSError."""
        self._socket.sendall(line)

    def receive(self) -> dict[str, Any]:
        """Return the next message. Errors: OSError where none comes any more; what the server says failed."""
        line = self.lines.readline()
        if not line.endswith(b"\n"):  # the last one may be cut off
            raise ConnectionResetError("the server closed the connection")
        message = LINK.from_line(line)
        if message["op"] == "failed":
            record = message["record"]
            assert isinstance(record, FailureRecord)
            raise error_of(record)
        return message

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and return the answer. Errors: as `receive`."""
        self.send(message)
        return self.receive()

    def hang_up(self) -> None:
        """End the connection, whoever reads or writes, also from a signal handler."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and let go of it: for who reads, once nothing comes any more."""
        self.hang_up()
        self.lines.close()
        self._socket.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model that a server has open for this client."""

    link: Link
    plan: Plan
    facts: ModelFacts
    notes: tuple[str, ...]
    """Remarks on how its reference was understood."""


def open_there(
    server: ServerFile,
    reference: str,
    settings: Settings,
    control: Control,
    on_status: Callable[[str], None],
    *,
    keep_alive_s: float | None = None,
) -> Opened:
    """Have a server open a model for this client; blocks. `on_status` is told how its load goes on.

    Once it is open `control` has no more to do with it.

    `settings` are those that decide how it is opened; the reference's own are among them.

    Errors: what the server says; `WorkerCrashed` where it is gone meanwhile; `Interrupted`; OSError where it is none.
    """
    link = Link(server)
    is_open = threading.Event()
    control.on_cancel(lambda: None if is_open.is_set() else link.hang_up())
    try:
        message = link.ask({"op": "open", "reference": reference, "settings": settings, "keep_alive_s": keep_alive_s})
        while message["op"] == "status" and not control.cancelled:
            on_status(message["text"])
            message = link.receive()
        is_open.set()
        if control.cancelled:  # the link may be hung up by that, whatever came before
            raise Interrupted("loading was stopped")
        return Opened(link=link, plan=message["plan"], facts=message["facts"], notes=message["notes"])
    except (OSError, ValueError) as error:
        link.close()
        if control.cancelled:
            raise Interrupted("loading was stopped") from error
        raise WorkerCrashed(f"the server is gone: {error}", hint=AGAIN) from error
    except BaseException:
        link.close()
        raise


class Attached:
    """The channel to an engine that a server has open."""

    name = "the server"
    pid = None
    log_path = None
    crash_hint = AGAIN

    def __init__(self, link: Link) -> None:
        self._link = link
        self._gone = threading.Event()

    def write(self, line: bytes) -> None:
        """Send a line."""
        self._link.write(line)

    def lines(self) -> Iterator[bytes]:
        """Yield what comes until the connection ends."""
        try:
            yield from self._link.lines
        finally:
            self._gone.set()
            self._link.close()

    def wait(self, seconds: float) -> str | None:
        """Wait until the connection is gone."""
        how = f"it closed the connection: it ended, or nothing was read here for {STALL_S:.0f} s"
        return how if self._gone.wait(seconds) else None

    def kill(self) -> None:
        """End the connection: the server cancels what is under way for it."""
        self._link.hang_up()

    def hang_up(self) -> None:
        """End the connection."""
        self._link.hang_up()


def ask(server: ServerFile, message: dict[str, Any]) -> dict[str, Any] | None:
    """Ask a server a single thing; None where it is gone. Errors: what it says failed, `SlmError` of its own."""
    try:
        link = Link(server)
    except ConnectionRefusedError:
        return None
    except OSError as error:
        raise SlmError(f"process {server.pid} can't be spoken to: {error}", hint="slm ps") from error
    try:
        return link.ask(message)
    except OSError as error:
        raise WorkerCrashed(f"the server is gone: {error}", hint="slm ps") from error
    finally:
        link.close()
