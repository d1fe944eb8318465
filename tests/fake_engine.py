"""A stand-in for a server that speaks OpenAI's protocol: it says what a test wants, and notes what it was asked."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
Chunks = list[Any]
"""What a stream sends: objects, bytes as they are, functions that are called and wait."""


@dataclass(frozen=True)
class Answer:
    """One answer: JSON (or bytes) with a status, or a stream of chunks."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Chunks | None = None


Route = Callable[[Json], Answer]


@dataclass
class FakeEngine:
    """The server's address and what it heard."""

    url: str
    routes: dict[str, Route]
    asked: list[tuple[str, Json, dict[str, str]]] = field(default_factory=list)
    hung_up: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released each time a client goes away from a stream."""

    def bodies(self, path: str) -> list[Json]:
        return [body for where, body, _ in self.asked if where == path]


def delta(**fields: Any) -> Json:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def finish(reason: str = "stop", **beside: Any) -> Json:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason, **beside}]}


def usage(prompt: int, completion: int, **details: Any) -> Json:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **details}}


DONE = b"data: [DONE]\n\n"


def listing(**entry: Any) -> Route:
    return lambda body: Answer({"object": "list", "data": [{"id": "m", **entry}]})


def says(*chunks: Any) -> Route:
    return lambda body: Answer(chunks=[*chunks, DONE])


@contextmanager
def fake_engine(**routes: Route) -> Iterator[FakeEngine]:
    """Serve: names are paths with `__` for a slash (`v1__models`); any other path is 404."""
    by_path = {"/" + name.replace("__", "/"): route for name, route in routes.items()}
    by_path.setdefault("/v1/models", listing())
    server = Server(("127.0.0.1", 0), Handler)
    engine = FakeEngine(url=f"http://127.0.0.1:{server.server_address[1]}/v1", routes=by_path)
    server.engine = engine  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Server(ThreadingHTTPServer):
    """Takes many connections at once, and says nothing of those that are broken off."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers by the routes of the server's engine."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, body: Json) -> None:
        engine: FakeEngine = self.server.engine  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        engine.asked.append((path, body, dict(self.headers)))
        route = engine.routes.get(path)
        answer = route(body) if route is not None else Answer({"detail": "Not Found"}, 404)
        try:
            self.send(answer)
        except OSError:
            engine.hung_up.release()
            self.close_connection = True

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.chunks is None:
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for chunk in answer.chunks:
            if callable(chunk):
                chunk()
                continue
            data = chunk if isinstance(chunk, bytes) else f"data: {json.dumps(chunk)}\n\n".encode()
            self.wfile.write(data)
            self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass
