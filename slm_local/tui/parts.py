"""Stretches of a flow of text: each knows its rows at a width, and wraps only what is new.

A part shows text that is visible already (`sanitize`); it is never read as markup.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from typing import Literal, Protocol

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.theme import Theme

Tone = Literal["text", "prompt", "remark", "warning", "hint"]
"""What a text is, for the colours."""

TAB = "    "

MAX_ROW_CHARS = 8
"""Characters looked at for each column of a row: a cell may carry several combining marks, not hundreds."""


class Part(Protocol):
    """A stretch of a flow."""

    tone: Tone

    def lay(self, columns: int) -> int:
        """Arrange the rows for a width and return how many there are; cheap where the width is the same."""
        ...

    def estimate(self, columns: int) -> int:
        """Return about how many rows there would be, without the work."""
        ...

    def row(self, row: int) -> list[Segment]:
        """Return a row of what was laid."""
        ...


class TextPart:
    """Plain text that may grow at its end; a line of any length is wrapped once."""

    def __init__(self, text: str = "", *, tone: Tone = "text", lead: str = "") -> None:
        self.tone = tone
        self._lead = lead
        """What stands before the first row; the others are indented as far."""
        self._lines = [""]
        self._rows: list[tuple[int, int]] = [(0, 0)]
        """Of every row, its line and where in it it begins."""
        self._columns = 0
        self.append(text)

    def append(self, text: str) -> None:
        """Let the text grow."""
        for at, piece in enumerate(text.replace("\t", TAB).split("\n")):
            if at:
                self._lines.append("")
                self._rows.append((len(self._lines) - 1, 0))
            if piece:
                self._lines[-1] += piece
                self._wrap(len(self._lines) - 1, self._rows[-1][1])

    def lay(self, columns: int) -> int:
        """Arrange the rows for a width and return how many there are."""
        if columns != self._columns:
            self._columns = columns
            self._rows = []
            for at in range(len(self._lines)):
                self._rows.append((at, 0))
                self._wrap(at, 0)
        return len(self._rows)

    def estimate(self, columns: int) -> int:
        """Return the rows, which cost little here."""
        return self.lay(columns)

    def row(self, row: int) -> list[Segment]:
        """Return a row."""
        line, start = self._rows[row]
        is_last = row + 1 == len(self._rows) or self._rows[row + 1][0] != line
        text = self._lines[line][start : None if is_last else self._rows[row + 1][1]]
        return [Segment((self._lead if row == 0 else " " * cell_len(self._lead)) + text)]

    def _wrap(self, line: int, start: int) -> None:
        columns = self._columns - cell_len(self._lead)
        if columns > 0:
            self._rows += [(line, at) for at in breaks(self._lines[line], start, columns)]


class RichPart:
    """Something that Rich renders; keeps the rows of one width."""

    tone: Tone = "text"

    def __init__(self, renderable: RenderableType, size: int) -> None:
        self._renderable = renderable
        self._size = size
        """Characters of its text."""
        self._columns = 0
        self._rows: list[list[Segment]] = []

    def lay(self, columns: int) -> int:
        """Render for a width and return how many rows there are."""
        if columns != self._columns:
            self._columns = columns
            console = _console()
            rows = console.render_lines(self._renderable, console.options.update(width=columns), pad=False)
            self._rows = [_on_the_pane(row) for row in rows] or [[]]
        return len(self._rows)

    def estimate(self, columns: int) -> int:
        """Return about how many rows there would be, from those of another width where they are known."""
        if columns == self._columns or not self._columns:
            return len(self._rows) or 1 + self._size // columns
        return max(1, len(self._rows) * self._columns // columns)

    def row(self, row: int) -> list[Segment]:
        """Return a row."""
        return self._rows[row]


def breaks(line: str, start: int, columns: int) -> Iterator[int]:
    """Yield where the rows after the one at `start` begin: behind a blank where there is one, else at the edge."""
    while True:
        end = _end_of_row(line, start, columns)
        if end >= len(line):
            return
        start = end
        yield start


def _end_of_row(line: str, start: int, columns: int) -> int:
    """Return where a row ends; a blank that ends it may stand past the edge."""
    window = line[start : start + columns * MAX_ROW_CHARS + 1]
    if window.isascii():
        fits = columns
    else:
        widths = accumulate(map(cell_len, window))
        fits = max(1, bisect_right(list(widths), columns))
        while fits > 1 and cell_len(window[:fits]) > columns:
            fits -= 1
    if fits >= len(window):
        return start + len(window)
    blank = window.rfind(" ", 0, fits + 1)
    return start + (blank + 1 if blank > 0 else fits)


def _on_the_pane(row: list[Segment]) -> list[Segment]:
    """Return a row on the pane's own background, where Rich asks for the terminal's."""
    return [Segment(text, _plain(style) if style is not None else None) for text, style, _ in row]


@cache
def _plain(style: Style) -> Style:
    if style.bgcolor is None or not style.bgcolor.is_default:
        return style
    color = None if style.color is None or style.color.is_default else style.color
    return Style(
        color=color,
        bold=style.bold,
        dim=style.dim,
        italic=style.italic,
        underline=style.underline,
        strike=style.strike,
    )


@cache
def _console() -> Console:
    """Return the console that renders rows; nothing is written to it."""
    theme = Theme({"markdown.code": Style(bold=True, color="cyan"), "markdown.h1": Style(bold=True, underline=True)})
    return Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", theme=theme, legacy_windows=False)
