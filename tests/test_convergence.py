"""When a thought has settled: where sentences end, what a probe's text answers, how many equal answers in a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_local.governor.convergence import Convergence, ExitRule, answer_of, ends_sentence, is_answered

EVERY_TEN = ExitRule(least_spacing=10, most_spacing=10)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "So it is five.",
            "Is it?",
            "Yes!",
            "It is 5!",
            "x = 5.\n",
            "x = 5. ",
            "(as above.)",
            'he said "no."',
            "a line\n",
        ),
        *("所以答案是五。", "对吗？", "「はい。」", "is it 5?\n\n", "So **x**.  ", "hm…"),
    ],
)
def test_a_sentence_ends_here(text: str) -> None:
    assert ends_sentence(text)


@pytest.mark.parametrize("text", ["", "So it is", "x = 5.", "3.1", "so,", "half a </", "所以，", "a: ", "e.g", "\\( x"])
def test_no_sentence_ends_here(text: str) -> None:
    assert not ends_sentence(text)


@pytest.mark.parametrize(
    "written",
    [
        *(
            " **758**",
            " \\boxed{\\frac{1}{2}}",
            " 42.\n",
            " 42. Since",
            " Paris. It",
            ":\n\n**7 kg**",
            " 四十二。",
            " Yes!\n",
        ),
    ],
)
def test_an_answer_is_whole(written: str) -> None:
    assert is_answered(written)


@pytest.mark.parametrize(
    "written", ["", " ", ":\n\n", " 3.", " 42", " **42", " \\boxed{\\frac{1}{2}", " **\n", " the $x"]
)
def test_an_answer_is_not_whole_yet(written: str) -> None:
    assert not is_answered(written)


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (" **758**", "758"),
        (" \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        (" 3.5 kg. So", "3.5 kg"),
        (": B", "B"),
        (" not yet known.\n", None),
        (" unclear. Let me", None),
        (" probably 5.\n", None),
        (" 未知。", None),
        (":\n\\[\n", None),
        ("", None),
    ],
)
def test_a_probes_answer_is_read_and_words_of_doubt_are_none(written: str, answer: str | None) -> None:
    assert answer_of(written) == answer


def settled_after(answers: list[str | None], same: int = 3) -> int | None:
    """Return after how many probes it is settled."""
    watched = Convergence(ExitRule(same_answers=same))
    for count, answer in enumerate(answers, 1):
        watched.take(answer)
        if watched.is_converged:
            return count
    return None


@pytest.mark.parametrize(
    ("answers", "after"),
    [
        (["5", "5", "5"], 3),
        (["4", "5", "5", "5"], 4),
        (["5", "5", "4", "5", "5", "5"], 6),
        (["5", "5", None, "5", "5", "5"], 6),
        (["1/2", "0.5", "50%"], 3),
        (["1,000 g", "1 kg", "1000 g"], 3),
        (["\\frac{1}{2}", "\\frac{ 1 }{2}", "\\frac{1}{2}"], 3),
        (["5", "5"], None),
        ([None, None, None], None),
        (["5", "6", "5", "6", "5"], None),
    ],
)
def test_the_same_answer_in_a_row_settles_it_by_value(answers: list[str | None], after: int | None) -> None:
    assert settled_after(answers) == after


@given(answers=st.lists(st.sampled_from(["1", "2", None]), max_size=30), same=st.integers(min_value=1, max_value=5))
def test_it_is_settled_by_the_first_run_that_is_long_enough(answers: list[str | None], same: int) -> None:
    run, expected = 0, None
    for count, answer in enumerate(answers, 1):
        run = 0 if answer is None else run + 1 if run and answer == answers[count - 2] else 1
        if run >= same and expected is None:
            expected = count
    assert settled_after(answers, same) == expected


def test_an_expression_is_compared_without_the_algebra_library() -> None:
    assert settled_after(["\\sqrt{12}", "2\\sqrt{3}", "\\sqrt{12}"], same=2) is None


def test_a_probe_is_due_where_a_sentence_ends_and_the_last_one_is_long_enough_ago() -> None:
    watched = Convergence(EVERY_TEN)
    due = []
    for count in range(1, 41):
        watched.feed("word." if count % 4 == 0 else " a", count)
        if watched.is_due():
            due.append(count)
            watched.begin()
    assert due == [12, 24, 36]


def test_a_probe_stays_due_at_the_next_sentences_where_none_could_begin() -> None:
    watched = Convergence(EVERY_TEN)
    watched.feed("one.", 10)
    assert watched.is_due()
    watched.feed(" two", 11)
    assert not watched.is_due()
    watched.feed(" three.", 12)
    assert watched.is_due()


def test_short_thoughts_are_asked_more_often_and_none_more_often_than_is_worth_it() -> None:
    rule = ExitRule(least_spacing=16, spacing_part=4, most_spacing=100)
    assert [rule.spacing(tokens) for tokens in (0, 40, 64, 200, 400, 30_000)] == [16, 16, 16, 50, 100, 100]
