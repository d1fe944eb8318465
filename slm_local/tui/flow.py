"""A pane of text that grows at its end and is scrolled: draws the rows in view and nothing else."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.cache import LRUCache
from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from slm_local.tui.parts import Part, Tone

MAX_COLUMNS = 120
"""Longer lines are hard to read."""

MARGIN = Segment(" ")
"""What stands before each row; drawn here, for borders and padding of a style cost as much as the text."""

MIN_COLUMNS = 12
"""A narrower pane shows the beginnings of rows that are so long."""

KEPT_ROWS = 512
"""Rows whose drawing is kept: a few screens full."""


class FlowView(ScrollView, can_focus=True):
    """Shows parts below each other. Follows its end as long as the reader is there."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "flow--text",
        "flow--prompt",
        "flow--remark",
        "flow--warning",
        "flow--hint",
    }
    DEFAULT_CSS = """
    FlowView {
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        & > .flow--prompt { color: $primary; text-style: bold; }
        scrollbar-background: $surface;
        scrollbar-background-hover: $surface;
        scrollbar-background-active: $surface;
        & > .flow--remark { color: $foreground 60%; }
        & > .flow--warning { color: $text-warning; }
        & > .flow--hint { color: $text-accent; }
    }
    """

    virtual_size = Reactive(Size(0, 0), layout=False, repaint=False)  # growing moves nothing else

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._parts: list[Part] = []
        self._heights: list[int] = []
        self._tops: list[int] = []
        """The row at which each part begins."""
        self._is_laid: list[bool] = []
        self._columns = 0
        self._follows = True
        """Whether the reader was at the end before the pane's size changed."""
        self._known_size = Size(0, 0)
        """The size that the rows were arranged for."""
        self._drawn: LRUCache[int, Strip] = LRUCache(KEPT_ROWS)
        self._looks: tuple[int, Style] | None = None
        self._tones: dict[Tone, Style] = {}

    @property
    def parts(self) -> Sequence[Part]:
        """Return what is shown."""
        return self._parts

    @property
    def row_count(self) -> int:
        """Return how many rows there are."""
        return self._tops[-1] + self._heights[-1] if self._tops else 0

    @property
    def is_at_end(self) -> bool:
        """Return whether the reader sees the end."""
        return self.scroll_offset.y >= self.row_count - self.scrollable_content_region.height

    @property
    def text(self) -> str:
        """Return all rows as they are shown."""
        return "\n".join(
            part.strip(row).text for part in self._parts for row in range(part.lay(self._columns or MAX_COLUMNS))
        )

    def replace(self, first: int, parts: Sequence[Part]) -> None:
        """Put `parts` in the place of all from the one numbered `first` on."""
        follows = self._follows or self.is_at_end
        row = self._tops[first] if first < len(self._parts) else self.row_count
        self._parts[first:] = parts
        self._is_laid[first:] = [False] * len(parts)
        self._heights[first:] = [1] * len(parts)
        self._show_change(first, row, follows=follows)

    def exchange(self, old: Part, new: Part) -> None:
        """Put a part in the place of another."""
        at, follows = next(n for n, part in enumerate(self._parts) if part is old), self._follows or self.is_at_end
        self._parts[at], self._is_laid[at] = new, False
        self._show_change(at, self._tops[at], follows=follows)

    def grow(self) -> None:
        """Show that the last part grew at its end."""
        follows = self._follows or self.is_at_end
        self._is_laid[-1] = False
        self._show_change(len(self._parts) - 1, max(self._tops[-1], self.row_count - 1), follows=follows)

    def add(self, *parts: Part) -> None:
        """Put parts at the end."""
        self.replace(len(self._parts), parts)

    def clear(self) -> None:
        """Remove all parts."""
        self.replace(0, ())

    def follow(self) -> None:
        """Go to the end and stay there."""
        self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)

    def page(self, direction: int) -> None:
        """Scroll by a page, up (-1) or down (1), one row staying in view."""
        rows = max(1, self.scrollable_content_region.height - 1)
        self.scroll_to(y=self.scroll_offset.y + direction * rows, animate=False)

    def row_of(self, part: int) -> int:
        """Return the row at which a part begins."""
        return self._tops[part]

    def part_at(self, row: int) -> int | None:
        """Return the number of the part that has a row."""
        return bisect_right(self._tops, row) - 1 if 0 <= row < self.row_count else None

    def render_line(self, y: int) -> Strip:
        """Draw a row."""
        row = self.scroll_offset.y + y
        drawn = self._drawn.get(row)
        if drawn is None:
            drawn = self._draw(row)
            self._drawn[row] = drawn
        return drawn

    def notify_style_update(self) -> None:
        """Forget what was drawn in other colours."""
        self._forget_drawn()
        super().notify_style_update()

    def on_resize(self, event: events.Resize) -> None:
        """Arrange the rows for another width."""
        del event
        self._known_size = self.size
        self._forget_drawn()
        self.refresh()
        width = self.scrollable_content_region.width - MARGIN.cell_length
        columns = min(max(width, MIN_COLUMNS), MAX_COLUMNS) if width > 0 else 0
        if columns == self._columns:
            self._resize(follows=self._follows)
            return
        follows, top = self._follows, self.part_at(self.scroll_offset.y)
        share = (self.scroll_offset.y - self._tops[top]) / max(1, self._heights[top]) if top is not None else 0.0
        self._columns = columns
        self._is_laid = [False] * len(self._parts)
        self._arrange(0)
        self._resize(follows=follows)
        if not follows and top is not None:
            self.scroll_to(y=self._tops[top] + int(share * self._heights[top]), animate=False)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Lay out what comes into view."""
        super().watch_scroll_y(old_value, new_value)
        self._lay_visible()
        if self.size == self._known_size:  # else it is not the reader who scrolls
            self._follows = self.is_at_end

    def _show_change(self, first: int, row: int, *, follows: bool) -> None:
        """Arrange the parts from `first` on, of which the rows from `row` on are new."""
        self._arrange(first)
        for each in [each for each in self._drawn.keys() if each >= row]:  # noqa: SIM118 - no mapping
            self._drawn.discard(each)
        self._resize(follows=follows)
        self.refresh(Region(0, max(0, row - self.scroll_offset.y), self.size.width, self.size.height))

    def _draw(self, row: int) -> Strip:
        width, style = self._look()
        at = self.part_at(row)
        if at is None:
            return Strip.blank(width, style)
        part = self._parts[at]
        within = row - self._tops[at]
        if within >= part.lay(self._columns):
            return Strip.blank(width, style)
        style = self._tone(part.tone)
        text = part.strip(within)
        row_of = Strip([MARGIN, *text], MARGIN.cell_length + text.cell_length)
        return row_of.apply_style(style).adjust_cell_length(width, style)

    def _look(self) -> tuple[int, Style]:
        """Return width and colours, which are dear to ask for."""
        if self._looks is None:
            self._looks = self.scrollable_content_region.width, self.rich_style
        return self._looks

    def _tone(self, tone: Tone) -> Style:
        style = self._tones.get(tone)
        if style is None:
            style = self.rich_style + self.get_component_rich_style(f"flow--{tone}")
            self._tones[tone] = style
        return style

    def _forget_drawn(self) -> None:
        self._drawn.clear()
        self._looks = None
        self._tones.clear()

    def _arrange(self, first: int) -> None:
        """Find the heights and tops from the part numbered `first` on; those not in view are guessed."""
        if self._columns <= 0:
            self._heights[first:] = [0] * (len(self._parts) - first)
        else:
            for at in range(first, len(self._parts)):
                if not self._is_laid[at]:
                    self._heights[at] = self._parts[at].estimate(self._columns)
        top = self._tops[first - 1] + self._heights[first - 1] if first else 0
        self._tops[first:] = accumulate(self._heights[first:-1], initial=top) if self._parts[first:] else []

    def _resize(self, *, follows: bool) -> None:
        """Tell the scroll bar how many rows there are; go to the end if the reader was there."""
        self._tell_height()
        while follows and self.scroll_offset.y != self.max_scroll_y:  # what comes into view may prove higher
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)
        self._follows = follows
        self._lay_visible()

    def _tell_height(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, self.row_count)
        bar = self.vertical_scrollbar
        bar.window_virtual_size = self.row_count
        bar.window_size = self.scrollable_content_region.height

    def _lay_visible(self) -> None:
        """Lay out the parts in view for real; what is in view below the first of them stays where it is."""
        if self._columns <= 0 or not self._parts:
            return
        top = self.scroll_offset.y
        first = max(0, bisect_right(self._tops, top) - 1)
        at, shift, moved = first, 0, False
        while at < len(self._parts) and self._tops[at] < top + shift + self.scrollable_content_region.height:
            if not self._is_laid[at]:
                height, self._is_laid[at] = self._parts[at].lay(self._columns), True
                if height != self._heights[at]:
                    shift += height - self._heights[at] if self._tops[at] < top else 0
                    self._heights[at] = height
                    self._arrange(at)
                    moved = True
            at += 1
        if moved:
            self._drawn.clear()
            self._tell_height()
            self.refresh()
            if shift:
                self.scroll_to(y=top + shift, animate=False, immediate=True)
