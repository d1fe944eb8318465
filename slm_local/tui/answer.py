"""An answer's Markdown as parts of a flow while it comes: the complete is rendered once, the rest in bounded time."""

from __future__ import annotations

import re

from rich.text import Text

from slm_local.markdown.blocks import ITEM, Block, BlockSplitter
from slm_local.markdown.rendering import Answer, Trimmed, highlighted, rendered
from slm_local.sanitize import Visible
from slm_local.tui.parts import Part, RichPart, TextPart

MAX_LIVE = 400
"""Characters of an unfinished block that are rendered in every frame, 2 ms of a slow core; what stands before them is
rendered once, and once more when the block is complete."""

MAX_MARKED = 2_000
"""An unfinished paragraph or table that can't be divided is shown as it was written past so many characters."""

MAX_BLOCK = 20_000
"""A complete block that is longer is shown as it was written: Markdown would stop the display."""

ITEM_CHARS = 16
"""Enough to see that a line begins an item of a list."""

MARKS = re.compile(r"[`*_~|#\[\\&<>]|^ *(?:[-+=]|\d+[.)])|^ {2}|\t", re.MULTILINE)
"""What Markdown might mean something by; a text without it is shown as it is."""


class AnswerParts:
    """The parts of one answer. `feed` costs nothing to speak of; `take` does the work of a frame."""

    def __init__(self) -> None:
        self._visible = Visible()
        self._splitter = BlockSplitter()
        self._complete = 0
        """Parts that will not change."""
        self._fresh: list[Part] = []
        """Complete ones that were not taken yet."""
        self._pieces: list[Part] = []
        """Parts of the unfinished block that are shown until it is complete."""
        self._gap = TextPart()
        """What stands before the unfinished block."""
        self._cut = 0
        """Characters of the unfinished block in `_pieces`."""

    def feed(self, text: str) -> None:
        """Take what the model wrote next."""
        self._add(self._splitter.feed(self._visible.feed(text)))

    def end(self) -> None:
        """Take note that nothing follows."""
        self._add(self._splitter.feed(self._visible.flush()) + self._splitter.flush())

    def take(self) -> tuple[int, list[Part]]:
        """Return the number of the first part that changed, and all from there on."""
        first, fresh = self._complete, self._fresh
        self._complete, self._fresh = first + len(fresh), []
        block = self._splitter.unfinished
        rest = block.text[self._cut :]
        while len(rest) > MAX_LIVE and (cut := _cut(rest, block)):
            self._pieces.append(_live_part(rest[:cut].rstrip("\n"), block))
            self._cut += cut
            rest = rest[cut:]
        live = [*self._pieces, _live_part(rest, block)] if rest.strip() else [*self._pieces]
        gap: list[Part] = [self._gap] if live and self._complete else []
        return first, [*fresh, *gap, *live]

    def _add(self, blocks: list[Block]) -> None:
        for block in blocks:
            if self._complete or self._fresh:
                self._fresh.append(TextPart())
            self._fresh.append(_part(block))
            self._pieces, self._gap, self._cut = [], TextPart(), 0


def _part(block: Block) -> Part:
    if not block.is_code and (not MARKS.search(block.text) or len(block.text) > MAX_BLOCK):
        return TextPart(block.text)
    if block.is_code and not block.language:
        return TextPart(block.text)
    return RichPart(rendered(block), len(block.text))


def _live_part(text: str, block: Block) -> Part:
    if block.is_code:
        return RichPart(highlighted(text, block.language), len(text)) if block.language else TextPart(text)
    if not MARKS.search(text):
        return TextPart(text)
    marked = Answer(text) if len(text) < MAX_MARKED else Text(text, overflow="fold")
    return RichPart(Trimmed(marked), len(text))


def _cut(text: str, block: Block) -> int:
    """Return where a text can be divided so that its halves look as the whole does, or nearly; 0: nowhere."""
    ends = [match.end() for match in re.finditer("\n", text)]
    if not block.is_code and block.text.lstrip().startswith("|"):
        return 0
    if not block.is_code and ITEM.match(block.text):
        ends = [end for end in ends if ITEM.match(text[end : end + ITEM_CHARS])]
    return ends[-1] if ends else 0
