"""When a vote is decided: the probability against known values, the rule against full votes of drawn samples."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from math import comb

import pytest

from slm_local.samples.stopping import CONFIDENCE, decision, lead_probability

SIMPSON_STEPS = 2_000


def integrated(leader: int, second: int) -> float:
    """Return the same probability by Simpson's rule: the density of the beta distribution from a half to one."""
    step = 0.5 / SIMPSON_STEPS
    weights = [1 if at in (0, SIMPSON_STEPS) else 4 if at % 2 else 2 for at in range(SIMPSON_STEPS + 1)]
    points = [0.5 + at * step for at in range(SIMPSON_STEPS + 1)]
    area = sum(w * x**leader * (1 - x) ** second for w, x in zip(weights, points, strict=True)) * step / 3
    return area * (leader + second + 1) * comb(leader + second, leader)


@pytest.mark.parametrize(
    ("leader", "second", "probability"),
    [
        (0, 0, Fraction(1, 2)),
        (1, 0, Fraction(3, 4)),
        (3, 0, Fraction(15, 16)),
        (4, 0, Fraction(31, 32)),
        (5, 1, Fraction(15, 16)),
        (6, 1, Fraction(247, 256)),
    ],
)
def test_the_probability_of_a_lead_is_exact(leader: int, second: int, probability: Fraction) -> None:
    assert lead_probability(leader, second) == probability


@pytest.mark.parametrize(("leader", "second"), [(0, 0), (2, 1), (7, 3), (12, 11), (30, 20), (3, 9)])
def test_the_probability_of_a_lead_is_the_beta_distributions_upper_half(leader: int, second: int) -> None:
    assert float(lead_probability(leader, second)) == pytest.approx(integrated(leader, second), abs=1e-9)


def test_leading_and_trailing_are_complements() -> None:
    for leader in range(12):
        for second in range(12):
            assert lead_probability(leader, second) + lead_probability(second, leader) == 1


def test_four_that_agree_decide_and_three_do_not() -> None:
    decided = decision(4, 0, 60)
    assert decided is not None
    assert (decided.why, decided.probability) == ("likely", 31 / 32)
    assert decision(3, 0, 60) is None
    assert decision(5, 1, 60) is None
    assert decision(6, 1, 60) is not None


def test_a_lead_that_the_rest_cannot_reach_is_certain() -> None:
    for leader, second, left in ((3, 0, 2), (2, 1, 0), (4, 3, 1), (3, 1, 1)):
        decided = decision(leader, second, left)
        is_out_of_reach = left > 0 and leader - second > left
        assert (decided is not None and decided.why == "certain") == is_out_of_reach
    assert decision(3, 1, 2) is None  # two more for the other would be a tie


def test_nothing_is_decided_where_nobody_voted_or_nobody_is_left() -> None:
    assert decision(0, 0, 8) is None
    assert decision(8, 0, 0) is None


@pytest.mark.parametrize(
    ("shares", "least_agreement", "most_samples"),
    [
        ((0.9, 0.05, 0.05), 1.0, 0.2),
        ((0.6, 0.3, 0.1), 0.98, 0.5),
        ((0.5, 0.2, 0.1, 0.1, 0.1), 0.98, 0.55),
    ],
)
def test_stopping_early_agrees_with_the_full_vote_and_takes_far_fewer_samples(
    shares: tuple[float, ...], least_agreement: float, most_samples: float
) -> None:
    drawn, asked, trials = random.Random(7), 40, 300
    agreed, taken = 0, 0
    for _ in range(trials):
        answers = drawn.choices(range(len(shares)), shares, k=asked)
        at, winner = stopped_vote(answers)
        agreed += Counter(answers).most_common(1)[0][0] == winner
        taken += at
    assert agreed / trials >= least_agreement
    assert taken / (trials * asked) <= most_samples


def stopped_vote(answers: list[int]) -> tuple[int, int]:
    """Count answers until the vote is decided; return how many were counted, and who led then."""
    for at in range(1, len(answers) + 1):
        counts = Counter(answers[:at]).most_common(2)
        leader, second = counts[0][1], counts[1][1] if len(counts) > 1 else 0
        if decision(leader, second, len(answers) - at) is not None:
            return at, counts[0][0]
    return len(answers), counts[0][0]


def test_the_threshold_is_that_of_the_paper() -> None:
    assert float(CONFIDENCE) == 0.95
