"""What clients get of `slm serve`, beside llama-server on the same file: eight at once, and one's first token.

Both are asked through `/v1/chat/completions` by the same code. llama-server has a slot for each of the eight, once
with an eighth of the context each (its default for a number of slots), once over one KV cache that they share
(`--kv-unified`), as ours do: each may then fill all of it, and each token passes over the cells of all. Nothing is
thought on our side (what ends thinking is read, not decoded); prompts differ from their first words on, so that nothing
of them is held.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from measuring import Figures, Ratio, Report

from .server import ANSWER_S, ONE_REQUEST, SAMPLING, START_S, Server
from .setup import SENTENCE, SENTENCE_TOKENS, Goal, Setup

CLIENTS = 8
TOKENS = {"135m": 128, "1.5b": 64}
PROMPT_TOKENS, LONG_PROMPT_TOKENS = 64, 512
LEAVE_S = 10.0


def _measure(setup: Setup, report: Report, model: str) -> None:
    file, tokens = setup.words(model), setup.tokens(TOKENS[model])
    slots = ("-np", str(CLIENTS))
    with (
        _ours(setup, file) as ours,
        Server(setup, file, *slots) as split,
        Server(setup, file, *slots, "--kv-unified") as shared,
    ):
        sides = {"llama_server": split.client, "slm": ours, "llama_server_shared": shared.client}

        def take(number: int) -> Figures:
            figures: dict[str, float] = {}
            for name, client in sides.items():
                figures[f"{name}_first_s"] = _first_token(client, number)
                figures[f"{name}_tps"] = _together(client, number, tokens)
            return figures

        together = Ratio(
            name=f"tokens a second of {CLIENTS} clients at once ÷ llama-server with {CLIENTS} slots",
            of=lambda figures: figures["slm_tps"] / figures["llama_server_tps"],
            target=0.9,
        )
        alike = Ratio(
            name="the same ÷ llama-server with --kv-unified",
            of=lambda figures: figures["slm_tps"] / figures["llama_server_shared_tps"],
            target=None,
        )
        first = Ratio(
            name="first token of a single client ÷ llama-server",
            of=lambda figures: figures["slm_first_s"] / figures["llama_server_first_s"],
            target=1.1,
            side="most",
        )
        report.measure("serve", model, [together, alike, first], take)


def _asked(client: httpx.Client, prompt: str, tokens: int) -> dict[str, Any]:
    model = client.get("/v1/models").json()["data"][0]["id"]
    messages = [{"role": "user", "content": prompt}]
    named = {key: SAMPLING[key] for key in ("temperature", "top_k", "top_p", "min_p", "seed")}
    return {"model": model, "messages": messages, "max_tokens": tokens, "reasoning_effort": "none", **named}


def _prompt(words: str, tokens: int) -> str:
    return f"{words}. " + SENTENCE * (tokens // SENTENCE_TOKENS)


def _together(client: httpx.Client, number: int, tokens: int) -> float:
    """Return the tokens a second that all clients get together."""

    def ask(place: int) -> int:
        asked = _asked(client, _prompt(f"Client {place} asks for the {number}th time", PROMPT_TOKENS), tokens)
        reply = client.post("/v1/chat/completions", json=asked)
        if reply.is_error:
            sys.exit(f"{client.base_url}: {reply.text[:1000]}")
        made = int(reply.json()["usage"]["completion_tokens"])
        if made != tokens:
            sys.exit(f"{client.base_url} wrote {made} tokens, not {tokens}")
        return made

    begun = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        made = sum(clients.map(ask, range(CLIENTS)))
    return made / (time.perf_counter() - begun)


def _first_token(client: httpx.Client, number: int) -> float:
    """Return the seconds until the first text of a reply to a prompt that nobody gave before."""
    asked = _asked(client, _prompt(f"Round {number}", LONG_PROMPT_TOKENS), 4) | {"stream": True}
    begun = time.perf_counter()
    seconds = 0.0
    with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
        for row in reply.iter_lines():
            choices = json.loads(row[6:]).get("choices") if row.startswith("data: {") else None
            delta = choices[0]["delta"] if choices else {}
            if not seconds and (delta.get("content") or delta.get("reasoning_content")):
                seconds = time.perf_counter() - begun
    return seconds or sys.exit(f"{client.base_url} gave no text")


@contextmanager
def _ours(setup: Setup, file: Path) -> Iterator[httpx.Client]:
    """Serve a file by `slm serve`; give a client of it."""
    with socket.socket() as free, tempfile.TemporaryFile() as log:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        sizes = ["--ctx", str(setup.context_tokens), "--threads", str(setup.threads)]
        machine = ["--backend", "llamacpp", "--device", "cpu", "--offline", "--keep-alive", "forever"]
        process = subprocess.Popen(
            [sys.executable, "-m", "slm_local", "serve", str(file), "--port", str(port), *machine, *sizes],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SLM_LOOP_GUARD": "false", "SLM_SPECULATION": "false"},
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S, limits=ONE_REQUEST) as client:
                _wait(client, process)
                yield client
        finally:
            process.terminate()
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if client.get("/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit("slm serve did not start")


GOAL = Goal(
    name="serve",
    about="slm serve: 8 clients at once and one client's first token ÷ llama-server with 8 slots",
    seconds={"135m": (15, 25), "1.5b": (30, 120)},
    run=_measure,
)
