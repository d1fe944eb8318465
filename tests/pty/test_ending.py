"""However `slm` is ended, at whatever it is: nobody is left, the terminal is as it was, the exit code says how."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ScriptWriter
from tests.hub.fixtures import TINY_REPO, hub, serve_tiny
from tests.hub.misbehaviour import Fault
from tests.hub.server import HubServer
from tests.pty.conftest import Start
from tests.pty.models import END, STUCK, SUM
from tests.pty.terminal import OnTerminal

__all__ = ["hub"]

LONG_PROMPT = "many words " * 1800
"""Takes the small real model some seconds to read."""


def told(number: signal.Signals) -> Callable[[OnTerminal], None]:
    return lambda terminal: terminal.tell(number)


TOLD = pytest.param(told(signal.SIGTERM), 143, id="told to end")
HANGUP = pytest.param(told(signal.SIGHUP), 129, id="told of the terminal's end")
CLOSED = pytest.param(OnTerminal.hang_up, 129, id="terminal closed")
INTERRUPT = pytest.param(lambda terminal: terminal.type("\x03"), 130, id="Ctrl-C")

End = Callable[[OnTerminal], None]


def is_clean(terminal: OnTerminal, end: End, code: int) -> None:
    """End it and look at what is left."""
    end(terminal)
    assert terminal.end() == code
    assert terminal.left_running() == []
    assert terminal.left_modes() == set()


@pytest.mark.parametrize(("end", "code"), [TOLD, HANGUP, CLOSED, INTERRUPT])
def test_while_it_generates(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    terminal = start("run", f"scripted:{script(*SUM, STUCK)}", "What is 47 + 38?")
    terminal.hear("It is")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), [TOLD, CLOSED, INTERRUPT])
def test_while_a_model_is_loaded(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    terminal = start("run", f"scripted:{script(setup={'load_fault': 'hang'})}", "What is 47 + 38?")
    terminal.hear("starting the engine")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), [TOLD, INTERRUPT])
def test_while_a_prompt_is_read(start: Start, smollm2: Path, end: End, code: int) -> None:
    terminal = start("run", str(smollm2), LONG_PROMPT, "--backend", "llamacpp", "--threads", "1")
    terminal.hear("reading the prompt")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), [TOLD, HANGUP, CLOSED])
def test_while_the_plain_chat_waits_for_a_line(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    terminal = start("chat", "--plain", f"scripted:{script(*SUM, END)}")
    terminal.hear(">>> ")
    terminal.type("half a li")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), [TOLD, CLOSED])
def test_while_the_plain_chat_answers(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    terminal = start("chat", "--plain", f"scripted:{script(*SUM, STUCK)}")
    terminal.hear(">>> ")
    terminal.type("What is 47 + 38?\r")
    terminal.hear("It is")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), [TOLD, CLOSED, INTERRUPT])
def test_while_it_downloads(start: Start, hub: HubServer, end: End, code: int) -> None:
    serve_tiny(hub)
    hub.faults.add(Fault(stall_after=1_000_000), skip=1, times=None)  # the first request reads the header
    terminal = start("pull", f"hf.co/{TINY_REPO}/blob/main/tiny-reasoner.gguf", "--yes")
    terminal.hear("/1.9 MB")
    is_clean(terminal, end, code)


@pytest.mark.parametrize(("end", "code"), [HANGUP, INTERRUPT])
def test_while_it_compares(start: Start, script: ScriptWriter, end: End, code: int) -> None:
    first, second = (script(*SUM, STUCK, name=name) for name in ("first", "second"))
    terminal = start("compare", f"scripted:{first}", f"scripted:{second}", "-p", "What is 47 + 38?")
    terminal.hear("It is")
    is_clean(terminal, end, code)


def test_a_signal_that_was_ignored_before_stays_so(start: Start, script: ScriptWriter) -> None:
    terminal = start("run", f"scripted:{script(*SUM, STUCK)}", "x", ignores=signal.SIGHUP)
    terminal.hear("It is")
    terminal.tell(signal.SIGHUP)
    terminal.type("\x03")
    assert terminal.end() == 130
