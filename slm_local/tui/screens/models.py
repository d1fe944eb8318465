"""Which model: those that are here, then those that fit this machine, found as you type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Static
from textual.worker import get_current_worker

from slm_local.errors import Interrupted
from slm_local.forecast.listing import ABSENT, PARTIAL, Row, rows_absent, rows_here
from slm_local.forecast.plans import machine_line
from slm_local.hardware import measured_probe, probe
from slm_local.paths import paths
from slm_local.registry import Registry
from slm_local.sanitize import one_line, visible
from slm_local.tui.footer import Keys
from slm_local.tui.news import news
from slm_local.tui.screens.picking import Entry, Picker

PLACES = ("here", "fits this machine", "whether it fits is not known", "too large for this machine")


class ModelsScreen(ModalScreen[str | None]):
    """Shows models to choose from; is dismissed with a reference, or None. What is typed may be any reference.

    Facts are gathered in a thread. Where nothing runs yet (`is_first`) the memory is measured, once on a machine, for
    half a second.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]
    DEFAULT_CSS = """
    ModelsScreen {
        align: center middle;
        & > Vertical { width: 100%; max-width: 110; height: 100%; max-height: 40; background: $surface; padding: 0 1; }
        #about { color: $text-muted; height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    }
    """

    @dataclass
    class Listed(Message):
        """The models were found out about."""

        rows: Sequence[Row]
        machine: str
        remarks: Sequence[str]

    @dataclass
    class Told(Message):
        """So far it is."""

        text: str

    def __init__(self, registry: Registry, *, is_first: bool = False) -> None:
        super().__init__()
        self._registry = registry
        self._is_first = is_first
        self._rows: Sequence[Row] = ()

    def compose(self) -> ComposeResult:
        """Lay out the picker."""
        with Vertical():
            yield Static("looking for models…", id="about", markup=False)
            yield Picker("a model, or part of its name · hf:owner/repo · a file")
            yield Keys()

    def on_mount(self) -> None:
        """Begin to look around."""
        self._look()

    @work(thread=True)
    def _look(self) -> None:
        folders = paths()
        tell = self._tell
        try:
            hardware = measured_probe(tell) if self._is_first else probe()
            rows, remarks = rows_here(self._registry, hardware, folders, tell)
            here = {row.spec.id for row in rows}
            rows += rows_absent([spec for spec in self._registry.models if spec.id not in here], hardware)
        except Interrupted:
            return
        except Exception as error:  # the list is a help: a name can be typed without it
            self._tell(f"what is here can't be listed: {error}; a name typed below opens all the same")
            return
        self.post_message(self.Listed(rows, machine_line(hardware), remarks))

    def _tell(self, text: str) -> None:
        if get_current_worker().is_cancelled:
            raise Interrupted("the screen is gone")
        self.post_message(self.Told(text))

    @news(Told)
    def _told(self, event: Told) -> None:
        self.query_one("#about", Static).update(one_line(event.text))

    @news(Listed)
    def _listed(self, event: Listed) -> None:
        self._rows = event.rows
        self.query_one("#about", Static).update(one_line(event.machine))
        for remark in event.remarks:
            self.notify(visible(remark), markup=False)
        self._show(self.query_one(Picker).text)

    @on(Picker.Typed)
    def _typed(self, event: Picker.Typed) -> None:
        self._show(event.text)

    @on(Picker.Taken)
    def _taken(self, event: Picker.Taken) -> None:
        self.dismiss(event.key)

    def _show(self, text: str) -> None:
        self.query_one(Picker).show(list(_entries(self._rows, text)))


def _entries(rows: Sequence[Row], text: str) -> Iterator[Entry]:
    """Give the rows that hold every word of a text, under a heading for each place; last the text itself."""
    words = text.casefold().split()
    for place, heading in enumerate(PLACES):
        shown = [row for row in rows if _place(row) == place and all(word in _haystack(row) for word in words)]
        if shown:
            yield Entry(key=None, title=heading)
        for row in shown:
            yield Entry(key=row.reference if row.problem is None else None, title=row.name, line=row.line())
    if text and not any(text == row.reference for row in rows):
        yield Entry(key=None, title="as it is typed")
        yield Entry(key=text, title=text, line="any reference that slm run takes, settings hung on it included")


def _place(row: Row) -> int | None:
    """Return which of `PLACES` a row stands under; None for what can't be opened."""
    if row.variant.kind == "checkpoint" or not row.reference:
        return None
    if row.where not in (ABSENT, PARTIAL):
        return 0
    return {"Unknown": 2, "Too large": 3}.get(row.fit.verdict, 1)


def _haystack(row: Row) -> str:
    spec = row.spec
    parts = (spec.id, row.name, spec.name, *spec.aliases, spec.family, row.line(), row.reference)
    return " ".join(parts).casefold()
