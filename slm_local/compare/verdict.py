"""What thinking bought: how much oftener one lane is right than another on the same prompts, and what that cost.

The difference of two shares of the same problems, with Newcombe's interval: he compared ten for paired proportions and
recommends his method 10, score intervals combined with a correction for the pairing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from slm_local.compare.values import LaneResult

Z_95 = 1.959964
"""Of the normal distribution, for 95 % between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A difference of shares, -1 to 1, with its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One lane against another, over the prompts that both answered."""

    lane: int
    reference: str
    other: int
    other_reference: str
    pairs: int
    right: int
    other_right: int
    interval: Interval
    think_tokens: float
    """How many more thinking tokens a problem the lane takes than the other."""
    tokens: float
    seconds: float
    joules: float | None
    """None where energy was not read of all."""

    @property
    def sentence(self) -> str:
        """Say it in one line."""
        low, high = 100 * self.interval.low, 100 * self.interval.high
        shares = f"{self.right} of {self.pairs} right against {self.other_right}"
        bought = f"{100 * self.interval.difference:+.0f} points ({shares}; 95 % interval {low:+.0f} to {high:+.0f})"
        if self.interval.low <= 0.0 <= self.interval.high:
            bought += ", which may be chance"
        energy = "" if self.joules is None else f" and {self.joules:+.1f} J"
        costs = f"{self.tokens:+.0f} tokens and {self.seconds:+.2f} s{energy} a problem"
        if self.think_tokens <= 0.0:
            return f"{self.reference} against {self.other_reference}: {bought}; {costs}"
        return f"what thinking bought {self.reference} against {self.other_reference}: {bought}; what it cost: {costs}"


def verdicts(results: Sequence[LaneResult]) -> tuple[Verdict, ...]:
    """Compare every lane with the one that thinks least, the one that thinks most last; empty below two pairs.

    A pair is a prompt with an expected answer that both lanes answered.
    """
    lanes: dict[int, dict[int, LaneResult]] = {}
    for each in results:
        if each.correct is not None:
            lanes.setdefault(each.lane, {})[each.prompt] = each
    by_thinking = sorted(lanes.values(), key=lambda lane: _mean([_think_tokens(each) for each in lane.values()]))
    made = [_verdict(lane, by_thinking[0]) for lane in by_thinking[1:]]
    return tuple(each for each in made if each is not None)


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """Return how much larger the first share is than the second of the same trials, with a 95 % interval.

    Source: R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on
    paired data, Statistics in Medicine 17 (1998), 2635-2650, method 10.
    """
    trials = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    difference = (first - second) / trials
    low1, high1 = _score_interval(first, trials)
    low2, high2 = _score_interval(second, trials)
    share1, share2 = first / trials, second / trials
    phi = _phi(both, only_first, only_second, neither)
    below, above = share1 - low1, high2 - share2
    under, over = share2 - low2, high1 - share1
    return Interval(
        difference=difference,
        low=difference - sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2)),
        high=difference + sqrt(max(0.0, under**2 - 2 * phi * under * over + over**2)),
    )


def _phi(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Return the correlation of the pairs, with the paper's correction for continuity where it is positive."""
    first, second = both + only_first, both + only_second
    trials = first + only_second + neither
    margins = first * (trials - first) * second * (trials - second)
    if not margins:
        return 0.0
    excess = both * neither - only_first * only_second
    return (max(excess - trials / 2, 0.0) if excess > 0 else excess) / sqrt(margins)


def _score_interval(hits: int, trials: int) -> tuple[float, float]:
    """Return Wilson's interval of a share."""
    square = Z_95**2
    middle = 2 * hits + square
    spread = Z_95 * sqrt(square + 4 * hits * (1 - hits / trials))
    return (middle - spread) / (2 * (trials + square)), (middle + spread) / (2 * (trials + square))


def _verdict(lane: dict[int, LaneResult], other: dict[int, LaneResult]) -> Verdict | None:
    pairs = [(lane[prompt], other[prompt]) for prompt in sorted(lane.keys() & other.keys())]
    if len(pairs) < 2:
        return None
    counts = [(bool(one.correct), bool(two.correct)) for one, two in pairs]
    energies = [(one.joules, two.joules) for one, two in pairs]
    read = [one - two for one, two in energies if one is not None and two is not None]
    return Verdict(
        lane=pairs[0][0].lane,
        reference=pairs[0][0].reference,
        other=pairs[0][1].lane,
        other_reference=pairs[0][1].reference,
        pairs=len(pairs),
        right=sum(one for one, _ in counts),
        other_right=sum(two for _, two in counts),
        interval=paired_difference(
            counts.count((True, True)),
            counts.count((True, False)),
            counts.count((False, True)),
            counts.count((False, False)),
        ),
        think_tokens=_mean([_think_tokens(one) - _think_tokens(two) for one, two in pairs]),
        tokens=_mean([(one.tokens or 0) - (two.tokens or 0) for one, two in pairs]),
        seconds=_mean([one.total_s - two.total_s for one, two in pairs]),
        joules=_mean(read) if len(read) == len(pairs) else None,
    )


def _think_tokens(result: LaneResult) -> float:
    return float(result.reply.usage.think_tokens or 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
