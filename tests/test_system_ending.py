"""Being told to end, and keeping awake, each in a process of its own or by the library's own stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from wakepy import modecount

from slm_local.system import kept_awake, told_to_end, unwind
from tests.command import child_environment

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")

PROGRAM = """
import sys, threading, time
from slm_local import system
from slm_local.system import ending
{setup}
try:
    with system.told_to_end(system.unwind):
        print("ready", flush=True)
        {work}
except system.ToldToEnd as end:
    print("unwound", flush=True)
    {leaving}
    sys.exit(end.exit_code)
"""


def program(work: str, *, setup: str = "", leaving: str = "pass") -> subprocess.Popen[str]:
    source = PROGRAM.format(work=work, setup=setup, leaving=leaving)
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        [sys.executable, "-c", source], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=child_environment()
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    out, errors = child.communicate(timeout=120)
    assert errors == ""
    return child.returncode, out


@POSIX
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_process_that_is_told_to_end_unwinds(name: str, code: int) -> None:
    child = program("threading.Event().wait()")
    child.send_signal(signal.Signals[name])
    assert ended(child) == (code, "unwound\n")


@POSIX
def test_a_second_signal_does_not_stop_the_unwinding() -> None:
    child = program("threading.Event().wait()", leaving="sys.stdin.readline(); print('put away')")
    child.send_signal(signal.SIGTERM)
    assert child.stdout is not None
    assert child.stdout.readline() == "unwound\n"
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.Signals["SIGHUP"])
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert ended(child) == (143, "put away\n")


@POSIX
def test_a_process_that_does_not_get_away_is_gone_at_the_limit() -> None:
    child = program(
        "threading.Event().wait()",
        setup=(
            "from types import SimpleNamespace; ending.LEAVE_LIMIT_S = 0.3; said = threading.Event()\n"
            "sleep = lambda left_s: said.wait() and time.sleep(left_s)\n"
            "ending.time = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)"
        ),
        leaving="said.set(); threading.Event().wait()",
    )
    child.send_signal(signal.SIGTERM)
    assert ended(child) == (143, "unwound\n")


@POSIX
def test_a_terminal_gets_its_modes_back_at_the_limit() -> None:
    import pty
    import termios

    source = PROGRAM.format(
        setup="import termios, tty; ending.LEAVE_LIMIT_S = 0.3",
        work="tty.setraw(0); print('raw', flush=True); threading.Event().wait()",
        leaving="threading.Event().wait()",
    )
    master, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    child = subprocess.Popen(
        [sys.executable, "-c", source], stdin=terminal, stdout=subprocess.PIPE, env=child_environment(), text=True
    )
    assert child.stdout is not None
    assert [child.stdout.readline() for _ in range(2)] == ["ready\n", "raw\n"]
    changed = termios.tcgetattr(terminal)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=120)
    assert child.returncode == 143
    assert changed != before == termios.tcgetattr(terminal)
    os.close(master)
    os.close(terminal)


@POSIX
def test_a_main_thread_that_missed_the_signal_is_told_again() -> None:
    """Deliver it to another thread, whose system calls are the ones that are interrupted."""
    other = "threading.Thread(target=lambda: (sys.stdin.readline(), signal.pthread_kill(threading.get_ident(), 15)))"
    child = program("threading.Lock(), time.sleep(600)", setup=f"import signal; {other}.start()")
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert ended(child) == (143, "unwound\n")


def test_what_hears_of_the_end_leaves_everything_as_it_was() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with told_to_end(unwind, hears_interrupts=True):
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_process_is_told_in_its_main_thread_only() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def elsewhere() -> None:
        with told_to_end(unwind):
            assert signal.getsignal(signal.SIGTERM) == before

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()


# ---- awake


def awake_modes(is_expected: bool) -> int:
    """Count wakepy's modes once there is one, or at once where none is expected."""
    thread = next((each for each in threading.enumerate() if each.name == "awake"), None)
    while is_expected and thread is not None and thread.is_alive() and modecount() == 0:
        thread.join(0.01)
    return modecount()


def test_the_machine_is_kept_awake_from_the_moment_named_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "1")
    monkeypatch.setattr("slm_local.system.awake.LET_GO_S", 60.0)
    with kept_awake(after_s=0.0):
        assert awake_modes(is_expected=True) == 1
    assert modecount() == 0
    with kept_awake():
        assert awake_modes(is_expected=False) == 0
    with kept_awake(is_wanted=False, after_s=0.0):
        assert [each for each in threading.enumerate() if each.name == "awake"] == []


@pytest.mark.parametrize("address", [None, "unix:path=/nowhere", "nonsense"])
def test_without_a_desktop_nothing_happens_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], address: str | None
) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    children = psutil.Process().children()
    with kept_awake(after_s=0.0):
        thread = next((each for each in threading.enumerate() if each.name == "awake"), None)
        if thread is not None:
            thread.join(0.3)
    assert capfd.readouterr() == ("", "")
    assert [each for each in psutil.Process().children() if each not in children] == []
