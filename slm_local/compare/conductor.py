"""Who runs when: opens models, has every lane answer every prompt, measures, closes. Runs in a thread of its own.

One lane at a time unless asked otherwise. Where all models fit the memory together they stay open and the prompts are
gone through one by one; else each is opened once, answers all prompts and is closed before the next is opened. Where
one is still being fetched, those that are here answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slm_local.answers import is_right
from slm_local.compare.lanes import Group, Lane, Supply, check_together, grouped, needed_together, prepare
from slm_local.compare.take import Take, no_energy, remarks_on, warm_up
from slm_local.compare.values import CompareEvent, LaneEvent, LaneResult, LaneStatus, Question, nothing
from slm_local.config import Settings
from slm_local.engine import Engine, choose, serving
from slm_local.engine.supply import Confirm, OnFetch
from slm_local.errors import SlmError
from slm_local.generation import Control, GenerationRequest, StreamEvent
from slm_local.registry import Registry
from slm_local.selector import gigabytes

if TYPE_CHECKING:
    from slm_local.store import Store


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
        self._supply: Supply | None = None
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
            lane = prepare(number, reference, settings[number], wishes.seed, wishes.registry)
            for note in lane.choice.notes if lane.choice is not None else ():
                self._status(number, note, is_remark=True)
            self._lanes.append(lane)
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
        elif self._stay_together(groups):
            self._run_by_prompt(groups)
            return
        wishes = self._wishes
        supply = Supply(groups, self._control, self._tell, confirm=wishes.confirm, on_fetch=wishes.on_fetch)
        self._supply = supply
        if wishes.is_parallel and len(groups) > 1:
            self._run_at_once(supply)
        else:
            self._run_by_group(supply)

    def _stay_together(self, groups: Sequence[Group]) -> bool:
        """Tell whether all can be open at once: all here and known to fit the memory together."""
        total, usable = needed_together(groups)
        return total is not None and total <= usable and all(group.lanes[0].is_here for group in groups)

    def _run_by_prompt(self, groups: Sequence[Group]) -> None:
        group_of = {lane.number: group for group in groups for lane in group.lanes}
        for prompt in range(len(self._wishes.questions)):
            for lane in self._lanes:
                group = group_of.get(lane.number)
                if group is not None and lane.error is None and (group.engine is not None or self._open(group)):
                    self._answer(group, lane, prompt)

    def _run_by_group(self, supply: Supply) -> None:
        before: Group | None = None
        for group in iter(supply.next, None):
            if self._is_cancelled():
                return
            if before is not None:
                self._unload(before, group)
            before = None
            if self._open(group):
                self._answer_all(group)
                before = group

    def _run_at_once(self, supply: Supply) -> None:
        opened = [group for group in iter(supply.next, None) if self._open(group)]
        for group in opened:
            if group.engine is not None and len(opened) > 1:
                group.engine.remembers_speed = False
        with ThreadPoolExecutor(max(1, len(opened)), "compare-lane") as pool:
            running = [pool.submit(self._answer_all, group, len(opened) > 1) for group in opened]
        for each in running:
            each.result()

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
            self._status(group.lanes[0].number, "loading")
            group.lanes[0].maker = group.engine = self._served(group.lanes[0]) or self._maker(group.lanes[0])
            for lane in group.lanes[1:]:
                lane.maker = self._maker(lane)
            group.engine.start(self._control)
            group.load_s = group.engine.load_s
            warm_up(group.engine, self._control)
            return True
        except SlmError as error:
            _close(group)
            if self._is_cancelled():
                return False
            for lane in group.lanes:
                lane.error = error
                self._fail(lane)
            return False

    def _served(self, lane: Lane) -> Engine | None:
        """Return a lane's model as the user's server has it open; None where there is none that does."""
        served = serving(
            lane.reference,
            settings=lane.settings,
            registry=self._wishes.registry,
            control=self._control,
            on_status=lambda text: self._status(lane.number, text),
        )
        if isinstance(served, Engine):
            return served
        if served:
            self._status(lane.number, served, is_remark=True)
        return None

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
        told = f"{names[0]} was unloaded before {names[1]} is loaded{why}"
        self._status(after.lanes[0].number, told, is_remark=True)

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
            is_fetching = self._supply is not None and self._supply.is_fetching
            take = Take(engine, no_energy(engine.plan, is_parallel=is_parallel))
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
                remarks=(*remarks_on(reply, shares=len(group.lanes) > 1, is_fetching=is_fetching), *unkept),
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
        try:
            with recorder.turn(prompt, model=lane.maker.reference, system=lane.maker.system, facts=facts) as record:
                for event in events:
                    record.feed(event)
                    yield event
        finally:
            unkept += recorder.notices

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
        )

    def _result(self, result: LaneResult) -> None:
        self._done.add((result.lane, result.prompt))
        self._tell(result)

    def _is_cancelled(self) -> bool:
        return self._control.cancelled

    def _status(self, lane: int, text: str, *, is_remark: bool = False) -> None:
        self._tell(LaneStatus(lane=lane, text=text, is_remark=is_remark))

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


def _close(group: Group) -> None:
    for lane in group.lanes:
        lane.maker = None
    if group.engine is not None:
        group.engine.close()
        group.engine = None
