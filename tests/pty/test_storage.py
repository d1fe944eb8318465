"""What was said is kept: however a program ends, whoever writes beside it, whatever becomes of the file."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.command import slm_process
from tests.conftest import ScriptWriter
from tests.pty.conftest import Start
from tests.pty.models import END, STUCK, SUM, piece, thinking_row
from tests.pty.terminal import OnTerminal

FILE = "slm.db"


def kept_turns() -> list[dict[str, Any]]:
    done = slm_process("history", "show", "--json")
    assert done.returncode == 0, done.stderr.decode()
    turns: list[dict[str, Any]] = json.loads(done.stdout)["turns"]
    return turns


def in_app(terminal: OnTerminal, prompt: str, answer: str) -> None:
    terminal.type(f"{prompt}\r")
    terminal.see(answer)


@pytest.mark.parametrize("command", ["chat", "chat --plain"])
def test_a_killed_program_loses_nothing_that_was_said_a_second_before(
    start: Start, script: ScriptWriter, command: str
) -> None:
    second = [*thinking_row("carry the one"), piece("half an ans"), STUCK]
    terminal = start(*command.split(), f"scripted:{script(*SUM, END, *second)}")
    terminal.see("idle" if command == "chat" else ">>> ")
    in_app(terminal, "What is 47 + 38?", "It is 85")
    terminal.wait(lambda: kept_turns()[-1]["state"] == "done", "the first turn is not kept")
    terminal.see("idle" if command == "chat" else ">>> ")
    in_app(terminal, "And in words?", "half an ans")
    terminal.wait(lambda: kept_turns()[-1]["answer"] == "half an ans", "it is not written")
    terminal.process.kill()
    terminal.process.wait()
    assert terminal.left_running() == []
    first, last = kept_turns()
    assert (first["prompt"], first["thinking"], first["answer"]) == (
        "What is 47 + 38?",
        "7 + 8 = 15, carry 1.",
        "It is **85**.",
    )
    assert (last["prompt"], last["thinking"], last["answer"]) == ("And in words?", "carry the one", "half an ans")


def test_programs_that_write_at_once_do_not_meet(start: Start, script: ScriptWriter) -> None:
    rows = [piece(f"word{number} ", 0.02) for number in range(60)]
    model = f"scripted:{script(*rows, END)}"
    terminals = [start("run", model, f"prompt {number}") for number in range(3)]
    for each in terminals:
        assert each.end() == 0
        assert "locked" not in each.text
        assert "not kept" not in each.text
    done = slm_process("history", "export", "--all", "--format", "json")
    assert done.stdout.decode().count("word59") == 3


def test_a_file_that_is_deleted_is_made_anew_and_the_chat_goes_on(
    start: Start, script: ScriptWriter, slm_home: Path
) -> None:
    terminal = start("chat", f"scripted:{script(*SUM, END)}")
    terminal.see("idle")
    in_app(terminal, "What is 47 + 38?", "It is 85")
    terminal.see("idle")
    for each in (slm_home / "data").glob(f"{FILE}*"):
        each.unlink()
    in_app(terminal, "What is 1 + 1?", "deleted")
    terminal.wait(lambda: "was deleted; a new one" in " ".join(" ".join(terminal.lines).split()), "nothing is told")
    terminal.see("idle")
    terminal.type("\x11")
    assert terminal.end() == 0
    assert kept_turns()[-1]["prompt"] == "What is 1 + 1?"


def test_a_file_of_a_later_version_is_left_as_it_is(start: Start, script: ScriptWriter, slm_home: Path) -> None:
    (slm_home / "data").mkdir()
    file = slm_home / "data" / FILE
    with sqlite3.connect(file) as base:
        base.execute("create table later (text)")
        base.execute("pragma user_version = 9999")
    base.close()
    before = file.read_bytes()
    terminal = start("chat", f"scripted:{script(*SUM, END)}")
    terminal.hear("not kept in the history")
    terminal.see("idle")
    in_app(terminal, "What is 47 + 38?", "It is 85")
    terminal.type("\x11")
    assert terminal.end() == 0
    assert file.read_bytes() == before
    assert slm_process("history", "list").returncode != 0
