"""llama-server with our settings, one slot, and what is asked of it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from slm_local.generation import Message

from .setup import Setup
from .tools import flags

START_S = 300.0
ONE_REQUEST = httpx.Limits(max_keepalive_connections=0)
"""A connection for each request: llama-server closes idle ones, sometimes just as the next request comes."""
ANSWER_S = 3600.0
SAMPLING = {"temperature": 1.0, "top_k": 40, "top_p": 1.0, "min_p": 0.0, "seed": 1, "cache_prompt": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """When a reply's first token came, and what was read for it."""

    seconds: float
    read_tokens: int
    cached_tokens: int


class Server:
    """A running llama-server. A context manager."""

    def __init__(self, setup: Setup, model: Path, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = setup.tools.command(
            "llama-server", "-m", model, "-c", setup.context_tokens, "-np", 1, *flags(setup.threads), *more
        )
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--no-ui"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=setup.tools.environment,
        )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S, limits=ONE_REQUEST)
        self._wait()

    @property
    def client(self) -> httpx.Client:
        """Return what asks it."""
        return self._client

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def _wait(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if self._client.get("/health").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.close()
        sys.exit("llama-server did not start")

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the rendered prompt."""
        return str(self._post("/apply-template", {"messages": _plain(messages)})["prompt"])

    def write(self, prompt: Sequence[str | int], tokens: int) -> tuple[str, list[int]]:
        """Have it write exactly so many tokens; return their text and ids. `prompt` is text, ids, or both in turn."""
        asked = {"prompt": list(prompt), "n_predict": tokens, "return_tokens": True, "ignore_eos": True, **SAMPLING}
        reply = self._post("/completion", asked)
        if len(reply["tokens"]) != tokens:
            sys.exit(f"llama-server wrote {len(reply['tokens'])} tokens, not {tokens}")
        return str(reply["content"]), list(reply["tokens"])

    def first_token(self, messages: Sequence[Message]) -> FirstToken:
        """Ask as a chat client does; return when the first text came."""
        asked = {"messages": _plain(messages), "stream": True, "max_tokens": 2, "timings_per_token": True, **SAMPLING}
        begun = time.perf_counter()
        with self._client.stream("POST", "/v1/chat/completions", json=asked) as reply:
            for row in reply.iter_lines():
                if not row.startswith("data: {"):
                    continue
                part: dict[str, Any] = json.loads(row[6:])
                if not part.get("choices"):
                    continue
                delta = part["choices"][0]["delta"]
                if delta.get("content") or delta.get("reasoning_content"):
                    seconds, timings = time.perf_counter() - begun, part["timings"]
                    return FirstToken(
                        seconds=seconds, read_tokens=timings["prompt_n"], cached_tokens=timings["cache_n"]
                    )
        sys.exit("llama-server gave no text")

    def _post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        reply = self._client.post(path, json=content)
        if reply.is_error:
            sys.exit(f"llama-server {path}: {reply.text[:1000]}")
        found: dict[str, Any] = reply.json()
        return found

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": each.role, "content": each.content} for each in messages]
