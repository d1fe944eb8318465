"""Whether a draft pays and how long it should be, from what steps of each width take here and how drafts fared.

A decode of `rows` rows (the token that is due and `rows - 1` drafted ones) takes t(rows) and gives E tokens: one, and
every drafted one that is what the model would have written. With r_i the share kept of the i-th drafted tokens of
which all before were kept, E = 1 + r_1 + r_1 r_2 + ..., and S = E / (t(rows) / t(1)) is the gain (Leviathan et al.,
arXiv:2211.17192, for equal r). Pure: fed with times and fates, knows no library.
"""

from __future__ import annotations

from collections import deque
from statistics import median

WIDTHS = (2, 4, 8, 12, 16)
"""Rows that a decode may have. llama.cpp's repacked matrices are multiplied four rows at a time, the rest row by row
(ggml-cpu/repack.cpp), others from eight rows on by tiles (tiled.cpp): between them a row more costs most."""

LEAST_GAIN = 1.05
"""A gain below it is within what t(rows) is known to."""

FORGET = 0.1
"""Weight of the newest fate in a share kept: twenty drafts back little is left of an older text."""

FIRST_SHARE = {4: 0.8, 3: 0.7, 2: 0.5}
"""Share kept before any draft, by matched tokens; what the first drafts say soon outweighs it."""

PRIOR_SLOPE = 0.35
"""What a row more costs, in plain steps, before any was measured: 2.0 for four rows, as 1.5B and 8B models took."""

RECENT = 15
"""Steps of a width of which the median counts: few, for steps grow slower with the context."""

FIRST_STEPS = 8
"""Plain steps measured before the first draft."""

ALLOWANCE = 0.015
"""Plain steps that each decode may lose: with `START` at most 3 % of a reply of 130 tokens that no draft fits."""

START, MOST = 2.0, 16.0
"""Balance in plain steps, at most, with which a reply begins, and to which it may grow: how much of what drafts won in
it may be lost again."""

RETRY_AFTER = (8, 256)
"""Plain steps after which a draft is tried that does not seem to pay, for chance may have had it look so, or another
text may have begun: few at first, twice as many each time its first token is not kept; none where it is kept."""


class StepTimes:
    """Running medians of decodes by their rows."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._usual: dict[int, float] = {}

    def note(self, rows: int, seconds: float) -> None:
        """Take note of a decode."""
        recent = self._recent.setdefault(rows, deque(maxlen=RECENT))
        recent.append(seconds)
        # a first slow one may be another program's doing
        self._usual[rows] = median(recent) if len(recent) > 2 else min(recent)

    def count(self, rows: int) -> int:
        """Return how many decodes of so many rows are remembered."""
        return len(self._recent.get(rows, ()))

    def ratio(self, rows: int) -> float:
        """Return t(rows) / t(1): measured, else between or beyond the measured ones. Needs a plain step."""
        if rows in self._usual:
            return max(1.0, self._usual[rows] / self._usual[1])
        lower = max(width for width in self._usual if width < rows)
        at_lower = self.ratio(lower)
        upper = min((width for width in self._usual if width > rows), default=None)
        if upper is not None:
            slope = (self.ratio(upper) - at_lower) / (upper - lower)
        else:
            slope = (at_lower - 1.0) / (lower - 1) if lower > 1 else PRIOR_SLOPE
        return at_lower + slope * (rows - lower)


class Shares:
    """How many drafted tokens were kept, by place in the draft, lately more than long ago."""

    def __init__(self, first: float) -> None:
        self._shares = [first]

    def share(self, place: int) -> float:
        """Return the share kept of the tokens at a place (from 0) that were looked at; unseen: as one place before."""
        return self._shares[min(place, len(self._shares) - 1)]

    def note(self, place: int, *, is_kept: bool) -> None:
        """Take note of a token's fate. Fates come in order, place by place, up to the first that is not kept."""
        if place == len(self._shares):
            self._shares.append(self._shares[-1])
        self._shares[place] += FORGET * (is_kept - self._shares[place])

    def expected(self, most: int) -> list[float]:
        """Return how many tokens a decode gives, by its rows: 0 to `most`."""
        reached, expected = 1.0, [0.0, 1.0]
        for place in range(most - 1):
            reached *= self.share(place)
            expected.append(expected[-1] + reached)
        return expected


class Drafting:
    """Chooses the rows of decodes; what drafts cost and win is kept in an account that bounds the loss."""

    def __init__(self) -> None:
        self.times = StepTimes()
        self._shares = {matched: Shares(first) for matched, first in FIRST_SHARE.items()}
        self._balance = START
        self._idle = 0
        """Plain steps since the last draft."""
        self._retry_after = RETRY_AFTER[0]

    def begin(self) -> None:
        """Begin another reply: what the last one won is no reason to lose it here."""
        self._balance = min(self._balance, START)

    def rows(self, matched: int, most: int) -> int:
        """Return how many rows the next decode should have, `most` at most, where `matched` tokens stood before.

        1: a plain step. Never more than the account could bear if nothing of the draft were kept.
        """
        if self.times.count(1) < FIRST_STEPS:
            return 1
        expected = self._shares[matched].expected(most)
        best, gain = 1, 0.0
        for width in WIDTHS:
            cost = self.times.ratio(width)
            if width <= most and cost - 1.0 <= self._balance and expected[width] / cost > gain:
                best, gain = width, expected[width] / cost
        if best == 1 or (gain < LEAST_GAIN and self._idle < self._retry_after):
            return 1
        self._idle = 0
        return best

    def stepped(self, rows: int, seconds: float) -> None:
        """Take note of a decode of one sequence."""
        self.times.note(rows, seconds)
        if self.times.count(1):
            self._book(ALLOWANCE + 1.0 - self.times.ratio(rows))
        if rows == 1:
            self._idle += 1

    def judged(self, matched: int, place: int, *, is_kept: bool) -> None:
        """Take note of a drafted token's fate, in order; one that is kept saves a plain step."""
        self._shares[matched].note(place, is_kept=is_kept)
        if is_kept:
            self._book(1.0)
        if place == 0:
            low, high = RETRY_AFTER
            self._retry_after = 0 if is_kept else min(max(low, 2 * self._retry_after), high)

    def _book(self, steps: float) -> None:
        self._balance = min(MOST, self._balance + steps)
