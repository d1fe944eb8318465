from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_local.generation import AnswerDelta, ReasoningTags, ThinkDelta, ThinkState
from slm_local.reasoning import Delta, ReasoningParser, derive_tags, derive_think_control, think_state

THINK = ReasoningTags("<think>", "</think>")
MISTRAL = ReasoningTags("[THINK]", "[/THINK]")
KIMI = ReasoningTags("◁think▷", "◁/think▷")
HARMONY = ReasoningTags(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    skip=("<|start|>assistant", "<|channel|>final<|message|>"),
)
HARMONY_END = "<|end|><|start|>assistant<|channel|>final<|message|>"
FRAGMENTS = (
    *("<think>", "</think>", "</thi", "<", "</", "think>", " ", "\n", "\n\n", "a", "b c", "日", "😀", "```\n  x\n```"),
    *("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant", "<|channel|>final<|message|>", "<|"),
)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    state: ThinkState
    text: str
    thinking: str
    answer: str
    tags: ReasoningTags | None = THINK


CASES = [
    Case("model writes both tags", "unopened", "<think>\na\n</think>\n\nb", "a\n", "b"),
    Case("white space before the opening tag", "unopened", " \n<think>a</think>b", "a", "b"),
    Case("prompt opened thinking", "open", "a\n</think>\n\nb", "a\n", "b"),
    Case("prompt opened thinking and the model repeats the tag", "open", "<think>\na</think>b", "a", "b"),
    Case("model repeats the tag after a line break", "open", "\n<think>\na</think>b", "a", "b"),
    Case("second repetition is thinking", "open", "<think><think>a</think>b", "<think>a", "b"),
    Case("model's own opening tag counts once", "unopened", "<think><think>a</think>b", "<think>a", "b"),
    Case("opening tag inside thinking is thinking", "open", "a <think> b</think>c", "a <think> b", "c"),
    Case("model skips thinking", "unopened", "Paris.", "", "Paris."),
    Case("opening tag behind text is answer", "unopened", "So <think>a</think>b", "", "So <think>a</think>b"),
    Case("closing tag first is answer", "unopened", "</think>\n\nParis.", "", "</think>\n\nParis."),
    Case("prompt closed thinking", "closed", "Paris.", "", "Paris."),
    Case("prompt closed thinking and the model writes tags", "closed", "<think>a</think>b", "", "<think>a</think>b"),
    Case("closing tag twice", "open", "a</think>\n</think>\nb", "a", "</think>\nb"),
    Case("opening tag after the close is answer", "open", "a</think><think>b</think>c", "a", "<think>b</think>c"),
    Case("tags in the answer's code", "open", "a</think>```\n<think>x</think>\n```", "a", "```\n<think>x</think>\n```"),
    Case("empty thinking", "unopened", "<think>\n\n</think>\n\nb", "", "b"),
    Case("thinking closed at once", "open", "</think>b", "", "b"),
    Case("never closed", "open", "a\nb", "a\nb", ""),
    Case("nothing at all", "unopened", "", "", ""),
    Case("white space only", "unopened", " \n\t\n", "", ""),
    Case("white space only inside thinking", "open", " \n\n", "", ""),
    Case("tag alone", "unopened", "<think>", "", ""),
    Case("half a tag at the start", "unopened", "<thin", "", "<thin"),
    Case("look-alike at the start", "unopened", "<thing>x", "", "<thing>x"),
    Case("closing look-alike at the end", "open", "a</thi", "a</thi", ""),
    Case("closing look-alike goes on", "open", "a</thinker> b</think>c", "a</thinker> b", "c"),
    Case("closing look-alike runs into the tag", "open", "a</thi</think>b", "a</thi", "b"),
    Case("doubled angle before the tag", "open", "a<</think>b", "a<", "b"),
    Case("white space at the end is kept", "open", "a \n</think>\n b \n\n", "a \n", "b \n\n"),
    Case("no tags at all", "closed", "\n <think>a</think>", "", "<think>a</think>", None),
    Case("mistral", "unopened", "[THINK]a[/THINK]b", "a", "b", MISTRAL),
    Case("mistral's tags are not ours", "unopened", "<think>a</think>b", "", "<think>a</think>b", MISTRAL),
    Case("tags that are no ASCII", "unopened", "◁think▷日本◁/think▷東京", "日本", "東京", KIMI),
    Case("channels", "unopened", f"{HARMONY.open}a{HARMONY_END}b", "a", "b", HARMONY),
    Case("channels without thinking", "unopened", "<|channel|>final<|message|>b", "", "b", HARMONY),
    Case(
        "channels think twice",
        "unopened",
        f"{HARMONY.open}a<|end|><|start|>assistant{HARMONY.open}b{HARMONY_END}c",
        "ab",
        "c",
        HARMONY,
    ),
    Case("a channel's name in the answer", "unopened", "b <|end|> c", "", "b <|end|> c", HARMONY),
]


@dataclass(frozen=True, slots=True)
class Fed:
    text: str
    tokens: int = 1
    injected: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything of a split that must not depend on how the text was cut."""

    thinking: str
    answer: str
    think_tokens: int
    answer_tokens: int
    tag_tokens: int
    injected_text: str
    in_thinking: bool


def split(
    pieces: list[Fed], tags: ReasoningTags | None = THINK, state: ThinkState = "unopened"
) -> tuple[Outcome, list[Delta]]:
    parser = ReasoningParser(tags, state=state)
    deltas = [delta for fed in pieces for delta in parser.feed(fed.text, fed.tokens, injected=fed.injected)]
    deltas += parser.finish()
    outcome = Outcome(
        thinking="".join(delta.text for delta in deltas if isinstance(delta, ThinkDelta)),
        answer="".join(delta.text for delta in deltas if isinstance(delta, AnswerDelta)),
        think_tokens=parser.think_tokens,
        answer_tokens=parser.answer_tokens,
        tag_tokens=parser.tag_tokens,
        injected_text="".join(delta.text for delta in deltas if delta.injected),
        in_thinking=parser.in_thinking,
    )
    return outcome, deltas


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_text_is_split_where_its_tags_stand(case: Case) -> None:
    for pieces in ([Fed(case.text)], [Fed(character) for character in case.text]):
        outcome, _ = split(pieces, case.tags, case.state)
        assert (outcome.thinking, outcome.answer) == (case.thinking, case.answer)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@given(places=st.lists(st.integers(0, 1000), max_size=12))
@settings(max_examples=20, deadline=None)
def test_any_chunking_of_a_case_gives_the_same_split(case: Case, places: list[int]) -> None:
    outcome, _ = split([Fed(text) for text in cut(case.text, places)], case.tags, case.state)
    assert (outcome.thinking, outcome.answer) == (case.thinking, case.answer)
    assert outcome.think_tokens + outcome.answer_tokens == len(places) + 1


@given(
    fragments=st.lists(st.tuples(st.sampled_from(FRAGMENTS), st.integers(0, 3), st.booleans()), max_size=14),
    places=st.lists(st.lists(st.integers(0, 20), max_size=4), min_size=14, max_size=14),
    state=st.sampled_from(("unopened", "open", "closed")),
    tags=st.sampled_from((THINK, HARMONY, None)),
)
@settings(max_examples=300, deadline=None)
def test_cutting_the_pieces_of_any_text_further_changes_nothing(
    fragments: list[tuple[str, int, bool]], places: list[list[int]], state: ThinkState, tags: ReasoningTags | None
) -> None:
    pieces = [Fed(text, tokens, injected) for text, tokens, injected in fragments]
    finer = []
    for piece, cuts in zip(pieces, places, strict=False):
        texts = [text for text in cut(piece.text, cuts) if text]
        finer += [Fed(text, 0, piece.injected) for text in texts[:-1]]
        finer.append(Fed(texts[-1], piece.tokens, piece.injected))
    outcome, deltas = split(pieces, tags, state)
    assert split(finer, tags, state)[0] == outcome
    assert outcome.think_tokens + outcome.answer_tokens == sum(piece.tokens for piece in pieces)
    assert 0 <= outcome.tag_tokens <= outcome.think_tokens
    assert all(delta.text for delta in deltas)
    assert sum(delta.tokens for delta in deltas) <= sum(piece.tokens for piece in pieces)


@given(text=st.text(st.sampled_from("ab<>/ \nthink")), places=st.lists(st.integers(0, 50)))
@settings(max_examples=500, deadline=None)
def test_thinking_and_answer_lose_nothing_but_the_white_space_before_them(text: str, places: list[int]) -> None:
    chunks = [Fed(chunk) for chunk in cut(text, places)]
    assert split(chunks, state="closed")[0].answer == text.lstrip()
    if "</think>" not in text and not text.lstrip().startswith("<think>"):
        assert split(chunks, state="open")[0].thinking == text.lstrip()


def test_tokens_count_on_the_side_where_their_text_ends() -> None:
    pieces = [Fed("<think>"), Fed("\n"), Fed("a"), Fed(" b</"), Fed("think"), Fed(">\n\n"), Fed("c"), Fed("")]
    outcome, _ = split(pieces)
    assert (outcome.thinking, outcome.answer) == ("a b", "c")
    assert (outcome.think_tokens, outcome.answer_tokens, outcome.tag_tokens) == (5, 3, 3)


def test_a_piece_of_many_tokens_counts_on_the_side_of_its_last_character() -> None:
    outcome, _ = split([Fed("a</think>b", 7)], state="open")
    assert (outcome.think_tokens, outcome.answer_tokens, outcome.tag_tokens) == (0, 7, 0)


@pytest.mark.parametrize(
    ("text", "state", "think_tokens", "answer_tokens"),
    [("a", "open", 2, 0), ("a", "closed", 0, 2), ("<think>", "unopened", 2, 0), ("</think>", "open", 1, 1)],
)
def test_the_end_token_counts_on_the_side_it_ends(
    text: str, state: ThinkState, think_tokens: int, answer_tokens: int
) -> None:
    outcome, _ = split([Fed(text), Fed("")], state=state)
    assert (outcome.think_tokens, outcome.answer_tokens) == (think_tokens, answer_tokens)


def test_white_space_before_the_opening_tag_counts_as_part_of_it() -> None:
    outcome, _ = split([Fed("\n"), Fed("<think>"), Fed("a")])
    assert (outcome.think_tokens, outcome.tag_tokens) == (3, 2)
    assert split([Fed("\n"), Fed("a")])[0].answer_tokens == 2


def test_an_injected_bridge_is_thinking_whole_and_its_tag_is_not_the_models() -> None:
    pieces = [Fed("a"), Fed(" Enough", 2, True), Fed(" now.\n</think>\n\n", 3, True), Fed("b")]
    outcome, deltas = split(pieces, state="open")
    assert (outcome.thinking, outcome.answer) == ("a Enough now.\n", "b")
    assert (outcome.think_tokens, outcome.answer_tokens, outcome.tag_tokens) == (6, 1, 0)
    assert [delta.text for delta in deltas if delta.injected] == [" Enough", " now.\n"]


def test_a_bridge_after_a_half_written_closing_tag_leaves_it_in_the_thinking() -> None:
    outcome, deltas = split([Fed("a"), Fed("</thi"), Fed(" Enough.</think>", 2, True), Fed("b")], state="open")
    assert (outcome.thinking, outcome.answer) == ("a</thi Enough.", "b")
    assert [(delta.text, delta.injected) for delta in deltas] == [
        ("a", False),
        ("</thi", False),
        (" Enough.", True),
        ("b", False),
    ]


def test_text_is_given_out_as_soon_as_it_cannot_be_a_tag() -> None:
    parser = ReasoningParser(THINK, state="open")
    assert parser.feed("a <") == [ThinkDelta(text="a ", tokens=0)]
    assert parser.feed("/") == []
    assert parser.feed("x") == [ThinkDelta(text="</x", tokens=3)]


def test_the_parser_says_where_it_stands() -> None:
    parser = ReasoningParser(THINK, state="unopened")
    stands = []
    for text in ("<think>", "a</thi", "nk>\n", "b"):
        parser.feed(text)
        stands.append(parser.in_thinking)
    assert stands == [True, True, False, False]


def test_nothing_comes_after_the_end() -> None:
    parser = ReasoningParser(THINK, state="open")
    parser.feed("a </th", 2)
    assert parser.finish() == [ThinkDelta(text="</th", tokens=2)]
    assert parser.finish() == []


@pytest.mark.parametrize(
    ("tail", "tags", "state"),
    [
        ("<｜Assistant｜><think>\n", THINK, "open"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", THINK, "closed"),
        ("<｜Assistant｜></think>", THINK, "closed"),
        ("<|im_start|>assistant\n", THINK, "unopened"),
        ("<think> about it\nassistant\n", THINK, "unopened"),
        ("<|im_start|>assistant\n", None, "closed"),
        ("[/INST]", MISTRAL, "unopened"),
        ("[/INST][THINK]", MISTRAL, "open"),
        ("<|start|>assistant", HARMONY, "unopened"),
        ("", THINK, "unopened"),
    ],
)
def test_the_prompts_tail_says_how_it_leaves_thinking(tail: str, tags: ReasoningTags | None, state: ThinkState) -> None:
    assert think_state(tail, tags) == state


@pytest.mark.parametrize(
    ("template", "vocabulary", "opening"),
    [
        ("{% if '</think>' in content %}", (), "<think>"),
        ("... <think>\\n ...", (), "<think>"),
        ("{{ '[THINK]' }}", (), "[THINK]"),
        ("<|channel|>analysis<|message|>", (), "<|channel|>analysis<|message|>"),
        ("'<|channel>thought\\n' and <think>", (), "<|channel>thought"),
        ("<seed:think>", (), "<seed:think>"),
        ("<|START_THINKING|>", (), "<|START_THINKING|>"),
        ("chatml", ("<think>", "</think>"), "<think>"),
        (None, ("<think>", "</think>"), "<think>"),
        (None, ("◁think▷", "◁/think▷"), "◁think▷"),
        (None, ("<|start|>", "<|channel|>", "<|message|>", "<|return|>"), "<|channel|>analysis<|message|>"),
        (None, ("<think>",), None),
        ("chatml", (), None),
    ],
)
def test_tags_are_derived_from_template_then_vocabulary(
    template: str | None, vocabulary: tuple[str, ...], opening: str | None
) -> None:
    tags = derive_tags(template, lambda text: text in vocabulary)
    assert (tags.open if tags else None) == opening


def test_think_control_is_what_the_template_mentions() -> None:
    both = derive_think_control("{% if enable_thinking %} '/no_think'")
    assert (both.switch, both.off_word, both.off_block) == ("enable_thinking", "/no_think", True)
    none = derive_think_control(None)
    assert (none.switch, none.off_word, none.off_block) == (None, None, True)
    assert not derive_think_control("<|channel|>analysis<|message|>").off_block
