"""One live request: its splitter, its governor, its stop strings, its counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from slm_local.driver.rules import Rule
from slm_local.driver.stops import StopText
from slm_local.generation import (
    AnswerDelta,
    Cut,
    Done,
    Finish,
    GenerationRequest,
    Handle,
    Piece,
    StreamEvent,
    ThinkDelta,
    Usage,
)
from slm_local.governor import Closing, Verdict
from slm_local.metrics import Collector
from slm_local.reasoning import Delta
from slm_local.system import own_peak_rss_bytes


class Turn:
    """One live request. `rule` None: raw, all is answer."""

    def __init__(
        self, request: GenerationRequest, handle: Handle, rule: Rule | None, clock: Callable[[], float]
    ) -> None:
        self.handle = handle
        self.collector = Collector()
        self._request = request
        self._rule = rule
        self._clock = clock
        self._stops = StopText(request.stop)
        self._generated = self._injected = self._nudge_tokens = self._drafted = self._accepted = 0
        self._is_nudged = False
        self._skips_injected = False
        """Whether what is injected next is a nudge behind the closing tag: no part of thinking or answer."""
        self._unsaid_answer = 0
        """Tokens of the answer that wait with held-back text."""
        self._said_thinking = 0
        """Tokens of thinking that events have carried."""
        self._is_bridged = False
        """Whether the thinking said last was injected."""
        self._probes = self._probe_tokens = 0

    def end_thinking(self) -> None:
        """Have thinking end as soon as there is any."""
        if self._rule is not None:
            self._rule.governor.end_thinking()

    def verdict(self) -> Verdict | None:
        """Say what has to end before the next step."""
        return self._rule.governor.verdict(self._clock()) if self._rule is not None else None

    @property
    def closing_text(self) -> str:
        """Return what ends thinking in the model's place."""
        assert self._rule is not None
        assert self._rule.closing is not None
        return self._rule.closing.text

    def feed(self, piece: Piece) -> list[StreamEvent]:
        """Return the events of a piece."""
        count = len(piece.ids)
        self._generated += count
        self._injected += count if piece.injected else 0
        self._drafted += piece.drafted_tokens
        self._accepted += piece.is_accepted
        if self._rule is None:
            return self._events([AnswerDelta(text=piece.text, tokens=count)])
        if piece.injected and self._skips_injected:
            self._nudge_tokens += count
            deltas: list[Delta] = []
        else:
            self._skips_injected = self._skips_injected and not piece.ids
            deltas = self._rule.parser.feed(piece.text, count, injected=piece.injected)
        self._rule.governor.feed(piece, self._clock())
        if self._rule.convergence is not None and self._rule.parser.in_thinking:
            self._rule.convergence.feed(piece.text, self._rule.parser.thought_tokens)
        return self._events(deltas)

    @property
    def is_thinking(self) -> bool:
        """Return whether it thinks, and was not told to end."""
        return self._rule is not None and self._rule.governor.is_thinking

    @property
    def is_reading(self) -> bool:
        """Return whether nothing was generated yet."""
        return not self._generated

    @property
    def held_tokens(self) -> int:
        """Return how much of a context it takes so far."""
        return (self.handle.prompt_tokens or 0) + self._generated

    def due_probe(self) -> Closing | None:
        """Return what to put behind the thinking to try its answer here; None: not now."""
        rule = self._rule
        if rule is None or rule.convergence is None or not rule.governor.is_thinking:
            return None
        return rule.probe if rule.convergence.is_due() else None

    def begin_probe(self) -> None:
        """Take note that a probe begins here."""
        assert self._rule is not None
        assert self._rule.convergence is not None
        self._rule.convergence.begin()
        self._probes += 1

    def count_probe(self, tokens: int) -> None:
        """Count tokens that a probe read or wrote."""
        self._probe_tokens += tokens

    def take_probe(self, answer: str | None) -> None:
        """Take what a probe said; None: no answer."""
        assert self._rule is not None
        assert self._rule.convergence is not None
        self._rule.convergence.take(answer)
        if self._rule.convergence.is_converged:
            self._rule.governor.settle()

    def flush(self) -> list[StreamEvent]:
        """Give out what the splitter held back: no tag will be finished any more."""
        return self._events(self._rule.parser.finish() if self._rule is not None else [])

    def nudge(self) -> str | None:
        """Return what to give a model that stopped without an answer, once; None: nothing, the reply ends."""
        rule = self._rule
        if rule is None or self._is_nudged or self._stops.found:
            return None
        if not rule.parser.in_thinking and (self.collector.reply().answer + self._stops.held).strip():
            return None
        words = rule.closing if rule.parser.in_thinking else rule.nudge
        if words is None or not self._has_room_for(words.tokens + 1):
            return None
        self._is_nudged, self._skips_injected = True, words is rule.nudge
        return words.text

    def _has_room_for(self, tokens: int) -> bool:
        assert self._rule is not None
        room = self._rule.room_tokens
        return room is None or self._generated + tokens <= room

    def finish_after(self, piece: Piece) -> Finish | None:
        """Return how the reply ended with a piece, or None while it goes on."""
        if self._stops.found or piece.end == "stop":
            return "stop"
        if piece.end == "context":
            return "context"
        if self._request.max_tokens is not None and self._generated >= self._request.max_tokens:
            return "length"
        return None

    def end(self, finish: Finish) -> list[StreamEvent]:
        """Give out what was held back and return the last events; a stop without an answer is `empty`."""
        cut = self._cut(finish)
        events = self.flush()
        rest = self._stops.flush()
        if rest:
            events += self._collected([AnswerDelta(text=rest, tokens=self._unsaid_answer)])
        reply = self.collector.reply()
        if finish == "stop" and not reply.answer.strip():
            finish = "empty"
        timings = replace(reply.timings, peak_rss_bytes=own_peak_rss_bytes())
        return [*events, Done(reply=replace(reply, finish=finish, cut=cut, usage=self._usage(), timings=timings))]

    def _cut(self, finish: Finish) -> Cut:
        """Return why thinking ended before the model ended it; the reply's own end may be the reason."""
        if self._rule is None:
            return "none"
        if self._rule.governor.cut == "none" and self._rule.parser.in_thinking:
            return "max_tokens" if finish == "length" else "context" if finish == "context" else "none"
        return self._rule.governor.cut

    def _events(self, deltas: Sequence[Delta]) -> list[StreamEvent]:
        """Pass thinking on, and of the answer what can't belong to a stop string.

        The closing tag's tokens, which no text carries, come before the answer: whoever counts them as they come then
        has the count of the usage.
        """
        events: list[StreamEvent] = []
        for delta in deltas:
            if isinstance(delta, ThinkDelta):
                self._said_thinking += delta.tokens
                self._is_bridged = delta.injected
                events.append(delta)
                continue
            self._unsaid_answer += delta.tokens
            text = self._stops.feed(delta.text)
            if text:
                unsaid = (self._usage().think_tokens or 0) - self._said_thinking
                if self._said_thinking and unsaid:
                    self._said_thinking += unsaid
                    events.append(ThinkDelta(text="", tokens=unsaid, injected=self._is_bridged))
                events.append(replace(delta, text=text, tokens=self._unsaid_answer))
                self._unsaid_answer = 0
        return self._collected(events)

    def _collected(self, events: list[StreamEvent]) -> list[StreamEvent]:
        for event in events:
            self.collector.feed(event)
        return events

    def _usage(self) -> Usage:
        parser = self._rule.parser if self._rule is not None else None
        return Usage(
            prompt_tokens=self.handle.prompt_tokens,
            cached_tokens=self.handle.cached_tokens,
            think_tokens=(parser.think_tokens if parser is not None else 0) + self._nudge_tokens,
            answer_tokens=parser.answer_tokens if parser is not None else self._generated,
            tag_tokens=parser.tag_tokens if parser is not None else 0,
            injected_tokens=self._injected,
            probes=self._probes,
            probe_tokens=self._probe_tokens,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )
