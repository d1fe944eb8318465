"""The same prompt through two or three models, beside each other while they answer; then what it took each."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import Screen
from textual.widgets import Static

from slm_local.compare import CompareEvent, LaneEvent, LaneResult, LaneStatus, Question, compare
from slm_local.errors import SlmError
from slm_local.generation import Control
from slm_local.paths import paths
from slm_local.sanitize import visible
from slm_local.tui.entries import Entries
from slm_local.tui.entry import Entry
from slm_local.tui.footer import Keys
from slm_local.tui.frames import Frames
from slm_local.tui.holding import Holder
from slm_local.tui.reply import ReplyView
from slm_local.tui.screens.confirm import Fetching
from slm_local.tui.screens.models import ModelsScreen
from slm_local.tui.screens.table import measures_table

MAX_LANES = 3

TABLE_FRAME = 4
"""Columns that padding and scrollbar take from the table."""


@dataclass(slots=True)
class Run:
    """One comparison under way: a thread puts in what happens, the screen takes it out."""

    control: Control = field(default_factory=Control)
    waiting: deque[tuple[float, CompareEvent]] = field(default_factory=deque)
    """What happened, each with its time by `perf_counter`."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once all is in `waiting`."""
    error: SlmError | None = None
    begun: set[int] = field(default_factory=set)
    """The lanes of which tokens came; of the others the status is shown."""
    results: list[LaneResult] = field(default_factory=list)

    def read(self, events: Iterator[CompareEvent]) -> None:
        """Take in what happens until it is over; blocks."""
        try:
            for event in events:
                self.waiting.append((time.perf_counter(), event))
        except SlmError as error:
            self.error = error
        except Exception as error:  # a bug of ours ends no app
            self.error = SlmError(f"a bug of slm: {type(error).__name__}: {error}")
        finally:
            self.ended.set()


class CompareScreen(Screen[None]):
    """Shows lanes; Enter asks all of them, Escape stops them or, when nothing runs, goes back."""

    BLANK = True  # as of the lanes
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (70, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (20, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", tooltip="when nothing runs: back"),
        Binding("f2", "fold", "Thoughts", tooltip="fold or unfold it"),
        Binding("f4", "add", "Add a model"),
        Binding("f8", "remove", "Remove the last"),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
    ]
    DEFAULT_CSS = """
    CompareScreen {
        #asked { height: auto; max-height: 3; color: $primary; text-style: bold; padding: 0 1; }
        #lanes { height: 1fr; layout: horizontal; }
        #lanes ReplyView { width: 1fr; height: 1fr; }
        &.-narrow #lanes { layout: vertical; overflow-y: auto; }
        &.-narrow #lanes ReplyView { min-height: 6; }
        #measures { height: auto; max-height: 40%; padding: 0 1; border-top: solid $panel; display: none; }
        #measures.-shown { display: block; }
        &.-low #asked { display: none; }
        &.-low #measures { max-height: 4; }
        Entry { height: auto; max-height: 30%; }
    }
    """

    def __init__(self, holder: Holder, references: Sequence[str], prompt: str | None = None) -> None:
        super().__init__()
        self._holder, self._prompt = holder, prompt
        self._references = list(references)
        self._views: list[ReplyView] = []
        self._run: Run | None = None
        self._results: list[LaneResult] = []
        """Of the last comparison that ended."""
        self._frames = Frames(self, self._draw)

    def compose(self) -> ComposeResult:
        """Lay out the lanes, the table and the place to write."""
        yield Static(id="asked", markup=False)
        self._views = [ReplyView(each) for each in self._references]
        yield Horizontal(*self._views, id="lanes")
        with VerticalScroll(id="measures"):
            yield Static(markup=False)
        yield Entry(Entries(paths().data / "history"))
        yield Keys()

    def on_mount(self) -> None:
        """Begin, with what there is to begin with."""
        if not self.is_attached:
            return  # the app is going, and nothing was laid out
        self.query_one(Entry).focus()
        if len(self._references) < 2:
            self.action_add()
        elif self._prompt is not None:
            self.ask(self._prompt)

    def on_unmount(self) -> None:
        """Stop what runs."""
        if self._run is not None:
            self._run.control.cancel()

    @property
    def is_comparing(self) -> bool:
        """Return whether lanes still answer."""
        return self._run is not None

    def ask(self, prompt: str) -> None:
        """Ask all lanes."""
        self.query_one("#asked", Static).update(visible(prompt))
        self._forget_measures()
        for view in self._views:
            view.begin()
        self._run = Run()
        self._holder.watch(self._run.control)
        self._read(self._run, prompt)
        self._frames.start()

    @work(thread=True)
    def _read(self, run: Run, prompt: str) -> None:
        run.read(
            compare(
                self._references,
                [Question(prompt=prompt)],
                settings_for=self._holder.settings,
                registry=self._holder.desk.registry,
                control=run.control,
                confirm=Fetching(self.app, run.control).confirm,
            )
        )

    def _draw(self) -> bool:
        """Show what came since the last frame; return whether more may come."""
        run = self._run
        if run is None:
            return False
        is_over = run.ended.is_set()
        with self.app.batch_update():
            while run.waiting:
                self._take(run, *run.waiting.popleft())
            for lane in run.begun:
                self._views[lane].draw(time.perf_counter())
            if is_over:
                self._end(run)
        return not is_over

    def _take(self, run: Run, at_s: float, event: CompareEvent) -> None:
        view = self._views[event.lane]
        match event:
            case LaneStatus():
                share = f" {event.fraction:.0%}".replace("%", " %") if event.fraction is not None else ""
                view.say(visible(event.text + share))
            case LaneEvent():
                run.begun.add(event.lane)
                view.feed(event.event, at_s)
            case LaneResult():
                view.end(event.reply, event.error)
                run.results.append(event)

    def _end(self, run: Run) -> None:
        self._run = None
        if run.error is not None:
            for view in self._views:
                view.end(None, run.error)
        self._results = run.results
        self._show_measures()

    def on_resize(self) -> None:
        """Lay the table out anew."""
        self._show_measures()

    def action_answer_now(self) -> None:
        """End the thinking of whatever thinks, so that the answers begin."""
        if self._run is not None:
            self._run.control.end_thinking()

    def _show_measures(self) -> None:
        if self._results and self._run is None:
            columns = self.size.width - TABLE_FRAME
            self.query_one("#measures Static", Static).update(measures_table(self._results, columns))
            self.query_one("#measures").add_class("-shown")

    def _forget_measures(self) -> None:
        self._results = []
        self.query_one("#measures").remove_class("-shown")

    @on(Entry.Sent)
    def _sent(self, event: Entry.Sent) -> None:
        if self._run is not None and not event.text.strip():
            self.action_answer_now()
        elif self._run is not None:
            self.notify("they still answer; Escape stops them", markup=False)
        elif len(self._references) < 2:
            self.notify("one more model is needed: F4", markup=False)
        elif event.text.strip():
            self.ask(self.query_one(Entry).take())

    def action_stop(self) -> None:
        """Stop the lanes; go back when nothing runs."""
        if self._run is None:
            self.dismiss()
            return
        self._run.control.cancel()
        for view in self._views:
            view.say("stopping")

    def action_fold(self) -> None:
        """Fold or unfold the thinking of all."""
        for view in self._views:
            view.toggle_thinking()

    def action_page(self, direction: int) -> None:
        """Scroll the answers by a page, or where they stand above each other and don't fit, from one to the next."""
        lanes = self.query_one("#lanes")
        for pane in [lanes] if lanes.max_scroll_y else [view.answer for view in self._views]:
            pane.scroll_relative(y=direction * max(1, pane.size.height - 1), animate=False)

    def action_add(self) -> None:
        """Choose one more model."""
        if self._run is not None or len(self._references) == MAX_LANES:
            self.notify(f"at most {MAX_LANES}, and none while they answer", markup=False)
            return
        self.app.push_screen(ModelsScreen(self._holder.desk.registry), self._added)

    def action_remove(self) -> None:
        """Take the last model away."""
        if self._run is None and self._references:
            self._references.pop()
            self._views.pop().remove()
            self._forget_measures()

    def _added(self, reference: str | None) -> None:
        if reference is None:
            return
        view = ReplyView(reference)
        self._references.append(reference)
        self._views.append(view)
        self.query_one("#lanes").mount(view)
        self._forget_measures()
        if len(self._references) < 2:
            self.action_add()
        elif self._prompt is not None:
            prompt, self._prompt = self._prompt, None
            self.call_after_refresh(self.ask, prompt)
