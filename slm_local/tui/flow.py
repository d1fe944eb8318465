"""A pane of text that grows at its end and is scrolled: draws the rows in view and nothing else."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.color import Color
from textual.filter import LineFilter
from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from slm_local.tui.bar import EIGHTHS, Bar, BarState, Extent
from slm_local.tui.parts import Part, Tone

MAX_COLUMNS = 120
"""Longer lines are hard to read."""

MARGIN = Segment(" ")
"""What stands before each row."""

BAR_COLUMNS = 1

MIN_COLUMNS = 12
"""A narrower pane shows the beginnings of rows that are so long."""

KEPT_ROWS = 512
"""Rows whose drawing is kept: a few screens full."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is dear to ask a widget for, of one that keeps its size and its colours."""

    size: Size
    style: Style
    background: Color
    filters: Sequence[LineFilter]

    def filtered(self, segments: list[Segment]) -> list[Segment]:
        """Return segments in the colours that the terminal has."""
        for each in self.filters:
            segments = each.apply(segments, self.background)
        return segments


class FlowView(ScrollView, can_focus=True):
    """Shows parts below each other. Follows its end as long as the reader is there.

    It draws its rows itself, the scroll bar with them: Textual's ways take several times as long for a pane that
    scrolls with every frame. It may have borders above and below, but none at its sides, and no padding.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "flow--text",
        "flow--prompt",
        "flow--remark",
        "flow--warning",
        "flow--hint",
    }
    DEFAULT_CSS = """
    FlowView {
        overflow: hidden;
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
        self._drawn: dict[int, list[Segment]] = {}
        """Rows of all there are, as they are drawn."""
        self._lines: list[tuple[list[Segment], Strip]] = []
        """Those in view, with the bar."""
        self._borders: dict[int, tuple[str | None, Strip]] = {}
        """Rows of the border, each with the title it was drawn for."""
        self._looks: Look | None = None
        self._bar: Bar | None = None
        self._is_arranging = False
        """Whether parts or size change: what is in view is drawn after that."""
        self._bar_state: BarState = "rest"
        self._grabbed: tuple[float, float] | None = None
        """Where the mouse took hold of the bar, and where the pane was then."""
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
        return self.scroll_offset.y >= self.row_count - self.size.height

    @property
    def text(self) -> str:
        """Return all rows as they are shown."""
        rows = (part.row(row) for part in self._parts for row in range(part.lay(self._columns or MAX_COLUMNS)))
        return "\n".join("".join(segment.text for segment in row) for row in rows)

    def replace(self, first: int, parts: Sequence[Part]) -> None:
        """Put `parts` in the place of all from the one numbered `first` on."""
        while first < len(self._parts) and parts and parts[0] is self._parts[first]:
            first, parts = first + 1, parts[1:]
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
        rows = max(1, self.size.height - 1)
        self.scroll_to(y=self.scroll_offset.y + direction * rows, animate=False)

    def row_of(self, part: int) -> int:
        """Return the row at which a part begins."""
        return self._tops[part]

    def part_at(self, row: int) -> int | None:
        """Return the number of the part that has a row."""
        return bisect_right(self._tops, row) - 1 if 0 <= row < self.row_count else None

    @property
    def allow_vertical_scroll(self) -> bool:
        """Return whether it can be scrolled: always, though Textual sees no scroll bar."""
        return True

    def render_lines(self, crop: Region) -> list[Strip]:
        """Draw the rows of a region; borders are Textual's."""
        if self._looks is None or self._looks.size != self.size:
            self._forget_drawn()
            self._compose_lines()
        above, lines = self.styles.gutter.top, self._lines
        strips = [lines[y - above][1] if above <= y < above + len(lines) else self._border(y) for y in crop.line_range]
        return [strip.crop(*crop.column_span) for strip in strips]

    def _border(self, y: int) -> Strip:
        known = self._borders.get(y)
        if known is None or known[0] != self.border_title:
            strip = super().render_lines(Region(0, y, self.size.width, 1))[0]
            known = self._borders[y] = self.border_title, strip
        return known[1]

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
        width = self.size.width - MARGIN.cell_length - BAR_COLUMNS
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
        """Lay out and draw what comes into view."""
        del old_value, new_value
        self._lay_visible()
        if not self._is_arranging:
            self._redraw()
        if self.size == self._known_size:  # else it is not the reader who scrolls
            self._follows = self.is_at_end

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Take hold of the scroll bar's thumb, or go a page towards the mouse."""
        if not self._is_over_bar(event):
            return
        event.stop()
        at, (start, end) = (event.y - self.styles.gutter.top) * EIGHTHS, self._extent.thumb
        if start - EIGHTHS < at < end:
            self._grabbed = event.screen_y, self.scroll_y
            self.capture_mouse()
            self._show_bar("active")
        else:
            self.page(-1 if at < start else 1)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Follow the mouse that holds the scroll bar."""
        if self._grabbed is None:
            self._show_bar("hover" if self._is_over_bar(event) else "rest")
            return
        grabbed_y, scroll_y = self._grabbed
        moved = (event.screen_y - grabbed_y) * self.row_count / max(1, self.size.height)
        self.scroll_to(y=scroll_y + moved, animate=False)

    def on_mouse_up(self) -> None:
        """Let the scroll bar go."""
        if self._grabbed is not None:
            self._grabbed = None
            self.release_mouse()
            self._show_bar("rest")

    def on_leave(self) -> None:
        """See that the mouse is gone."""
        if self._grabbed is None:
            self._show_bar("rest")

    def _is_over_bar(self, event: events.MouseEvent) -> bool:
        return self.size.width - BAR_COLUMNS <= event.x < self.size.width

    def _show_bar(self, state: BarState) -> None:
        if state != self._bar_state:
            self._bar_state, self._bar = state, None
            self._redraw()

    def _show_change(self, first: int, row: int, *, follows: bool) -> None:
        """Arrange the parts from `first` on, of which the rows from `row` on may be new; draw those that are."""
        if follows:
            self._lay_end(first)
        self._arrange(first)
        for each in [each for each in self._drawn if each >= row]:
            del self._drawn[each]
        self._resize(follows=follows)

    def _redraw(self) -> None:
        """Draw what is in view, and have the lines shown that are not as they were."""
        before = self._lines
        self._compose_lines()
        changed = [at for at, (line, old) in enumerate(zip(self._lines, before, strict=False)) if line is not old]
        if len(before) != len(self._lines):
            self.refresh()
        elif changed:
            self.refresh(Region(0, changed[0], self.size.width, changed[-1] - changed[0] + 1))

    def _compose_lines(self) -> None:
        look, extent, before = self._look(), self._extent, self._lines
        if self._bar is None:
            self._bar = self._made_bar(look)
        self._lines = []
        for at, cell in enumerate(self._bar.cells(extent)):
            segments = [*self._row(extent.top + at), cell]
            is_same = at < len(before) and before[at][0] == segments
            self._lines.append(before[at] if is_same else (segments, Strip(segments, look.size.width)))

    def _row(self, row: int) -> list[Segment]:
        """Return a row as it is drawn, without the bar."""
        drawn = self._drawn.get(row)
        if drawn is None:
            if len(self._drawn) >= KEPT_ROWS:
                self._drawn.clear()
            drawn = self._drawn[row] = self._draw(row)
        return drawn

    def _draw(self, row: int) -> list[Segment]:
        look, at = self._look(), self.part_at(row)
        width = look.size.width - BAR_COLUMNS
        part = self._parts[at] if at is not None else None
        within = row - self._tops[at] if at is not None else 0
        if part is None or within >= part.lay(self._columns):
            return look.filtered([Segment(" " * width, look.style)])
        segments = [MARGIN, *(segment for segment in part.row(within) if segment.text)]
        styled = Segment.apply_style(segments, self._tone(part.tone))
        return look.filtered(Segment.adjust_line_length(list(styled), width, look.style))

    @property
    def _extent(self) -> Extent:
        return Extent(rows=self.row_count, top=self.scroll_offset.y, height=self.size.height)

    def _look(self) -> Look:
        if self._looks is None:
            background = self.background_colors[1]
            self._looks = Look(self.size, self.rich_style, background, self.get_line_filters())
        return self._looks

    def _made_bar(self, look: Look) -> Bar:
        styles = self.styles
        color, ground = {
            "rest": (styles.scrollbar_color, styles.scrollbar_background),
            "hover": (styles.scrollbar_color_hover, styles.scrollbar_background_hover),
            "active": (styles.scrollbar_color_active, styles.scrollbar_background_active),
        }[self._bar_state]
        ground = look.background + ground
        return Bar((ground + color).rich_color, ground.rich_color, lambda cell: look.filtered([cell])[0])

    def _tone(self, tone: Tone) -> Style:
        style = self._tones.get(tone)
        if style is None:
            style = self.rich_style + self.get_component_rich_style(f"flow--{tone}")
            self._tones[tone] = style
        return style

    def _forget_drawn(self) -> None:
        self._drawn.clear()
        self._lines = []
        self._borders.clear()
        self._looks = self._bar = None
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

    def _lay_end(self, first: int) -> None:
        """Lay out the last parts, from the one numbered `first` on, as far as they are in view."""
        left = self.size.height if self._columns > 0 else 0
        for at in range(len(self._parts) - 1, first - 1, -1):
            if left <= 0:
                return
            self._heights[at], self._is_laid[at] = self._parts[at].lay(self._columns), True
            left -= self._heights[at]

    def _resize(self, *, follows: bool) -> None:
        """Take another number of rows, or another size; go to the end if the reader was there; draw."""
        self._is_arranging = True
        self._tell_height()
        while follows and self.scroll_offset.y != self.max_scroll_y:  # what comes into view may prove higher
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)
        self._follows = follows
        self._lay_visible()
        self._is_arranging = False
        self._redraw()

    def _tell_height(self) -> None:
        self.virtual_size = Size(self.size.width, self.row_count)

    def _lay_visible(self) -> None:
        """Lay out the parts in view for real; what is in view below the first of them stays where it is."""
        if self._columns <= 0 or not self._parts:
            return
        top, height_in_view = self.scroll_offset.y, self.size.height
        first = max(0, bisect_right(self._tops, top) - 1)
        at, shift, moved = first, 0, False
        while at < len(self._parts) and self._tops[at] < top + shift + height_in_view:
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
            if shift:
                self.scroll_to(y=top + shift, animate=False, immediate=True)
