"""A pseudo-terminal with a program on it: every byte is kept, a screen is drawn from them, keys and sizes can be sent.

What the program leaves behind is looked at when it is over: the terminal's modes, and processes that still run.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil
import pyte

from tests.command import child_environment

TIMEOUT_S = 60
"""Longest wait for what must come; a machine that runs other tests beside may be slow."""

LEFT_WAIT_S = 60.0
"""How long a process may need to be gone after its parent."""

POLL_S = 0.1
"""How often is looked whether something is so that the program does not write."""

MARK = "SLM_TEST_TERMINAL"
"""A variable by which all processes are found that a terminal's program started, whoever is their parent."""

BEGIN = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0) if sys.argv[1] else None
signal.signal(int(sys.argv[2]), signal.SIG_IGN) if sys.argv[2] else None
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Makes the terminal on stdin the one that controls the session, ignores a signal, then becomes the program."""

JOINERS = "\u200c\u200d\ufe0e\ufe0f"

REPORTS = re.compile(rb"\x1b\[\?([\d;]+)([hl])")
KITTY = re.compile(rb"\x1b\[([><])\d*u")
ESCAPE = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI
    rb"|\x1b[\]PX^_].*?(?:\x07|\x1b\\)"  # OSC, DCS, SOS, PM, APC
    rb"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
ENTERED = {b"1049": "the alternate screen", b"1000": "mouse", b"1002": "mouse", b"1003": "mouse", b"1006": "mouse"}
ENTERED |= {b"1015": "mouse", b"1004": "focus", b"2004": "bracketed paste", b"2048": "sizes in band"}
LEFT = {b"25": "a hidden cursor", b"7": "no line wrap"}


class OnTerminal:
    """`slm` on a terminal. A context manager that ends it."""

    def __init__(
        self,
        *arguments: str,
        rows: int = 24,
        columns: int = 80,
        ignores: signal.Signals | None = None,
        controls: bool = True,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.recorded = bytearray()
        self.draws = True
        """Whether the screen follows what is written; a large one that changes all the time costs seconds."""
        self.screen = _Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._heard = 0
        self._mark = uuid.uuid4().hex
        self._master, terminal = os.openpty()
        self.resize(rows, columns)
        self._modes_before = termios.tcgetattr(terminal)
        environment = child_environment({"TERM": "xterm-256color", MARK: self._mark, **(variables or {})})
        for size in ("COLUMNS", "LINES"):
            environment.pop(size, None)  # a program would believe them more than its terminal
        ignored = "" if ignores is None else str(int(ignores))
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-S",
                "-c",
                BEGIN,
                "yes" if controls else "",
                ignored,
                sys.executable,
                "-m",
                "slm_local",
                *arguments,
            ],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env=environment,
        )
        os.close(terminal)

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *failure: object) -> None:
        for each in self.children():
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.kill()
        self.process.wait()
        if self._master >= 0:
            os.close(self._master)

    @property
    def text(self) -> str:
        """Return all that was written, without escapes."""
        return ESCAPE.sub(b"", bytes(self.recorded)).decode("utf-8", "replace").replace("\r", "")

    @property
    def lines(self) -> list[str]:
        """Return the screen's lines as they are now."""
        return list(self.screen.display)

    @property
    def shown(self) -> str:
        """Return the screen without the blanks at its edges."""
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")

    def hear(self, text: str) -> None:
        """Wait until a text was written behind what was waited for before."""

        def is_written() -> bool:
            at = self.recorded.find(text.encode(), self._heard)
            if at >= 0:
                self._heard = at + len(text.encode())
            return at >= 0

        self.wait(is_written, f"{text!r} was not written")

    def see(self, text: str) -> None:
        """Wait until a text stands on the screen, in one line."""
        self.wait(lambda: any(text in line for line in self.lines), f"{text!r} is not on the screen")

    def wait(self, is_so: Callable[[], bool], otherwise: str, timeout_s: float = TIMEOUT_S) -> None:
        """Read until something is so."""
        until = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > until or not self._read(POLL_S):
                raise AssertionError(f"{otherwise}; exit {self.process.poll()}; the screen:\n{self.shown}")

    def reads(self, within_s: float) -> bool:
        """Return whether something is written within a time."""
        before = len(self.recorded)
        self._read(within_s)
        return len(self.recorded) > before

    def type(self, keys: str | bytes) -> None:
        """Send keys."""
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    def redraw(self, rows: int, columns: int) -> None:
        """Give the terminal another size and wait until something was written for it."""
        before = len(self.recorded)
        self.resize(rows, columns)
        self.wait(lambda: len(self.recorded) > before, "nothing was drawn")

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def tell(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        self.process.send_signal(number)

    def is_stopped(self) -> bool:
        """Return whether the program stands still, as after SIGSTOP."""
        return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED

    def hang_up(self) -> None:
        """Close the terminal, as its window is closed."""
        os.close(self._master)
        self._master = -1

    def end(self) -> int:
        """Read to the end of the program and return its exit status, a signal's number below zero."""
        until = time.monotonic() + TIMEOUT_S
        while self._master >= 0 and self._read(POLL_S):
            assert time.monotonic() < until, f"it goes on; the screen:\n{self.shown}"
        return self.process.wait(TIMEOUT_S)

    def children(self) -> list[psutil.Process]:
        """Return the processes that the program started and that still run, itself left out."""
        return [each for each in psutil.process_iter() if each.pid != self.process.pid and self._is_marked(each)]

    def worker(self) -> psutil.Process:
        """Return the engine's process, waiting for it."""
        found: list[psutil.Process] = []

        def is_there() -> bool:
            found[:] = [each for each in self.children() if "slm_local.worker" in _command(each)]
            return bool(found)

        self.wait(is_there, "there is no engine")
        return found[0]

    def left_running(self) -> list[str]:
        """Return the commands of processes that still run some seconds after the program's end."""
        _, left = psutil.wait_procs(self.children(), LEFT_WAIT_S)
        return [" ".join(_command(each)) for each in left]

    def left_modes(self) -> set[str]:
        """Return what the program switched on in the terminal and not off; nothing of a terminal that is gone."""
        on: set[str] = set()
        if self._master < 0:
            return on
        for numbers, switch in REPORTS.findall(bytes(self.recorded)):
            for number in numbers.split(b";"):
                if number in ENTERED:
                    (on.add if switch == b"h" else on.discard)(ENTERED[number])
                elif number in LEFT:
                    (on.add if switch == b"l" else on.discard)(LEFT[number])
        pushed = KITTY.findall(bytes(self.recorded))
        if pushed.count(b">") > pushed.count(b"<"):
            on.add("kitty's keys")
        if termios.tcgetattr(self._master) != self._modes_before:
            on.add("raw keys")
        return on

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            return is_alive and process.environ().get(MARK) == self._mark
        except (psutil.Error, OSError):
            return False

    def _read(self, timeout_s: float) -> bool:
        """Read what is there, waiting for it; False at the end."""
        if not select.select([self._master], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when nobody holds the other side
            data = b""
        self.recorded += data
        if self.draws:
            self._stream.feed(data)
        return bool(data)


class _Screen(pyte.Screen):  # type: ignore[misc]
    """Leaves out characters that join others: pyte drops what is written behind them."""

    def draw(self, data: str) -> None:
        super().draw("".join(each for each in data if each not in JOINERS))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
