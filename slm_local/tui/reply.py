"""One reply in two panes, for a screen that shows several beside each other."""

from __future__ import annotations

import time

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from slm_local.errors import SlmError
from slm_local.generation import Reply, StreamEvent
from slm_local.metrics import Collector
from slm_local.sanitize import one_line
from slm_local.tui.conversation import ConversationPane
from slm_local.tui.meter import ReplyMeter
from slm_local.tui.showing import Showing, show_error
from slm_local.tui.thinking import ThinkingPane


class ReplyView(Vertical):
    """Shows one reply: a title, a status line, the thinking (folded once the answer begins), the answer.

    All calls come from the app's thread. `feed` takes events and draws nothing; `draw` shows what came and is to be
    called at most ten times a second.
    """

    BLANK = True  # its children cover it: so its own lines are not drawn with each frame
    DEFAULT_CSS = """
    ReplyView {
        Static { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
        .reply--title { text-style: bold; color: $text-primary; }
        .reply--state { color: $text-muted; }
        ThinkingPane { height: 2fr; border-bottom: solid $panel-lighten-2; display: none; }
        ConversationPane { height: 3fr; }
        &.-unfolded ThinkingPane { display: block; }
    }
    """

    def __init__(self, title: str, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._title = title
        self._collector = Collector()
        self._showing: Showing | None = None
        self._state = ""

    @property
    def meter(self) -> ReplyMeter | None:
        """Return the counts of the reply, None before one began."""
        return self._showing.meter if self._showing is not None else None

    @property
    def thinking(self) -> ThinkingPane:
        """Return the pane of the thinking."""
        return self.query_one(ThinkingPane)

    @property
    def answer(self) -> ConversationPane:
        """Return the pane of the answer."""
        return self.query_one(ConversationPane)

    def compose(self) -> ComposeResult:
        """Lay out the panes."""
        yield Static(one_line(self._title), classes="reply--title", markup=False)
        yield Static("", classes="reply--state", markup=False)
        yield ThinkingPane()
        yield ConversationPane()

    def begin(self) -> None:
        """Empty the panes for a new reply."""
        self._collector = Collector()
        self.answer.drop_all()
        self.answer.begin()
        self._showing = Showing(self.thinking, self.answer, time.perf_counter(), self._fold)
        self.add_class("-unfolded")

    def say(self, text: str) -> None:
        """Show a status: what is waited for, or what went wrong."""
        if text != self._state:
            self._state = text
            self.query_one(".reply--state", Static).update(one_line(text))

    def feed(self, event: StreamEvent, at_s: float) -> None:
        """Take an event that came at `at_s` by `time.perf_counter`."""
        if self._showing is None:
            self.begin()
        assert self._showing is not None
        self._collector.feed(event)
        self._showing.feed(event, at_s)

    def draw(self, now_s: float) -> None:
        """Show what came."""
        if self._showing is not None:
            self._showing.draw()
            if self._showing.meter.phase != "ended":
                self.say(self._showing.meter.line(now_s))

    def end(self, reply: Reply | None, error: SlmError | None = None) -> None:
        """Show the rest, and how it ended."""
        if self._showing is not None:
            self._showing.end(reply or self._collector.reply(), error)
            self.say(self._showing.meter.line(time.perf_counter()))
        elif error is not None:
            show_error(self.answer, error)

    def toggle_thinking(self) -> None:
        """Fold the thinking to one line, or unfold it."""
        self.toggle_class("-unfolded")

    def _fold(self) -> None:
        self.remove_class("-unfolded")
