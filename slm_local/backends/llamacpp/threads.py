"""How many threads decode: fewer while other programs take cores, all of them again once those are free.

Threads that share a core hold up all others at every barrier, so one too many costs more than half of the speed, and
one too few about its share. Whether fewer are faster is never guessed but tried, in a handful of steps. Pure: it is
told how long steps took and how many cores are free, and says with how many threads to go on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import median

DECODE_ROWS = 16
"""Steps of more rows read prompts: those compute between barriers for so long that a shared core costs little."""

LEARNED_STEPS = 4
"""Steps of a kind after which it is known how long one takes."""

FOLLOW_DOWN, FOLLOW_UP = 0.1, 0.003
"""How fast the usual time follows quicker and slower steps, a step: so it is that of a calm step. A context that grows
adds less than a thousandth a step; what another program adds is not followed before it is noticed."""

JUMP_CELLS, JUMP_SHARE = 256, 0.1
"""A context that differs by more than both together is another one, with a usual time of its own."""

WINDOW_STEPS = 12
ENOUGH_STEPS = 6
"""The last steps that are looked at, and how many of them are enough where it is seen what other programs do."""

SLOW, SLOW_AND_CROWDED = 1.6, 1.15
"""How much slower than usual steps are, on average, when fewer threads are tried."""

ROW_OF_SLOW, ROW_OF_SLOW_AND_CROWDED, LOST_STEPS = 3, 2, 7.0
"""Or so many slow ones in a row that lost more than so many usual steps: where two threads of ours meet another program
on one core, a single step can take a second."""

TAKEN_SHARE = 0.25
"""So much of a core in other hands makes it a taken one: beside our own threads a program that never rests gets half
of a core or two thirds, not all of it."""

TRIAL_STEPS = 6
"""Steps of a trial, after one that only wakes or rests threads."""

FASTER_WITH_FEWER, FASTER_WITH_MORE = 0.85, 0.98
"""What steps may take at most, of what they took before, for a trial to have been worth it."""

FIRST_FALL_WAIT_S, FIRST_RISE_WAIT_S, LONGEST_WAIT_S = 0.5, 2.0, 60.0
"""How long after a trial of fewer, or of more, threads the next one may come; each that fails doubles it."""

KNOWN_TAKEN_S = 30.0
"""How much later more threads are tried where no core was seen to become free: what was seen may be wrong, but a step
of threads that share a core may take a second."""

COST_SHARE = 0.02
"""Most of the time that failing trials may cost."""

LASTING_S = 10.0
"""A step up that did not last so long counts as a trial that failed."""


@dataclass(slots=True)
class _Usual:
    """How long steps of so many rows usually take."""

    cells: int
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    was_crowded: bool = False
    """Whether cores were taken when it was learned: then it says nothing of a calm machine."""


@dataclass(slots=True)
class _Trial:
    """A few steps with another thread count."""

    threads: int
    before: float
    """What a step took before, of what is usual."""
    took: list[float] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether enough is known: all steps were made, or they cost already more than as many did before."""
        return len(self.took) > TRIAL_STEPS or sum(self.took) > (TRIAL_STEPS + 1) * self.before

    @property
    def result(self) -> float:
        """What a step takes, of what is usual; the first one does not count, but where it ended the trial."""
        return average(self.took[1:]) if len(self.took) > TRIAL_STEPS else max(average(self.took), self.before)


class ThreadControl:
    """Chooses the number of threads for each step, at most `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._steady = most
        self._trial: _Trial | None = None
        self._usual: dict[int, _Usual] = {}
        self._recent: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._is_crowded = self._is_free = False
        """Whether other programs are seen to take cores that our threads use, or to leave free one that they could."""
        self._fall_at_s, self._fall_wait_s = 0.0, FIRST_FALL_WAIT_S
        self._tried_at_s = 0.0
        self._rise_wait_s = dict.fromkeys((False, True), FIRST_RISE_WAIT_S)
        """How long after the last trial more threads are tried, by whether a core is seen to be free."""
        self._rose_at_s: float | None = None
        self._depth = 1
        """By how many threads the next trial goes down, where nothing says how many cores are free."""

    def threads_for(self, rows: int) -> int:
        """Return with how many threads to decode a batch of so many rows."""
        if rows > DECODE_ROWS:
            return self.most
        return self._trial.threads if self._trial is not None else self._steady

    def record(self, *, rows: int, cells: int, seconds: float, now_s: float, free_cores: float | None = None) -> str:
        """Take note of a step that ended at `now_s`; return what was decided, in words, or nothing.

        `cells` are the tokens of context of all its rows, `free_cores` what other programs leave of the cores, None
        where nothing tells. Steps that read prompts are passed over.
        """
        if rows > DECODE_ROWS or self.most == 1:
            return ""
        self._look_around(free_cores)
        share = self._share_of_usual(rows, cells, seconds)
        if share is None:
            self._trial = None  # of a step like this nothing is known: neither good nor bad
            return ""
        if self._trial is not None:
            self._trial.took.append(share)
            return self._judge(self._trial, now_s) if self._trial.is_over else ""
        self._recent.append(share)
        if self._may_rise(now_s, is_known=free_cores is not None):
            self._trial = _Trial(self._steady + 1, average(self._recent))
        elif self._steady > 1 and now_s >= self._fall_at_s and (before := self._slowness(self._usual[rows])):
            self._trial = _Trial(self._fewer(free_cores), before)
        return ""

    def _look_around(self, free_cores: float | None) -> None:
        was_crowded = self._is_crowded
        share = TAKEN_SHARE / 2 if was_crowded else TAKEN_SHARE  # what is near the edge does not go to and fro
        self._is_crowded = free_cores is not None and free_cores < self._steady - share
        self._is_free = free_cores is not None and free_cores > self._steady + 1 - 2 * TAKEN_SHARE
        if self._is_crowded and not was_crowded:
            self._recent.clear()  # what came before is no measure of what comes now

    def _share_of_usual(self, rows: int, cells: int, seconds: float) -> float | None:
        """Return what a step took of what is usual for its like, and learn from it; None: that is not known yet."""
        usual = self._usual.get(rows)
        if usual is None or abs(cells - usual.cells) > JUMP_CELLS + JUMP_SHARE * usual.cells:
            usual = self._usual[rows] = _Usual(cells)
            self._recent.clear()
        usual.cells = cells
        if not usual.seconds:
            if self._trial is None:
                usual.first.append(seconds)
                usual.was_crowded |= self._is_crowded
            if len(usual.first) == LEARNED_STEPS:
                usual.seconds = median(usual.first)
                self._recent.extend(each / usual.seconds for each in usual.first)
            return None
        share = seconds / usual.seconds
        if self._trial is None:
            usual.seconds *= 1 + (FOLLOW_DOWN * (share - 1) if share < 1 else min(FOLLOW_DOWN * (share - 1), FOLLOW_UP))
        return share

    def _slowness(self, usual: _Usual) -> float:
        """Return what a step takes of what is usual where fewer threads should be tried for it, else 0."""
        count = len(self._recent)
        mean = average(self._recent)
        if self._is_crowded and count >= ENOUGH_STEPS and (usual.was_crowded or mean > SLOW_AND_CROWDED):
            return mean
        if count == WINDOW_STEPS and mean > SLOW:
            return mean
        needed = ROW_OF_SLOW_AND_CROWDED if self._is_crowded else ROW_OF_SLOW
        row = list(self._recent)[-needed:]
        is_stuck = count >= needed and min(row) > SLOW and sum(row) > len(row) + LOST_STEPS
        return min(row) if is_stuck else 0.0  # the least of them: one may be a hiccup

    def _fewer(self, free_cores: float | None) -> int:
        """Return with how many threads a trial goes down: as many as cores are free, else one fewer at each try."""
        if free_cores is None or not self._is_crowded:
            return max(1, self._steady - self._depth)
        return max(1, min(self._steady - 1, int(free_cores + TAKEN_SHARE)))

    def _may_rise(self, now_s: float, *, is_known: bool) -> bool:
        """Say whether one thread more is to be tried: soon where a core is seen to be free, else in a while."""
        if self._steady == self.most or len(self._recent) < ENOUGH_STEPS:
            return False
        late_s = KNOWN_TAKEN_S if is_known and not self._is_free else 0.0
        return now_s >= self._tried_at_s + self._rise_wait_s[self._is_free] + late_s

    def _judge(self, trial: _Trial, now_s: float) -> str:
        self._trial = None
        is_rise = trial.threads > self._steady
        if trial.result < trial.before * (FASTER_WITH_MORE if is_rise else FASTER_WITH_FEWER):
            return self._change(trial, now_s)
        if is_rise:
            cost = sum(trial.took) - len(trial.took) * trial.before
            cost_s = cost * max(usual.seconds for usual in self._usual.values())
            wait_s = max(2 * self._rise_wait_s[self._is_free], cost_s / COST_SHARE)
            self._rise_wait_s[self._is_free] = min(LONGEST_WAIT_S, wait_s)
            self._tried_at_s = now_s
        else:
            self._depth += 1
            self._fall_at_s = now_s + self._fall_wait_s
            self._fall_wait_s = min(LONGEST_WAIT_S, 2 * self._fall_wait_s)
            self._rescale(trial.before)  # so long steps take now, and it is not the threads' fault
        return ""

    def _change(self, trial: _Trial, now_s: float) -> str:
        before, self._steady = self._steady, trial.threads
        self._rescale(trial.result)
        self._depth, self._fall_wait_s = 1, FIRST_FALL_WAIT_S
        if self._steady > before:
            self._rose_at_s, self._tried_at_s = now_s, -math.inf  # maybe there are more
            return free_again(self._steady, self.most)
        has_lasted = self._rose_at_s is None or now_s - self._rose_at_s > LASTING_S
        for is_free, wait_s in self._rise_wait_s.items():
            self._rise_wait_s[is_free] = FIRST_RISE_WAIT_S if has_lasted else min(LONGEST_WAIT_S, 2 * wait_s)
        self._tried_at_s = now_s
        return taken(self._steady, before, is_known=self._is_crowded)

    def _rescale(self, factor: float) -> None:
        """Make what steps take now the usual."""
        self._usual = {rows: usual for rows, usual in self._usual.items() if usual.seconds}
        for usual in self._usual.values():
            usual.seconds *= factor
            usual.was_crowded = False
        self._recent.clear()


def average(values: Collection[float]) -> float:
    """Return the mean without the slowest sixth: what counts is all the time that steps take, but not one hiccup."""
    kept = sorted(values)[: len(values) - len(values) // 6]
    return sum(kept) / len(kept)


def taken(threads: int, before: int, *, is_known: bool) -> str:
    """Say that fewer threads decode; `is_known`: other programs were seen to take the cores."""
    count = f"{threads} thread{'s' * (threads != 1)} in place of {before}"
    if not is_known:
        return f"steps became slow and uneven, and fewer threads are faster: {count}"
    return f"{'another program takes a core' if before - threads == 1 else 'other programs take cores'}: {count}"


def free_again(threads: int, most: int) -> str:
    """Say that one thread more decodes."""
    if threads < most:
        return f"a core is free again: {threads} of {most} threads"
    return f"the core is free again: {threads} threads"
