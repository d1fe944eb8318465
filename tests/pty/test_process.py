"""The engine's process or the program's own dies or stands still: who is left goes on, or says what happened."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.conftest import ScriptWriter
from tests.pty.conftest import Start
from tests.pty.models import END, STUCK, SUM, Row, piece
from tests.pty.terminal import OnTerminal
from tests.pty.test_ending import LONG_PROMPT

SEGV = {"text": "", "ids": [1], "fault": "segv"}
DEAD = "killed by signal SIGSEGV (11)"


def gone(*processes: psutil.Process) -> bool:
    return psutil.wait_procs(list(processes), 60.0)[1] == []


def leaves_well(terminal: OnTerminal) -> None:
    terminal.type("\x11")
    assert terminal.end() == 0
    assert (terminal.left_running(), terminal.left_modes()) == ([], set())


def test_an_engine_that_dies_while_it_loads_is_told_in_the_app(start: Start, script: ScriptWriter) -> None:
    good = script(*SUM, END, name="good")
    terminal = start("chat", f"scripted:{script(setup={'load_fault': 'segv'})}")
    terminal.see("SIGSEGV")
    terminal.type(f"/model scripted:{good}\r")
    terminal.see("idle")
    terminal.type("What is 47 + 38?\r")
    terminal.see("It is 85")
    leaves_well(terminal)


def test_an_engine_that_dies_while_it_answers_is_told_and_the_chat_goes_on(start: Start, script: ScriptWriter) -> None:
    rows: list[Row] = [*SUM, STUCK]
    terminal = start("chat", f"scripted:{script(*rows)}")
    terminal.see("idle")
    terminal.type("What is 47 + 38?\r")
    terminal.see("It is 85")
    terminal.worker().send_signal(signal.SIGSEGV)
    terminal.see("SIGSEGV")
    terminal.see("idle")
    terminal.type("\x12")  # Ctrl+R: again, with another process
    terminal.see("answering")
    assert terminal.worker().is_running()
    leaves_well(terminal)


def test_an_engine_that_dies_while_it_reads_is_told_and_the_chat_goes_on(start: Start, smollm2: Path) -> None:
    terminal = start("chat", str(smollm2), "--backend", "llamacpp", "--threads", "1", rows=30)
    terminal.see("idle")
    terminal.type(f"\x1b[200~{LONG_PROMPT}\x1b[201~\r")
    terminal.see("reading")
    terminal.worker().send_signal(signal.SIGSEGV)
    terminal.see("SIGSEGV")
    terminal.see("idle")
    leaves_well(terminal)


@pytest.mark.parametrize("rows", [[{"setup": {"load_fault": "segv"}}], [*SUM, SEGV]], ids=["loading", "answering"])
def test_an_engine_that_dies_under_run_is_exit_8(start: Start, script: ScriptWriter, rows: list[Row]) -> None:
    setup = rows[0].get("setup")
    terminal = start("run", f"scripted:{script(*(rows[1:] if setup else rows), setup=setup)}", "x")
    assert terminal.end() == 8
    assert DEAD in terminal.text.replace("\n", "")
    assert (terminal.left_running(), terminal.left_modes()) == ([], set())


@pytest.mark.parametrize("command", ["run", "chat"])
def test_an_engine_does_not_outlive_its_program(start: Start, script: ScriptWriter, command: str) -> None:
    terminal = start(command, f"scripted:{script(*SUM, STUCK)}", *(["x"] if command == "run" else []))
    if command == "chat":
        terminal.see("idle")
        terminal.type("x\r")
        terminal.see("It is 85")
    else:
        terminal.hear("It is")
    engine = terminal.worker()
    terminal.process.kill()
    assert gone(engine)


def test_an_engine_that_hangs_in_loading_does_not_outlive_its_program(start: Start, script: ScriptWriter) -> None:
    terminal = start("chat", f"scripted:{script(setup={'load_fault': 'hang'})}")
    engine = terminal.worker()
    terminal.see("starting the engine")
    terminal.process.kill()
    assert gone(engine)


def test_a_machine_that_slept_goes_on_where_it_was(start: Start, script: ScriptWriter, tmp_path: Path) -> None:
    awake = tmp_path / "awake"
    rows = [piece(f"word{number} ", 0.01) for number in range(100)]
    terminal = start("chat", f"scripted:{script(*rows, {**END, 'until': str(awake)})}", rows=40)
    terminal.see("idle")
    terminal.type("x\r")
    terminal.hear("word")
    engine, program = terminal.worker(), psutil.Process(terminal.process.pid)
    for each in (program, engine):
        each.suspend()
    terminal.wait(lambda: {program.status(), engine.status()} == {psutil.STATUS_STOPPED}, "they go on")
    assert not is_heard(terminal, 0.5)
    for each in (engine, program):
        each.resume()
    awake.touch()
    terminal.see("idle")
    words = {f"word{number}" for number in range(100)}
    terminal.wait(lambda: words <= set(terminal.shown.split()), "text was lost")
    leaves_well(terminal)


def is_heard(terminal: OnTerminal, within_s: float) -> bool:
    """Say whether anything is written within a time; what was written before is read first."""
    while terminal.reads(0.2):
        pass
    return terminal.reads(within_s)
