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

from slm_local.backends.base import Backend, Chats, Structures, misbegun
from slm_local.driver.asked import check_asked, is_scored_only
from slm_local.driver.probes import Probes
from slm_local.driver.rules import Rules, rules_of
from slm_local.driver.states import moved_state
from slm_local.driver.stops import StopText
from slm_local.driver.tokens import tokens_of
from slm_local.driver.turn import Turn
from slm_local.driver.warming import Warming, common_start
from slm_local.errors import Interrupted, ModelBroken, SlmError, error_of
from slm_local.generation import (
    Control,
    Done,
    Failed,
    Finish,
    GenerationRequest,
    LoadSettings,
    ModelFacts,
    Note,
    Piece,
    Prepared,
    Prompt,
    PromptProgress,
    PromptScores,
    Started,
    StateMoved,
    StateOrder,
    StreamEvent,
    ThinkControl,
    ThinkMode,
    TokenOrder,
    Tokens,
    Update,
)
from slm_local.governor import EndReply, EndThinking
from slm_local.governor.convergence import ExitRule
from slm_local.metrics import Collector
from slm_local.template import ChatTemplate, prompt_for
from slm_local.toolcalls import ForcedCall, ToolFamily, family_of, forced_call

__all__ = ["Driver", "DriverEvent", "StopText"]

DriverEvent = StreamEvent | Prepared | StateMoved | SlmError
"""What a step yields for a request: an event, or the error that ended it."""

EXIT_RULE = ExitRule()


class Driver:
    """One loaded model and its live requests.

    Only `cancel`, `end_thinking`, `make_way` and `halt` may be called from another thread, and `end_cancelled` while
    the backend computes: `computing` is entered for that time.
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
        self._family: ToolFamily | None = None
        """How the model writes calls; None until a request offers tools."""
        self._think = ThinkControl()
        self._turns: dict[int, Turn] = {}
        self._probes = Probes(backend)
        self._waiting: deque[tuple[int, GenerationRequest, Prompt, ForcedCall | None]] = deque()
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
        facts = replace(facts, sequences=self._backend.max_sequences)
        self._think = settings.think or ThinkControl()
        if not isinstance(self._backend, Chats):
            self._template = _template_of(settings, facts)
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
        call = self._forced(request)
        if call is not None:
            request = replace(request, schema=call.schema)
        prompt = self._prompt_unless_cancelled(request_id, request)
        events = self._end_warming() + self._end_cancelled()
        self._sweep()
        self._newest_id = max(self._newest_id, request_id)
        if prompt is None:
            self._cancelled.discard(request_id)
            return [*events, (request_id, Done(reply=Collector().reply("cancelled")))]
        self._waiting.append((request_id, request, prompt, call))
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

    def tokens(self, order: TokenOrder) -> Tokens:
        """Tokenize a text or a conversation, or look up ids; what is live goes on. Errors: `UsageError`, ..."""
        assert self._rules is not None
        return tokens_of(self._backend, self._rules.facts, order, self._prompt)

    def make_way(self) -> None:
        """End what is being prepared, from any thread: a request is on its way. A decode under way is aborted."""
        self._makes_way = True
        if self._warming is not None:
            self._step_control.cancel()

    def cancel(self, request_id: int) -> None:
        """End a request soon, from any thread; a decode under way is aborted where the runtime can."""
        self._cancelled.add(request_id)
        self._step_control.cancel()

    def halt(self) -> None:
        """Abort the step under way, where the runtime can, from any thread."""
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
            elif isinstance(update, PromptScores | Note):
                events.append((request_id, replace(update, handle=None)))
                if turn.is_scored_only and isinstance(update, PromptScores):
                    events += self._end(request_id, turn, "length")
            elif isinstance(update, Failed):
                events += self._failed(request_id, error_of(update.record))
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

    def _prompt_unless_cancelled(self, request_id: int, request: GenerationRequest) -> Prompt | None:
        """Return a request's prompt; None where it was cancelled while an engine elsewhere rendered it."""
        while True:
            if self._step_control.cancelled:
                self._step_control = Control()
            try:
                return self._prompt(request)
            except Interrupted:
                if request_id in self._cancelled:
                    return None  # else another request was cancelled meanwhile

    def _prompt(self, request: GenerationRequest) -> Prompt:
        if isinstance(self._backend, Chats):
            return self._backend.prompt_for(request, self._step_control)
        if request.prompt_ids is not None:
            return Prompt(ids=request.prompt_ids, think_state="closed")
        assert self._template is not None
        assert self._rules is not None
        # a schema holds from the answer's first character on: where that is must not be for the model to decide
        think: ThinkMode = "open" if request.schema is not None and request.think == "auto" else request.think
        return prompt_for(
            self._template,
            request.messages,
            think,
            self._think,
            self._rules.tags,
            adds_bos=self._rules.facts.adds_bos,
            tools=request.tools,
        )

    def _family_for(self, request: GenerationRequest) -> ToolFamily | None:
        """Return how the model writes the calls that it may make; None: none. Errors: `UsageError`, `ModelBroken`."""
        if not request.tools or self._template is None:
            return None
        if self._family is None:
            self._family = family_of(self._template)
        return self._family

    def _forced(self, request: GenerationRequest) -> ForcedCall | None:
        """Return how the answer is made a call; None: it need be none. Errors: `UsageError`, `ModelBroken`."""
        family = self._family_for(request)
        if family is None or not request.must_call:
            return None
        return forced_call(family, request.tools, request.must_call)

    def _common_start(self, request: GenerationRequest | None) -> tuple[int, ...]:
        capabilities = self._backend.capabilities
        if request is None or self._turns or self._waiting or "rereads" in capabilities or "chat" in capabilities:
            return ()
        return common_start(
            request, lambda each: self._backend.token_ids(self._prompt(each)), lambda: not self._makes_way
        )

    def _warmed(self, warming: Warming, update: Update) -> list[tuple[int, DriverEvent]]:
        if isinstance(update, Piece):
            return self._end_warming(note="the KV cache is full")
        if not isinstance(update, PromptProgress):
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

    def _admit(self, request_id: int, request: GenerationRequest, prompt: Prompt, call: ForcedCall | None) -> Started:
        assert self._rules is not None
        check_asked(request, self._backend)
        prompt = replace(prompt, logprobs=request.logprobs, scores_prompt=request.scores_prompt)
        handle = self._backend.add(prompt, None if is_scored_only(request) else request.sampling)
        try:
            rule = self._rules.rule_for(request, prompt, handle)
        except SlmError:
            self._backend.remove(handle)
            raise
        family = self._family_for(request)
        opening = call.opening if call is not None else ""
        turn = self._turns[request_id] = Turn(request, handle, rule, self._clock, opening)
        started = Started(
            prompt_tokens=handle.prompt_tokens,
            cached_tokens=handle.cached_tokens,
            context_tokens=self._rules.facts.context_tokens,
            think_state=prompt.think_state,
            think_tokens=rule.limits.most_thinking if rule is not None else None,
            tool_family=family.name if family is not None else "",
        )
        turn.collector.feed(started)
        self._hold_to_schema(turn)
        return started

    def _admit_waiting(self) -> list[tuple[int, DriverEvent]]:
        events: list[tuple[int, DriverEvent]] = []
        while self._waiting and len(self._turns) < self._backend.max_sequences:
            request_id, request, prompt, call = self._waiting.popleft()
            try:
                events.append((request_id, self._admit(request_id, request, prompt, call)))
            except SlmError as error:
                events += self._failed(request_id, error)
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
        events: list[tuple[int, DriverEvent]] = []
        for request_id in sorted(self._hurried):
            if request_id in self._turns:
                events += self._hurry(request_id, self._turns[request_id])
            if request_id in self._turns or self._is_over(request_id):
                self._hurried.discard(request_id)
        for request_id, turn in list(self._turns.items()):
            match turn.verdict():
                case EndThinking():
                    self._backend.inject(turn.handle, turn.closing_text)
                    self._hold_to_schema(turn, closes=True)
                case EndReply(finish):
                    events += self._end(request_id, turn, finish)
        return events

    def _hurry(self, request_id: int, turn: Turn) -> list[tuple[int, DriverEvent]]:
        """End a request's thinking, or say that the engine can't."""
        if self._rules is None or self._rules.can_close:
            turn.end_thinking()
            return []
        return [(request_id, Note(text="this server has no way to end thinking: its answer comes when it comes"))]

    def _is_over(self, request_id: int) -> bool:
        return request_id <= self._newest_id and all(entry[0] != request_id for entry in self._waiting)

    def _take(self, request_id: int, turn: Turn, piece: Piece) -> list[tuple[int, DriverEvent]]:
        events = turn.feed(piece)
        if piece.end == "stop":
            events += turn.flush()
            words = turn.nudge()
            if words is not None:
                self._backend.inject(turn.handle, words)
                self._hold_to_schema(turn, closes=True)
                return [(request_id, event) for event in events]
        ended: list[tuple[int, DriverEvent]] = [(request_id, event) for event in events]
        finish = turn.finish_after(piece)
        if finish is not None:
            return ended + self._end(request_id, turn, finish)
        try:
            self._hold_to_schema(turn)
        except SlmError as error:
            ended += self._failed(request_id, error)
        return ended

    def _hold_to_schema(self, turn: Turn, *, closes: bool = False) -> None:
        """Hold an answer that begins to its schema. Errors: `SlmError` for one that began otherwise."""
        due = turn.due_schema(closes=closes)
        if due is None or "own_schema" in self._backend.capabilities:
            return  # a server was told the schema with the request
        assert isinstance(self._backend, Structures)
        if due.opening and due.begun:
            raise misbegun(due.begun)
        if due.opening:
            self._backend.inject(turn.handle, due.opening)
        self._backend.constrain(turn.handle, due.schema, due.begun)

    def _failed(self, request_id: int, error: SlmError) -> list[tuple[int, DriverEvent]]:
        """End a request with an error."""
        turn = self._turns.pop(request_id, None)
        if turn is not None:
            self._left.append(turn)
        return [(request_id, error)]

    def _end(self, request_id: int, turn: Turn, finish: Finish) -> list[tuple[int, DriverEvent]]:
        self._left.append(self._turns.pop(request_id))
        return [(request_id, event) for event in turn.end(finish)]

    def _sweep(self) -> None:
        """Have the backend end the sequences of what is over."""
        while self._left:
            turn = self._left.pop()
            self._probes.drop(turn)
            self._backend.remove(turn.handle)


def _template_of(settings: LoadSettings, facts: ModelFacts) -> ChatTemplate:
    source = settings.template or facts.chat_template
    if not source:
        raise ModelBroken(
            f"{settings.model_path} has no chat template", hint="give one: --template FILE (Jinja, as transformers)"
        )
    return ChatTemplate(
        source,
        bos_text=facts.bos_text,
        eos_text=facts.eos_text,
        control_texts=facts.control_texts,
        tags=settings.tags,
    )


def _events_or_error(events: list[tuple[int, DriverEvent]]) -> Iterator[StreamEvent]:
    for _, event in events:
        if isinstance(event, SlmError):
            raise event
        if not isinstance(event, Prepared | StateMoved):
            yield event
