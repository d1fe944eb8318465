"""One live request: its splitter, its governor, its stop strings, its counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slm_local.driver.asked import is_scored_only
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
    TokenScore,
    Told,
    Usage,
)
from slm_local.governor import Closing, Verdict
from slm_local.metrics import Collector
from slm_local.reasoning import Delta
from slm_local.system import own_peak_rss_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSchema:
    """What an answer that begins has to match."""

    schema: str
    begun: str = ""
    """What was written of it."""
    opening: str = ""
    """What has to be injected before it."""


class Turn:
    """One live request. `rule` None: raw, all is answer; `opening`: what is written of the answer for the model."""

    def __init__(
        self,
        request: GenerationRequest,
        handle: Handle,
        rule: Rule | None,
        clock: Callable[[], float],
        opening: str = "",
    ) -> None:
        self.handle = handle
        self.collector = Collector()
        self._request = request
        self._rule = rule
        self._clock = clock
        self._opening = opening
        self._stops = StopText(request.stop)
        self._generated = self._injected = self._nudge_tokens = self._drafted = self._accepted = 0
        self._is_nudged = False
        self._skips_injected = False
        """Whether what is injected next is a nudge behind the closing tag: no part of thinking or answer."""
        self._unsaid_answer = 0
        """Tokens of the answer that wait with held-back text."""
        self._unsaid_scores: tuple[TokenScore, ...] = ()
        """Theirs."""
        self._said_thinking = 0
        """Tokens of thinking that events have carried."""
        self._is_bridged = False
        """Whether the thinking said last was injected."""
        self._probes = self._probe_tokens = 0
        self._told: Told | None = None
        """What an engine that counts whole replies only says of this one."""
        self._is_held = False
        """Whether the answer is held to its schema."""

    @property
    def is_scored_only(self) -> bool:
        """Return whether its prompt is scored and nothing generated."""
        return is_scored_only(self._request)

    def due_schema(self, *, closes: bool = False) -> DueSchema | None:
        """Return what the answer has to match, once, when it begins; None: nothing, or not yet.

        `closes`: what was just injected ends thinking and opens the answer.
        """
        schema, rule = self._request.schema, self._rule
        if schema is None or self._is_held or (rule is not None and rule.parser.in_thinking and not closes):
            return None
        self._is_held = True
        if closes or rule is None:
            return DueSchema(schema=schema, opening=self._opening)
        begun = self.collector.reply().answer + self._stops.held
        if self._opening:
            space = rule.answer_space if rule.parser.think_tokens else ""
            return DueSchema(schema=schema, begun=begun, opening=space + self._opening)
        return DueSchema(schema=schema, begun=begun, opening="" if rule.parser.is_answering else rule.answer_open)

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
        count = piece.count
        is_opening = bool(self._opening) and self._rule is not None and self._rule.parser.is_answering
        is_injected = piece.injected and not is_opening  # what opens the answer counts as answer
        self._told = piece.told or self._told
        self._generated += count
        self._injected += count if is_injected else 0
        self._drafted += piece.drafted_tokens
        self._accepted += piece.is_accepted
        scores = () if piece.end == "stop" and self._rule is not None else piece.scores
        if self._rule is None:
            return self._events([AnswerDelta(text=piece.text, tokens=count, scores=scores)])
        if piece.injected and self._skips_injected:
            self._nudge_tokens += count
            deltas: list[Delta] = []
        else:
            self._skips_injected = self._skips_injected and not count
            deltas = self._rule.parser.feed(piece.text, count, injected=is_injected, scores=scores)
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
        if self._stops.found or (piece.end == "stop" and piece.told is None):
            return "stop"
        if piece.end is not None:
            return piece.told.finish if piece.told is not None and piece.told.finish is not None else piece.end
        if self._request.max_tokens is not None and self._generated >= self._request.max_tokens:
            return "length"
        return None

    def end(self, finish: Finish) -> list[StreamEvent]:
        """Give out what was held back and return the last events; a stop without an answer is `empty`."""
        cut = self._cut(finish)
        events = self.flush()
        rest = self._stops.flush()
        if rest or (self._unsaid_scores and not self._stops.found):
            last = AnswerDelta(text=rest, tokens=self._unsaid_answer, scores=self._unsaid_scores)
            events += self._collected([last])
        reply = self.collector.reply()
        if finish == "stop" and not reply.answer.strip():
            finish = "empty"
        timings = replace(reply.timings, peak_rss_bytes=own_peak_rss_bytes())
        return [*events, Done(reply=replace(reply, finish=finish, cut=cut, usage=self._usage(), timings=timings))]

    def _cut(self, finish: Finish) -> Cut:
        """Return why thinking ended before the model ended it; the reply's own end may be the reason."""
        if self._rule is None:
            return "none"
        if self._told is not None and self._told.cut != "none":
            return self._told.cut
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
            self._unsaid_scores += delta.scores
            text = self._stops.feed(delta.text)
            if text:
                unsaid = (self._usage().think_tokens or 0) - self._said_thinking
                if self._said_thinking and unsaid:
                    self._said_thinking += unsaid
                    events.append(ThinkDelta(text="", tokens=unsaid, injected=self._is_bridged))
                events.append(replace(delta, text=text, tokens=self._unsaid_answer, scores=self._unsaid_scores))
                self._unsaid_answer, self._unsaid_scores = 0, ()
        return self._collected(events)

    def _collected(self, events: list[StreamEvent]) -> list[StreamEvent]:
        for event in events:
            self.collector.feed(event)
        return events

    def _told_usage(self, told: Told) -> Usage:
        """Return the usage of a reply that only its engine counted; what thinking there was, the splitter knows."""
        thought = told.think_tokens if self.collector.reply().thinking else 0
        total = told.generated_tokens
        return Usage(
            prompt_tokens=told.prompt_tokens,
            cached_tokens=told.cached_tokens,
            think_tokens=thought,
            answer_tokens=max(0, total - thought) if total is not None and thought is not None else None,
            tag_tokens=None if thought != 0 else 0,
            injected_tokens=None if thought != 0 else 0,
        )

    def _usage(self) -> Usage:
        if self._told is not None:
            return self._told_usage(self._told)
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
