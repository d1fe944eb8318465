"""Being told to end by the system: SIGTERM, the end of the terminal (SIGHUP), on Windows Ctrl-Break and the console's.

It knows nothing of what has to be put away first; that is done by whoever is told.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""Signals that tell a process to end. On Windows SIGBREAK is Ctrl-Break, the console's end and the user's leaving."""

LEAVE_LIMIT_S = 8.0
"""Longest stay after being told: an engine that does not answer is killed within four seconds, and a process that
stays longer than ten is killed by most who told it. Children end with their pipes."""

TERMINAL_POLL_S = 1.0
"""How often is looked whether the terminal is still there."""

REPEAT_S = 0.05
"""How soon the main thread is told again while it has not heard: Python's readline misses a signal that comes between
two of its waits (seen with 3.11), until a key is pressed."""


class ToldToEnd(BaseException):
    """The process is to end now; raised in the main thread, it unwinds as Ctrl-C does."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
        """128 and the signal's number, as shells count."""


def unwind(exit_code: int) -> None:
    """Raise `ToldToEnd`: what a program that waits nowhere does when it is told to end."""
    raise ToldToEnd(exit_code)


@contextlib.contextmanager
def told_to_end(
    act: Callable[[int], None], *, hears_interrupts: bool = False, needs_terminal: bool = False
) -> Iterator[None]:
    """Call `act` in the main thread, with an exit code, when the system tells this process to end, once only.

    The process is gone `LEAVE_LIMIT_S` later at the latest, whatever it waits for. With `hears_interrupts` SIGINT is
    such a signal too. With `needs_terminal` the end of stdin's terminal counts as SIGHUP also where the system sends
    none, as to a session without a controlling terminal. A signal that was ignored before (nohup) stays so. Does
    nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = _Ending(act, needs_terminal=needs_terminal)
    heard = (*ENDINGS, *((signal.SIGINT,) if hears_interrupts else ()))
    before = {number: handler for number in heard if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, ending.hear)
    ending.begin()
    try:
        yield
    finally:
        ending.end()
        for number, handler in before.items():
            if not ending.has_heard.is_set() or number == signal.SIGINT:  # told twice it must not die half-way
                signal.signal(number, handler)


class _Ending:
    """Hears of the end in the main thread; a thread of its own sees to it that it does hear, and leaves."""

    def __init__(self, act: Callable[[int], None], *, needs_terminal: bool) -> None:
        self.has_heard = threading.Event()
        self._act = act
        self._needs_terminal = needs_terminal
        self._told, self._teller = os.pipe()  # gets a byte, the signal's number, from Python's own handler
        if sys.platform != "win32":
            os.set_blocking(self._teller, False)
        self._teller_before = -1
        self._modes: list[Any] | None = None
        """The terminal's modes before anything changed them."""

    def begin(self) -> None:
        """Begin to listen. Main thread only, as `end`."""
        self._teller_before = signal.set_wakeup_fd(self._teller, warn_on_full_buffer=False)
        self._modes = _terminal_modes()
        threading.Thread(target=self._insist, name="ending", daemon=True).start()

    def end(self) -> None:
        """Stop listening; a limit that runs goes on."""
        signal.set_wakeup_fd(self._teller_before)
        os.close(self._teller)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Do what is to be done, once: the kernel and the shell both tell of the terminal's end."""
        if not self.has_heard.is_set():
            self.has_heard.set()
            _let_go_of_lost_terminal()
            self._act(128 + number)

    def _insist(self) -> None:
        """Wait for a signal that ends; tell the main thread until it has heard; end the process at the limit."""
        number = self._first_ending()
        if number is None:
            os.close(self._told)
            return
        until = time.monotonic() + LEAVE_LIMIT_S
        while not self.has_heard.wait(REPEAT_S) and time.monotonic() < until:
            if sys.platform != "win32":
                signal.pthread_kill(threading.main_thread().ident or 0, number)
        time.sleep(max(0.0, until - time.monotonic()))
        _set_terminal_modes(self._modes)  # whoever would do it was not reached
        os._exit(128 + number)

    def _first_ending(self) -> int | None:
        """Wait for a signal that is ours, or for the terminal's end; None when nobody listens any more."""
        while True:
            while self._needs_terminal and self._modes is not None and not self._is_told(TERMINAL_POLL_S):
                if _is_lost(0):
                    hangup = signal.Signals["SIGHUP"]
                    return int(hangup if signal.getsignal(hangup) == self.hear else signal.SIGTERM)
            byte = os.read(self._told, 1)  # of any signal: other ones have handlers, too
            if not byte:
                return None
            if signal.getsignal(byte[0]) == self.hear:
                return byte[0]

    def _is_told(self, within_s: float) -> bool:
        import select

        return bool(select.select([self._told], [], [], within_s)[0])


def _terminal_modes() -> list[Any] | None:
    """Return the modes of stdin's terminal; None where there is none, and on Windows."""
    if sys.platform == "win32":
        return None
    import termios

    try:
        return termios.tcgetattr(0)
    except termios.error:
        return None


def _set_terminal_modes(modes: list[Any] | None) -> None:
    if sys.platform == "win32" or modes is None:
        return
    import termios

    with contextlib.suppress(termios.error):
        termios.tcsetattr(0, termios.TCSANOW, modes)


def _let_go_of_lost_terminal() -> None:
    """Have what is still written for a terminal that is gone go nowhere: every write would fail."""
    if sys.platform == "win32":
        return
    for descriptor in (0, 1, 2):
        if _is_lost(descriptor):
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _is_lost(descriptor: int) -> bool:
    """Tell whether a descriptor is that of a terminal which is gone."""
    if sys.platform == "win32":
        return False
    import errno
    import termios

    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return False
