"""Who runs when: opens models, has every lane answer every prompt, measures, closes. Runs in a thread of its own.

One lane at a time unless asked otherwise. Where all models fit the memory together they stay open and the prompts are
gone through one by one; else each is opened once, answers all prompts and is closed before the next is opened. Where
one is still being fetched, those that are here answer.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slm_local.answers import is_right
from slm_local.compare.lanes import Group, Lane, Supply, check_together, grouped, needed_together, prepare
from slm_local.compare.values import CompareEvent, LaneEvent, LaneResult, LaneStatus, Question, nothing
from slm_local.config import Settings
from slm_local.engine import Confirm, Engine, OnFetch, choose
from slm_local.errors import SlmError
from slm_local.fit import device_of
from slm_local.generation import Control, Done, GenerationRequest, Reply, StreamEvent
from slm_local.hardware import probe
from slm_local.metrics import Collector, Energy, EnergyMeter
from slm_local.model import Plan
from slm_local.registry import Registry
from slm_local.selector import gigabytes

if TYPE_CHECKING:
    from slm_local.store import Store

WARM_UP_TOKENS = 16
"""A loaded model reads so many random tokens and writes one before it is measured: what happens once after a load
(pages of the file, threads, buffers) would count against the lane that comes first."""

TELLING_SHARE = 0.5
"""From such a share of a prompt found in the KV cache a remark says it: the template's beginning is common to all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for."""

    references: tuple[str, ...]
    questions: tuple[Question, ...]
    settings_for: Callable[[str], Settings]
    registry: Registry
    seed: int
    is_parallel: bool
    confirm: Confirm | None
    on_fetch: OnFetch | None
    store: Store | None


class Conductor:
    """One comparison. `tell` may be called from several threads at once."""

    def __init__(self, wishes: Wishes, control: Control, tell: Callable[[CompareEvent], None]) -> None:
        self._wishes, self._control, self._tell = wishes, control, tell
        self._lanes: list[Lane] = []
        self._done: set[tuple[int, int]] = set()
        self._live: set[Control] = set()
        control.on_cancel(lambda: self._each_live(Control.cancel))
        control.on_end_thinking(lambda: self._each_live(Control.end_thinking))

    def run(self) -> None:
        """Do it all. Errors: `UsageError`, `DoesNotFit`; what goes wrong in a lane is in its results."""
        wishes = self._wishes
        settings = [wishes.settings_for(reference) for reference in wishes.references]
        for number, reference in enumerate(wishes.references):
            if self._is_cancelled():
                break
            self._status(number, "opening")
            self._lanes.append(prepare(number, reference, settings[number], wishes.seed, wishes.registry))
        groups = grouped(self._lanes)
        try:
            self._run_groups(groups)
        finally:
            for group in groups:
                _close(group)
        self._tell_of_the_rest()

    def _run_groups(self, groups: list[Group]) -> None:
        for lane in self._lanes:
            if lane.error is not None:
                self._fail(lane)
        if self._wishes.is_parallel and len(groups) > 1:
            check_together(groups)
        supply = Supply(groups, self._control, self._tell, confirm=self._wishes.confirm, on_fetch=self._wishes.on_fetch)
        if self._wishes.is_parallel and len(groups) > 1:
            self._run_at_once(supply)
        elif len(self._wishes.questions) > 1 and self._stay_together(groups):
            self._run_by_prompt(supply)
        else:
            self._run_by_group(supply, keeps_open=self._stay_together(groups))

    def _stay_together(self, groups: Sequence[Group]) -> bool:
        """Tell whether all can be open at once: all here and known to fit the memory together."""
        total, usable = needed_together(groups)
        return total is not None and total <= usable and all(group.lanes[0].is_here for group in groups)

    def _run_by_prompt(self, supply: Supply) -> None:
        groups = list(iter(supply.next, None))
        opened = {lane.number: group for group in groups if self._open(group) for lane in group.lanes}
        for prompt in range(len(self._wishes.questions)):
            for lane in self._lanes:
                if lane.number in opened:
                    self._answer(opened[lane.number], lane, prompt)

    def _run_by_group(self, supply: Supply, *, keeps_open: bool) -> None:
        before: Group | None = None
        for group in iter(supply.next, None):
            if self._is_cancelled():
                return
            if before is not None and not keeps_open:
                self._unload(before, group)
            if self._open(group):
                self._answer_all(group)
                before = group

    def _run_at_once(self, supply: Supply) -> None:
        opened = [group for group in iter(supply.next, None) if self._open(group)]
        threads = [
            threading.Thread(target=self._answer_all, args=(group, len(opened) > 1), name="compare-lane", daemon=True)
            for group in opened
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _answer_all(self, group: Group, is_parallel: bool = False) -> None:
        for prompt in range(len(self._wishes.questions)):
            for lane in group.lanes:
                self._answer(group, lane, prompt, is_parallel=is_parallel)

    def _open(self, group: Group) -> bool:
        """Open a group's model, once its files are here; return whether it is open. What fails is told."""
        if self._is_cancelled():
            return False
        failed = group.lanes[0].error
        try:
            if failed is not None:
                raise failed
            for lane in group.lanes:
                lane.maker = self._maker(lane)
            group.engine = group.lanes[0].maker
            assert group.engine is not None
            self._status(group.lanes[0].number, "loading")
            group.engine.start(self._control)
            group.load_s = group.engine.load_s
            _warm_up(group.engine, self._control)
            return True
        except SlmError as error:
            _close(group)
            if self._is_cancelled():
                return False
            for lane in group.lanes:
                lane.error = error
                self._fail(lane)
            return False

    def _maker(self, lane: Lane) -> Engine:
        """Return an engine with a lane's settings; it is not started here. Errors: those of `choose` and `Engine`."""
        if not lane.is_here:  # another lane has fetched it meanwhile
            lane.choice = choose(lane.reference, settings=lane.settings, registry=self._wishes.registry)
        assert lane.choice is not None
        return Engine(lane.choice, on_status=lambda text: self._status(lane.number, text))

    def _unload(self, before: Group, after: Group) -> None:
        _close(before)
        names = before.lanes[0].reference, after.lanes[0].reference
        total, usable = needed_together([before, after])
        why = "" if total is None else f": both need {gigabytes(total)}, {gigabytes(usable)} can be used"
        self._status(after.lanes[0].number, f"{names[0]} was unloaded before {names[1]} is loaded{why}")

    def _answer(self, group: Group, lane: Lane, prompt: int, *, is_parallel: bool = False) -> None:
        """Have a lane answer a prompt and tell what came of it; does nothing once all is cancelled."""
        engine, maker = group.engine, lane.maker
        assert engine is not None
        assert maker is not None
        question = self._wishes.questions[prompt]
        control = Control()
        with self._following(control):
            if self._is_cancelled():
                return
            take = _Take(engine, self._reason_for_no_energy(engine.plan, is_parallel=is_parallel))
            unkept: list[str] = []
            try:
                request = maker.request(question.prompt)
                for event in self._kept(take.events(request, control), lane, question.prompt, request, unkept):
                    self._tell(LaneEvent(lane=lane.number, prompt=prompt, event=event))
            except SlmError as failure:
                take.error = failure
        reply = take.reply
        load_s, group.load_s = group.load_s, 0.0
        reply = replace(reply, timings=replace(reply.timings, load_s=reply.timings.load_s + load_s))
        is_whole = take.error is None and reply.finish != "cancelled"
        self._result(
            LaneResult(
                lane=lane.number,
                prompt=prompt,
                reference=lane.reference,
                seed=lane.settings.sampling.seed,
                plan=engine.plan,
                reply=reply,
                error=take.error,
                total_s=take.total_s,
                joules=take.energy.joules,
                no_joules=take.energy.reason,
                correct=is_right(reply.answer, question.expected) if question.expected and is_whole else None,
                is_parallel=is_parallel,
                remarks=(*_remarks(reply, shares=len(group.lanes) > 1), *unkept),
            )
        )

    def _kept(
        self, events: Iterator[StreamEvent], lane: Lane, prompt: str, request: GenerationRequest, unkept: list[str]
    ) -> Iterator[StreamEvent]:
        """Pass a reply's events on and keep it in the history, each as a conversation of its own, where that is wanted.

        What could not be kept is added to `unkept`.
        """
        if self._wishes.store is None or lane.maker is None:
            yield from events
            return
        from slm_local.store import Recorder, facts_of  # sqlite3, for those who keep something

        recorder = Recorder(self._wishes.store, kind="compare")
        facts = facts_of(lane.maker.plan, request)
        with recorder.turn(prompt, model=lane.reference, system=lane.maker.system, facts=facts) as record:
            for event in events:
                record.feed(event)
                yield event
        unkept += recorder.notices

    def _reason_for_no_energy(self, plan: Plan, *, is_parallel: bool) -> str:
        """Return why the energy of a reply can't be told whatever the machine's counters say; empty where it can."""
        if is_parallel:
            return "lanes that run at once can't be told apart"
        device = device_of(probe(devices=True), plan.backend, plan.device) if plan.device.startswith("gpu") else None
        if device is not None and device.integrated is False:
            return "the counters know nothing of a graphics card of its own"
        return ""

    def _fail(self, lane: Lane) -> None:
        """Tell of every prompt that a lane failed before it began."""
        for prompt in range(len(self._wishes.questions)):
            self._result(self._no_result(lane.number, prompt, lane))

    def _tell_of_the_rest(self) -> None:
        """Give every prompt that was begun a result of each lane; all have one unless it was cancelled."""
        begun = sorted({prompt for _, prompt in self._done}) or [0]
        known = {lane.number: lane for lane in self._lanes}
        for prompt in begun if self._is_cancelled() else ():
            for number in range(len(self._wishes.references)):
                if (number, prompt) not in self._done:
                    self._result(self._no_result(number, prompt, known.get(number)))

    def _no_result(self, number: int, prompt: int, lane: Lane | None) -> LaneResult:
        error = lane.error if lane is not None else None
        return LaneResult(
            lane=number,
            prompt=prompt,
            reference=self._wishes.references[number],
            seed=lane.settings.sampling.seed if lane is not None else None,
            plan=lane.plan if lane is not None else None,
            reply=nothing("error" if error is not None else "cancelled"),
            error=error,
            no_joules="nothing ran",
        )

    def _result(self, result: LaneResult) -> None:
        self._done.add((result.lane, result.prompt))
        self._tell(result)

    def _is_cancelled(self) -> bool:
        return self._control.cancelled

    def _status(self, lane: int, text: str) -> None:
        self._tell(LaneStatus(lane=lane, text=text))

    @contextmanager
    def _following(self, control: Control) -> Iterator[None]:
        """Pass what is asked of the comparison on to one reply while it lasts."""
        self._live.add(control)
        if self._is_cancelled():
            control.cancel()
        try:
            yield
        finally:
            self._live.discard(control)

    def _each_live(self, ask: Callable[[Control], None]) -> None:
        for control in tuple(self._live):
            ask(control)


class _Take:
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


def _warm_up(engine: Engine, control: Control) -> None:
    """Have a model that was just loaded read a few random tokens and write one; a script is not played for that."""
    if engine.plan.backend == "scripted":
        return
    drawn = random.Random(WARM_UP_TOKENS)
    ids = tuple(drawn.randrange(engine.facts.vocabulary_size) for _ in range(WARM_UP_TOKENS))
    engine.reply(GenerationRequest(prompt_ids=ids, max_tokens=1), control)


def _remarks(reply: Reply, *, shares: bool) -> tuple[str, ...]:
    """Say what a lane had from another that read the same prompt before it in the same engine."""
    prompt, cached = reply.usage.prompt_tokens or 0, reply.usage.cached_tokens
    if cached is None and shares:
        return ("another lane may have read the prompt before it: its first token may have come too early",)
    if cached is not None and shares and cached >= TELLING_SHARE * prompt:
        return (f"{cached:,} of {prompt:,} prompt tokens were read by another lane: its first token came early",)
    return ()


def _close(group: Group) -> None:
    for lane in group.lanes:
        lane.maker = None
    if group.engine is not None:
        group.engine.close()
        group.engine = None
