"""Several samples on a terminal: their thinking in narrow columns, the tally of their answers below, redrawn.

Columns are for watching: they show the end of each text and are gone when all is over. What stays is the tally and the
answer, or without a vote every answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.text import Text

from slm_local.cli.panels import FRAME_S, Region, in_blocks
from slm_local.cli.render import Terminal, rule
from slm_local.cli.views import show_reading, thinking_head
from slm_local.cli.watching import Sampled
from slm_local.generation import AnswerDelta, PromptProgress, Started, StreamEvent, ThinkDelta
from slm_local.samples import Sample, Vote
from slm_local.samples.sentences import short
from slm_local.sanitize import Visible, one_line, visible

MIN_WIDTH = 17
"""Of a column: with less, hardly three words stand in a line."""

GAP = " │ "
MAX_HEIGHT = 16
"""Rows of a column: enough to follow a thought, and the tally stays near it."""

MAX_BALLOTS = 4
"""Answers in the tally; the rest is counted."""

BAR = "■"


class ColumnsView:
    """Shows several samples of one prompt."""

    frame_s = FRAME_S

    def __init__(
        self,
        terminal: Terminal,
        model: str,
        *,
        asked: int,
        votes: bool,
        shows_thinking: bool,
        limit: str = "",
        is_quiet: bool = False,
    ) -> None:
        """With `votes` the winner's answer is shown, else each; `limit` says how far each may think."""
        self._terminal, self._model, self._asked = terminal, one_line(model, 60), asked
        self._votes, self._shows_thinking, self._is_quiet, self._limit = votes, shows_thinking, is_quiet, limit
        self._region = Region(terminal, terminal.rows)
        self._complete: list[RenderableType] = []
        self._columns = [_Column(number) for number in range(asked)]
        self._places: list[int] = []
        """The samples that have a column now, from left to right."""
        self._is_begun = False
        self._written = 0
        """How many answers were shown, where each is."""

    def feed(self, sample: int, event: StreamEvent) -> None:
        """Take an event; nothing but the prompt's progress is shown before `draw`."""
        column = self._columns[sample]
        match event:
            case Started() | PromptProgress():
                column.is_begun = True
                if not self._is_quiet and not self._is_begun:
                    show_reading(self._terminal, event)
            case ThinkDelta() | AnswerDelta():
                self._begin()
                column.feed(event, is_shown=self._shows_thinking or isinstance(event, AnswerDelta))
            case _:
                pass

    def end(self, sample: Sample) -> None:
        """Take a sample that ended; where every answer is shown, those whose turn it is are."""
        self._columns[sample.number].ended = sample
        while not self._votes and self._written < self._asked and self._columns[self._written].ended is not None:
            self._add_answer(self._columns[self._written])

    def draw(self, vote: Vote | None, *, remark: str) -> None:
        """Redraw columns and tally."""
        if self._is_quiet or not self._is_begun:
            return
        status = Text(f"{self._counts()} · {remark}", style="cyan", no_wrap=True, overflow="ellipsis")
        below = [*self._tally(vote), status]
        height = min(MAX_HEIGHT, self._terminal.rows - len(below) - 4)
        self._draw([*self._rows(height), *below])

    def close(self, outcome: Sampled) -> None:
        """Show what stays and leave the cursor on a line of its own."""
        if not self._votes:
            for column in self._columns[self._written :]:
                if column.ended is not None:
                    self._add_answer(column)
        if not self._is_quiet:
            self._complete += self._tally(outcome.vote)
        winner = outcome.vote.winner
        if self._votes and winner is not None:
            self._complete += self._answer("answer", winner)
        self._draw([])

    def _begin(self) -> None:
        """Show the title, once."""
        if not self._is_begun and not self._is_quiet:
            title = f"{self._asked} samples · {self._model}"
            line, *limit = thinking_head(title, self._terminal.columns, self._limit)
            self._complete += [Text(line, style="cyan", no_wrap=True), *(Text(each, style="dim") for each in limit)]
        self._is_begun = True

    def _draw(self, tail: Sequence[RenderableType]) -> None:
        self._region.draw(self._complete, tail)
        self._complete.clear()

    def _add_answer(self, column: _Column) -> None:
        assert column.ended is not None
        self._written = column.number + 1
        if column.ended.reply.answer or not self._is_quiet:
            self._complete += [*self._answer(f"sample {column.number + 1} of {self._asked}", column.ended), Text()]

    def _answer(self, title: str, sample: Sample) -> list[RenderableType]:
        usage = sample.reply.usage
        thought = f"thought {usage.think_tokens:,} tokens" if usage.think_tokens else ""
        head = Text(rule(f"{title} · {self._model}", self._terminal.columns, thought), style="cyan", no_wrap=True)
        said = in_blocks(visible(sample.reply.answer))
        return said if self._is_quiet and self._votes else [head, *said]

    # ---- the columns

    def _rows(self, height: int) -> list[Text]:
        """Return the columns, as many as fit, with a line about the rest."""
        most = max(1, (self._terminal.columns + len(GAP)) // (MIN_WIDTH + len(GAP)))
        count = min(most, self._asked)
        width = (self._terminal.columns - len(GAP) * (count - 1)) // count
        shown = [self._columns[number] for number in self._placed(count)]
        console = self._terminal.console
        height = max(each.height(width, height, console) for each in shown)
        rows = [_joined([each.head() for each in shown], width, styles=[each.style for each in shown])]
        bodies = [each.rows(height) for each in shown]
        rows += [_joined([body[at] for body in bodies], width, styles=["dim"] * count) for at in range(height)]
        return [*rows, *self._rest(shown)]

    def _placed(self, count: int) -> list[int]:
        """Return who has a column: whoever had one, until it ended and another waits for its place."""
        if len(self._places) != count:
            self._places = list(range(count))
        waiting = [each.number for each in self._columns if each.is_running and each.number not in self._places]
        for at, number in enumerate(self._places):
            if waiting and not self._columns[number].is_running:
                self._places[at] = waiting.pop(0)
        return self._places

    def _rest(self, shown: Sequence[_Column]) -> list[Text]:
        """Tell of the samples without a column in one line."""
        rest = [each.head() for each in self._columns if each not in shown]
        return [Text("   ".join(rest), style="dim", no_wrap=True, overflow="ellipsis")] if rest else []

    # ---- the tally

    def _tally(self, vote: Vote | None) -> list[Text]:
        """Return the answers of the samples that were shown to their end, most votes first, a bar for each."""
        ballots = vote.ballots if vote is not None else ()
        counts = [(ballot.answer, [n for n in ballot.samples if self._columns[n].ended]) for ballot in ballots]
        counts = sorted(((answer, own) for answer, own in counts if own), key=lambda each: -len(each[1]))
        width = max((cell_len(short(answer)) for answer, _ in counts[:MAX_BALLOTS]), default=0)
        lines = [self._ballot(answer, own, width) for answer, own in counts[:MAX_BALLOTS]]
        others = sum(len(own) for _, own in counts[MAX_BALLOTS:])
        return [*lines, *([Text(f"and {others} with other answers", style="dim")] if others else [])]

    def _ballot(self, answer: str, own: Sequence[int], width: int) -> Text:
        line = Text(f"{set_cell_size(short(answer), width)}  ", no_wrap=True, overflow="ellipsis", style="bold")
        line.append(BAR * len(own), style="green")
        numbers = ", ".join(str(number + 1) for number in own)
        return line.append(f" {len(own)} of {self._asked} · {numbers}", style="dim not bold")

    def _counts(self) -> str:
        tokens = sum(each.tokens for each in self._columns)
        ended = sum(each.ended is not None for each in self._columns)
        return f"{ended} of {self._asked} samples ended · {tokens:,} tokens"


class _Column:
    """One sample: what of its text is still shown, and how it stands."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens = 0
        self.is_begun = False
        self.ended: Sample | None = None
        self._is_answering = False
        self._visible = Visible()
        self._lines: list[str] = [""]
        """The end of the text in lines of `_width` columns, the last one unfinished."""
        self._width = 0

    @property
    def is_running(self) -> bool:
        return self.is_begun and self.ended is None

    @property
    def style(self) -> str:
        return "cyan" if self.ended is None else "bold" if self.ended.vote is not None else "yellow"

    def head(self) -> str:
        """Say who it is and what it does."""
        return f"{self.number + 1} {self._state()}"

    def _state(self) -> str:
        if self.ended is not None:
            cut = "stopped" if self.ended.reply.finish == "cancelled" else self.ended.reply.finish
            return f"→ {short(self.ended.vote)}" if self.ended.vote is not None else cut
        if not self.tokens:
            return "reads" if self.is_begun else "waits"
        return f"{'answers' if self._is_answering else 'thinks'} {self.tokens:,}"

    def feed(self, event: ThinkDelta | AnswerDelta, *, is_shown: bool) -> None:
        """Take text; what is not shown is counted only."""
        self.tokens += event.tokens
        if isinstance(event, AnswerDelta) and not self._is_answering:
            self._is_answering = True
            if self._lines != [""]:
                self._lines[-1] = self._lines[-1].rstrip("\n") + "\n\n"
        if is_shown and event.text:
            self._lines[-1] += self._visible.feed(event.text)

    def height(self, width: int, most: int, console: Console) -> int:
        """Return how many rows it has to show at a width."""
        if width != self._width:
            self._width = width
            self._lines = [part for line in self._lines for part in _wrapped(line, width, console)]
        self._lines[-1:] = _wrapped(self._lines[-1], width, console)
        del self._lines[:-MAX_HEIGHT]
        return max(0, min(most, len(self._lines)))

    def rows(self, height: int) -> list[str]:
        """Return its last rows, filled up with empty ones."""
        last = self._lines[-height:] if height else []
        return last + [""] * (height - len(last))


def _wrapped(text: str, width: int, console: Console) -> list[str]:
    """Return a text in lines, broken between words; at least one."""
    return [line.plain for line in Text(text, overflow="fold").wrap(console, width)] or [""]


def _joined(cells: Sequence[str], width: int, *, styles: Sequence[str]) -> Text:
    """Return a row of columns, each cut or filled to its width."""
    row = Text(no_wrap=True, overflow="crop")
    for at, (cell, style) in enumerate(zip(cells, styles, strict=True)):
        row.append(GAP if at else "", style="dim")
        text = Text(cell, style=style)
        text.truncate(width, overflow="ellipsis", pad=True)
        row.append_text(text)
    return row
