"""Which part of a model's output is thinking and which is the answer.

Tags are data, the starting state is read off the rendered prompt. A text is split the same way however it was cut
into pieces. Nothing here knows a runtime, a budget or a screen.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

from slm_local.generation import Tags, ThinkControl, ThinkState

Side = Literal["think", "answer"]

_WHITE_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one side grew by; `text` may be empty where only tokens were counted."""

    kind: Side
    text: str
    tokens: int
    tag_tokens: int = 0
    """Tokens of tags that the model wrote; inside `tokens`, always on the think side."""
    injected: bool = False


class _Run(NamedTuple):
    """A stretch of one piece; its tokens belong to its last character."""

    text: str
    tokens: int
    injected: bool


def think_state(prompt_tail: str, tags: Tags | None) -> ThinkState:
    """Say how a rendered prompt leaves thinking; white space at its end is looked through."""
    tail = prompt_tail.rstrip()
    if tags is None or (tags.close and tail.endswith(tags.close)):
        return "closed"
    return "open" if tags.open and tail.endswith(tags.open) else "unopened"


class Splitter:
    """Split a stream of pieces into thinking and answer; one per generation.

    Phases: `blank` (only white space so far: an opening tag starts thinking, a closing tag or a `skip` string is
    swallowed, any other text starts the answer), `opened` (the prompt opened thinking: the model may repeat the tag
    once), `thinking` (up to the closing tag, then `blank` again), `answer` (all that follows, whatever it contains).

    White space: lines of nothing else at the start of either side are dropped, the first real line keeps its
    indentation; white space at the end of either side is held back until text follows, and dropped if none does.

    Tokens: all tokens of a piece belong to its last character, so feed one token at a time where exact counts
    matter. A token counts on the side of that character; the tag's own characters are thinking, and `tag_tokens`
    unless injected. White space between the sides counts as thinking before a tag or when injected, else as answer.
    A piece without text (half a character) belongs to the next character. Every token is counted exactly once.
    """

    def __init__(self, tags: Tags | None, state: ThinkState) -> None:
        self._open = tags.open if tags else ""
        self._close = tags.close if tags else ""
        skip = tags.skip if tags else ()
        self._tags = tuple(tag for tag in (self._open, self._close, *skip) if tag)
        self._longest_tag = max(map(len, self._tags), default=0)
        self._close_prefixes = tuple(self._close[:size] for size in range(len(self._close) - 1, 0, -1))
        self._phase: Literal["blank", "opened", "thinking", "answer"]
        self._phase = "opened" if tags and state == "open" else "blank"
        self._runs: deque[_Run] = deque()  # fed, not yet decided
        self._cut = 0  # characters of the first run that are already decided
        self._held: list[_Run] = []  # white space that waits for text of its side
        self._is_fresh = True  # whether the side under way has shown no text yet
        self._out: list[Part] = []

    @property
    def in_thinking(self) -> bool:
        """Whether what was decided so far ends inside thinking."""
        return self._phase in ("opened", "thinking")

    @property
    def answer_started(self) -> bool:
        """Whether the answer has shown text."""
        return self._phase == "answer"

    def feed(self, text: str, tokens: int, injected: bool = False) -> list[Part]:
        """Take one piece and return what is decided by now, in order; may be empty."""
        self._runs.append(_Run(text, tokens, injected))
        self._advance(is_end=False)
        return self._drain()

    def flush(self) -> list[Part]:
        """Return what was held back: an unfinished tag is plain text, white space at the end is dropped."""
        self._advance(is_end=True)
        side: Side = "think" if self.in_thinking else "answer"
        for run in (*self._held, *self._runs):
            self._emit("think" if run.injected else side, "", run.tokens, run.injected)
        self._held.clear()
        self._runs.clear()
        return self._drain()

    def _advance(self, *, is_end: bool) -> None:
        text = "".join(run.text for run in self._runs)[self._cut :]
        at = 0
        while at < len(text):
            match self._phase:
                case "answer":
                    step: int | None = self._say("answer", len(text) - at)
                case "thinking":
                    step = self._think(text, at, is_end)
                case "blank" | "opened":
                    step = self._begin(text, at, is_end)
            if step is None:
                return
            at += step

    def _think(self, text: str, at: int, is_end: bool) -> int | None:
        """Pass thinking on up to the closing tag; return the characters used, None to wait for more."""
        end = text.find(self._close, at) if self._close else -1
        if end == at:
            self._phase = "blank"
            return self._swallow(len(self._close))
        if end < 0:
            end = len(text) - (0 if is_end else self._begun_close(text, at))
        return self._say("think", end - at) or None

    def _begun_close(self, text: str, at: int) -> int:
        """Return how many characters at the text's end may be the start of a closing tag."""
        if not text.endswith(self._close_prefixes):
            return 0
        return next((len(begun) for begun in self._close_prefixes if text.endswith(begun, at)), 0)

    def _begin(self, text: str, at: int, is_end: bool) -> int | None:
        """Look for a tag where nothing but white space came before; return as `_think` does, 0 for a new phase."""
        found = _WHITE_SPACE.match(text, at)
        body = found.end() if found else at
        if body > at:
            return self._say("think", body - at) if self._phase == "opened" else self._hold(body - at)
        window = text[at : at + self._longest_tag]
        tags = self._tags if self._phase == "blank" else (self._open,)
        if not is_end and any(len(tag) > len(window) and tag.startswith(window) for tag in tags):
            return None
        tag = max((tag for tag in tags if tag and window.startswith(tag)), key=len, default="")
        if not tag:
            self._phase = "answer" if self._phase == "blank" else "thinking"
            return 0
        if tag == self._open:
            self._phase = "thinking"
        return self._swallow(len(tag))

    def _take(self, count: int) -> list[_Run]:
        """Remove `count` characters from the undecided runs, with the tokens that end in them."""
        taken = []
        while count:
            run = self._runs[0]
            left = len(run.text) - self._cut
            if left > count:
                taken.append(_Run(run.text[self._cut : self._cut + count], 0, run.injected))
                self._cut += count
                break
            taken.append(_Run(run.text[self._cut :], run.tokens, run.injected))
            self._runs.popleft()
            self._cut = 0
            count -= left
        return taken

    def _swallow(self, count: int) -> int:
        """Drop a tag, and the white space before it, but for the tokens."""
        for run in self._held:
            self._emit("think", "", run.tokens, run.injected)
        self._held.clear()
        self._is_fresh = True
        for run in self._take(count):
            self._emit("think", "", run.tokens, run.injected, 0 if run.injected else run.tokens)
        return count

    def _hold(self, count: int) -> int:
        """Keep white space whose side is not known yet, tokens and all."""
        for run in self._take(count):
            if run.injected:
                self._emit("think", "", run.tokens, True)
                run = run._replace(tokens=0)
            self._held.append(run)
        return count

    def _say(self, side: Side, count: int) -> int:
        """Give text to a side, but for white space at its end; its tokens are counted at once."""
        for run in self._take(count):
            text = run.text.rstrip()
            body = text.lstrip()
            if body:
                if len(body) < len(text):
                    self._held.append(_Run(text[: -len(body)], 0, run.injected))
                self._release(side)
            self._emit(side, body, run.tokens, run.injected)
            if len(text) < len(run.text):
                self._held.append(_Run(run.text[len(text) :], 0, run.injected))
        return count

    def _release(self, side: Side) -> None:
        """Give held white space to the side whose text follows: at its start only the first line's indentation."""
        dropped = 0
        if self._is_fresh:
            blank = "".join(run.text for run in self._held)
            dropped = 1 + max(blank.rfind("\n"), blank.rfind("\r"))
        for run in self._held:
            self._emit(side, run.text[dropped:], run.tokens, run.injected)
            dropped = max(0, dropped - len(run.text))
        self._held.clear()
        self._is_fresh = False

    def _emit(self, side: Side, text: str, tokens: int, injected: bool, tag_tokens: int = 0) -> None:
        if text or tokens:
            self._out.append(Part(kind=side, text=text, tokens=tokens, tag_tokens=tag_tokens, injected=injected))

    def _drain(self) -> list[Part]:
        """Return what was emitted, neighbours of one kind joined."""
        out, self._out = self._out, []
        if len(out) < 2:
            return out
        joined = []
        for (kind, injected), group in groupby(out, key=lambda part: (part.kind, part.injected)):
            parts = list(group)
            joined.append(
                Part(
                    kind=kind,
                    text="".join(part.text for part in parts),
                    tokens=sum(part.tokens for part in parts),
                    tag_tokens=sum(part.tag_tokens for part in parts),
                    injected=injected,
                )
            )
        return joined


class _Family(NamedTuple):
    tags: Tags
    marks: tuple[str, ...]
    """The tags' own texts in a template, any of which gives the family away."""
    tokens: tuple[str, ...]
    """Vocabulary entries which, all together, give the family away."""


def _pair(start: str, end: str) -> _Family:
    return _Family(Tags(open=start, close=end), marks=(start, end), tokens=(start, end))


_HARMONY = _Family(
    Tags(
        open="<|channel|>analysis<|message|>",
        close="<|end|>",
        skip=("<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
    ),
    marks=("<|channel|>analysis<|message|>",),
    tokens=("<|start|>", "<|channel|>", "<|message|>", "<|return|>"),
)

_GEMMA_4 = _Family(
    Tags(open="<|channel>thought", close="<channel|>"),
    marks=("<|channel>thought",),
    tokens=("<|channel>", "<channel|>"),
)

_FAMILIES = (
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


def derive_tags(template: str | None, vocabulary_has: Callable[[str], bool]) -> Tags | None:
    """Find the tags of a model that no registry entry describes; None: nothing says that it marks its thinking.

    The template is asked first (either tag is enough: some only cut old thinking off at the closing one), then the
    vocabulary, where all tokens of a family must be.
    """
    for family in _FAMILIES:
        if template and any(mark in template for mark in family.marks):
            return family.tags
    return next((family.tags for family in _FAMILIES if all(map(vocabulary_has, family.tokens))), None)


def derive_think_control(template: str | None) -> ThinkControl:
    """Find how a template lets thinking be switched; only what it mentions."""
    source = template or ""
    return ThinkControl(
        switch=_SWITCH if _SWITCH in source else None,
        off_word=_OFF_WORD if _OFF_WORD in source else None,
        off_block=not any(mark in source for mark in _HARMONY.marks),
    )
