"""How a person reaches a program that is busy: lines typed on the terminal of stdin, and a signal of its own.

It knows neither prompts nor models; what a line or the signal means is said by who waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FrameType
from typing import Any, Protocol

TypedLine = bytes | None
"""A line without its end; None for the end of input that Ctrl-D stands for."""

POLL_S = 0.1
"""How soon it is seen that a job came to the foreground, or that nobody listens any more."""

KEY_POLL_S = 0.02
"""How often Windows is asked for keys."""

END_OF_INPUT = b""


def can_type_lines() -> bool:
    """Tell whether stdin is a terminal whose keys are ours: a pager behind a pipe of stdout would want them, too."""
    try:
        return sys.stdin.isatty() and not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, or replaced by what is no file
        return False


@contextlib.contextmanager
def signalled(note: Callable[[], None]) -> Iterator[None]:
    """Call `note` at every SIGUSR1; does nothing on Windows, which has none, and outside the main thread."""
    if sys.platform == "win32" or not _is_main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda number, frame: note())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


class TypedLines:
    """Hands over lines as they are typed, without their echo. A context manager.

    What is not ended by Enter stays in the terminal for whoever reads next (on Windows it is handed over at the end),
    and so does all that is typed after `stop_listening`. Echo comes back at the end, while the program is stopped, and
    before a signal ends it.
    """

    def __init__(self, on_line: Callable[[TypedLine], None]) -> None:
        """`on_line` is called in a thread of its own."""
        self._on_line = on_line
        self._stopped = threading.Event()
        self._terminal: _Terminal = _WindowsTerminal() if sys.platform == "win32" else _PosixTerminal()
        self._thread = threading.Thread(target=self._listen, name="keys", daemon=True)

    def __enter__(self) -> TypedLines:
        self._terminal.begin()
        self._thread.start()
        return self

    def stop_listening(self) -> None:
        """Leave what is typed from now on to whoever reads next."""
        self._stopped.set()

    def __exit__(self, *failure: object) -> None:
        self._stopped.set()
        self._thread.join(2 * POLL_S)
        self._terminal.end()

    def _listen(self) -> None:
        partial = b""
        while not self._stopped.is_set():
            typed = self._terminal.typed(self._stopped)
            if typed == END_OF_INPUT:
                self._on_line(None)
                break
            partial += typed or b""
            while b"\n" in partial:
                line, _, partial = partial.partition(b"\n")
                self._on_line(line)
        if partial:
            self._on_line(partial)


class _Terminal(Protocol):
    """The terminal of stdin, as one system has it."""

    def begin(self) -> None:
        """Stop the echo."""
        ...

    def typed(self, stopped: threading.Event) -> bytes | None:
        """Wait a moment for what is typed; None for nothing, `END_OF_INPUT` for the end of input."""
        ...

    def end(self) -> None:
        """Bring the echo back, as often as one likes."""
        ...


class _PosixTerminal:
    """Lines come whole from the system, which edits them; Ctrl-C and Ctrl-Z stay what they are."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._lock = threading.RLock()
        """Reentrant: a signal's handler may come while its own thread holds it."""
        self._before: list[Any] | None = None
        """The terminal's modes while it is hushed."""
        self._is_loud = False
        """Whether it must stay loud now."""
        self._handled: list[int] = []

    def begin(self) -> None:
        if _is_main_thread():
            for number in (signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, self._on_signal)
                    self._handled.append(number)
        self._hush()

    def typed(self, stopped: threading.Event) -> bytes | None:
        import select

        if not self._is_ours():
            stopped.wait(POLL_S)  # to read or change a terminal from the background would stop the program
            return None
        self._hush()
        try:
            is_ready = bool(select.select([self._fd], [], [], POLL_S)[0])
            return os.read(self._fd, 4096) if is_ready and not stopped.is_set() and self._is_ours() else None
        except OSError:  # hung up
            return END_OF_INPUT

    def end(self) -> None:
        self._speak()
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL)
        self._handled.clear()

    def _hush(self) -> None:
        import termios

        with self._lock, contextlib.suppress(termios.error):
            if self._before is None and not self._is_loud and self._is_ours():
                modes = termios.tcgetattr(self._fd)
                self._before = list(modes)
                modes[3] &= ~(termios.ECHO | termios.ECHONL)
                termios.tcsetattr(self._fd, termios.TCSANOW, modes)  # what was typed already stays

    def _speak(self) -> None:
        import termios

        with self._lock, contextlib.suppress(termios.error):
            self._is_loud, before, self._before = True, self._before, None
            if before is not None:
                termios.tcsetattr(self._fd, termios.TCSANOW, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Do what the signal does by itself, with the echo back; after a stop go on as before."""
        self._speak()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._on_signal)
        self._is_loud = False

    def _is_ours(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError as error:
            return error.errno == errno.ENOTTY  # a terminal that controls no jobs


class _WindowsTerminal:
    """Keys come one by one and are never echoed; Ctrl-C stays what it is."""

    def __init__(self) -> None:
        self._keys: Any = import_module("msvcrt")

    def begin(self) -> None:
        pass

    def typed(self, stopped: threading.Event) -> bytes | None:
        """Wait a moment for a line; one that is not ended is given when nobody listens any more."""
        line = ""
        while not stopped.wait(KEY_POLL_S):
            while self._keys.kbhit():
                key: str = self._keys.getwch()
                if key in ("\x00", "\xe0"):
                    self._keys.getwch()  # a function key's second half
                elif key == "\x1a" and not line:
                    return END_OF_INPUT
                elif key == "\b":
                    line = line[:-1]
                elif key == "\r":
                    return f"{line}\n".encode(errors="replace")
                else:
                    line += key
        return line.encode(errors="replace") or None

    def end(self) -> None:
        pass


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
