from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_local.generation import Tags, ThinkState
from slm_local.reasoning import Part, Splitter, derive_tags, derive_think_control, think_state

THINK = Tags(open="<think>", close="</think>")
MISTRAL = Tags(open="[THINK]", close="[/THINK]")
KIMI = Tags(open="◁think▷", close="◁/think▷")
HARMONY = Tags(
    open="<|channel|>analysis<|message|>",
    close="<|end|>",
    skip=("<|start|>assistant", "<|channel|>final<|message|>"),
)

NESTED = Tags(open="o", close="c", skip=("<a>", "<a>1"))


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    state: ThinkState
    text: str
    thinking: str
    answer: str
    tags: Tags | None = THINK


CASES = [
    Case("model writes both tags", "unopened", "<think>\na\n</think>\n\nb", "a", "b"),
    Case("prompt opened thinking", "open", "a\n</think>\n\nb", "a", "b"),
    Case("prompt opened thinking and the model repeats the tag", "open", "<think>\na</think>b", "a", "b"),
    Case("model repeats the tag after a line break", "open", "\n<think>\na</think>b", "a", "b"),
    Case("second repetition is thinking", "open", "<think><think>a</think>b", "<think>a", "b"),
    Case("model's own opening tag counts once", "unopened", "<think><think>a</think>b", "<think>a", "b"),
    Case("opening tag inside thinking is thinking", "open", "a <think> b</think>c", "a <think> b", "c"),
    Case("model skips thinking", "unopened", "Paris.", "", "Paris."),
    Case("closing tag first", "unopened", "</think>\n\nParis.", "", "Paris."),
    Case("prompt closed thinking", "closed", "Paris.", "", "Paris."),
    Case("prompt closed thinking and the model closes again", "closed", "\n</think>\n\nParis.", "", "Paris."),
    Case("closing tag twice", "open", "a</think>\n</think>\nb", "a", "b"),
    Case("empty thinking", "unopened", "<think>\n\n</think>\n\nb", "", "b"),
    Case("thinking again before the answer", "open", "a</think>\n<think>b</think>c", "ab", "c"),
    Case("never closed", "open", "a\nb", "a\nb", ""),
    Case("nothing at all", "unopened", "", "", ""),
    Case("white space only", "unopened", " \n\t\n", "", ""),
    Case("white space only inside thinking", "open", " \n\n", "", ""),
    Case("tag alone", "unopened", "<think>", "", ""),
    Case("closing look-alike at the end", "open", "a</thi", "a</thi", ""),
    Case("closing look-alike goes on", "open", "a</thinker> b</think>c", "a</thinker> b", "c"),
    Case("closing look-alike runs into the tag", "open", "a</thi</think>b", "a</thi", "b"),
    Case("doubled angle before the tag", "open", "a<</think>b", "a<", "b"),
    Case("opening look-alike at the end", "unopened", "<thin", "", "<thin"),
    Case("opening look-alike goes on", "unopened", "<thing>", "", "<thing>"),
    Case("upper case is no tag", "unopened", "<THINK>a</THINK>", "", "<THINK>a</THINK>"),
    Case("tags in the answer survive", "closed", "Use <think>x</think> so.", "", "Use <think>x</think> so."),
    Case("tags in a code block of the answer", "open", "a</think>```\n<think>\n```", "a", "```\n<think>\n```"),
    Case("text before the opening tag makes it text", "unopened", "So <think>a</think>", "", "So <think>a</think>"),
    Case("indentation of the first line stays", "open", "\n  a</think>\n\n    b = 1", "  a", "    b = 1"),
    Case("white space after the opening tag", "unopened", "<think> a</think> b", " a", " b"),
    Case("blank lines inside stay", "open", "a\n\n\nb</think>c\n\n d ", "a\n\n\nb", "c\n\n d"),
    Case("carriage returns", "open", "\r\na\r\n</think>\r\n\r\nb\r\n", "a", "b"),
    Case("other white space", "open", "\u3000\n\u3000a\u00a0</think>\u2028b", "\u3000a", "\u2028b"),
    Case("characters outside the basic plane", "open", "🤔🧮</think>😀\n", "🤔🧮", "😀"),
    Case("no tags", "closed", "\n\n<think>a</think> \n", "", "<think>a</think>", tags=None),
    Case("no tags whatever the state", "open", "a</think>b", "", "a</think>b", tags=None),
    Case("square brackets", "unopened", "[THINK]a [b][/THINK]c", "a [b]", "c", tags=MISTRAL),
    Case("tags of three bytes a sign", "unopened", "◁think▷a◁b◁/think▷c", "a◁b", "c", tags=KIMI),
    Case(
        "channels",
        "unopened",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
        "a",
        "b",
        tags=HARMONY,
    ),
    Case(
        "channels with two blocks of analysis",
        "unopened",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>c",
        "ab",
        "c",
        tags=HARMONY,
    ),
    Case("channels without analysis", "unopened", "<|channel|>final<|message|>b", "", "b", tags=HARMONY),
    Case("channel look-alike", "unopened", "<|channel|>finally", "", "<|channel|>finally", tags=HARMONY),
    Case("longer skip string wins", "closed", "<a>1<a>2", "", "2", tags=NESTED),
    Case("shorter skip string", "closed", "<a><a>2", "", "2", tags=NESTED),
]

FRAGMENTS = ("<think>", "</think>", "</thi", "<thin", "nk>", "<", ">", "/", "a", "b ", " ", "\n", "\n\n", "é", "🤔")


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
    injected_tokens: int
    in_thinking: bool
    answer_started: bool


def split(pieces: list[Fed], tags: Tags | None = THINK, state: ThinkState = "unopened") -> tuple[Outcome, list[Part]]:
    splitter = Splitter(tags, state)
    parts = [part for fed in pieces for part in splitter.feed(fed.text, fed.tokens, fed.injected)]
    parts += splitter.flush()
    think = [part for part in parts if part.kind == "think"]
    answer = [part for part in parts if part.kind == "answer"]
    outcome = Outcome(
        thinking="".join(part.text for part in think),
        answer="".join(part.text for part in answer),
        think_tokens=sum(part.tokens for part in think),
        answer_tokens=sum(part.tokens for part in answer),
        tag_tokens=sum(part.tag_tokens for part in parts),
        injected_tokens=sum(part.tokens for part in parts if part.injected),
        in_thinking=splitter.in_thinking,
        answer_started=splitter.answer_started,
    )
    return outcome, parts


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_text_is_split_where_its_tags_stand(case: Case) -> None:
    outcome, _ = split([Fed(case.text)], case.tags, case.state)
    assert (outcome.thinking, outcome.answer) == (case.thinking, case.answer)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_text_is_split_the_same_character_by_character(case: Case) -> None:
    outcome, _ = split([Fed(character) for character in case.text], case.tags, case.state)
    assert (outcome.thinking, outcome.answer) == (case.thinking, case.answer)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@given(places=st.lists(st.integers(0, 1000), max_size=12))
@settings(max_examples=50, deadline=None)
def test_any_chunking_of_a_case_gives_the_same_split(case: Case, places: list[int]) -> None:
    outcome, parts = split([Fed(text) for text in cut(case.text, places)], case.tags, case.state)
    assert (outcome.thinking, outcome.answer) == (case.thinking, case.answer)
    assert sum(part.tokens for part in parts) == len(places) + 1


@given(
    fragments=st.lists(st.tuples(st.sampled_from(FRAGMENTS), st.integers(0, 3), st.booleans()), max_size=14),
    places=st.lists(st.lists(st.integers(0, 20), max_size=4), min_size=14, max_size=14),
    state=st.sampled_from(("unopened", "open", "closed")),
    tags=st.sampled_from((THINK, HARMONY, None)),
)
@settings(max_examples=1000, deadline=None)
def test_cutting_the_pieces_of_any_text_further_changes_nothing(
    fragments: list[tuple[str, int, bool]], places: list[list[int]], state: ThinkState, tags: Tags | None
) -> None:
    pieces = [Fed(text, tokens, injected) for text, tokens, injected in fragments]
    finer = []
    for piece, cuts in zip(pieces, places, strict=False):
        texts = [text for text in cut(piece.text, cuts) if text]
        finer += [Fed(text, 0, piece.injected) for text in texts[:-1]]
        finer.append(Fed(texts[-1], piece.tokens, piece.injected))
    outcome, parts = split(pieces, tags, state)
    assert split(finer, tags, state)[0] == outcome
    assert outcome.think_tokens + outcome.answer_tokens == sum(piece.tokens for piece in pieces)
    assert outcome.injected_tokens == sum(piece.tokens for piece in pieces if piece.injected)
    assert 0 <= outcome.tag_tokens <= outcome.think_tokens
    assert all(part.text or part.tokens for part in parts)


@given(text=st.text(st.sampled_from("ab<>/ \n")), places=st.lists(st.integers(0, 50)))
@settings(max_examples=300, deadline=None)
def test_an_answer_loses_nothing_but_the_white_space_around_it(text: str, places: list[int]) -> None:
    outcome, _ = split([Fed(chunk) for chunk in cut(text, places)], state="closed")
    lines = text.rstrip().split("\n")
    while len(lines) > 1 and not lines[0].strip():
        lines.pop(0)
    assert outcome.answer == "\n".join(lines)
    assert outcome.thinking == ""


def test_tokens_count_on_the_side_where_their_text_ends() -> None:
    pieces = [Fed("<think>"), Fed("\n"), Fed("a"), Fed(" b</"), Fed("think"), Fed(">\n\n"), Fed("c"), Fed("")]
    outcome, _ = split(pieces)
    assert (outcome.thinking, outcome.answer) == ("a b", "c")
    assert (outcome.think_tokens, outcome.answer_tokens, outcome.tag_tokens) == (5, 3, 3)


def test_a_piece_of_many_tokens_counts_on_the_side_of_its_last_character() -> None:
    outcome, _ = split([Fed("a</think>b", 7)], state="open")
    assert (outcome.think_tokens, outcome.answer_tokens, outcome.tag_tokens) == (0, 7, 0)


def test_a_token_without_text_counts_with_the_character_it_begins() -> None:
    outcome, _ = split([Fed("a"), Fed("</think>"), Fed(""), Fed(""), Fed("😀")], state="open")
    assert (outcome.think_tokens, outcome.answer_tokens, outcome.tag_tokens) == (2, 3, 1)


@pytest.mark.parametrize(
    ("text", "state", "think_tokens", "answer_tokens"),
    [("a", "open", 2, 0), ("a", "closed", 0, 2), ("<think>", "unopened", 2, 0), ("</think>", "open", 1, 1)],
)
def test_the_end_token_counts_on_the_side_it_ends(
    text: str, state: ThinkState, think_tokens: int, answer_tokens: int
) -> None:
    outcome, _ = split([Fed(text), Fed("")], state=state)
    assert (outcome.think_tokens, outcome.answer_tokens) == (think_tokens, answer_tokens)


def test_white_space_before_the_opening_tag_counts_as_thinking_but_is_no_tag() -> None:
    outcome, _ = split([Fed("\n"), Fed("<think>"), Fed("a")])
    assert (outcome.think_tokens, outcome.tag_tokens) == (3, 1)


def test_an_injected_bridge_is_thinking_whole_and_its_tag_is_not_the_models() -> None:
    pieces = [Fed("a"), Fed(" Enough", 2, True), Fed(" now.\n</think>\n\n", 3, True), Fed("b")]
    outcome, parts = split(pieces, state="open")
    assert (outcome.thinking, outcome.answer) == ("a Enough now.", "b")
    assert (outcome.think_tokens, outcome.injected_tokens, outcome.tag_tokens) == (6, 5, 0)
    assert [part.text for part in parts if part.injected] == [" Enough", " now."]


def test_a_bridge_after_a_half_written_closing_tag_leaves_it_in_the_thinking() -> None:
    outcome, _ = split([Fed("a"), Fed("</thi"), Fed(" Enough.</think>", 2, True), Fed("b")], state="open")
    assert (outcome.thinking, outcome.answer) == ("a</thi Enough.", "b")


def test_text_is_given_out_as_soon_as_it_cannot_be_a_tag() -> None:
    splitter = Splitter(THINK, "open")
    assert [part.text for part in splitter.feed("a <", 1)] == ["a"]
    assert splitter.feed("/", 1) == []
    assert [(part.text, part.tokens) for part in splitter.feed("x", 1)] == [(" </x", 3)]


def test_thinking_tokens_are_counted_while_their_white_space_waits() -> None:
    splitter = Splitter(THINK, "open")
    splitter.feed("a", 1)
    assert splitter.feed("\n", 1) == [Part(kind="think", text="", tokens=1)]
    assert splitter.feed("b", 1) == [Part(kind="think", text="\nb", tokens=1)]


def test_the_splitter_says_where_it_stands() -> None:
    splitter = Splitter(THINK, "unopened")
    assert (splitter.in_thinking, splitter.answer_started) == (False, False)
    splitter.feed("<think>", 1)
    assert (splitter.in_thinking, splitter.answer_started) == (True, False)
    splitter.feed("a</thi", 1)
    assert splitter.in_thinking
    splitter.feed("nk>\n", 1)
    assert (splitter.in_thinking, splitter.answer_started) == (False, False)
    splitter.feed("b", 1)
    assert (splitter.in_thinking, splitter.answer_started) == (False, True)


def test_nothing_comes_after_the_end() -> None:
    splitter = Splitter(THINK, "open")
    splitter.feed("a \n", 2)
    splitter.flush()
    assert splitter.flush() == []


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
        ("anything", Tags(open="", close=""), "unopened"),
        ("", THINK, "unopened"),
    ],
)
def test_the_prompts_tail_says_how_it_leaves_thinking(tail: str, tags: Tags | None, state: ThinkState) -> None:
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
    assert (none.switch, none.off_word, none.off_block, none.force_open) == (None, None, True, False)
    assert not derive_think_control("<|channel|>analysis<|message|>").off_block
