"""A backend, the splitter and the governor make a stream of events; runs inside the child process.

It knows conversations and thinking but no process and no pipe. Several requests may be live: one `step` moves them
all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from slm_local.backends.base import Backend
from slm_local.driver.probes import Probes
from slm_local.driver.rules import Rules, rules_of
from slm_local.driver.states import moved_state
from slm_local.driver.stops import StopText
from slm_local.driver.turn import Turn
from slm_local.driver.warming import Warming, common_start
from slm_local.errors import ModelBroken, SlmError
from slm_local.generation import (
    Control,
    Done,
    Finish,
    GenerationRequest,
    LoadSettings,
    ModelFacts,
    Note,
    Piece,
    Prepared,
    Prompt,
    PromptProgress,
    Started,
    StateMoved,
    StateOrder,
    StreamEvent,
    ThinkControl,
    Update,
)
from slm_local.governor import EndReply, EndThinking
from slm_local.governor.convergence import ExitRule
from slm_local.metrics import Collector
from slm_local.template import ChatTemplate, prompt_for

__all__ = ["Driver", "DriverEvent", "StopText"]

DriverEvent = StreamEvent | Prepared | StateMoved | SlmError
"""What a step yields for a request: an event, or the error that ended it."""

EXIT_RULE = ExitRule()


class Driver:
    """One loaded model and its live requests.

    Only `cancel`, `end_thinking` and `make_way` may be called from another thread, and `end_cancelled` while the
    backend computes: `computing` is entered for that time.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], float] = time.monotonic,
        exit_rule: ExitRule = EXIT_RULE,
        computing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._backend = backend
        self._computing = computing
        self._clock = clock
        self._exit_rule = exit_rule
        self._rules: Rules | None = None
        self._template: ChatTemplate | None = None
        self._think = ThinkControl()
        self._turns: dict[int, Turn] = {}
        self._probes = Probes(backend)
        self._waiting: deque[tuple[int, GenerationRequest, Prompt]] = deque()
        self._left: list[Turn] = []
        """Turns that are over, whose sequences the backend still has."""
        self._cancelled: set[int] = set()
        self._hurried: set[int] = set()
        """Requests whose thinking was asked to end."""
        self._warming: Warming | None = None
        self._makes_way = False
        """Whether a request is on its way, for which whatever is being prepared has to end."""
        self._newest_id = 0
        self._step_control = Control()

    def load(self, settings: LoadSettings, control: Control, on_progress: Callable[[float], None]) -> ModelFacts:
        """Load the model and its chat template. Errors: those of the backend, `ModelBroken` without a template."""
        facts = self._backend.load(settings, control, on_progress)
        source = settings.template or facts.chat_template
        if not source:
            raise ModelBroken(
                f"{settings.model_path} has no chat template", hint="give one: --template FILE (Jinja, as transformers)"
            )
        self._think = settings.think or ThinkControl()
        self._template = ChatTemplate(
            source,
            bos_text=facts.bos_text,
            eos_text=facts.eos_text,
            control_texts=facts.control_texts,
            tags=settings.tags,
        )
        self._rules = rules_of(self._backend, facts, settings.tags, settings.bridge, self._exit_rule)
        return facts

    @property
    def is_busy(self) -> bool:
        """Return whether any request is live or waits for a place, or something is being prepared."""
        return bool(self._turns or self._waiting or self._warming or self._left)

    def start(self, request_id: int, request: GenerationRequest) -> list[tuple[int, DriverEvent]]:
        """Begin a request, or queue it until a place is free; ids count upwards.

        A request that the backend refuses is an event like those of requests that end here. Errors: those of the
        template.
        """
        self._makes_way = False
        prompt = self._prompt(request)
        events = self._end_warming() + self._end_cancelled()
        self._sweep()
        self._newest_id = max(self._newest_id, request_id)
        self._waiting.append((request_id, request, prompt))
        return events + self._admit_waiting()

    def prepare(self, request_id: int, request: GenerationRequest) -> list[tuple[int, DriverEvent]]:
        """Begin to read what the next prompt will begin with, for which `step` is to be called; `Prepared` is its end.

        The request's last message is the next one as far as it is known, empty where nothing is. Whatever else is to be
        done comes first: a request on its way or live ends it at once, and what was read by then stays.
        """
        self._newest_id = max(self._newest_id, request_id)
        events = self._end_warming()
        over = Prepared(held_tokens=0, total_tokens=0)
        try:
            ids = self._common_start(request)
            handle = self._backend.add(Prompt(ids=ids, think_state="closed"), None) if ids else None
        except SlmError as error:
            handle, over = None, replace(over, note=error.message)
        if handle is None:
            return [*events, (request_id, over)]
        self._warming = Warming(request_id=request_id, handle=handle, held_tokens=handle.cached_tokens)
        return events + (self._end_warming() if self._warming.is_whole else [])

    def move_state(self, request_id: int, order: StateOrder) -> list[tuple[int, DriverEvent]]:
        """Save or restore a KV state; blocks. What is being prepared ends first."""
        self._makes_way = False
        events = self._end_warming()
        try:
            moved = moved_state(self._backend, order, lambda: self._common_start(order.request))
        except SlmError as error:
            moved = StateMoved(tokens=0, note=error.message)
        return [*events, (request_id, moved)]

    def make_way(self) -> None:
        """End what is being prepared, from any thread: a request is on its way. A decode under way is aborted."""
        self._makes_way = True
        if self._warming is not None:
            self._step_control.cancel()

    def cancel(self, request_id: int) -> None:
        """End a request soon, from any thread; a decode under way is aborted where the runtime can."""
        self._cancelled.add(request_id)
        self._step_control.cancel()

    def end_thinking(self, request_id: int) -> None:
        """Have a request's thinking end before its next token, from any thread; without effect once it answers."""
        self._hurried.add(request_id)

    def step(self) -> list[tuple[int, DriverEvent]]:
        """Move all live requests by one step; return their events in order."""
        if self._step_control.cancelled:
            self._step_control = Control()  # before the cancelled are looked at, so that none is missed
        events = self._end_cancelled()
        events += self._end_warming() if self._makes_way else []
        self._sweep()
        events += self._admit_waiting()
        events += self._govern()
        self._sweep()
        if self._rules is not None:
            self._probes.tend(self._turns, self._rules.facts.context_tokens)
        by_handle = {turn.handle.id: (request_id, turn) for request_id, turn in self._turns.items()}
        with self._computing():
            updates = self._backend.step(self._step_control)
        for update in updates:
            assert update.handle is not None
            if self._warming is not None and update.handle.id == self._warming.handle.id:
                events += self._warmed(self._warming, update)
                continue
            found = by_handle.get(update.handle.id)
            if isinstance(update, Piece) and self._probes.take(update):
                continue
            if found is None or found[0] not in self._turns:
                continue  # ended by an earlier update of this very step
            request_id, turn = found
            if isinstance(update, PromptProgress):
                turn.handle = update.handle
                events.append((request_id, replace(update, handle=None)))
            elif isinstance(update, Note):
                events.append((request_id, replace(update, handle=None)))
            else:
                events += self._take(request_id, turn, update)
        self._sweep()
        return events

    def run(self, request: GenerationRequest, control: Control | None = None) -> Iterator[StreamEvent]:
        """Drive a single request to its end."""
        request_id = self._newest_id + 1
        if control is not None:
            control.on_cancel(lambda: self.cancel(request_id))
            control.on_end_thinking(lambda: self.end_thinking(request_id))
        yield from _events_or_error(self.start(request_id, request))
        while self.is_busy:
            yield from _events_or_error(self.step())

    def abandon(self) -> list[int]:
        """Forget all requests after a failure of the step itself; return their ids."""
        ids = [*self._turns, *(entry[0] for entry in self._waiting)]
        self._probes.drop_all()
        ids += [request_id for request_id, _ in self._end_warming()]
        self._left += self._turns.values()
        self._turns.clear()
        self._sweep()
        self._waiting.clear()
        return ids

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def _prompt(self, request: GenerationRequest) -> Prompt:
        if request.prompt_ids is not None:
            return Prompt(ids=request.prompt_ids, think_state="closed")
        assert self._template is not None
        assert self._rules is not None
        tags, facts = self._rules.tags, self._rules.facts
        return prompt_for(self._template, request.messages, request.think, self._think, tags, adds_bos=facts.adds_bos)

    def _common_start(self, request: GenerationRequest | None) -> tuple[int, ...]:
        if request is None or self._turns or self._waiting or "rereads" in self._backend.capabilities:
            return ()
        return common_start(
            request, lambda each: self._backend.token_ids(self._prompt(each)), lambda: not self._makes_way
        )

    def _warmed(self, warming: Warming, update: Update) -> list[tuple[int, DriverEvent]]:
        if isinstance(update, Piece):
            return self._end_warming(note="the KV cache is full")
        if isinstance(update, Note):
            return []  # it is for whoever waits
        warming.held_tokens = update.done_tokens
        events: list[tuple[int, DriverEvent]] = [(warming.request_id, replace(update, handle=None))]
        return events + (self._end_warming() if warming.is_whole else [])

    def _end_warming(self, note: str = "") -> list[tuple[int, DriverEvent]]:
        if self._warming is None:
            return []
        warming, self._warming = self._warming, None
        self._backend.remove(warming.handle)
        total = warming.handle.prompt_tokens or 0
        over = Prepared(
            held_tokens=warming.held_tokens,
            total_tokens=total,
            cached_tokens=warming.handle.cached_tokens,
            note=note,
        )
        return [(warming.request_id, over)]

    def _admit(self, request_id: int, request: GenerationRequest, prompt: Prompt) -> Started:
        assert self._rules is not None
        handle = self._backend.add(prompt, request.sampling)
        try:
            rule = self._rules.rule_for(request, prompt, handle)
        except SlmError:
            self._backend.remove(handle)
            raise
        turn = self._turns[request_id] = Turn(request, handle, rule, self._clock)
        started = Started(
            prompt_tokens=handle.prompt_tokens,
            cached_tokens=handle.cached_tokens,
            context_tokens=self._rules.facts.context_tokens,
            think_state=prompt.think_state,
            think_tokens=rule.limits.most_thinking if rule is not None else None,
        )
        turn.collector.feed(started)
        return started

    def _admit_waiting(self) -> list[tuple[int, DriverEvent]]:
        events: list[tuple[int, DriverEvent]] = []
        while self._waiting and len(self._turns) < self._backend.max_sequences:
            request_id, request, prompt = self._waiting.popleft()
            try:
                events.append((request_id, self._admit(request_id, request, prompt)))
            except SlmError as error:
                events.append((request_id, error))
        return events

    def _end_cancelled(self) -> list[tuple[int, DriverEvent]]:
        events: list[tuple[int, DriverEvent]] = []
        if self._warming is not None and self._warming.request_id in self._cancelled:
            events = self._end_warming()
        return events + self.end_cancelled()

    def end_cancelled(self) -> list[tuple[int, DriverEvent]]:
        """End the requests that were cancelled; return their last events. The next step frees their places."""
        events: list[tuple[int, DriverEvent]] = []
        for request_id in sorted(self._cancelled):
            if request_id > self._newest_id or (self._warming and self._warming.request_id == request_id):
                continue  # its start is still on the way, or the backend has to end it
            self._cancelled.discard(request_id)
            turn = self._turns.get(request_id)
            if turn is not None:
                events += self._end(request_id, turn, "cancelled")
            for entry in [entry for entry in self._waiting if entry[0] == request_id]:
                self._waiting.remove(entry)
                events.append((request_id, Done(reply=Collector().reply("cancelled"))))
        return events

    def _govern(self) -> list[tuple[int, DriverEvent]]:
        """End the thinking, or the replies, whose time has come."""
        for request_id in sorted(self._hurried):
            if request_id in self._turns:
                self._turns[request_id].end_thinking()
            if request_id in self._turns or self._is_over(request_id):
                self._hurried.discard(request_id)
        events: list[tuple[int, DriverEvent]] = []
        for request_id, turn in list(self._turns.items()):
            match turn.verdict():
                case EndThinking():
                    self._backend.inject(turn.handle, turn.closing_text)
                case EndReply(finish):
                    events += self._end(request_id, turn, finish)
        return events

    def _is_over(self, request_id: int) -> bool:
        return request_id <= self._newest_id and all(entry[0] != request_id for entry in self._waiting)

    def _take(self, request_id: int, turn: Turn, piece: Piece) -> list[tuple[int, DriverEvent]]:
        events = turn.feed(piece)
        if piece.end == "stop":
            events += turn.flush()
            words = turn.nudge()
            if words is not None:
                self._backend.inject(turn.handle, words)
                return [(request_id, event) for event in events]
        ended: list[tuple[int, DriverEvent]] = [(request_id, event) for event in events]
        finish = turn.finish_after(piece)
        return ended if finish is None else ended + self._end(request_id, turn, finish)

    def _end(self, request_id: int, turn: Turn, finish: Finish) -> list[tuple[int, DriverEvent]]:
        self._left.append(self._turns.pop(request_id))
        return [(request_id, event) for event in turn.end(finish)]

    def _sweep(self) -> None:
        """Have the backend end the sequences of what is over."""
        while self._left:
            turn = self._left.pop()
            self._probes.drop(turn)
            self._backend.remove(turn.handle)


def _events_or_error(events: list[tuple[int, DriverEvent]]) -> Iterator[StreamEvent]:
    for _, event in events:
        if isinstance(event, SlmError):
            raise event
        if not isinstance(event, Prepared | StateMoved):
            yield event
