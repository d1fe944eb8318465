"""A stand-in for the Hugging Face Hub: a small HTTP server on loopback that can be told to misbehave.

It answers what huggingface_hub asks (info, tree, paths-info, resolve) and, on another host name, what the Hub's CDN
does: signed addresses, ranges, ETags. Every request is logged. It keeps no time: a stall lasts until `release` or the
end. With `tls` the Hub's own host (not the CDN's) speaks https.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import quote

from tests.hub.answers import Answer, Question, answer, question
from tests.hub.misbehaviour import Fault, Faults
from tests.hub.repository import Blob, Commit, Gate, Repository

CHUNK_BYTES = 64 << 10
POLL_S = 0.005
"""How soon a listener notices that it is to stop."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """A line of the log."""

    asked: Question
    status: int | None = None
    """None until the answer has begun, and where the connection was closed without one."""
    sent_bytes: int = 0
    """Of the body, handed to the system."""

    @property
    def method(self) -> str:
        """Return GET, HEAD or POST."""
        return self.asked.method

    @property
    def route(self) -> str:
        """Return what was asked for: info, tree, paths, auth, resolve, cache, cdn, other."""
        return self.asked.route

    @property
    def path(self) -> str:
        """Return path and query as sent."""
        return self.asked.target

    @property
    def file(self) -> str:
        """Return the file of the repository that was asked for."""
        return self.asked.file

    @property
    def range(self) -> str | None:
        """Return the Range header."""
        return self.asked.headers.get("range")

    @property
    def is_authorized(self) -> bool:
        """Whether an Authorization header came with it."""
        return "authorization" in self.asked.headers

    @property
    def text(self) -> str:
        """Return all of the request as text, to search in."""
        lines = [f"{name}: {value}" for name, value in self.asked.headers.items()]
        return "\n".join([f"{self.method} {self.path}", *lines, self.asked.body])


class HubServer:
    """The stand-in; a context manager that serves from threads of its own."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        """Repositories that were renamed: old name to new."""
        self.tokens: dict[str, frozenset[str]] = {}
        """Tokens that are valid, each with the gated and private repositories it opens."""
        self.faults = Faults()
        self.page_size = 1000
        self.requests: list[Seen] = []
        self.failures: list[BaseException] = []
        """What went wrong in the stand-in itself."""
        self.released = threading.Event()
        self.stalled = threading.Event()
        """Set whenever an answer has begun to stall."""
        self._signed: dict[str, Blob] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._hub = _Listener(self, "127.0.0.1", tls)
        self._cdn = _Listener(self, "localhost")
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._hub.server_port}"
        self.cdn_url = f"http://localhost:{self._cdn.server_port}"

    def __enter__(self) -> Self:
        for listener in (self._hub, self._cdn):
            listener.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and end every connection; returns when its threads have ended."""
        self.released.set()
        for listener in (self._hub, self._cdn):
            listener.stop()

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes],
        *,
        gated: Gate | bool = False,
        private: bool = False,
        licence: str | None = "apache-2.0",
        commit: str | None = None,
    ) -> Commit:
        """Serve a repository, or push a commit that holds exactly these files to one that is there."""
        gate: Gate = "manual" if gated is True else gated
        made = Repository(name=repo, gated=gate, private=private, licence=licence)
        return self.repositories.setdefault(repo, made).push(files, commit)

    def rename(self, old: str, new: str) -> None:
        """Give a repository another name; the old one leads to it."""
        repository = self.repositories.pop(old)
        repository.name = new
        self.repositories[new] = repository
        self.moved[old] = new

    def grant(self, token: str, *repos: str) -> None:
        """Make a token valid, and open these gated or private repositories to it."""
        self.tokens[token] = self.tokens.get(token, frozenset()) | set(repos)

    def signed_url(self, blob: Blob) -> str:
        """Return a new address at the CDN; every one is another."""
        with self._lock:
            self._count += 1
            signature = f"s{self._count:04d}"
            self._signed[signature] = blob
        return f"{self.cdn_url}/blobs/{blob.sha256}?file={quote(blob.path)}&Expires=1&Signature={signature}"

    def signed_blob(self, signature: str) -> Blob | None:
        """Return what a signature gives access to; None where it expired or never was."""
        return self._signed.get(signature)

    def expire_signatures(self) -> None:
        """Let no address at the CDN that was given out be good any more."""
        with self._lock:
            self._signed.clear()

    def release(self) -> None:
        """End every stall, now and later: what was held back is sent."""
        self.released.set()

    def seen(self, route: str | None = None, *, method: str = "GET", file: str | None = None) -> list[Seen]:
        """Return the requests of the log that match."""
        return [
            each
            for each in list(self.requests)
            if (route is None or each.route == route) and each.method == method and (file is None or each.file == file)
        ]

    def transfers(self, file: str | None = None) -> list[Seen]:
        """Return the requests for a file's bytes, answered by whoever holds them."""
        return [each for each in self.seen(file=file) if each.route in ("cdn", "cache") and each.status in (200, 206)]

    def note(self, asked: Question) -> Seen:
        """Log a request."""
        made = Seen(asked=asked)
        with self._lock:
            self.requests.append(made)
        return made


class _Listener(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def __init__(self, hub: HubServer, host: str, tls: ssl.SSLContext | None = None) -> None:
        self.hub = hub
        self.tls = tls
        self.address_family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        self._open: set[socket.socket] = set()
        super().__init__((host, 0), _Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(POLL_S,))

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks DNS for the host's full name
        self.server_name, self.server_port = "loopback", int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._open.add(connection)
        return connection, address

    def close_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        if isinstance(request, socket.socket):
            self._open.discard(request)
        super().close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError | ssl.SSLError):
            self.hub.failures.append(error)

    def stop(self) -> None:
        if self.thread.is_alive():
            self.shutdown()
            self.thread.join()
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        return

    def do_GET(self) -> None:
        hub = self.server.hub
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode(errors="replace")
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = question(self.command, self.headers.get("Host", ""), self.path, headers, body)
        seen = hub.note(asked)
        fault = hub.faults.take(asked.route, asked.file, asked.method)
        if fault.is_mute:
            hub.stalled.set()
            hub.released.wait()
        if fault.hangs_up:
            self._hang_up(resets=fault.resets)
            return
        made = answer(hub, asked, fault)
        if fault.then:  # before the client can go on: it must find what this changes
            fault.then()
        self._send(made, fault, seen)

    do_HEAD = do_GET
    do_POST = do_GET

    def _send(self, made: Answer, fault: Fault, seen: Seen) -> None:
        seen.status = made.status
        self.send_response(made.status)
        for name, value in made.headers.items():
            self.send_header(name, value)
        length = len(made.body) if fault.stated_length is None else fault.stated_length
        is_told = "Content-Length" not in fault.headers
        if is_told:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(made.body, fault, seen)
        if not is_told or fault.stated_length is not None:
            self._hang_up(resets=False)

    def _send_body(self, body: bytes, fault: Fault, seen: Seen) -> None:
        hub = self.server.hub
        stops = sorted(
            {each for each in (fault.drop_after, fault.stall_after) if each is not None and each < len(body)}
        )
        start = 0
        for stop in [*stops, len(body)]:
            self._write(body[start:stop], seen)
            start = stop
            if stop == fault.drop_after:
                self._hang_up(resets=fault.resets)
                return
            if stop == fault.stall_after:
                hub.stalled.set()
                hub.released.wait()

    def _write(self, part: bytes, seen: Seen) -> None:
        for start in range(0, len(part), CHUNK_BYTES):
            chunk = part[start : start + CHUNK_BYTES]
            self.wfile.write(chunk)
            seen.sent_bytes += len(chunk)

    def _hang_up(self, *, resets: bool) -> None:
        self.close_connection = True
        if resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        with contextlib.suppress(OSError):  # the client was faster
            self.connection.shutdown(socket.SHUT_WR)
