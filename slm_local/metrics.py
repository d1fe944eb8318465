"""Events to usage and timings, and readings to energy: what one reply took, by the clock of whoever listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import assert_never

from slm_local.generation import (
    AnswerDelta,
    Cut,
    Done,
    Finish,
    Note,
    PromptProgress,
    PromptScores,
    Reply,
    Started,
    StreamEvent,
    ThinkDelta,
    Timings,
    Usage,
)
from slm_local.system import EnergyReading, read_energy

TELLING_DECODE_S = 0.05
"""Tokens that all came within less tell how the system shared out its time, not how fast the model is."""

SAMPLE_S = 0.5
"""How often energy is read: long before a counter starts anew (minutes at worst), about as often as a battery's gauge
has something new to say."""

MIN_BATTERY_S = 10.0
"""A battery's gauge follows the load with seconds of delay: below this its power says little of a reply."""

MIN_STORED_S = 60.0
"""The same for what is left in a battery, where that alone is told: its steps are of tens of joules, what a laptop
spends in seconds."""


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
            case PromptProgress() | PromptScores() | Note():
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
        injected = usage.injected_tokens or 0  # read like a prompt, not decoded
        decoded = (usage.think_tokens or 0) + (usage.answer_tokens or 0) - injected - 1
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


def telling_tps(replies: Sequence[Timings]) -> float:
    """Return the speed of all tokens after each reply's first, 0 where they came too fast to tell.

    A mean of speeds would be that of the short replies.
    """
    decode_s = sum(each.decode_s for each in replies)
    return sum(each.decode_tps * each.decode_s for each in replies) / decode_s if decode_s >= TELLING_DECODE_S else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What the machine spent over a while."""

    joules: float | None
    """All of it: every program's, and on battery the screen's, too. None where nothing tells."""
    reason: str = ""
    """Why nothing tells."""


class EnergyMeter:
    """Reads what the machine spends from `start` to `stop`, in a thread of its own."""

    def __init__(
        self,
        *,
        read: Callable[[], EnergyReading] = read_energy,
        clock: Callable[[], float] = time.perf_counter,
        sample_s: float = SAMPLE_S,
    ) -> None:
        self._read, self._clock, self._sample_s = read, clock, sample_s
        self._samples: list[tuple[float, EnergyReading]] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; where nothing can be read nothing is tried again."""
        self.sample()
        if not self._samples[0][1].reason:
            self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
            self._thread.start()

    def sample(self) -> None:
        """Read once."""
        self._samples.append((self._clock(), self._read()))

    def stop(self) -> Energy:
        """Read for the last time and return what was spent since the start."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.sample()
        return energy_of(self._samples)

    def _run(self) -> None:
        while not self._ended.wait(self._sample_s):
            self.sample()


def energy_of(samples: list[tuple[float, EnergyReading]]) -> Energy:
    """Return what was spent between the first and the last reading, each with its time in seconds.

    Counters run over at most once between two readings. A battery's power is taken to change evenly between them.
    """
    readings = [reading for _, reading in samples]
    reason = next((reading.reason for reading in readings if reading.reason), "")
    if reason:
        return Energy(joules=None, reason=reason)
    names = {tuple(counter.name for counter in reading.counters) for reading in readings}
    if len(names) > 1:
        return Energy(joules=None, reason="the machine went on or off its battery meanwhile")
    if names != {()}:
        return _counted(readings)
    return _discharged(samples)


def _counted(readings: list[EnergyReading]) -> Energy:
    spent = 0
    for before, after in pairwise(readings):
        for old, new in zip(before.counters, after.counters, strict=True):
            if new.microjoules < old.microjoules and not new.range_microjoules:
                return Energy(joules=None, reason="the energy counter started anew, and its range is not known")
            ran_over = new.range_microjoules if new.microjoules < old.microjoules else 0
            spent += new.microjoules + ran_over - old.microjoules
    return Energy(joules=spent / 1e6)


def _discharged(samples: list[tuple[float, EnergyReading]]) -> Energy:
    lasted_s = samples[-1][0] - samples[0][0]
    watts = [reading.battery_w for _, reading in samples]
    known = [each for each in watts if each is not None]
    has_power = len(known) == len(watts)
    if lasted_s < (MIN_BATTERY_S if has_power else MIN_STORED_S):
        return Energy(joules=None, reason="the reply was too short for the battery's gauge")
    if has_power:
        times = [at_s for at_s, _ in samples]
        return Energy(
            joules=sum((times[n + 1] - times[n]) * (known[n] + known[n + 1]) / 2 for n in range(len(known) - 1))
        )
    first, last = samples[0][1].stored_j, samples[-1][1].stored_j
    if first is None or last is None:
        return Energy(joules=None, reason="the battery's gauge fell silent meanwhile")
    return Energy(joules=first - last)
