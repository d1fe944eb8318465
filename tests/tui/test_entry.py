"""Writing a prompt: keys that break lines, pastes of any size, what was written before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from textual import events
from textual._xterm_parser import XTermParser
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from slm_local.tui.entries import LIBEDIT_HEAD, Entries
from slm_local.tui.entry import Entry, hear_alt_enter
from tests.tui.screens import SteadyPilot


class Written(App[None]):
    """An app with nothing but an entry."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self.sent: list[str] = []

    def compose(self) -> ComposeResult:
        yield Entry(Entries(self._file))

    @property
    def entry(self) -> Entry:
        return self.query_one(Entry)

    def on_entry_sent(self) -> None:
        self.sent.append(self.entry.take())


def write(file: Path, scene: Callable[[Pilot[None], Written], Coroutine[None, None, None]]) -> None:
    async def whole() -> None:
        app = Written(file)
        async with app.run_test(size=(60, 20)):
            app.entry.focus()
            await scene(SteadyPilot(app), app)

    asyncio.run(whole())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "history"


def test_enter_sends_and_other_keys_break_the_line(file: Path) -> None:
    async def scene(pilot: Pilot[None], app: Written) -> None:
        await pilot.press("a", "ctrl+j", "b", "alt+enter", "c", "\\", "enter", "d", "shift+enter", "e", "enter")
        assert app.sent == ["a\nb\nc\nd\ne"]
        assert app.entry.text == ""

    write(file, scene)


@pytest.mark.parametrize("sent", ["\x1b\r", "\n", "\x1b[13;3u", "\x1b[13;2u", "\x1b[27;3;13~", "\x1b[27;2;13~"])
def test_what_terminals_send_for_those_keys_breaks_the_line(file: Path, sent: str) -> None:
    hear_alt_enter()

    async def scene(pilot: Pilot[None], app: Written) -> None:
        for event in XTermParser().feed(sent):
            app.entry.post_message(event)
        await pilot.pause()
        assert app.entry.text == "\n"
        assert app.sent == []

    write(file, scene)


def test_a_backslash_inside_a_line_sends_as_it_is(file: Path) -> None:
    async def scene(pilot: Pilot[None], app: Written) -> None:
        app.entry.put(r"\(x\) is")
        await pilot.press("enter")
        assert app.sent == [r"\(x\) is"]

    write(file, scene)


def test_pasted_lines_stay_lines_and_are_not_sent(file: Path) -> None:
    async def scene(pilot: Pilot[None], app: Written) -> None:
        app.post_message(events.Paste("one\ntwo\n\nthree"))
        await pilot.pause()
        assert app.sent == []
        await pilot.press("enter")
        assert app.sent == ["one\ntwo\n\nthree"]

    write(file, scene)


def test_a_huge_paste_is_shown_by_a_sign_and_sent_whole(file: Path) -> None:
    text = "word " * 200_000

    async def scene(pilot: Pilot[None], app: Written) -> None:
        await pilot.press(*"Sum up:")
        app.post_message(events.Paste(text))
        await pilot.pause()
        assert app.entry.text == "Sum up:⟦text 1: 1 lines, 1,000,000 characters⟧"
        await pilot.press("enter")
        assert app.sent == [f"Sum up:{text}"]
        await pilot.press("up", "enter")
        assert app.sent[1] == f"Sum up:{text}"
        assert not file.exists(), "a sign means nothing to a later run"

    write(file, scene)


def test_up_and_down_go_through_what_was_written(file: Path) -> None:
    async def scene(pilot: Pilot[None], app: Written) -> None:
        for text in ("first", "second\nof two lines", "third"):
            app.entry.put(text)
            await pilot.press("enter")
        await pilot.press("x")
        seen = []
        for key in ("up", "up", "up", "up", "up"):
            await pilot.press(key)
            seen.append(app.entry.text)
        assert seen == ["third", "second\nof two lines", "second\nof two lines", "first", "first"]
        for _ in range(5):
            await pilot.press("down")
        assert app.entry.text == "x", "the draft comes back"

    write(file, scene)


def test_the_history_is_the_plain_chats_file(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('hello\n"""two\nlines"""\nlast\n', encoding="utf-8")
    entries = Entries(file)
    assert [entries.earlier(""), entries.earlier(""), entries.earlier("")] == ["last", "two\nlines", "hello"]
    entries.add("one\nmore")
    assert file.read_text(encoding="utf-8").endswith('last\n"""one\nmore"""\n')
    assert Entries(file).earlier("") == "one\nmore"


def test_a_file_of_libedit_stays_one(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(f"{LIBEDIT_HEAD}\nhello\\040world\n", encoding="utf-8")
    entries = Entries(file)
    assert entries.earlier("") == "hello world"
    entries.add("a b")
    assert file.read_text(encoding="utf-8").splitlines()[-1] == "a\\040b"


def test_a_history_that_can_not_be_written_costs_nothing_but_itself(tmp_path: Path) -> None:
    entries = Entries(tmp_path)
    entries.add("kept for now")
    assert entries.earlier("") == "kept for now"
