"""A backend, the splitter and the governor make a stream of events; runs inside the child process.

It knows conversations and thinking but no process and no pipe. Several requests may be live: one `step` moves them
all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from slm_local.backends.base import Backend, prompt_too_long
from slm_local.driver.stops import StopText
from slm_local.driver.turn import Rule, Turn
from slm_local.errors import ModelBroken, PromptTooLong, SlmError
from slm_local.generation import (
    Control,
    Done,
    Finish,
    GenerationRequest,
    Handle,
    LoadSettings,
    ModelFacts,
    Piece,
    Prompt,
    PromptProgress,
    ReasoningTags,
    Started,
    StreamEvent,
    ThinkControl,
)
from slm_local.governor import (
    NUDGE,
    Closing,
    EndReply,
    EndThinking,
    Governor,
    Limits,
    closing_for,
    closing_texts,
    limits_for,
    reserve_tokens,
)
from slm_local.metrics import Collector
from slm_local.reasoning import ReasoningParser
from slm_local.template import ChatTemplate, prompt_for

__all__ = ["Driver", "DriverEvent", "StopText"]

DriverEvent = StreamEvent | SlmError
"""What a step yields for a request: an event, or the error that ended it."""


class Driver:
    """One loaded model and its live requests. Only `cancel` and `end_thinking` may be called from another thread."""

    def __init__(self, backend: Backend, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._clock = clock
        self._facts: ModelFacts | None = None
        self._template: ChatTemplate | None = None
        self._tags: ReasoningTags | None = None
        self._think = ThinkControl()
        self._closings: tuple[Closing, ...] = ()
        self._nudge: Closing | None = None
        self._turns: dict[int, Turn] = {}
        self._waiting: deque[tuple[int, GenerationRequest, Prompt]] = deque()
        self._cancelled: set[int] = set()
        self._hurried: set[int] = set()
        """Requests whose thinking was asked to end."""
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
        self._tags = settings.tags
        self._think = settings.think or ThinkControl()
        self._template = ChatTemplate(
            source, bos_text=facts.bos_text, eos_text=facts.eos_text, control_texts=facts.control_texts, tags=self._tags
        )
        self._facts = facts
        if self._tags is not None:
            self._closings = tuple(map(self._closing, closing_texts(self._tags, settings.bridge)))
            self._nudge = self._closing(NUDGE)
        return facts

    def _closing(self, text: str) -> Closing:
        return Closing(text=text, tokens=self._backend.token_count(text))

    @property
    def is_busy(self) -> bool:
        """Return whether any request is live or waits for a place."""
        return bool(self._turns or self._waiting)

    def start(self, request_id: int, request: GenerationRequest) -> list[tuple[int, DriverEvent]]:
        """Begin a request, or queue it until a place is free; ids count upwards.

        A request that the backend refuses is an event like those of requests that end here. Errors: those of the
        template.
        """
        prompt = self._prompt(request)
        events = self._end_cancelled()
        self._newest_id = request_id
        self._waiting.append((request_id, request, prompt))
        return events + self._admit_waiting()

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
        events += self._admit_waiting()
        events += self._govern()
        by_handle = {turn.handle.id: (request_id, turn) for request_id, turn in self._turns.items()}
        for update in self._backend.step(self._step_control):
            assert update.handle is not None
            found = by_handle.get(update.handle.id)
            if found is None or found[0] not in self._turns:
                continue  # ended by an earlier update of this very step
            request_id, turn = found
            if isinstance(update, PromptProgress):
                events.append((request_id, replace(update, handle=None)))
            else:
                events += self._take(request_id, turn, update)
        return events

    def run(self, request: GenerationRequest, control: Control | None = None) -> Iterator[StreamEvent]:
        """Drive a single request to its end."""
        request_id = self._newest_id + 1
        if control is not None:
            control.on_cancel(lambda: self.cancel(request_id))
            control.on_end_thinking(lambda: self.end_thinking(request_id))
        for _, event in self.start(request_id, request):
            yield _or_raise(event)
        while self.is_busy:
            for _, event in self.step():
                yield _or_raise(event)

    def abandon(self) -> list[int]:
        """Forget all requests after a failure of the step itself; return their ids."""
        ids = [*self._turns, *(entry[0] for entry in self._waiting)]
        for turn in self._turns.values():
            self._backend.remove(turn.handle)
        self._turns.clear()
        self._waiting.clear()
        return ids

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def _prompt(self, request: GenerationRequest) -> Prompt:
        if request.prompt_ids is not None:
            return Prompt(ids=request.prompt_ids, think_state="closed")
        assert self._template is not None
        assert self._facts is not None
        return prompt_for(
            self._template, request.messages, request.think, self._think, self._tags, adds_bos=self._facts.adds_bos
        )

    def _admit(self, request_id: int, request: GenerationRequest, prompt: Prompt) -> Started:
        assert self._facts is not None
        handle = self._backend.add(prompt, request.sampling)
        limits = self._limits(request, prompt, handle)
        if limits.room_tokens is not None and limits.room_tokens < 0:
            self._backend.remove(handle)
            raise self._too_long(request, handle.prompt_tokens or 0)
        turn = Turn(request, handle, self._rule(request, prompt, handle, limits), self._clock)
        self._turns[request_id] = turn
        started = Started(
            prompt_tokens=handle.prompt_tokens,
            cached_tokens=handle.cached_tokens,
            context_tokens=self._facts.context_tokens,
            think_state=prompt.think_state,
            think_tokens=limits.most_thinking,
        )
        turn.collector.feed(started)
        return started

    def _limits(self, request: GenerationRequest, prompt: Prompt, handle: Handle) -> Limits:
        assert self._facts is not None
        if self._tags is None or prompt.ids is not None or prompt.think_state == "closed":
            return Limits(has_loop_guard=request.has_loop_guard)
        return limits_for(
            request,
            closing_for(request.max_tokens, self._closings),
            context_tokens=self._facts.context_tokens,
            prompt_tokens=handle.prompt_tokens,
        )

    def _rule(self, request: GenerationRequest, prompt: Prompt, handle: Handle, limits: Limits) -> Rule | None:
        assert self._facts is not None
        if prompt.ids is not None:
            return None
        parser = ReasoningParser(self._tags, state=prompt.think_state)
        room = None if handle.prompt_tokens is None else self._facts.context_tokens - handle.prompt_tokens
        bounds = [each for each in (room, request.max_tokens) if each is not None]
        return Rule(
            parser=parser,
            governor=Governor(limits, parser),
            closing=closing_for(request.max_tokens, self._closings) if self._closings else None,
            nudge=self._nudge,
            room_tokens=min(bounds, default=None),
        )

    def _too_long(self, request: GenerationRequest, prompt_tokens: int) -> PromptTooLong:
        """Make the error for a prompt that leaves too little to end thinking and answer, with all counts."""
        assert self._facts is not None
        closing = closing_for(request.max_tokens, self._closings)
        return prompt_too_long(
            prompt_tokens,
            self._facts.context_tokens,
            self._facts.trained_context_tokens,
            answer_tokens=reserve_tokens(request, self._facts.context_tokens),
            closing_tokens=closing.tokens if closing is not None else 0,
        )

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
        for request_id in sorted(self._cancelled):
            if request_id > self._newest_id:
                continue  # its start is still on the way
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
        del self._turns[request_id]
        self._backend.remove(turn.handle)
        return [(request_id, event) for event in turn.end(finish)]


def _or_raise(event: DriverEvent) -> StreamEvent:
    if isinstance(event, SlmError):
        raise event
    return event
