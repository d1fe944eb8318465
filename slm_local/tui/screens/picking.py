"""A line to type in above a list to choose from: the line keeps the focus, the arrows move in the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from slm_local.sanitize import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing to choose: a title, a line about it. Without a key it is a heading, or says what can't be chosen."""

    key: str | None
    title: str
    line: str = ""


class Picker(Vertical):
    """Shows entries and tells what is typed, pointed at and taken."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Open", priority=True),
        Binding("up", "move('cursor_up')", "Up", show=False),
        Binding("down", "move('cursor_down')", "Down", show=False),
        Binding("pageup", "move('page_up')", "Page up", show=False),
        Binding("pagedown", "move('page_down')", "Page down", show=False),
    ]
    DEFAULT_CSS = """
    Picker {
        height: 1fr;
        Input { border: none; height: 1; padding: 0 1; }
        Input:focus { border: none; }
        OptionList {
            border: none; height: 1fr; padding: 0; background: transparent; text-wrap: nowrap; text-overflow: ellipsis;
        }
    }
    """

    @dataclass
    class Typed(Message):
        """The line was changed to `text`."""

        text: str

    @dataclass
    class Pointed(Message):
        """The entry of `key` is pointed at; None where no entry can be."""

        key: str | None

    @dataclass
    class Taken(Message):
        """The entry of `key` was chosen."""

        key: str

    def __init__(self, placeholder: str) -> None:
        super().__init__()
        self._placeholder = placeholder
        self._keys: list[str | None] = []

    def compose(self) -> ComposeResult:
        """Lay out the line and the list."""
        yield Input(placeholder=self._placeholder)
        entries = OptionList(markup=False)
        entries.can_focus = False
        yield entries

    @property
    def text(self) -> str:
        """Return what is typed."""
        return self.query_one(Input).value.strip()

    @property
    def pointed(self) -> str | None:
        """Return the key of the entry that is pointed at."""
        at = self.query_one(OptionList).highlighted
        return self._keys[at] if at is not None else None

    def show(self, entries: Sequence[Entry]) -> None:
        """Show these; what was pointed at is pointed at again where it is still among them, else the first."""
        before = self.pointed
        shown = self.query_one(OptionList)
        self._keys = [each.key for each in entries]
        shown.set_options(Option(_content(each), disabled=each.key is None) for each in entries)
        first = next((at for at, key in enumerate(self._keys) if key is not None), None)
        shown.highlighted = self._keys.index(before) if before is not None and before in self._keys else first
        if shown.highlighted == first:
            shown.scroll_home(animate=False)  # with the heading above the first
        if first is None:
            self.post_message(self.Pointed(None))

    def action_move(self, how: str) -> None:
        """Move in the list."""
        getattr(self.query_one(OptionList), f"action_{how}")()

    def action_take(self) -> None:
        """Choose what is pointed at."""
        if self.pointed is not None:
            self.post_message(self.Taken(self.pointed))

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Typed(self.text))

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        self.post_message(self.Pointed(self.pointed))

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        key = self._keys[event.option_index]
        if key is not None:
            self.post_message(self.Taken(key))


def _content(entry: Entry) -> Content:
    """Return an entry as it is shown: a heading dim, the others with their line below."""
    title = one_line(entry.title)
    if not entry.line:
        return Content.styled(title, "dim")
    return Content.assemble((title, "bold" if entry.key is not None else ""), "\n  ", (one_line(entry.line), "dim"))
