"""The real server on a port of its own, in threads of the test's process, over scripted and embedded models."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from slm_local.config import load_settings
from slm_local.registry import load_registry
from slm_local.server.app import AppOptions, make_app
from slm_local.server.gate import rules_for
from slm_local.server.metrics import Meters
from slm_local.server.pool import Pool
from slm_local.server.running import AppServer, listen
from slm_local.server.served import Catalogue, named_models
from tests.test_worker import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server that runs."""

    address: str
    pool: Pool
    openai: openai.OpenAI
    http: httpx.Client

    def chat(self, text: str = "hi", **fields: Any) -> httpx.Response:
        """Ask for a chat completion, as a client would that writes its own JSON."""
        messages = [{"role": "user", "content": text}]
        return self.http.post("/v1/chat/completions", json={"messages": messages, **fields})

    def wait_idle(self) -> None:
        """Wait until no request is at a model."""
        wait_until(lambda: not any(each.live or each.waiting for each in self.pool.running()))


@contextlib.contextmanager
def serving(
    *references: str, key: str | None = None, origins: tuple[str, ...] = (), has_ollama: bool = False, **options: Any
) -> Iterator[Serving]:
    """Serve some models until the end of the block; `options` are the pool's."""
    meters = Meters()

    def settings(own: Any) -> Any:
        return load_settings({}, reference_settings=own)

    pool = Pool(load_registry, settings, report=meters.count_change, **options)
    named = named_models(references, settings, load_registry())
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    rules = rules_for("127.0.0.1", port, key=key, origins=origins)
    app = make_app(pool, Catalogue(load_registry, named), AppOptions(rules=rules, has_ollama=has_ollama), meters)
    server = AppServer(app, pool.close)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=key or "none", max_retries=0, timeout=60.0)
    try:
        wait_until(lambda: server.started)
        with httpx.Client(base_url=address, headers=headers, timeout=60.0) as http, client:
            yield Serving(address=address, pool=pool, openai=client, http=http)
    finally:
        server.should_exit = True
        thread.join()
        pool.close()
