"""What the server counts, in Prometheus's format: names that the dashboard of docs/metrics/ reads.

A model that is not served has no series: names that clients make up would fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm_local.generation import Usage
from slm_local.metrics import TELLING_DECODE_S
from slm_local.server.pool import Change, Pool
from slm_local.server.streaming import Course

FIRST_TOKEN_S = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.5, 5.0, 10.0, 20.0, 60.0, 180.0)
"""From a warm short prompt to a long one behind a load from disk."""
FIRST_ANSWER_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 180.0, 300.0, 600.0)
"""Thinking lies before it: minutes on a laptop."""
DECODE_TPS = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 150.0, 300.0, 1000.0)

SERVED = "slm_model"
"""Where a route leaves the model's name in the request's scope."""


class Meters:
    """The server's counters. Any thread may count."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each: nobody reads them
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "slm_requests", "Requests answered", ["model", "route", "code"], registry=self.registry
        )
        self._tokens = Counter("slm_tokens", "Tokens by kind", ["model", "kind"], registry=self.registry)
        self._cuts = Counter("slm_cuts", "Thinking ended for the model", ["model", "reason"], registry=self.registry)
        self._loads = Counter("slm_model_loads", "Models loaded", ["model"], registry=self.registry)
        self._unloads = Counter("slm_model_unloads", "Models unloaded", ["model", "reason"], registry=self.registry)
        self._first_token = Histogram(
            "slm_time_to_first_token_seconds",
            "From the request to the first token, waits and loads included",
            ["model"],
            buckets=FIRST_TOKEN_S,
            registry=self.registry,
        )
        self._first_answer = Histogram(
            "slm_time_to_first_answer_token_seconds",
            "From the request to the first token of the answer",
            ["model"],
            buckets=FIRST_ANSWER_S,
            registry=self.registry,
        )
        self._decode = Histogram(
            "slm_decode_tokens_per_second",
            "Decode speed of a reply",
            ["model"],
            buckets=DECODE_TPS,
            registry=self.registry,
        )

    def watch(self, pool: Pool) -> None:
        """Have what is true now (queue, live requests, memory) read off the pool whenever somebody asks."""
        self.registry.register(_Now(pool))

    def count_request(self, model: str, route: str, code: int) -> None:
        """Count a request that was answered."""
        self._requests.labels(model, route, str(code)).inc()

    def count_course(self, model: str, course: Course) -> None:
        """Count what came of a request's generations."""
        if course.first_token_s is not None:
            self._first_token.labels(model).observe(course.first_token_s)
        if course.first_answer_s is not None:
            self._first_answer.labels(model).observe(course.first_answer_s)
        for reply in course.replies:
            speed = self._decode.labels(model)
            if reply.timings.decode_s >= TELLING_DECODE_S:
                speed.observe(reply.timings.decode_tps)
            if reply.cut != "none":
                self._cuts.labels(model, reply.cut).inc()
            for kind, tokens in _kinds(reply.usage):
                self._tokens.labels(model, kind).inc(tokens)

    def count_change(self, change: Change) -> None:
        """Count a model that was opened or closed."""
        if change.what == "load":
            self._loads.labels(bare(change.model)).inc()
        else:
            self._unloads.labels(bare(change.model), change.reason or "").inc()

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)


def bare(model: str) -> str:
    """Return a model's id as a label: of a path, the file's name without what it ends in."""
    return re.split(r"[\\/:]", model)[-1].removesuffix(".gguf").removesuffix(".jsonl") if "/" in model else model


class _Now(Collector):
    """What is true at the moment of asking."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """Read the pool."""
        waiting = GaugeMetricFamily("slm_queue_length", "Requests that wait for a place", labels=["model"])
        live = GaugeMetricFamily("slm_live_requests", "Requests at a model", labels=["model"])
        memory = GaugeMetricFamily("slm_memory_bytes", "Memory of a model's process", labels=["model"])
        running = self._pool.running()
        for name in dict.fromkeys(bare(each.model) for each in running):  # one may be open in several settings
            same = [each for each in running if bare(each.model) == name]
            waiting.add_metric([name], sum(each.waiting for each in same))
            live.add_metric([name], sum(each.live for each in same))
            memory.add_metric([name], sum(each.memory_bytes or 0 for each in same))
        yield from (waiting, live, memory)


class Counted:
    """Counts every request that passes: model, route, status."""

    def __init__(self, app: ASGIApp, *, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and take note of the status it is answered with."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._meters.count_request(scope.get(SERVED, ""), route, message["status"])
            await send(message)

        await self._app(scope, receive, noting)


def _kinds(usage: Usage) -> Iterator[tuple[str, int]]:
    counts = {
        "prompt": usage.prompt_tokens,
        "cached": usage.cached_tokens,
        "thinking": usage.think_tokens,
        "answer": usage.answer_tokens,
    }
    yield from ((kind, count) for kind, count in counts.items() if count)
