"""The way in for the user's own clients: a loopback socket that speaks the worker's language, found by a file.

One server a user: a lock says so, and is free again however the server ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from slm_local import __version__
from slm_local.errors import SlmError, UsageError
from slm_local.paths import make_folder, paths
from slm_local.server.clients import Client
from slm_local.server.pool import Pool
from slm_local.system import lock_down_file
from slm_local.worker.attached import HOST, ServerFile, ask, read_server_file

MOST_CLIENTS = 64
"""Connections at once; more are closed at once."""
LOCK_S = 1.0
"""Longest wait for another server to be gone: one in the background goes that soon after `slm stop`."""
TAKE_OVER_S = 15.0
"""Longest wait for servers in the background to give way; each closes what nobody is at, which takes 5 s at most."""
REST_S = 1.0
"""Wait after a connection that could not be taken."""


class Link:
    """Lets the user's own commands use a pool. `start` before anybody can find it, `close` at the end."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._file = paths().server_file
        self._lock = FileLock(self._file.with_suffix(".lock"), mode=0o600, thread_local=False)
        self._listening: socket.socket | None = None
        self._address: str | None = None
        self.has_left = False
        """Whether nobody new is let in, for another server has taken this one's place or it was closed."""
        self.was_used = False
        """Whether a client of the user's was here, and went."""
        self._clients: set[Client] = set()
        self._changed = threading.Condition()

    @property
    def clients(self) -> int:
        """Return how many connections there are."""
        return len(self._clients)

    def start(self, address: str | None = None) -> ServerFile | None:
        """Listen, and write down where; `address` is where the same server answers HTTP. Blocks.

        With an address it takes the place of a server in the background, which is returned: that one has closed what
        nobody was at, and ends once its requests are done. Errors: `UsageError` where the user has a server already.
        """
        make_folder(self._file.parent)
        replaced = self._own(takes_over=address is not None)
        self._address = address
        self._listening = socket.create_server((HOST, 0))
        server = ServerFile(
            pid=os.getpid(),
            port=self._listening.getsockname()[1],
            key=secrets.token_hex(32),
            version=__version__,
            address=address,
        )
        _write(self._file, server)
        threading.Thread(target=self._accept, args=(self._listening, server.key), name="slm-link", daemon=True).start()
        return replaced

    def _own(self, *, takes_over: bool) -> ServerFile | None:
        """Take the lock that one server has, and return whose it was where it was given up for that."""
        until_s = time.monotonic() + TAKE_OVER_S
        replaced = None
        while True:
            server = read_server_file(self._file)
            if takes_over and server is not None and server.address is None:
                try:
                    replaced = server if ask(server, {"op": "leave"}) is not None else replaced
                except SlmError:  # it went before it could say so; one that stays keeps the lock
                    replaced = server
            try:
                self._lock.acquire(timeout=LOCK_S)
            except Timeout:  # another one in the background may have come between, or one that has not said what it is
                server = read_server_file(self._file)
                is_lasting = server is not None and server.address is not None
                if not takes_over or is_lasting or time.monotonic() > until_s:
                    raise _taken(server) from None
            else:
                return replaced

    def leave(self) -> None:
        """Give up the place for another server; blocks until what nobody is at is closed.

        Those who are here are served on. Errors: `UsageError` for a server that was not started in the background.
        """
        if self._address is not None:
            raise _taken(read_server_file(self._file))
        self._pool.leave()
        self._give_up()

    def _give_up(self) -> None:
        """Let nobody in any more, and take file and lock away; once."""
        with self._changed:
            if self.has_left or self._listening is None:
                return
            self.has_left = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._file.unlink()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # closing alone does not end an accept
        self._listening.close()
        self._lock.release()

    def close(self) -> None:
        """Take the file away and hang up on everybody."""
        self._give_up()
        with self._changed:
            for client in self._clients:
                client.hang_up()
            self._changed.wait_for(lambda: not self._clients, 2.0)

    def _accept(self, listening: socket.socket, key: str) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:  # closed, or no descriptor is free just now
                with self._changed:
                    if self._changed.wait_for(lambda: self.has_left, REST_S):
                        return
                continue
            with contextlib.suppress(OSError):  # macOS says so of one that is gone already: who reads it sees that
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._clients) >= MOST_CLIENTS:
                connection.close()
                continue
            client = Client(connection, self._pool, key, self.leave)
            with self._changed:
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), name="slm-link-client", daemon=True).start()

    def _serve(self, client: Client) -> None:
        try:
            client.serve()
        finally:
            with self._changed:
                self._clients.discard(client)
                self.was_used |= client.is_known
                self._changed.notify_all()


def _taken(server: ServerFile | None) -> UsageError:
    if server is None:
        return UsageError("a server of yours is starting or ending just now", hint="slm ps")
    if server.address is not None:
        return UsageError(f"a server of yours runs already at {server.address} as process {server.pid}", hint="slm ps")
    return UsageError(f"a server of yours keeps models open already, as process {server.pid}", hint="slm stop")


def _write(file: Path, server: ServerFile) -> None:
    """Write what clients need, where nobody else can read it at any moment."""
    new = file.with_name(f"{file.name}.{server.pid}")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        json.dump(asdict(server), out)
    lock_down_file(new)
    os.replace(new, file)
