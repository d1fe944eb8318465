"""What is going on in one reply, in counts and words: fed its events, asked at every frame. Knows no widget."""

from __future__ import annotations

from typing import Literal, assert_never

from slm_local.generation import (
    AnswerDelta,
    Done,
    Note,
    PromptProgress,
    PromptScores,
    Reply,
    Started,
    StreamEvent,
    ThinkDelta,
)
from slm_local.metrics import telling_tps

Phase = Literal["waiting", "reading", "thinking", "answering", "ended"]

MIN_RATE_S = 0.5
"""A rate over less time says nothing."""

NOTE_S = 8.0
"""How long it is shown what the engine decided."""


class ReplyMeter:
    """Counts one reply; times are those of `time.perf_counter`."""

    def __init__(self, begun_s: float) -> None:
        self.phase: Phase = "waiting"
        self.think_tokens = 0
        self.answer_tokens = 0
        self.started: Started | None = None
        """What the engine said at the beginning."""
        self.begun_s = begun_s
        self._read = 0.0
        self._first_s: float | None = None
        self._last_s = begun_s
        self._think_begun_s: float | None = None
        self._think_until_s = begun_s
        self._rate: float | None = None
        self._note, self._noted_s = "", begun_s

    @property
    def has_thought(self) -> bool:
        """Return whether any thinking came."""
        return self._think_begun_s is not None

    @property
    def used_tokens(self) -> int:
        """Return the tokens of context in use."""
        prompt_tokens = self.started.prompt_tokens if self.started is not None else None
        return (prompt_tokens or 0) + self.think_tokens + self.answer_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Return how fast tokens come, None before that can be told."""
        if self._rate is not None:
            return self._rate
        span_s = self._last_s - self._first_s if self._first_s is not None else 0.0
        return (self.think_tokens + self.answer_tokens) / span_s if span_s >= MIN_RATE_S else None

    @property
    def reread_s(self) -> float | None:
        """Return about how long prompt and thoughts would take to be read again, None before that can be told."""
        prompt_tokens = self.started.prompt_tokens if self.started is not None else None
        if not prompt_tokens or self._first_s is None:
            return None
        return (self._first_s - self.begun_s) * (1 + self.think_tokens / prompt_tokens)

    def feed(self, event: StreamEvent, at_s: float) -> None:
        """Take an event that came at `at_s`."""
        match event:
            case Started():
                self.phase = "reading"
                self.started = event
            case PromptProgress():
                self._read = event.done_tokens / event.total_tokens if event.total_tokens else 1.0
            case Note():
                self._note, self._noted_s = event.text, at_s
            case ThinkDelta():
                self.phase = "thinking"
                if self._think_begun_s is None:
                    self._think_begun_s = at_s
                self._think_until_s = at_s
                self.think_tokens += event.tokens
                self._note_token(at_s)
            case AnswerDelta():
                if self.phase != "answering":
                    self.phase, self._think_until_s = "answering", at_s
                self.answer_tokens += event.tokens
                self._note_token(at_s)
            case PromptScores():
                pass
            case Done():
                self.end(event.reply)
            case _:
                assert_never(event)

    def end(self, reply: Reply) -> None:
        """Take the counts of the whole reply."""
        self.phase = "ended"
        self.think_tokens = reply.usage.think_tokens or self.think_tokens
        self.answer_tokens = reply.usage.answer_tokens or self.answer_tokens
        self._rate = telling_tps([reply.timings]) or None

    def words(self, now_s: float) -> str:
        """Return what is going on."""
        match self.phase:
            case "waiting":
                return "starting"
            case "reading":
                return f"reading the prompt {self._read:.0%}".replace("%", " %")
            case "thinking":
                return f"thinking {self.counts(now_s, self.started.think_tokens if self.started is not None else None)}"
            case "answering":
                return "answering"
            case "ended":
                return "idle"
            case _:
                assert_never(self.phase)

    def note(self, now_s: float) -> str:
        """Return what the engine decided a moment ago, empty where it did nothing of the kind."""
        return self._note if now_s - self._noted_s < NOTE_S else ""

    def line(self, now_s: float) -> str:
        """Return what is going on, and how fast."""
        speed = f"{self.tokens_per_s:.0f} tokens/s" if self.tokens_per_s is not None else ""
        generated = self.think_tokens + self.answer_tokens
        state = f"{generated:,} tokens" if self.phase == "ended" else self.words(now_s)
        return " · ".join(filter(None, (state, speed)))

    def counts(self, now_s: float | None = None, limit: int | None = None) -> str:
        """Return how much was thought, of how much that may be, for how long; `now_s` None: until it ended."""
        until_s = self._think_until_s if now_s is None else now_s
        return thought_counts(self.think_tokens, until_s - (self._think_begun_s or until_s), limit)

    def _note_token(self, at_s: float) -> None:
        if self._first_s is None:
            self._first_s = at_s
        self._last_s = at_s


def thought_counts(tokens: int | None, seconds: float | None, limit: int | None = None) -> str:
    """Return how much was thought for how long, as far as it is known."""
    most = f" of {limit:,}" if limit is not None else ""
    counts = "" if tokens is None else f"{tokens:,}{most} {'token' if tokens == 1 and not most else 'tokens'}"
    took = "" if seconds is None else f"{seconds:.0f} s" if seconds >= 10.0 else f"{seconds:.1f} s"
    return " · ".join(filter(None, (counts, took)))
