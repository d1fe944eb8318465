"""The think/answer splitter: a stream of text in any pieces -> thinking and answer, and whose tokens they are.

Tags are data. Where thinking stands at the start is read off the rendered prompt, never guessed from output. It works
on text, since some files mark the tags as control tokens and some do not; it knows no tokens but their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from slm_local.generation import AnswerDelta, ReasoningTags, ThinkControl, ThinkDelta, ThinkState, TokenScore

Side = Literal["think", "answer"]
Delta = ThinkDelta | AnswerDelta


def think_state(prompt_tail: str, tags: ReasoningTags | None) -> ThinkState:
    """Say how a rendered prompt leaves thinking; white space at its end is looked through."""
    tail = prompt_tail.rstrip()
    if tags is None or tail.endswith(tags.close):
        return "closed"
    return "open" if tail.endswith(tags.open) else "unopened"


def line_break(tags: ReasoningTags) -> str:
    """Return what the tags' family writes after a tag: `<think>` stands on a line of its own, `[THINK]` does not."""
    return "" if tags.open.endswith(("|>", "]")) else "\n"


@dataclass(slots=True)
class _Mark:
    """A piece that was fed: where it ends in the stream, and its tokens, which belong to its last character."""

    end: int
    tokens: int
    injected: bool
    scores: tuple[TokenScore, ...]


class ReasoningParser:
    """Splits one generation into thinking and answer.

    From "unopened" the opening tag counts only when nothing but white space came before it; otherwise all is answer.
    From "open" a repeated opening tag at the very start is dropped. After the first closing tag, and from "closed",
    all is answer, whatever it contains. White space directly before the first character of either side is dropped;
    every other character comes out exactly, in order, however the text was cut.

    Families with `skip` strings (channels) may have several stretches of thinking before the answer's first character.

    Tokens: those of a piece belong to the side on which its last character stands; a tag's are thinking and count in
    `tag_tokens` unless injected, as do all injected ones in thinking. White space before an opening tag counts as part
    of it. Feed single tokens where exact counts matter.
    """

    def __init__(self, tags: ReasoningTags | None, *, state: ThinkState) -> None:
        self.think_tokens = 0
        self.answer_tokens = 0
        self.tag_tokens = 0
        self._thought_tokens = 0
        self._tags = tags if tags is not None and state != "closed" else None
        self._side: Side = "think" if self._tags is not None and state == "open" else "answer"
        self._is_blank = True  # the side has shown no character yet
        self._may_open = self._tags is not None  # an opening tag here would count
        self._text = ""  # fed, not yet decided
        self._start = 0  # where `_text` begins in the stream
        self._end = 0
        self._marks: deque[_Mark] = deque()
        self._unsaid: dict[Side, int] = {"think": 0, "answer": 0}  # tokens that no delta has carried yet
        self._unsaid_scores: tuple[TokenScore, ...] = ()  # those of the answer's
        self._out: list[Delta] = []

    @property
    def in_thinking(self) -> bool:
        """Return whether what was decided so far ends inside thinking."""
        return self._side == "think"

    @property
    def is_answering(self) -> bool:
        """Return whether all that comes is answer, whatever it contains."""
        return self._side == "answer" and not (self._tags is not None and self._may_open)

    @property
    def thought_tokens(self) -> int:
        """Return the tokens of thinking, neither a tag's nor injected; half a closing tag counts as thinking."""
        pending = sum(mark.tokens for mark in self._marks if not mark.injected) if self.in_thinking else 0
        return self._thought_tokens + pending

    @property
    def _is_undecided(self) -> bool:
        """Whether it is open on which side the next character stands."""
        return self._is_blank and self._may_open and self._side == "answer"

    def feed(
        self, text: str, tokens: int = 1, *, injected: bool = False, scores: tuple[TokenScore, ...] = ()
    ) -> list[Delta]:
        """Take a piece; return what is certain by now, in order.

        Tokens of held-back text, and their scores, come with a later delta; scores of thinking are dropped.
        """
        self._end += len(text)
        self._marks.append(_Mark(self._end, tokens, injected, scores))
        self._text += text
        while self._text and self._advance(is_last=False):
            pass
        if not self._is_undecided:
            self._count(self._start)
        out, self._out = self._out, []
        return out

    def finish(self) -> list[Delta]:
        """Return what was held back: a tag that was never finished is plain text."""
        while self._text and self._advance(is_last=True):
            pass
        self._count(self._end)
        out, self._out = self._out, []
        return out

    def _advance(self, *, is_last: bool) -> bool:
        """Decide about the start of the undecided text; return False to wait for more."""
        if self._is_blank:
            self._take(len(self._text) - len(self._text.lstrip()))
            if not self._text:
                return False
        if self._tags is None:
            return self._say(len(self._text))
        if self._is_blank and self._may_open:
            return self._begin(self._tags, is_last=is_last)
        if self._side == "think":
            return self._think(self._tags, is_last=is_last)
        return self._say(len(self._text))

    def _begin(self, tags: ReasoningTags, *, is_last: bool) -> bool:
        """Look for the tags that count before a side's first character."""
        candidates = (tags.open, *tags.skip) if self._side == "answer" else (tags.open, tags.close)
        if not is_last and any(len(tag) > len(self._text) and tag.startswith(self._text) for tag in candidates):
            return False
        found = max((tag for tag in candidates if self._text.startswith(tag)), key=len, default="")
        if found == tags.close and self._side == "think":
            self._close(tags)
        elif found == tags.open or not found:
            self._side = "think" if found else self._side
            self._may_open = False
            self._count(self._start, is_tag=bool(found))
            self._drop_tag(found)
        else:
            self._drop_tag(found)
        return True

    def _think(self, tags: ReasoningTags, *, is_last: bool) -> bool:
        """Pass thinking on, up to the closing tag."""
        at = self._text.find(tags.close)
        if at == 0:
            self._close(tags)
            return True
        if at < 0:
            at = len(self._text) - (0 if is_last else _begun(tags.close, self._text))
        return self._say(at)

    def _close(self, tags: ReasoningTags) -> None:
        self._drop_tag(tags.close)
        self._side, self._is_blank = "answer", True
        self._may_open = bool(tags.skip)
        if not tags.skip:
            self._tags = None

    def _say(self, count: int) -> bool:
        """Give out the next `count` characters; one delta for each stretch of injected or generated text."""
        if not count:
            return False
        self._is_blank = False
        stop = self._start + count
        while self._start < stop:
            mark = next(mark for mark in self._marks if mark.end > self._start)
            size = min(stop, mark.end) - self._start
            text = self._take(size)
            self._count(self._start)
            self._emit(text, mark.injected)
        return True

    def _drop_tag(self, tag: str) -> None:
        self._take(len(tag))
        self._count(self._start, is_tag=True)

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        self._start += count
        return taken

    def _count(self, end: int, *, is_tag: bool = False) -> None:
        """Attribute the tokens of all pieces that end at or before `end`."""
        while self._marks and self._marks[0].end <= end:
            mark = self._marks.popleft()
            side: Side = "think" if is_tag or mark.injected else self._side
            if side == "think":
                self.think_tokens += mark.tokens
                self._thought_tokens += mark.tokens if not is_tag and not mark.injected else 0
            else:
                self.answer_tokens += mark.tokens
                self._unsaid_scores += mark.scores
            self.tag_tokens += mark.tokens if is_tag and not mark.injected else 0
            self._unsaid[side] += mark.tokens

    def _emit(self, text: str, injected: bool) -> None:
        tokens, self._unsaid[self._side] = self._unsaid[self._side], 0
        delta: Delta = ThinkDelta(text=text, tokens=tokens, injected=injected)
        if self._side == "answer":
            scores, self._unsaid_scores = self._unsaid_scores, ()
            delta = AnswerDelta(text=text, tokens=tokens, injected=injected, scores=scores)
        joined = joined_deltas(self._out[-1], delta) if self._out else None
        self._out[-1 if joined else len(self._out) :] = [joined or delta]


def joined_deltas(one: Delta, other: Delta) -> Delta | None:
    """Return two deltas, one behind the other, as one; None where they are not of one kind."""
    if one.injected != other.injected:
        return None
    text, tokens = one.text + other.text, one.tokens + other.tokens
    if isinstance(one, AnswerDelta) and isinstance(other, AnswerDelta):
        return replace(one, text=text, tokens=tokens, scores=one.scores + other.scores)
    if isinstance(one, ThinkDelta) and isinstance(other, ThinkDelta):
        return replace(one, text=text, tokens=tokens)
    return None


def _begun(tag: str, text: str) -> int:
    """Return how many characters at the text's end may be the start of a tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)


class TagFamily(NamedTuple):
    """A way to mark thinking, and what gives it away in a model that no registry entry describes."""

    tags: ReasoningTags
    marks: tuple[str, ...]
    """The tags' own texts in a template, any of which gives the family away."""
    tokens: tuple[str, ...]
    """Vocabulary entries which, all together, give the family away."""


def _pair(start: str, end: str) -> TagFamily:
    return TagFamily(ReasoningTags(open=start, close=end), marks=(start, end), tokens=(start, end))


_HARMONY = TagFamily(
    ReasoningTags(
        open="<|channel|>analysis<|message|>",
        close="<|end|>",
        skip=("<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
        answer_open="<|start|>assistant<|channel|>final<|message|>",
    ),
    marks=("<|channel|>analysis<|message|>",),
    tokens=("<|start|>", "<|channel|>", "<|message|>", "<|return|>"),
)

_GEMMA_4 = TagFamily(
    ReasoningTags(open="<|channel>thought", close="<channel|>"),
    marks=("<|channel>thought",),
    tokens=("<|channel>", "<channel|>"),
)

FAMILIES = (
    _HARMONY,
    _GEMMA_4,
    _pair("[THINK]", "[/THINK]"),
    _pair("<seed:think>", "</seed:think>"),
    _pair("<mm:think>", "</mm:think>"),
    _pair("<|START_THINKING|>", "<|END_THINKING|>"),
    _pair("<|inner_prefix|>", "<|inner_suffix|>"),
    _pair("<|begin_of_thought|>", "<|end_of_thought|>"),
    _pair("◁think▷", "◁/think▷"),
    _pair("<think>", "</think>"),
    _pair("<thought>", "</thought>"),
)
"""Source: the chat templates of llama.cpp's source package (models/templates) and the models' cards."""

_SWITCH = "enable_thinking"
_OFF_WORD = "/no_think"


def derive_tags(template: str | None, vocabulary_has: Callable[[str], bool]) -> ReasoningTags | None:
    """Find the tags of a model that no registry entry describes; None: nothing says that it marks its thinking.

    The template is asked first (either tag is enough: some only cut old thinking off at the closing one), then the
    vocabulary, where all tokens of a family must be.
    """
    for family in FAMILIES:
        if template and any(mark in template for mark in family.marks):
            return family.tags
    return next((family.tags for family in FAMILIES if all(map(vocabulary_has, family.tokens))), None)


def derive_think_control(template: str | None) -> ThinkControl:
    """Find how a template lets thinking be switched; only what it mentions."""
    source = template or ""
    return ThinkControl(
        switch=_SWITCH if _SWITCH in source else None,
        off_word=_OFF_WORD if _OFF_WORD in source else None,
        off_block=not any(mark in source for mark in _HARMONY.marks),
    )
