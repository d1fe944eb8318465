"""Where the person writes: many lines, history at the edges, Enter sends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from slm_local.tui.entries import Entries

NEWLINE_KEYS = frozenset({"ctrl+j", "alt+enter", "shift+enter", "ctrl+enter", "\r", "shift+\r"})
"""Break the line. Which of them a terminal sends is its business: the last two are xterm's modifyOtherKeys."""

OURS = frozenset({"ctrl+c", "ctrl+z", "ctrl+y", "f6", "f7", "up", "down", "pageup", "pagedown"})
"""Keys of a text area that mean something else here."""

KEPT: list[BindingType] = [
    replace(each, key=",".join(keys))
    for each in TextArea.BINDINGS
    if isinstance(each, Binding) and (keys := [key for key in each.key.split(",") if key not in OURS])
]


class Entry(TextArea, inherit_bindings=False):
    """A text that is sent with Enter. Alt+Enter, Ctrl+J and a backslash before Enter break the line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *KEPT,
        Binding("up", "earlier", "Earlier prompt", show=False),
        Binding("down", "later", "Later prompt", show=False),
    ]

    @dataclass
    class Sent(Message):
        """The person pressed Enter; the text stays until it is taken."""

        text: str

    def __init__(self, entries: Entries, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, compact=True, highlight_cursor_line=False, placeholder="Write here · Enter sends")
        self._entries = entries

    def take(self) -> str:
        """Keep the text in the history, be empty, and return it."""
        text = self.text
        if text.strip():
            self._entries.add(text)
        self.text = ""
        return text

    def put(self, text: str) -> None:
        """Show a text to be edited."""
        self.text = text
        self.move_cursor(self.document.end)

    def action_earlier(self) -> None:
        """Go up a row, or to the prompt before."""
        if self._row() == 0 and (text := self._entries.earlier(self.text)) is not None:
            self.put(text)
        else:
            self.action_cursor_up()

    def action_later(self) -> None:
        """Go down a row, or to the prompt after."""
        if self._row() >= self.wrapped_document.height - 1 and (text := self._entries.later()) is not None:
            self.put(text)
        else:
            self.action_cursor_down()

    async def _on_key(self, event: events.Key) -> None:
        if event.key not in NEWLINE_KEYS and event.key != "enter":
            return  # the text area's own handler comes next
        event.stop()
        event.prevent_default()
        if event.key == "enter" and not self._ends_in_backslash():
            self.post_message(self.Sent(self.text))
            return
        if event.key == "enter":
            self.action_delete_left()
        start, end = self.selection
        self._replace_via_keyboard("\n", start, end)

    def _row(self) -> int:
        return self.wrapped_document.location_to_offset(self.cursor_location).y

    def _ends_in_backslash(self) -> bool:
        row, column = self.cursor_location
        line = self.document[row]
        return self.selection.is_empty and column == len(line) > 0 and line[-1] == "\\"
