"""Events to usage and timings: collects one reply as it streams, by the clock of whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from slm_local.generation import (
    AnswerDelta,
    Cut,
    Done,
    Finish,
    PromptProgress,
    Reply,
    Started,
    StreamEvent,
    ThinkDelta,
    Timings,
    Usage,
)


class Collector:
    """Is fed every event of one generation and knows the reply so far, finished or not."""

    def __init__(self, *, load_s: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._load_s = load_s
        self._begun = clock()
        self._started_at: float | None = None
        self._first_token_at: float | None = None
        self._first_answer_at: float | None = None
        self._last_token_at: float | None = None
        self._thinking: list[str] = []
        self._answer: list[str] = []
        self._prompt_tokens: int | None = 0
        self._cached_tokens: int | None = 0
        self._think_tokens = self._answer_tokens = 0
        self._done: Reply | None = None

    def feed(self, event: StreamEvent) -> None:
        """Take note of an event that came just now."""
        now = self._clock()
        match event:
            case Started():
                self._started_at = now
                self._prompt_tokens, self._cached_tokens = event.prompt_tokens, event.cached_tokens
            case PromptProgress():
                pass
            case ThinkDelta():
                self._thinking.append(event.text)
                self._think_tokens += event.tokens
                self._note_token(now)
            case AnswerDelta():
                self._answer.append(event.text)
                self._first_answer_at = self._first_answer_at or now
                self._answer_tokens += event.tokens
                self._note_token(now)
            case Done():
                self._last_token_at = now
                self._done = event.reply
            case _:
                assert_never(event)

    def reply(self, finish: Finish = "error", cut: Cut = "none") -> Reply:
        """Return the reply with timings by this collector's clock; `finish` and `cut` count only before `Done`."""
        if self._done is not None:
            peak = self._done.timings.peak_rss_bytes
            return replace(self._done, timings=self._timings(self._done.usage, peak))
        usage = Usage(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            think_tokens=self._think_tokens,
            answer_tokens=self._answer_tokens,
        )
        return Reply(
            thinking="".join(self._thinking),
            answer="".join(self._answer),
            finish=finish,
            cut=cut,
            usage=usage,
            timings=self._timings(usage, 0),
        )

    def _note_token(self, now: float) -> None:
        self._first_token_at = self._first_token_at or now
        self._last_token_at = now

    def _timings(self, usage: Usage, peak_rss_bytes: int) -> Timings:
        first, last, started = self._first_token_at, self._last_token_at, self._started_at
        prefill_s = first - started if first is not None and started is not None else 0.0
        decode_s = last - first if first is not None and last is not None else 0.0
        decoded = (usage.think_tokens or 0) + (usage.answer_tokens or 0) - 1
        return Timings(
            load_s=self._load_s,
            prefill_s=prefill_s,
            first_token_s=first - self._begun if first is not None else 0.0,
            first_answer_s=self._first_answer_at - self._begun if self._first_answer_at is not None else 0.0,
            decode_s=decode_s,
            prefill_tps=prefill_tps(usage, prefill_s),
            decode_tps=decoded / decode_s if decode_s > 0.0 and decoded > 0 else 0.0,
            peak_rss_bytes=peak_rss_bytes,
        )


def prefill_tps(usage: Usage, prefill_s: float) -> float:
    """Return prompt tokens read per second, not counting those found in the KV cache; 0 when there was nothing."""
    read = (usage.prompt_tokens or 0) - (usage.cached_tokens or 0)
    return read / prefill_s if prefill_s > 0.0 else 0.0
