"""Where the person writes: many lines, history at the edges, Enter sends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

from textual import events
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.binding import Binding, BindingType
from textual.keys import Keys
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea

from slm_local.tui.entries import Entries

NEWLINE_KEYS = frozenset({"ctrl+j", "alt+enter", "shift+enter", "ctrl+enter", "\r", "shift+\r"})
"""Break the line. Which of them a terminal sends is its business: the last two are xterm's modifyOtherKeys."""

OURS = frozenset({"ctrl+c", "ctrl+z", "ctrl+y", "f6", "f7", "up", "down", "pageup", "pagedown"})
"""Keys of a text area that mean something else here."""

ALT_ENTER = "\x1b\r"
"""What most terminals send for it; Textual knows it only where a terminal speaks kitty's keyboard protocol."""

MAX_SHOWN = 20_000
"""Characters of a pasted text that are shown to be edited; a text area gets slow with more."""

KEPT: list[BindingType] = [
    replace(each, key=",".join(keys))
    for each in TextArea.BINDINGS
    if isinstance(each, Binding) and (keys := [key for key in each.key.split(",") if key not in OURS])
]


class Entry(TextArea, inherit_bindings=False):
    """A text that is sent with Enter. Alt+Enter, Ctrl+J and a backslash before Enter break the line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *KEPT,
        Binding("enter", "send", "Send; on the empty line while it thinks: answer now", show=False),
        Binding("alt+enter,ctrl+j", "break_line", "Break the line; so does a backslash before Enter", show=False),
        Binding("up", "earlier", "Earlier prompt", show=False),
        Binding("down", "later", "Later prompt", show=False),
    ]

    @dataclass
    class Sent(Message):
        """The person pressed Enter; the text stays until it is taken."""

        text: str

    def __init__(self, entries: Entries, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, compact=True, highlight_cursor_line=False, placeholder="Write here · Enter sends")
        self.cursor_blink = False  # each blink draws
        self._entries = entries
        self._folded: dict[str, str] = {}
        """Long texts, by what stands for them."""

    def render_line(self, y: int) -> Strip:
        """Draw a row; in no columns at all nothing, where the text area would fail to wrap its placeholder."""
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(0)

    def take(self) -> str:
        """Keep the text in the history, be empty, and return it, whole."""
        text = whole = self.text
        for sign, folded in self._folded.items():
            whole = whole.replace(sign, folded)
        if text.strip():
            self._entries.add(text, is_lasting=whole == text)
        self.text = ""
        return whole

    def put(self, text: str) -> None:
        """Show a text to be edited."""
        self.text = self._fold(text)
        self.move_cursor(self.document.end)

    def _fold(self, text: str) -> str:
        """Return a text as it is shown: one that is too long as a sign that stands for it."""
        if len(text) <= MAX_SHOWN:
            return text
        lines, number = text.count("\n") + 1, len(self._folded) + 1
        sign = f"⟦text {number}: {lines:,} lines, {len(text):,} characters⟧"
        self._folded[sign] = text
        return sign

    def action_send(self) -> None:
        """Give the text away; it stays until it is taken."""
        self.post_message(self.Sent(self.text))

    def action_break_line(self) -> None:
        """Begin a new line."""
        start, end = self.selection
        self._replace_via_keyboard("\n", start, end)

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
        if event.key != "enter":
            self.action_break_line()
        elif self._ends_in_backslash():
            self.action_delete_left()
            self.action_break_line()
        else:
            self.action_send()

    async def _on_paste(self, event: events.Paste) -> None:
        if len(event.text) > MAX_SHOWN:
            event.prevent_default()
            start, end = self.selection
            self._replace_via_keyboard(self._fold(event.text), start, end)

    def _row(self) -> int:
        return self.wrapped_document.location_to_offset(self.cursor_location).y

    def _ends_in_backslash(self) -> bool:
        row, column = self.cursor_location
        line = self.document[row]
        return self.selection.is_empty and column == len(line) > 0 and line[-1] == "\\"


def hear_alt_enter() -> None:
    """Have Textual's parser take what terminals send for Alt+Enter as Ctrl+J, which breaks the line."""
    cast("dict[str, object]", ANSI_SEQUENCES_KEYS)[ALT_ENTER] = (Keys.ControlJ,)
