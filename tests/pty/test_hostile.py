"""Whatever a model writes, the terminal gets text: in the app and on the command line, every byte looked at."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.conftest import ScriptWriter
from tests.pty.conftest import Start
from tests.pty.models import END, Row, piece, thinking_row
from tests.pty.terminal import ESCAPE, OnTerminal

HOSTILE = "\x1b]52;c;aGk=\x07\x1b]0;title\x07\x1b[2J\x1b[6n\x1bP1$r\x9b31m\u202e\x7f\x08\u200b\ufeff"
FORBIDDEN = [b"\x1b]52", b"\x1b]0;", b"\x1b[6n", b"\x1bP", b"\x9b31m", b"\x7f", b"\x08"]
FORBIDDEN += [each.encode() for each in ("\x9b", "\u202e", "\u200b", "\ufeff")]

MARKUP = "[/] [bold] [/some/path] [link=https://a.example]b[/link] [1, 2] [@click=app.quit]c[/]"

WIDE = "日本語 👩\u200d👩\u200d👧 e\u0301 🇩🇪 ｆｕｌｌ 한국어"
"""Wide and combined characters; the family is joined by what is shown as a stand-in."""


def in_app(start: Start, script: ScriptWriter, prompt: str, last: str, *rows: Row) -> OnTerminal:
    """Ask in the app and wait for `last` on the screen."""
    terminal = start("chat", f"scripted:{script(*rows, END)}", rows=30, columns=100)
    terminal.see("idle")
    terminal.type(prompt + "\r")
    terminal.see(last)
    return terminal


def by_run(start: Start, script: ScriptWriter, prompt: str, last: str, *rows: Row) -> OnTerminal:
    """Ask by `slm run` and wait for its end."""
    terminal = start("run", f"scripted:{script(*rows, END)}", prompt, rows=30, columns=100)
    assert terminal.end() == 0
    assert last in terminal.text
    return terminal


WAYS = [pytest.param(in_app, id="app"), pytest.param(by_run, id="run")]


@pytest.mark.parametrize("ask", WAYS)
def test_escapes_in_thinking_and_answer_reach_no_terminal(start: Start, script: ScriptWriter, ask: Any) -> None:
    terminal = ask(start, script, "x", "at last", *thinking_row(HOSTILE), piece(f"{HOSTILE}\n\nat last"))
    for sequence in FORBIDDEN:
        assert sequence not in terminal.recorded
    assert "]52;c;aGk=" in terminal.text


@pytest.mark.parametrize("ask", WAYS)
def test_an_escape_that_comes_in_pieces_is_none_either(start: Start, script: ScriptWriter, ask: Any) -> None:
    rows = [piece(character) for character in HOSTILE]
    terminal = ask(start, script, "x", "at last", *thinking_row(*HOSTILE), *rows, piece("\n\nat last"))
    for sequence in FORBIDDEN:
        assert sequence not in terminal.recorded


@pytest.mark.parametrize("ask", WAYS)
def test_markup_is_shown_as_it_was_written(start: Start, script: ScriptWriter, ask: Any) -> None:
    terminal = ask(start, script, "[/] [bold", "at last", *thinking_row(MARKUP), piece(f"```\n{MARKUP}\n```\nat last"))
    assert MARKUP.replace(" ", "") in "".join(terminal.lines).replace(" ", "")  # however it was folded


def test_markup_in_an_error_is_shown_as_it_was_written(start: Start, script: ScriptWriter) -> None:
    terminal = start("chat", f"scripted:{script(END)}")
    terminal.see("idle")
    terminal.type("/model [/nowhere] [bold]x\r")
    terminal.see("[/nowhere]")
    terminal.type("\x11")
    assert terminal.end() == 0


@pytest.mark.parametrize("ask", WAYS)
def test_characters_that_come_bit_by_bit_stay_whole(start: Start, script: ScriptWriter, ask: Any) -> None:
    terminal = ask(
        start, script, "x", "at last", *thinking_row(*WIDE), *[piece(each) for each in WIDE], piece("\n\nat last")
    )
    assert "\ufffd" not in terminal.text
    shown = "\n".join(terminal.lines).replace(" ", "")
    for word in ("日本語", "👩", "👧", "한국어", "ｆｕｌｌ"):
        assert word in shown


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_the_chat_of_a_plain_terminal_has_no_escapes(
    start: Start, script: ScriptWriter, variables: dict[str, str]
) -> None:
    terminal = start("chat", f"scripted:{script(*thinking_row('hm'), piece('It is 85.'), END)}", variables=variables)
    terminal.hear(">>> ")
    terminal.type("What is 47 + 38?\r")
    terminal.hear("It is 85.")
    terminal.hear(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    found = ESCAPE.findall(re.sub(rb"\x1b\[\?2004[hl]\r?", b"", bytes(terminal.recorded)))  # readline's own
    assert found == []
