"""Questions with two answers, and a download: its offer, how far it is, and a key that stops it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import ProgressBar, Static

from slm_local.download.values import FetchProgress
from slm_local.engine.supply import Offer
from slm_local.errors import Interrupted
from slm_local.forecast.offers import STAGES, offer_lines, pace
from slm_local.generation import Control
from slm_local.sanitize import shell_word, visible
from slm_local.selector import gigabytes
from slm_local.tui.footer import Keys
from slm_local.tui.news import news

BOX = """
    & > Vertical { width: 100%; max-width: 100; height: auto; max-height: 100%; background: $surface; padding: 1 2; }
    VerticalScroll { height: auto; }
    Keys { dock: none; }
    &.-low > Vertical { height: 100%; padding: 0 1; }
    &.-low VerticalScroll { height: 1fr; }
"""
"""How all look: a box in the middle, as high as what it says; all of a low terminal, where what it says is scrolled."""

LOW = [(0, "-low"), (20, "-high")]


class ConfirmScreen(ModalScreen[bool]):
    """Asks; is dismissed with the answer."""

    VERTICAL_BREAKPOINTS = LOW
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape", "dismiss(False)", "No"),
    ]
    DEFAULT_CSS = f"ConfirmScreen {{ align: center middle; {BOX} }}"

    def __init__(self, question: str, lines: Sequence[str] = ()) -> None:
        super().__init__()
        self._question, self._lines = question, lines

    def compose(self) -> ComposeResult:
        """Lay out the question below what is to be known."""
        with Vertical():
            with VerticalScroll():
                yield Static(visible("\n".join(self._lines)), markup=False)
            yield Static(visible(self._question), markup=False)
            yield Keys()


class OfferScreen(ConfirmScreen):
    """Asks whether to fetch what a model needs, with size, fit and time; Enter agrees, too."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "dismiss(True)", "Yes")]

    def __init__(self, offer: Offer) -> None:
        super().__init__("fetch it?", offer_lines(offer))


class FetchScreen(ModalScreen[None]):
    """Shows how far a download is; Escape stops it. What came is kept, and a later one goes on from there."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "stop", "Stop")]
    DEFAULT_CSS = f"FetchScreen {{ align: center middle; {BOX} ProgressBar {{ width: 100%; }} Bar {{ width: 1fr; }} }}"

    @dataclass
    class Came(Message):
        """So much of it is here."""

        progress: FetchProgress

    def __init__(self, title: str, control: Control) -> None:
        super().__init__()
        self._title, self._control = title, control

    def compose(self) -> ComposeResult:
        """Lay out title, bar and what goes on."""
        with Vertical():
            yield Static(visible(self._title), markup=False)
            yield ProgressBar(show_eta=False)
            yield Static(id="stage", markup=False)
            yield Static(id="message", markup=False)
            yield Keys()

    def action_stop(self) -> None:
        """Stop the download; the screen goes when it has ended."""
        self._control.cancel()
        self.query_one("#stage", Static).update("stopping")

    @news(Came)
    def _came(self, event: Came) -> None:
        progress = event.progress
        self.query_one(ProgressBar).update(total=progress.total_bytes or None, progress=progress.done_bytes)
        if progress.message:
            self.query_one("#message", Static).update(visible(progress.message))
        if not self._control.cancelled:
            self.query_one("#stage", Static).update(stage_line(progress))


class Fetching:
    """Asks and tells in the app what `open_model` asks and tells in a thread of its own; a context manager there."""

    def __init__(self, app: App[Any], control: Control) -> None:
        self._app, self._control = app, control
        self._title = ""
        self._screen: FetchScreen | None = None

    def confirm(self, offer: Offer) -> None:
        """Ask, and wait for the answer. Raises `Interrupted` where it is no, or the control was cancelled meanwhile."""
        if not answered(self._app, OfferScreen(offer), self._control):
            raise Interrupted("nothing was fetched", hint=f"slm plan {shell_word(offer.reference)}")
        self._title = offer_lines(offer)[0]

    def on_fetch(self, progress: FetchProgress) -> None:
        """Show a step."""
        if self._screen is None:
            self._screen = FetchScreen(self._title or f"fetching {progress.file}", self._control)
            self._app.call_from_thread(self._app.push_screen, self._screen)
        self._screen.post_message(FetchScreen.Came(progress))

    def __enter__(self) -> Fetching:
        return self

    def __exit__(self, *error: object) -> None:
        if self._screen is not None and self._app.is_running:
            self._app.call_from_thread(_close, self._app, self._screen)


def answered(app: App[Any], screen: ModalScreen[bool], control: Control) -> bool:
    """Ask from a thread that is not the app's; block until there is an answer. A cancelled control answers no."""
    answers: list[bool | None] = []
    is_over = threading.Event()

    def answer(given: bool | None) -> None:
        answers.append(given)
        is_over.set()

    control.on_cancel(is_over.set)
    app.call_from_thread(app.push_screen, screen, answer)
    is_over.wait()
    if not answers and app.is_running:
        app.call_from_thread(_close, app, screen)
    return bool(answers and answers[0])


def stage_line(progress: FetchProgress) -> str:
    """Say in one line what a download is at."""
    done = f"{gigabytes(progress.done_bytes)} of {gigabytes(progress.total_bytes)}"
    return "  ".join(each for each in (STAGES[progress.stage], done, pace(progress)) if each)


def _close(app: App[Any], screen: ModalScreen[Any]) -> None:
    """Take a screen away, with what stands over it."""
    if screen in app.screen_stack:
        screen.pop_until_active()
        screen.dismiss()
