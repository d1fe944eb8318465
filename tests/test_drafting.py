"""Guessing tokens ahead, the pure parts: the index of what stood where, and when a draft pays."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_local.backends.llamacpp.drafting import (
    ALLOWANCE,
    FIRST_STEPS,
    RETRY_AFTER,
    START,
    WIDTHS,
    Drafting,
    Shares,
    StepTimes,
)
from slm_local.backends.llamacpp.ngrams import LENGTHS, READ_AT_ONCE, NgramIndex

REPACKED = {1: 1.0, 2: 1.5, 4: 1.7, 8: 2.6, 12: 3.6, 16: 4.6}
STEEP = {1: 1.0, 2: 1.9, 4: 3.6, 8: 7.0, 12: 10.5, 16: 14.0}
"""Step times by rows, in plain steps: of a model whose drafts can pay, and of one that computes as long as it reads."""


def index_of(*tokens: int) -> NgramIndex:
    return NgramIndex(tokens)


# ---- the index


def test_the_longest_stretch_that_stood_before_is_found_where_it_stood_last() -> None:
    index = index_of(1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 9, 3, 4, 70, 9, 2, 3, 4)
    assert (index.match(), index.draft(2)) == (4, [60, 9])  # 9 2 3 4, and not the later 3 4
    index.add(70)
    assert (index.match(), index.draft(1)) == (3, [9])  # 3 4 70 stood once


def test_what_never_stood_before_is_no_match() -> None:
    assert index_of().match() == index_of(1).match() == index_of(1, 2, 3, 4).match() == 0
    assert index_of(5, 5).match() == 0  # one token is no stretch


def test_what_repeats_itself_is_drafted_beyond_the_end() -> None:
    index = index_of(1, 2, 3, 1, 2, 3, 1, 2)
    assert index.match() == 4
    assert index.draft(7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_long_prompt_is_read_in_parts_and_nothing_is_drafted_before_its_end() -> None:
    tokens = [*range(1000), *range(10)]
    index = NgramIndex(tokens)
    parts = -(-len(tokens) // READ_AT_ONCE)
    assert [index.match() for _ in range(parts)] == [0] * (parts - 1) + [4]
    assert index.draft(3) == [10, 11, 12]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60))
def test_the_index_says_what_a_search_through_all_tokens_says(tokens: list[int]) -> None:
    index = NgramIndex(())
    for end, token in enumerate(tokens, start=1):
        index.add(token)
        found = index.match()
        places = {
            length: [at for at in range(length, end) if tokens[at - length : at] == tokens[end - length : end]]
            for length in LENGTHS
        }
        assert found == next((length for length in LENGTHS if places[length]), 0)
        if found:
            at = places[found][-1]
            assert index.draft(1) == [tokens[at]]


# ---- what steps take, how drafts fare


def test_what_was_not_measured_lies_between_or_beyond_what_was() -> None:
    times = StepTimes()
    times.note(1, 0.010)
    assert 1.0 < times.ratio(4) < 4.0
    times.note(4, 0.020)
    assert times.ratio(4) == pytest.approx(2.0)
    assert times.ratio(2) == pytest.approx(1.0 + 1 / 3)
    assert times.ratio(8) == pytest.approx(2.0 + 4 / 3)


def test_a_slow_step_now_and_then_changes_nothing() -> None:
    times = StepTimes()
    for number in range(30):
        times.note(1, 0.5 if number % 5 == 0 else 0.010)
        times.note(4, 0.5 if number % 4 == 0 else 0.020)
    assert times.ratio(4) == pytest.approx(2.0)


def test_expected_tokens_are_those_of_the_formula() -> None:
    shares = Shares(0.7)
    assert shares.expected(4)[4] == pytest.approx((1 - 0.7**4) / (1 - 0.7))
    assert shares.expected(4)[1] == 1.0


def test_lately_counts_for_more_than_long_ago() -> None:
    shares = Shares(0.5)
    for _ in range(60):
        shares.note(0, is_kept=True)
    assert shares.share(0) > 0.95
    for _ in range(20):
        shares.note(0, is_kept=False)
    assert shares.share(0) < 0.15


# ---- the decision


class Simulated:
    """A model whose steps take `curve` by rows and which keeps a drafted token with a likelihood of `kept`."""

    def __init__(self, curve: dict[int, float], *, noise: float = 0.0) -> None:
        self.drafting = Drafting()
        self.seconds = 0.0
        self.tokens = 0
        self.widths: list[int] = []
        self._curve = curve
        self._noise = noise
        self._random = random.Random(3)

    def run(self, tokens: int, kept: float, *, matched: int = 4, most: int = max(WIDTHS)) -> float:
        """Generate at least so many tokens; return how much faster than in plain steps that was."""
        tokens_before, seconds_before = self.tokens, self.seconds
        while self.tokens < tokens_before + tokens:
            rows = self.drafting.rows(matched, most) if matched else 1
            spent = self._curve[rows] * (1 + self._noise * self._random.random())
            self.widths.append(rows)
            self.seconds += spent
            self.tokens += 1
            self.drafting.stepped(rows, spent)
            for place in range(rows - 1):
                is_kept = self._random.random() < kept
                self.drafting.judged(matched, place, is_kept=is_kept)
                self.tokens += is_kept
                if not is_kept:
                    break
        return (self.tokens - tokens_before) * self._curve[1] / (self.seconds - seconds_before)


def best_gain(curve: dict[int, float], kept: float) -> float:
    return max(sum(kept**n for n in range(width)) / curve[width] for width in curve)


def test_the_first_steps_are_plain() -> None:
    model = Simulated(REPACKED)
    model.run(FIRST_STEPS, 1.0)
    assert model.widths == [1] * FIRST_STEPS


def test_where_everything_is_kept_the_best_width_is_found_and_the_gain_is_that_of_the_formula() -> None:
    model = Simulated(REPACKED)
    model.run(100, 1.0)
    assert model.run(2000, 1.0) >= 0.95 * best_gain(REPACKED, 1.0)
    assert model.widths[-1] == 16


def test_what_is_kept_two_times_in_three_gets_a_narrower_draft() -> None:
    model = Simulated(REPACKED)
    model.run(200, 0.7)
    assert model.run(4000, 0.7) >= 0.9 * best_gain(REPACKED, 0.7)
    assert sum(width > 4 for width in model.widths[-500:]) < 25


@pytest.mark.parametrize("curve", [REPACKED, STEEP], ids=["repacked", "steep"])
@pytest.mark.parametrize("matched", LENGTHS)
def test_where_nothing_is_kept_it_ends_and_loses_three_in_a_hundred_at_most(
    curve: dict[int, float], matched: int
) -> None:
    model = Simulated(curve, noise=0.3)
    assert model.run(256, 0.0, matched=matched) >= 0.97 * plain_speed(0.3)
    model.run(1000, 0.0, matched=matched)
    late = Simulated(curve)
    late.drafting = model.drafting
    assert late.run(4000, 0.0, matched=matched) >= 0.975
    assert 0 < sum(width > 1 for width in late.widths) <= 4000 / RETRY_AFTER[1] + 1  # tried again, rarely


def plain_speed(noise: float) -> float:
    """Return the speed of plain steps with that noise over that of quiet ones."""
    return 1 / (1 + noise / 2)


def test_a_model_that_computes_as_long_as_it_reads_is_never_slower_for_it() -> None:
    model = Simulated(STEEP)
    assert best_gain(STEEP, 0.9) < 1.2
    assert model.run(5000, 0.7) >= 0.97


def test_the_account_bounds_the_loss_whatever_was_won_before() -> None:
    drafting = Drafting()
    for _ in range(FIRST_STEPS):
        drafting.stepped(1, 1.0)
    lost = 0.0
    for _ in range(10_000):
        rows = drafting.rows(4, 16)
        drafting.stepped(rows, 3.0 if rows > 1 else 1.0)
        lost += 2.0 if rows > 1 else 0.0
        for place in range(rows - 1):  # what it is told of drafts is too good: only the account can stop it
            drafting._shares[4].note(place, is_kept=True)
    assert lost <= START + ALLOWANCE * (10_000 + FIRST_STEPS)


@pytest.mark.parametrize("curve", [REPACKED, STEEP], ids=["repacked", "steep"])
def test_what_one_reply_won_is_not_lost_in_the_next(curve: dict[int, float]) -> None:
    model = Simulated(curve)
    for _ in range(5):
        model.run(256, 1.0)
        model.drafting.begin()
        assert model.run(256, 0.0) >= 0.97
        model.drafting.begin()


def test_it_comes_back_when_another_text_begins() -> None:
    model = Simulated(REPACKED)
    model.run(1500, 0.0)
    before = len(model.widths)
    model.run(RETRY_AFTER[1] + 100, 1.0)
    assert model.run(500, 1.0) > 3.0
    assert model.widths[before:].count(1) <= RETRY_AFTER[1] + 1


def test_no_draft_is_longer_than_there_is_room() -> None:
    model = Simulated(REPACKED)
    model.run(200, 1.0)
    model.widths.clear()
    model.run(200, 1.0, most=7)
    assert max(model.widths) == 4
    model.widths.clear()
    model.run(20, 1.0, most=1)
    assert max(model.widths) == 1


def test_stretches_that_fare_differently_are_told_apart() -> None:
    model = Simulated(REPACKED)
    for _ in range(60):
        model.run(10, 1.0, matched=4)
        model.run(10, 0.0, matched=2)
    model.widths.clear()
    for _ in range(20):
        model.run(10, 0.0, matched=2)
    assert sum(width > 1 for width in model.widths) < 0.2 * len(model.widths)
    assert model.run(64, 1.0, matched=4) > 2.0
