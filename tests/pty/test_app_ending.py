"""However the app is ended, at whatever it is: nobody is left, and every mode of the terminal is as it was."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.conftest import ScriptWriter
from tests.hub.fixtures import TINY_REPO, hub, serve_tiny
from tests.hub.misbehaviour import Fault
from tests.hub.server import HubServer
from tests.pty.conftest import Start
from tests.pty.models import END, STUCK, SUM, piece
from tests.pty.terminal import OnTerminal
from tests.pty.test_ending import CLOSED, HANGUP, TOLD, End, is_clean, told

__all__ = ["hub"]


def keys(*typed: str) -> Callable[[OnTerminal], None]:
    def press(terminal: OnTerminal) -> None:
        for each in typed:
            terminal.type(each)

    return press


BY_SIGNAL = pytest.param(told(signal.SIGINT), 130, id="interrupted by a signal")
QUIT = pytest.param(keys("\x11"), 0, id="Ctrl+Q")
ALL = [TOLD, HANGUP, CLOSED, BY_SIGNAL, QUIT]


def app_with(start: Start, script: ScriptWriter, *rows: dict[str, object], **options: object) -> OnTerminal:
    terminal = start("chat", f"scripted:{script(*rows)}", **options)
    terminal.see("idle")
    return terminal


@pytest.mark.parametrize(("end", "code"), [TOLD, CLOSED])
def test_while_it_is_idle(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    is_clean(app_with(start, script, END), end, code)


@pytest.mark.parametrize(("end", "code"), [HANGUP, QUIT])
def test_while_it_thinks(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    terminal = app_with(start, script, piece("<think>"), piece("let me see"), STUCK)
    terminal.type("What is 47 + 38?\r")
    terminal.see("let me see")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), ALL)
def test_while_it_answers(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    terminal = app_with(start, script, *SUM, STUCK)
    terminal.type("What is 47 + 38?\r")
    terminal.see("It is 85")
    is_clean(terminal, end, code)


def test_the_end_of_a_terminal_that_controls_nothing_is_noticed(start: Start, script: ScriptWriter) -> None:
    terminal = app_with(start, script, *SUM, STUCK, controls=False)  # so that no signal tells of it
    terminal.tell(signal.SIGWINCH)  # after one that means nothing, too
    terminal.hang_up()
    assert terminal.end() == 129
    assert terminal.left_running() == []


@pytest.mark.parametrize(("end", "code"), ALL)
def test_while_a_model_is_loaded(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    terminal = start("chat", f"scripted:{script(setup={'load_fault': 'hang'})}")
    terminal.see("starting the engine")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), [TOLD, QUIT])
def test_while_a_model_is_chosen(start: Start, end: End, code: int) -> None:
    terminal = start("chat")
    terminal.see("tiny-reasoner")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), [TOLD, CLOSED, QUIT])
def test_while_a_model_is_fetched(start: Start, hub: HubServer, end: End, code: int) -> None:
    serve_tiny(hub)
    hub.faults.add(Fault(stall_after=1_000_000), skip=1, times=None)  # the first request reads the header
    terminal = start("chat", f"hf.co/{TINY_REPO}/blob/main/tiny-reasoner.gguf")
    terminal.see("fetch it?")
    terminal.type("y")
    terminal.wait(lambda: sum("/blobs/" in each.path for each in hub.requests) == 2, "nothing is fetched")
    is_clean(terminal, end, code)


def test_escape_stops_an_answer_and_the_app_goes_on(start: Start, script: ScriptWriter) -> None:
    terminal = app_with(start, script, *SUM, STUCK, END, piece("again"), END)
    terminal.type("What is 47 + 38?\r")
    terminal.see("It is 85")
    terminal.type("\x1b")
    terminal.see("stopped")
    terminal.type("Once more\r")
    terminal.see("again")
    is_clean(terminal, keys("\x11"), 0)


def test_ctrl_c_stops_an_answer_and_twice_leaves(start: Start, script: ScriptWriter) -> None:
    terminal = app_with(start, script, *SUM, STUCK)
    terminal.type("What is 47 + 38?\r")
    terminal.see("It is 85")
    terminal.type("\x03")
    terminal.see("stopped")
    terminal.type("\x03")
    terminal.hear("again leaves")
    is_clean(terminal, keys("\x03\x03"), 0)  # the first leaves, or, if that took us too long, the second


def test_a_stopped_app_leaves_the_terminal_to_the_shell_and_comes_back(start: Start, script: ScriptWriter) -> None:
    terminal = app_with(start, script, *SUM, END)
    terminal.tell(signal.SIGTSTP)
    terminal.wait(lambda: terminal.left_modes() <= {"raw keys"}, "the modes are still on")
    terminal.wait(terminal.is_stopped, "it goes on")  # a shell, too, lets it come back only then
    terminal.tell(signal.SIGCONT)
    terminal.wait(lambda: "kitty's keys" in terminal.left_modes(), "it does not listen again")
    terminal.redraw(30, 90)
    terminal.type("What is 47 + 38?\r")
    terminal.see("It is 85")
    is_clean(terminal, keys("\x11"), 0)
