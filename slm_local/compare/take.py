"""One reply of a comparison, measured: its time without the load, its energy, and what makes its figures doubtful."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from slm_local.engine import Engine
from slm_local.errors import SlmError
from slm_local.fit import device_of
from slm_local.generation import Control, Done, GenerationRequest, Reply, StreamEvent
from slm_local.hardware import probe
from slm_local.metrics import Collector, Energy, EnergyMeter
from slm_local.model import Plan

WARM_UP_TOKENS = 16
"""A loaded model reads so many random tokens and writes one before it is measured: what happens once after a load
(pages of the file, threads, buffers) would count against the lane that comes first."""

TELLING_SHARE = 0.5
"""From such a share of a prompt found in the KV cache a remark says it: the template's beginning is common to all."""


class Take:
    """One reply being measured: what came so far, how long it took, what it cost."""

    def __init__(self, engine: Engine, reason_for_no_energy: str) -> None:
        self.error: SlmError | None = None
        self.energy = Energy(joules=None, reason=reason_for_no_energy)
        self.total_s = 0.0
        self._engine = engine
        self._collector = Collector()
        self._done: Reply | None = None

    @property
    def reply(self) -> Reply:
        """Return the reply as far as it came."""
        return self._done or self._collector.reply("error" if self.error is not None else "cancelled")

    def events(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]:
        """Generate; yield the events. A child that died before is started first, outside what is measured."""
        self._engine.start(control)
        meter = EnergyMeter() if not self.energy.reason else None
        if meter is not None:
            meter.start()
        self._collector = Collector()
        begun = time.perf_counter()
        try:
            for event in self._engine.stream(request, control):
                self._collector.feed(event)
                if isinstance(event, Done):
                    self._done = event.reply
                yield event
        finally:
            self.total_s = time.perf_counter() - begun
            if meter is not None:
                self.energy = meter.stop()


def warm_up(engine: Engine, control: Control) -> None:
    """Have a model that was just loaded read a few random tokens and write one.

    A script is not played for that, and what runs elsewhere was loaded long ago.
    """
    if engine.plan.backend == "scripted" or engine.plan.device == "remote":
        return
    drawn = random.Random(WARM_UP_TOKENS)
    ids = tuple(drawn.randrange(engine.facts.vocabulary_size) for _ in range(WARM_UP_TOKENS))
    engine.reply(GenerationRequest(prompt_ids=ids, max_tokens=1), control)


def no_energy(plan: Plan, *, is_parallel: bool) -> str:
    """Return why the energy of a reply can't be told whatever the machine's counters say; empty where it can."""
    if is_parallel:
        return "lanes that run at once can't be told apart"
    if plan.device == "remote":
        return "what runs elsewhere spends its energy there"
    device = device_of(probe(devices=True), plan.backend, plan.device) if plan.device.startswith("gpu") else None
    if device is not None and device.integrated is False:
        return "the counters know nothing of a graphics card of its own"
    return ""


def remarks_on(reply: Reply, *, shares: bool, is_fetching: bool) -> tuple[str, ...]:
    """Say what a lane had from another that read the same prompt before it in the same engine, and what held it up."""
    prompt, cached = reply.usage.prompt_tokens or 0, reply.usage.cached_tokens
    remarks = []
    if cached is None and shares:
        remarks.append("another lane may have read the prompt before it: its first token may have come too early")
    if cached is not None and shares and cached >= TELLING_SHARE * prompt:
        remarks.append(f"{cached:,} of {prompt:,} prompt tokens were read by another lane: its first token came early")
    if is_fetching:
        remarks.append("another model was being fetched meanwhile")
    return tuple(remarks)
