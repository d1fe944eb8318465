"""Answer now: Enter on the empty line and a signal, on a real pseudo-terminal, and what becomes of all else typed."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from slm_local.system import TypedLine, keys
from tests.command import child_environment
from tests.conftest import ScriptWriter

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pseudo-terminal and its signals")

TIMEOUT_S = 60
Spawn = Callable[..., Any]

ENDLESS: tuple[dict[str, Any], ...] = (
    {"text": "<think>", "ids": [1]},
    {"text": "thought number {n}. ", "ids": [2], "delay": 0.05, "times": 4000},
    {"end": "stop"},
    {"text": "It is 85.", "ids": [3], "end": "stop"},
)
"""A script that thinks for minutes, unless its thinking is ended."""


OUTLIVING = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, lambda number, frame: None)
process = subprocess.Popen([sys.executable, *sys.argv[1:]])
print("pid", process.pid, flush=True)
print("ended with", process.wait(), flush=True)
input()
"""
"""A parent that keeps the terminal when its child has ended, whatever ended it."""


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start `slm` on a terminal; ended with the test."""
    import pexpect

    children: list[Any] = []

    def start(*arguments: str, program: str = sys.executable, **variables: str) -> Any:
        environment = child_environment({"TERM": "xterm-256color", **variables})
        child = pexpect.spawn(program, list(arguments), env=environment, dimensions=(24, 100), timeout=TIMEOUT_S)
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def run(spawn: Spawn, *arguments: str, **variables: str) -> Any:
    return spawn("-m", "slm_local", *arguments, "--no-loop-guard", **variables)


def rest_of(child: Any) -> str:
    """Read to the end, check that the process ended well, return what it wrote without escapes."""
    written: bytes = child.read()
    child.close()
    assert child.exitstatus == 0, written.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r", "")


def echoes(terminal: int) -> bool:
    """Tell whether a terminal shows what is typed on it, line by line."""
    import termios

    modes = termios.tcgetattr(terminal)[3]
    return bool(modes & termios.ECHO) and bool(modes & termios.ICANON)


# ---- Enter


@needs_posix
@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_enter_ends_thinking_and_the_answer_follows(
    spawn: Spawn, script: ScriptWriter, variables: dict[str, str]
) -> None:
    child = run(spawn, "run", f"scripted:{script(*ENDLESS)}", "x", **variables)
    child.expect_exact("Enter: answer now")
    child.expect_exact("thought number 2.")
    child.sendline("")
    text = rest_of(child)
    assert "It is 85." in text
    assert "thinking was ended, as you asked" in text


@needs_posix
def test_what_else_is_typed_is_not_shown_among_the_thoughts_and_is_told_of(spawn: Spawn, script: ScriptWriter) -> None:
    child = run(spawn, "run", f"scripted:{script(*ENDLESS)}", "x")
    child.expect_exact("thought number 2.")
    child.sendline("hello")
    child.expect(rb"1\d tokens")  # a thought's own words may be parted by the end of a line
    assert b"hello" not in child.before
    child.sendline("")
    assert "typed while it thought, and not used: hello\n" in rest_of(child)


@needs_posix
def test_in_a_chat_lines_typed_while_it_thinks_are_the_next_prompts(spawn: Spawn, script: ScriptWriter) -> None:
    rows = (*ENDLESS, {"text": "second answer", "ids": [1], "end": "stop"})
    child = run(spawn, "chat", f"scripted:{script(*rows)}", "--plain")
    child.expect_exact(">>> ")
    child.sendline("first")
    child.expect_exact("thought number 2.")
    child.sendline("the next one")
    child.sendline("")
    child.send("half")
    child.expect_exact("It is 85.")
    child.expect_exact(">>> the next one")
    child.expect_exact("second answer")
    child.expect_exact(">>> ")
    child.expect_exact("half")  # not ended by Enter: it waits at the prompt
    child.send("\x15/bye\n")
    rest_of(child)


@needs_posix
def test_ctrl_c_still_stops_while_keys_are_heard(spawn: Spawn, script: ScriptWriter) -> None:
    child = run(spawn, "run", f"scripted:{script(*ENDLESS)}", "x")
    child.expect_exact("thought number 2.")
    child.sendintr()
    child.expect_exact("stopped")
    child.read()
    child.close()
    assert child.exitstatus == 130


@needs_posix
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGQUIT", -3)])
def test_the_echo_comes_back_however_it_ends(spawn: Spawn, script: ScriptWriter, sent: str, code: int) -> None:
    child = spawn("-c", OUTLIVING, "-m", "slm_local", "run", f"scripted:{script(*ENDLESS)}", "x", "--no-loop-guard")
    child.expect(r"pid (\d+)")
    process = int(child.match[1])
    child.expect_exact("thought number 2.")
    assert not echoes(child.child_fd)
    os.kill(process, getattr(signal, sent))
    child.expect_exact(f"ended with {code}")
    assert echoes(child.child_fd)
    child.sendline("")
    rest_of(child)


@needs_posix
def test_the_echo_is_back_while_it_is_stopped_and_gone_when_it_goes_on(spawn: Spawn, script: ScriptWriter) -> None:
    child = shell(spawn)
    child.sendline(f"{sys.executable} -m slm_local run scripted:{script(*ENDLESS)} x --no-loop-guard")
    child.expect_exact("thought number 2.")
    child.send("\x1a")
    child.expect_exact("ready> ")
    assert echoes(child.child_fd)
    child.sendline("fg")
    for _ in range(100):  # the shell's own modes last until the program looks at the terminal again
        child.expect_exact("thought number")
        if not echoes(child.child_fd):
            break
    assert not echoes(child.child_fd)
    child.sendline("")
    child.expect_exact("It is 85.")
    child.expect_exact("ready> ")
    assert echoes(child.child_fd)


@needs_posix
def test_from_the_background_no_key_is_read_and_nothing_is_stopped(spawn: Spawn, script: ScriptWriter) -> None:
    rows: list[dict[str, Any]] = [{"text": "<think>", "ids": [1]}]
    rows += [{"text": "hm {n}. ", "ids": [2], "delay": 0.02, "times": 30}]
    rows += [{"text": "</think>done", "ids": [2], "end": "stop"}]
    child = shell(spawn)
    child.sendline(
        f"{sys.executable} -m slm_local run scripted:{script(*rows)} x --no-loop-guard & wait; echo co''de $?"
    )
    child.expect_exact("done")
    child.expect_exact("code 0")


def shell(spawn: Spawn) -> Any:
    """Start a shell that controls jobs."""
    child = spawn("-i", program="/bin/sh", PS1="ready> ", ENV="")
    child.expect_exact("ready> ")
    return child


# ---- the signal


@needs_posix
def test_the_signal_ends_thinking_without_any_terminal(script: ScriptWriter) -> None:
    import subprocess

    process = subprocess.Popen(
        [sys.executable, "-m", "slm_local", "run", f"scripted:{script(*ENDLESS)}", "x", "--no-loop-guard"],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stderr is not None
        assert process.stdout is not None
        seen = b""
        while b"thought number 2." not in seen:
            seen += process.stderr.read(1)
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == b"It is 85.\n"
        assert b"thinking was ended, as you asked" in process.stderr.read()
    assert process.returncode == 0


@needs_posix
def test_the_signal_is_heard_as_long_as_somebody_waits_for_it() -> None:
    noted: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    with keys.signalled(lambda: noted.append(1)):
        signal.raise_signal(signal.SIGUSR1)
    assert noted == [1]
    assert signal.getsignal(signal.SIGUSR1) is before


# ---- where nothing is heard


def test_without_a_terminal_no_key_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not keys.can_type_lines()  # stdin of a test is none
    monkeypatch.setattr(sys, "stdin", None)
    assert not keys.can_type_lines()


@needs_posix
def test_a_pager_behind_a_pipe_keeps_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, slave = os.openpty()
    read, write = os.pipe()
    with open(slave) as stdin, open(write, "w") as pipe, open(os.devnull, "w") as file:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", pipe)
        is_piped = keys.can_type_lines()
        monkeypatch.setattr(sys, "stdout", file)
        is_filed = keys.can_type_lines()
    os.close(terminal)
    os.close(read)
    assert (is_piped, is_filed) == (False, True)


# ---- Windows' keys, one by one


@pytest.mark.parametrize(
    ("typed", "lines"),
    [
        ("\r", [b""]),
        ("hi\r", [b"hi"]),
        ("hx\bi\r\r", [b"hi", b""]),
        ("\xe0Hhi\r", [b"hi"]),
        ("h\xe9\r", ["h\xe9".encode()]),
        ("hal", [b"hal"]),
        ("\x1a", [None]),
    ],
)
def test_keys_become_lines(typed: str, lines: list[TypedLine], monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, heard, all_taken = list(typed), list[TypedLine](), threading.Event()

    def take() -> str:
        key = waiting.pop(0)
        if not waiting:
            all_taken.set()
        return key

    msvcrt = SimpleNamespace(kbhit=lambda: bool(waiting), getwch=take)
    monkeypatch.setattr(keys, "import_module", lambda name: msvcrt)
    monkeypatch.setattr(keys, "_PosixTerminal", keys._WindowsTerminal)
    with keys.TypedLines(heard.append) as listening:
        assert all_taken.wait(TIMEOUT_S)
    listening._thread.join(TIMEOUT_S)  # longer than a person at the prompt would be kept waiting
    assert heard == lines
