"""Kept chats, newest first: found by what was asked, thought or answered, looked at, gone on with, removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Static

from slm_local.errors import SlmError
from slm_local.sanitize import one_line, visible
from slm_local.store import ASIDE_STATES, Chat, ChatRow, Hit, Store
from slm_local.tui.flow import FlowView
from slm_local.tui.footer import Keys
from slm_local.tui.news import news
from slm_local.tui.parts import Part, TextPart
from slm_local.tui.screens.confirm import ConfirmScreen
from slm_local.tui.screens.picking import Entry, Picker


class ChatsScreen(ModalScreen[int | None]):
    """Shows what is kept; is dismissed with the number of a chat to go on with, or None.

    The file is read in threads. The chat that is open (`current`) can't be removed.
    """

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (18, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back"),
        Binding("f8", "remove", "Remove"),
    ]
    DEFAULT_CSS = """
    ChatsScreen {
        align: center middle;
        & > Vertical { width: 100%; max-width: 160; height: 100%; max-height: 50; background: $surface; padding: 0 1; }
        #about { color: $text-muted; height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
        #panes { height: 1fr; layout: vertical; }
        #read { height: 1fr; border-top: solid $panel; }
        &.-wide #panes { layout: horizontal; }
        &.-wide #read { width: 1fr; border-top: none; border-left: solid $panel; padding: 0 1; }
        &.-wide Picker { width: 1fr; }
        &.-low.-narrow #read { display: none; }
    }
    """

    @dataclass
    class Found(Message):
        """These are the chats in which `text` is found."""

        text: str
        entries: Sequence[Entry]

    @dataclass
    class Read(Message):
        """A chat was read."""

        chat: Chat

    @dataclass
    class Removed(Message):
        """A chat is gone."""

    @dataclass
    class Failed(Message):
        """The history can't be used."""

        error: SlmError

    def __init__(self, store: Store, *, current: int | None = None) -> None:
        super().__init__()
        self._store, self._current = store, current

    def compose(self) -> ComposeResult:
        """Lay out the list and what is pointed at."""
        with Vertical():
            yield Static("reading the history…", id="about", markup=False)
            with Horizontal(id="panes"):
                yield Picker("words of what was asked, thought or answered")
                with Vertical(id="read"):
                    yield FlowView()
            yield Keys()

    def on_mount(self) -> None:
        """Begin with all chats."""
        self._find("")

    @work(thread=True, exclusive=True, group="find")
    def _find(self, text: str) -> None:
        def found() -> Message:
            entries = _by_hit(self._store.search(text)) if text else map(_of_row, self._store.chats())
            return self.Found(text, list(entries))

        self._tell(found)

    @work(thread=True, exclusive=True, group="read")
    def _read(self, chat: int) -> None:
        self._tell(lambda: self.Read(self._store.chat(chat)))

    @work(thread=True, group="remove")
    def _remove(self, chat: int) -> None:
        def removed() -> Message:
            self._store.remove(chat)
            self._store.tidy()
            return self.Removed()

        self._tell(removed)

    def _tell(self, read: Callable[[], Message]) -> None:
        """Send to this screen what came of reading the file; what went wrong is shown and ends nothing."""
        try:
            message = read()
        except SlmError as error:
            message = self.Failed(error)
        except Exception as error:
            message = self.Failed(SlmError(f"a bug of slm: {type(error).__name__}: {error}"))
        self.post_message(message)

    @news(Removed)
    def _removed(self, _: Removed) -> None:
        self._find(self.query_one(Picker).text)

    @news(Found)
    def _found(self, event: Found) -> None:
        picker = self.query_one(Picker)
        if event.text == picker.text:
            count = f"{len(event.entries)} {'chat' if len(event.entries) == 1 else 'chats'}"
            about = f"{count} with {event.text}" if event.text else count
            self.query_one("#about", Static).update(one_line(about))
            picker.show(event.entries)

    @news(Failed)
    def _failed(self, event: Failed) -> None:
        self.query_one("#about", Static).update(one_line(event.error.message))

    @news(Read)
    def _shown(self, event: Read) -> None:
        if self.query_one(Picker).pointed == str(event.chat.id):
            preview = self.query_one(FlowView)
            preview.replace(0, list(_parts(event.chat)))
            preview.scroll_home(animate=False)

    @on(Picker.Typed)
    def _typed(self, event: Picker.Typed) -> None:
        self._find(event.text)

    @on(Picker.Pointed)
    def _pointed(self, event: Picker.Pointed) -> None:
        if event.key is None:
            self.query_one(FlowView).clear()
        else:
            self._read(int(event.key))

    @on(Picker.Taken)
    def _taken(self, event: Picker.Taken) -> None:
        self.dismiss(int(event.key))

    def action_remove(self) -> None:
        """Remove the chat that is pointed at, if the person is sure."""
        key = self.query_one(Picker).pointed
        if key is None:
            return
        if int(key) == self._current:
            self.notify("this chat is open", markup=False)
            return

        def remove(is_sure: bool | None) -> None:
            if is_sure:
                self._remove(int(key))

        self.app.push_screen(ConfirmScreen(f"remove chat {key} for good?"), remove)


def _of_row(row: ChatRow) -> Entry:
    turns = f"{row.turn_count} {'turn' if row.turn_count == 1 else 'turns'}"
    kind = "" if row.kind == "chat" else row.kind
    facts = (f"#{row.id}", _when(row.updated_at), row.model, turns, kind)
    return Entry(key=str(row.id), title=row.title, line=" · ".join(each for each in facts if each))


def _by_hit(hits: Sequence[Hit]) -> Iterator[Entry]:
    """Give the chats of some hits, each once with its newest hit."""
    for chat in dict.fromkeys(hit.chat for hit in hits):
        same = [hit for hit in hits if hit.chat == chat]
        snippet = "".join(part.text for part in same[0].snippet)
        more = f" · {len(same) - 1} more" if len(same) > 1 else ""
        yield Entry(key=str(chat), title=same[0].title, line=f"#{chat} · {same[0].place}: {snippet}{more}")


def _parts(chat: Chat) -> Iterator[Part]:
    yield TextPart(visible(f"{chat.model} · {_when(chat.created_at)}"), tone="remark")
    for turn in chat.turns:
        if turn.state in ASIDE_STATES:
            continue
        yield TextPart(visible(turn.prompt), tone="prompt", lead="› ")
        if turn.thinking:
            yield TextPart(visible(turn.thinking), tone="remark", lead="  ")
        if turn.answer:
            yield TextPart(visible(turn.answer))
        if turn.state == "interrupted":
            yield TextPart("interrupted", tone="warning")


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"
