"""A backend, the splitter and the limits make a stream of events; runs inside the child process.

It knows conversations and thinking but no process, no pipe and no clock but the peak memory's. Several requests may
be live: one `step` moves them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from slm_local.backends.base import Backend
from slm_local.errors import ModelBroken, SlmError
from slm_local.generation import (
    AnswerDelta,
    Control,
    Cut,
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
    ThinkDelta,
    Usage,
)
from slm_local.metrics import Collector
from slm_local.reasoning import Delta, ReasoningParser
from slm_local.system import own_peak_rss_bytes
from slm_local.template import ChatTemplate, prompt_for

DriverEvent = StreamEvent | SlmError
"""What a step yields for a request: an event, or the error that ended it."""


class Driver:
    """One loaded model and its live requests. Only `cancel` may be called from another thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._facts: ModelFacts | None = None
        self._template: ChatTemplate | None = None
        self._tags: ReasoningTags | None = None
        self._think = ThinkControl()
        self._turns: dict[int, _Turn] = {}
        self._waiting: deque[tuple[int, GenerationRequest, Prompt]] = deque()
        self._cancelled: set[int] = set()
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
        return facts

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

    def step(self) -> list[tuple[int, DriverEvent]]:
        """Move all live requests by one step; return their events in order."""
        if self._step_control.cancelled:
            self._step_control = Control()  # before the cancelled are looked at, so that none is missed
        events = self._end_cancelled()
        events += self._admit_waiting()
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
        is_raw = prompt.ids is not None
        parser = None if is_raw else ReasoningParser(self._tags, state=prompt.think_state)
        turn = _Turn(request, handle, parser)
        self._turns[request_id] = turn
        started = Started(
            prompt_tokens=handle.prompt_tokens,
            cached_tokens=handle.cached_tokens,
            context_tokens=self._facts.context_tokens,
            think_state=prompt.think_state,
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
        for request_id in sorted(self._cancelled):
            if request_id > self._newest_id:
                continue  # its start is still on the way
            self._cancelled.discard(request_id)
            turn = self._turns.get(request_id)
            if turn is not None:
                self._backend.remove(turn.handle)
                events += [(request_id, event) for event in self._end(request_id, turn, "cancelled", "none")]
            for entry in [entry for entry in self._waiting if entry[0] == request_id]:
                self._waiting.remove(entry)
                events.append((request_id, Done(reply=Collector().reply("cancelled"))))
        return events

    def _take(self, request_id: int, turn: _Turn, piece: Piece) -> list[tuple[int, DriverEvent]]:
        events = turn.feed(piece)
        verdict = turn.verdict(piece)
        if verdict is not None:
            if piece.end is None:
                self._backend.remove(turn.handle)
            events += self._end(request_id, turn, *verdict)
        return [(request_id, event) for event in events]

    def _end(self, request_id: int, turn: _Turn, finish: Finish, cut: Cut) -> list[StreamEvent]:
        del self._turns[request_id]
        return turn.end(finish, cut)


def _or_raise(event: DriverEvent) -> StreamEvent:
    if isinstance(event, SlmError):
        raise event
    return event


class _Turn:
    """One live request: its parser, its stop strings, its counts."""

    def __init__(self, request: GenerationRequest, handle: Handle, parser: ReasoningParser | None) -> None:
        self.handle = handle
        self.collector = Collector()
        self._request = request
        self._parser = parser
        """None: raw, all is answer."""
        self._stops = StopText(request.stop)
        self._generated = self._injected = 0
        self._unsaid_answer = 0
        """Tokens of the answer that wait with held-back text."""

    def feed(self, piece: Piece) -> list[StreamEvent]:
        """Return the events of a piece."""
        count = len(piece.ids)
        self._generated += count
        self._injected += count if piece.injected else 0
        if self._parser is None:
            return self._events([AnswerDelta(text=piece.text, tokens=count)])
        return self._events(self._parser.feed(piece.text, count, injected=piece.injected))

    def verdict(self, piece: Piece) -> tuple[Finish, Cut] | None:
        """Return how the reply ended, or None while it goes on."""
        thinks = self._parser is not None and self._parser.in_thinking
        if self._stops.found or piece.end == "stop":
            return "stop", "none"
        if piece.end == "context":
            return "context", "context" if thinks else "none"
        if self._request.max_tokens is not None and self._generated >= self._request.max_tokens:
            return "length", "max_tokens" if thinks else "none"
        return None

    def end(self, finish: Finish, cut: Cut) -> list[StreamEvent]:
        """Give out what was held back and return the last events; a stop without an answer is `empty`."""
        events = self._events(self._parser.finish() if self._parser is not None else [])
        rest = self._stops.flush()
        if rest:
            events += self._collected([AnswerDelta(text=rest, tokens=self._unsaid_answer)])
        reply = self.collector.reply()
        if finish == "stop" and not reply.answer.strip():
            finish = "empty"
        timings = replace(reply.timings, peak_rss_bytes=own_peak_rss_bytes())
        return [*events, Done(reply=replace(reply, finish=finish, cut=cut, usage=self._usage(), timings=timings))]

    def _events(self, deltas: Sequence[Delta]) -> list[StreamEvent]:
        """Pass thinking on, and of the answer what can't belong to a stop string."""
        events: list[StreamEvent] = []
        for delta in deltas:
            if isinstance(delta, ThinkDelta):
                events.append(delta)
                continue
            self._unsaid_answer += delta.tokens
            text = self._stops.feed(delta.text)
            if text:
                events.append(replace(delta, text=text, tokens=self._unsaid_answer))
                self._unsaid_answer = 0
        return self._collected(events)

    def _collected(self, events: list[StreamEvent]) -> list[StreamEvent]:
        for event in events:
            self.collector.feed(event)
        return events

    def _usage(self) -> Usage:
        parser = self._parser
        return Usage(
            prompt_tokens=self.handle.prompt_tokens,
            cached_tokens=self.handle.cached_tokens,
            think_tokens=parser.think_tokens if parser is not None else 0,
            answer_tokens=parser.answer_tokens if parser is not None else self._generated,
            tag_tokens=parser.tag_tokens if parser is not None else 0,
            injected_tokens=self._injected,
        )


class StopText:
    """Cuts a text at the first of several strings, whatever its chunks; the string itself is not part of it."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Return the text that is certain not to belong to a stop string."""
        if not self._stops:
            return text
        if self.found:
            return ""
        window = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := window.find(stop)) >= 0]
        if ends:  # the one that is complete first, so that chunks make no difference
            self.found, self._held = True, ""
            return window[: min(ends)[1]]
        keep = self._hold_back(window)
        self._held = window[len(window) - keep :] if keep else ""
        return window[: len(window) - keep]

    def flush(self) -> str:
        """Return what was held back."""
        rest, self._held = self._held, ""
        return rest

    def _hold_back(self, window: str) -> int:
        """Return how many characters at the end could begin a stop string."""
        for size in range(min(self._hold, len(window)), 0, -1):
            if any(stop.startswith(window[-size:]) for stop in self._stops):
                return size
        return 0
