"""The scroll bar of a flow: which cells of a column its thumb takes, to an eighth of one. Knows no widget.

It looks as Textual's own does, which is a widget and costs more to draw than the text beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

from rich.color import Color
from rich.segment import Segment
from rich.style import Style

BarState = Literal["rest", "hover", "active"]
"""Whether the mouse is elsewhere, over the bar, or holds it."""

EIGHTHS = 8

LOWER = " ▁▂▃▄▅▆▇"
"""A cell of which so many eighths are drawn, from below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What is in view of how much, in rows."""

    rows: int
    top: int
    height: int

    @property
    def thumb(self) -> tuple[int, int]:
        """Return where the thumb begins and ends, in eighths of a cell; nowhere when all is in view."""
        if not 0 < self.height < self.rows:
            return 0, 0
        size = max(1.0, self.height / (self.rows / self.height))
        start = int((self.height - size) * (self.top / (self.rows - self.height)) * EIGHTHS)
        return start, start + ceil(size * EIGHTHS)


class Bar:
    """The cells of a bar in two colours; `filtered` gives a segment the colours that the terminal has."""

    def __init__(self, color: Color, ground: Color, filtered: Callable[[Segment], Segment]) -> None:
        up, down = Style(color=color, bgcolor=ground), Style(color=color, bgcolor=ground, reverse=True)
        self._blank, self._full = filtered(Segment(" ", Style(bgcolor=ground))), filtered(Segment(" ", down))
        self._heads = [filtered(Segment(text, up)) for text in LOWER]
        self._tails = [filtered(Segment(text, down)) for text in LOWER]

    def cells(self, extent: Extent) -> list[Segment]:
        """Return the cells from above."""
        start, end = extent.thumb
        (first, free), (last, taken) = divmod(start, EIGHTHS), divmod(end, EIGHTHS)
        cells = [self._blank] * first + [self._full] * (last - first) + [self._blank] * (extent.height - last)
        if free:
            cells[first] = self._heads[EIGHTHS - free]
        if taken and last < extent.height:
            cells[last] = self._tails[EIGHTHS - taken]
        return cells
