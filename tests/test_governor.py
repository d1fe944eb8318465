"""The governor by itself: budgets, the room for the answer, time and wishes, piece by piece, by a clock of its own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_local.generation import GenerationRequest, Handle, Piece, ReasoningTags, ThinkState
from slm_local.governor import (
    Closing,
    EndReply,
    EndThinking,
    Governor,
    Limits,
    Verdict,
    closing_for,
    closing_texts,
    limits_for,
    reserve_tokens,
)
from slm_local.reasoning import FAMILIES, ReasoningParser, derive_tags

THINK = ReasoningTags("<think>", "</think>")
HANDLE = Handle(id=1, prompt_tokens=10, cached_tokens=0)
CLOSING = Closing(text=" Enough.\n</think>\n\n", tokens=4)
TAG = Closing(text="\n</think>\n\n", tokens=2)


class Watched:
    """A governor with its splitter, fed text of one token each."""

    def __init__(self, limits: Limits, *, state: ThinkState = "open", tags: ReasoningTags | None = THINK) -> None:
        self.parser = ReasoningParser(tags, state=state)
        self.governor = Governor(limits, self.parser)

    def feed(self, text: str, *, at_s: float = 0.0, injected: bool = False) -> Verdict | None:
        self.parser.feed(text, 1, injected=injected)
        self.governor.feed(Piece(handle=HANDLE, text=text, ids=(1,), injected=injected), at_s)
        return self.governor.verdict(at_s)

    def feed_all(self, texts: list[str]) -> list[Verdict | None]:
        return [self.feed(text) for text in texts]


# ---- the budget


def test_thinking_ends_when_its_budget_is_used_up_and_only_once() -> None:
    watched = Watched(Limits(think_tokens=3))
    assert watched.governor.verdict(0.0) is None
    assert watched.feed_all(["a ", "b ", "c ", "d "]) == [None, None, EndThinking("budget"), None]
    assert watched.governor.cut == "budget"


def test_a_budget_of_nothing_ends_thinking_before_its_first_token() -> None:
    assert Watched(Limits(think_tokens=0)).governor.verdict(0.0) == EndThinking("budget")


def test_tags_and_white_space_before_them_are_not_part_of_the_budget() -> None:
    watched = Watched(Limits(think_tokens=1), state="unopened")
    verdicts = watched.feed_all(["\n", "\n", "<th", "ink", ">", "a"])
    assert verdicts == [None, None, None, None, None, EndThinking("budget")]


def test_a_closing_tag_half_written_counts_until_it_is_whole() -> None:
    in_time = Watched(Limits(think_tokens=4))
    assert in_time.feed_all(["a", "</", "think", ">"]) == [None] * 4
    assert in_time.parser.thought_tokens == 1
    too_late = Watched(Limits(think_tokens=3))
    assert too_late.feed_all(["a", "</", "think"]) == [None, None, EndThinking("budget")]


def test_an_answer_has_no_budget() -> None:
    assert Watched(Limits(think_tokens=1), state="closed").feed_all(["a", "b", "c"]) == [None] * 3
    assert Watched(Limits(think_tokens=1), state="unopened").feed_all(["a", "b", "c"]) == [None] * 3
    assert Watched(Limits(think_tokens=1), tags=None).feed_all(["<think>", "b", "c"]) == [None] * 3


@given(
    pieces=st.lists(
        st.sampled_from(["a", " ", "\n", "<think>", "<th", "ink>", "</think>", "</", "thi", "nk>", "", "é"])
    ),
    budget=st.integers(1, 12),
    state=st.sampled_from(("open", "unopened")),
)
@settings(max_examples=400, deadline=None)
def test_whatever_a_model_writes_its_thinking_stays_within_the_budget(
    pieces: list[str], budget: int, state: ThinkState
) -> None:
    watched = Watched(Limits(think_tokens=budget, has_loop_guard=False), state=state)
    for text in pieces:
        if isinstance(watched.feed(text), EndThinking):
            for injected in (" Enough", ".", "\n", "</think>", "\n\n"):
                watched.feed(injected, injected=True)
            assert not watched.parser.in_thinking
    watched.parser.finish()
    injected_tokens = 5 if watched.governor.cut == "budget" else 0
    parser = watched.parser
    assert parser.think_tokens - parser.tag_tokens - injected_tokens <= budget


# ---- time and wishes


def test_thinking_ends_when_its_time_is_over_also_between_tokens() -> None:
    watched = Watched(Limits(think_s=5.0))
    assert watched.governor.verdict(100.0) is None  # the prompt is being read
    assert watched.feed("a", at_s=101.0) is None
    assert watched.feed("b", at_s=105.9) is None
    assert watched.governor.verdict(106.0) == EndThinking("time")


def test_time_that_runs_out_in_the_answer_ends_nothing() -> None:
    watched = Watched(Limits(think_s=5.0))
    assert watched.feed("a</think>b", at_s=1.0) is None
    assert watched.feed("c", at_s=99.0) is None
    assert watched.governor.cut == "none"


def test_a_wish_for_the_answer_ends_thinking_at_once_or_as_soon_as_there_is_any() -> None:
    watched = Watched(Limits())
    watched.governor.end_thinking()
    assert watched.governor.verdict(0.0) == EndThinking("user")
    unopened = Watched(Limits(), state="unopened")
    unopened.governor.end_thinking()
    assert unopened.feed_all(["\n", "<think>"]) == [None, EndThinking("user")]
    answering = Watched(Limits())
    answering.feed("a</think>b")
    answering.governor.end_thinking()
    assert answering.feed("c") is None


# ---- loops


def test_a_loop_ends_thinking_and_a_loop_in_the_answer_ends_the_reply() -> None:
    watched = Watched(Limits())
    verdicts = watched.feed_all(["wait "] * 120)
    assert [verdict for verdict in verdicts if verdict is not None] == [EndThinking("loop")]
    assert verdicts.index(EndThinking("loop")) == 96
    for text in (" Enough.", "</think>"):
        assert watched.feed(text, injected=True) is None
    again = watched.feed_all(["wait "] * 250)
    assert again.index(EndReply("loop")) == 192


def test_without_its_guard_a_loop_goes_on() -> None:
    assert set(Watched(Limits(has_loop_guard=False)).feed_all(["wait "] * 500)) == {None}


def test_a_model_without_tags_is_guarded_as_in_an_answer() -> None:
    assert Watched(Limits(), tags=None).feed_all(["wait "] * 250).index(EndReply("loop")) == 192


# ---- room for the answer


@pytest.mark.parametrize(
    ("context", "max_tokens", "asked", "kept"),
    [
        (16_384, None, None, 512),
        (2_048, None, None, 256),
        (512, None, None, 64),
        (16_384, 1_000, None, 250),
        (16_384, 8, None, 2),
        (16_384, 1, None, 1),
        (16_384, None, 2_000, 2_000),
        (16_384, 1_000, 600, 600),
        (16_384, None, 0, 1),
    ],
)
def test_so_much_is_kept_for_the_answer(context: int, max_tokens: int | None, asked: int | None, kept: int) -> None:
    request = GenerationRequest(max_tokens=max_tokens, answer_reserve=asked)
    assert reserve_tokens(request, context) == kept


def test_the_room_for_thinking_is_what_answer_and_closing_leave() -> None:
    limits = limits_for(GenerationRequest(), CLOSING, context_tokens=2048, prompt_tokens=1000)
    assert (limits.room_tokens, limits.room_cut) == (2048 - 1000 - 256 - 4, "context")
    limits = limits_for(GenerationRequest(max_tokens=100), CLOSING, context_tokens=2048, prompt_tokens=1000)
    assert (limits.room_tokens, limits.room_cut) == (100 - 25 - 4, "max_tokens")
    limits = limits_for(GenerationRequest(max_tokens=100), CLOSING, context_tokens=2048, prompt_tokens=2000)
    assert (limits.room_tokens, limits.room_cut) == (48 - 25 - 4, "context")


def test_a_prompt_that_leaves_less_than_the_budget_lowers_it() -> None:
    request = GenerationRequest(think_tokens=4096)
    assert limits_for(request, CLOSING, context_tokens=2048, prompt_tokens=1000).most_thinking == 788
    assert limits_for(request, CLOSING, context_tokens=16_384, prompt_tokens=1000).most_thinking == 4096
    assert limits_for(request, CLOSING, context_tokens=2048, prompt_tokens=None).most_thinking == 4096
    assert limits_for(GenerationRequest(), CLOSING, context_tokens=2048, prompt_tokens=None).most_thinking is None


def test_a_prompt_that_leaves_too_little_shows_as_room_below_nothing() -> None:
    limits = limits_for(GenerationRequest(), CLOSING, context_tokens=2048, prompt_tokens=2048 - 256 - 4)
    assert limits.room_tokens == 0
    limits = limits_for(GenerationRequest(), CLOSING, context_tokens=2048, prompt_tokens=2048 - 256 - 3)
    assert limits.room_tokens == -1


def test_thinking_ends_when_only_the_answers_room_is_left_whatever_was_injected() -> None:
    watched = Watched(Limits(room_tokens=3, room_cut="max_tokens"))
    assert watched.feed_all(["a", "b"]) == [None, None]
    assert watched.feed("!", injected=True) == EndThinking("max_tokens")


@pytest.mark.parametrize(
    ("max_tokens", "closing"),
    [(None, CLOSING), (100, CLOSING), (6, CLOSING), (5, CLOSING), (4, TAG), (3, TAG), (2, None), (1, None)],
)
def test_a_small_limit_gets_the_tag_alone_and_a_tiny_one_nothing(
    max_tokens: int | None, closing: Closing | None
) -> None:
    assert closing_for(max_tokens, (CLOSING, TAG)) == closing


def test_a_reply_with_no_room_for_a_closing_ends_with_its_thinking() -> None:
    limits = limits_for(GenerationRequest(max_tokens=2, think_tokens=1), None, context_tokens=99, prompt_tokens=9)
    watched = Watched(limits)
    assert watched.feed("a") == EndReply("length")
    assert watched.governor.cut == "budget"
    unbounded = Watched(limits_for(GenerationRequest(max_tokens=2), None, context_tokens=99, prompt_tokens=9))
    assert unbounded.feed_all(["a", "b", "c"]) == [None] * 3


# ---- what is injected


@pytest.mark.parametrize("tags", [family.tags for family in FAMILIES], ids=lambda tags: tags.open)
def test_what_is_injected_closes_thinking_in_every_family_and_opens_the_answer(tags: ReasoningTags) -> None:
    for text in closing_texts(tags, None):
        for before in ("I wonder", "I wonder" + tags.close[:2], ""):
            parser = ReasoningParser(tags, state="open")
            deltas = [
                *parser.feed(before),
                *parser.feed(text, 9, injected=True),
                *parser.feed("Paris."),
                *parser.finish(),
            ]
            assert "".join(delta.text for delta in deltas if not delta.injected) == before + "Paris."
            assert not parser.in_thinking
            assert parser.answer_tokens == 1


def test_a_channel_that_is_opened_again_after_the_budget_is_ended_again() -> None:
    tags = derive_tags("<|channel|>analysis<|message|>", lambda _: False)
    assert tags is not None
    watched = Watched(Limits(think_tokens=2), tags=tags, state="unopened")
    watched.feed(tags.open)
    assert watched.feed_all(["a", "b"]) == [None, EndThinking("budget")]
    watched.feed(tags.close, injected=True)
    assert watched.feed("<|start|>assistant") is None
    assert watched.feed(tags.open) == EndThinking("budget")


def test_the_bridge_is_data() -> None:
    assert closing_texts(THINK, " So.") == (" So.\n</think>\n\n", "\n</think>\n\n")
    assert closing_texts(THINK, "")[0] == "\n</think>\n\n"
    assert closing_texts(ReasoningTags("[THINK]", "[/THINK]"), " So.")[0] == " So.[/THINK]"
