"""When a vote is decided before all have voted; pure, in exact arithmetic.

Adaptive consistency (Aggarwal et al., Let's Sample Step by Step, EMNLP 2023, arXiv 2305.11860): the share of the
leading answer among the two that lead has a uniform prior, so after `leader` and `second` votes it is distributed as
Beta(leader + 1, second + 1). Sampling ends when that share is more than a half with a probability of 0.95.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Literal

CONFIDENCE = Fraction(95, 100)
"""The paper's threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Why a vote may end, and how probable it is that its leader stays the majority."""

    why: Literal["likely", "certain"]
    probability: float


def lead_probability(leader: int, second: int) -> Fraction:
    """Return the probability that a share distributed as Beta(leader + 1, second + 1) is more than a half.

    For whole numbers the incomplete beta function is a sum over a binomial distribution (Abramowitz and Stegun,
    26.5.24): with n = leader + second + 1 fair coins, that at most `leader` of them show heads.
    """
    coins = leader + second + 1
    return Fraction(sum(comb(coins, heads) for heads in range(leader + 1)), 2**coins)


def decision(leader: int, second: int, left: int) -> Decision | None:
    """Tell whether the two leading counts decide a vote in which `left` samples have not ended; None: not yet."""
    if left <= 0:
        return None
    if leader - second > left:
        return Decision(why="certain", probability=1.0)
    probability = lead_probability(leader, second)
    return Decision(why="likely", probability=float(probability)) if probability >= CONFIDENCE else None
