"""A reply on a terminal: thinking and answer, each under a titled rule, written into the scrollback as they come.

What is complete (a wrapped line of thinking, a block of Markdown) is printed once and never touched again; only the
unfinished rest and a status line are redrawn, in a region that always fits the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live_render import LiveRender
from rich.segment import Segment
from rich.text import Text

from slm_local.cli.render import Terminal, rule
from slm_local.cli.stream import Outcome
from slm_local.cli.views import show_reading, thinking_head
from slm_local.generation import AnswerDelta, Done, Note, PromptProgress, PromptScores, Started, StreamEvent, ThinkDelta
from slm_local.markdown.blocks import Block, BlockSplitter
from slm_local.markdown.rendering import rendered, rendered_tail
from slm_local.sanitize import Visible, one_line

FRAME_S = 1 / 10
"""Smooth to the eye, and cheap on a machine that is thinking."""

MAX_TAIL_ROWS = 20
"""Rows of an unfinished block that are redrawn; the whole block is printed when it is complete."""


class PanelView:
    """Shows one reply as two panels."""

    frame_s = FRAME_S

    def __init__(
        self, terminal: Terminal, model: str, *, shows_thinking: bool, limit: str = "", is_quiet: bool = False
    ) -> None:
        """`limit` says how far thinking may go; it is shown where it begins."""
        self._terminal = terminal
        self._limit = limit
        self._model = one_line(model, 60)
        self._shows_thinking = shows_thinking and not is_quiet
        self._is_quiet = is_quiet
        self._region = Region(terminal, MAX_TAIL_ROWS)
        self._visible = Visible()
        self._complete: list[RenderableType] = []
        """What is complete and not printed yet."""
        self._line = ""
        """The unfinished line of thinking."""
        self._blocks: BlockSplitter | None = None
        """The answer's; None before it begins."""
        self._has_block = False
        self._is_changed = False
        self._think_tokens = 0
        self._think_begun_s: float | None = None
        self._think_until_s = 0.0

    def feed(self, event: StreamEvent, at_s: float) -> None:
        """Take an event; nothing but the prompt's progress is shown before `draw`."""
        match event:
            case Started() | PromptProgress():
                if not self._is_quiet:
                    show_reading(self._terminal, event)
            case ThinkDelta():
                self._feed_thinking(event, at_s)
            case AnswerDelta():
                if self._blocks is None:
                    self._begin_answer(at_s)
                self._feed_answer(self._visible.feed(event.text))
            case Note() | PromptScores() | Done():
                pass
            case _:
                assert_never(event)

    def draw(self, now_s: float, *, remark: str) -> None:
        """Print what is complete and redraw the rest."""
        if self._blocks is not None:
            if self._is_changed:
                self._draw([Text()] * self._has_block + [rendered_tail(self._blocks)])
        elif self._think_begun_s is not None and not self._is_quiet:
            self._think_until_s = now_s
            self._draw(self._thinking_tail(remark))
        self._is_changed = False

    def close(self, outcome: Outcome) -> None:
        """Print the rest and leave the cursor on a line of its own."""
        if self._blocks is not None:
            self._feed_answer(self._visible.flush())
            self._add(self._blocks.flush())
        elif self._think_begun_s is not None:
            self._end_thinking()
            if not self._is_quiet:
                self._complete.append(Text(self._thought(), style="dim"))
        self._draw([])

    def _feed_thinking(self, event: ThinkDelta, at_s: float) -> None:
        if self._think_begun_s is None:
            self._think_begun_s = at_s
            if self._shows_thinking:
                line, *limit = thinking_head(f"thinking · {self._model}", self._terminal.columns, self._limit)
                self._complete += [Text(line, style="cyan", no_wrap=True), *(Text(each, style="dim") for each in limit)]
        self._think_until_s = at_s
        self._think_tokens += event.tokens
        if self._shows_thinking:
            self._line += self._visible.feed(event.text)

    def _thinking_tail(self, remark: str) -> list[RenderableType]:
        """Move the lines of thinking that are complete to what is printed; return the rest and the status."""
        *lines, rest = self._wrapped(self._line)
        self._complete += lines
        self._line = rest.plain
        status = Text(f"thinking · {self._counts()} · {remark}", style="cyan", no_wrap=True, overflow="ellipsis")
        return [rest, status] if rest.plain else [status]

    def _end_thinking(self) -> None:
        if self._shows_thinking:
            text = (self._line + self._visible.flush()).rstrip()
            self._complete += self._wrapped(text) if text else []

    def _wrapped(self, text: str) -> list[Text]:
        """Return thinking in lines, broken between words; at least one."""
        lines = Text(text, style="dim", overflow="fold").wrap(self._terminal.console, self._terminal.columns)
        return list(lines) or [Text()]

    def _begin_answer(self, at_s: float) -> None:
        self._blocks = BlockSplitter()
        remark = ""
        if self._think_begun_s is not None:
            self._think_until_s = at_s
            self._end_thinking()
            remark = self._thought()
        if not self._is_quiet:
            self._complete += [Text()] if self._shows_thinking and remark else []
            self._complete.append(self._rule("answer", remark))

    def _feed_answer(self, text: str) -> None:
        assert self._blocks is not None
        self._is_changed = self._is_changed or bool(text)
        self._add(self._blocks.feed(text))

    def _add(self, blocks: list[Block]) -> None:
        for block in blocks:
            self._complete += [Text(), rendered(block)] if self._has_block else [rendered(block)]
            self._has_block = True

    def _rule(self, title: str, remark: str = "") -> Text:
        return Text(rule(f"{title} · {self._model}", self._terminal.columns, remark), style="cyan", no_wrap=True)

    def _thought(self) -> str:
        return "thought " + self._counts()

    def _counts(self) -> str:
        seconds = self._think_until_s - (self._think_begun_s or 0.0)
        return f"{self._think_tokens:,} {'token' if self._think_tokens == 1 else 'tokens'} · {seconds:.1f} s"

    def _draw(self, tail: Sequence[RenderableType]) -> None:
        """Print what is complete above the live region, and `tail` (its last rows) as the region."""
        self._region.draw(self._complete, tail)
        self._complete.clear()


class Region:
    """The terminal's last rows, redrawn as often as one likes below what is printed once."""

    def __init__(self, terminal: Terminal, max_rows: int) -> None:
        self._terminal, self._max_rows = terminal, max_rows
        self._live = LiveRender(Group())

    def draw(self, complete: Sequence[RenderableType], tail: Sequence[RenderableType]) -> None:
        """Print what is complete above the region, and `tail` as the region: its last rows, where it has too many."""
        with self._terminal.drawing() as console:
            console.control(self._live.position_cursor())
            for each in complete:  # a Text is a line or code that the terminal wraps, so that copies are whole
                console.print(each, soft_wrap=isinstance(each, Text))
            rows = console.render_lines(Group(*tail), pad=False)[-min(self._max_rows, console.height - 2) :]
            self._live.set_renderable(_Rows(rows))
            console.print(self._live, end="")


def in_blocks(text: str) -> list[RenderableType]:
    """Return a whole answer, visible already, as its blocks of Markdown with an empty line between two."""
    splitter = BlockSplitter()
    blocks = [*splitter.feed(text), *splitter.flush()]
    return [part for block in blocks for part in (Text(), rendered(block))][1:]


class _Rows:
    """Rows that are rendered already."""

    def __init__(self, rows: list[list[Segment]]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for row in self._rows:
            yield from row
            yield Segment.line()
