"""What the lines between a parent and its engine go through: the pipes of a child process, or of a thread.

A child is a module of its own, so that a script that opens a model needs no main guard. Its death is seen by its wait
status; it never outlives its parent, since it ends with its pipe.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from slm_local.system import describe_exit, kill_tree, lock_down_file, spawn_options, without_secrets

KEPT_LOGS = 8


class Channel(Protocol):
    """The parent's end of a connection with one engine."""

    @property
    def name(self) -> str:
        """Return what the engine is called in a sentence that says it is gone."""
        ...

    @property
    def pid(self) -> int | None:
        """Return the id of the engine's process; None where it has none of its own, or none here."""
        ...

    @property
    def log_path(self) -> Path | None:
        """Return where the engine logs; None: nowhere."""
        ...

    @property
    def crash_hint(self) -> str:
        """Return what to do or look at when the engine is gone."""
        ...

    def write(self, line: bytes) -> None:
        """Send a line. Errors: OSError or ValueError where nobody takes it."""
        ...

    def lines(self) -> Iterator[bytes]:
        """Yield the engine's lines until there are no more; in one thread. Errors: OSError, ValueError."""
        ...

    def wait(self, seconds: float) -> str | None:
        """Wait until the engine is gone; return how it ended, None where it still lives."""
        ...

    def kill(self) -> None:
        """End the engine now, with everything it started."""
        ...

    def hang_up(self) -> None:
        """Send no more."""
        ...


class Child:
    """A child process, with a log of its own."""

    name = "the engine process"

    def __init__(self, log_folder: Path) -> None:
        self.log_path = new_log(log_folder)
        self._process = _spawn(self.log_path)

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._process.pid

    @property
    def crash_hint(self) -> str:
        """Return where its log is."""
        return f"its log: {self.log_path}"

    def write(self, line: bytes) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def lines(self) -> Iterator[bytes]:
        """Yield what it writes until its pipe ends."""
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            yield from pipe

    def wait(self, seconds: float) -> str | None:
        """Wait for its end; a child that is gone is told by its wait status."""
        if not seconds:
            status = self._process.poll()
        else:
            try:
                status = self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
        return None if status is None else describe_exit(status)

    def kill(self) -> None:
        """Kill it with its group."""
        kill_tree(self._process)

    def hang_up(self) -> None:
        """Close its input: a child that still runs ends with it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # unsent bytes for a child that is gone
            self._process.stdin.close()


class Threads:
    """The child's loop in threads of this process, for an engine that computes elsewhere."""

    name = "the engine"
    pid = None
    log_path = None
    crash_hint = "run again with SLM_DEBUG=1"

    def __init__(self) -> None:
        from slm_local.worker.child import serve_in_threads  # whoever has a child process does without

        orders, self._orders = _pipe()
        self._events, events = _pipe()
        self._over = threading.Event()
        serve_in_threads(orders, events, self._over.set)

    def write(self, line: bytes) -> None:
        """Send a line."""
        self._orders.write(line)

    def lines(self) -> Iterator[bytes]:
        """Yield what it writes until it ends."""
        with self._events as pipe:
            yield from pipe

    def wait(self, seconds: float) -> str | None:
        """Wait for its end."""
        return "it ended" if self._over.wait(seconds) else None

    def kill(self) -> None:
        """Have it end: it does as soon as it waits for nothing else."""
        self.hang_up()

    def hang_up(self) -> None:
        """Close its input, with which it ends."""
        with contextlib.suppress(OSError):
            self._orders.close()


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    """Return a pipe's reading and its writing end."""
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0)


def child_environment() -> dict[str, str]:
    """Return the environment of a child that runs native code: this package can be imported, secrets are left out."""
    package_root = str(Path(__file__).resolve().parents[2])
    environment = without_secrets(os.environ)
    environment["GGML_NO_BACKTRACE"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return environment


def _spawn(log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "slm_local.worker", str(log_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(),
            **spawn_options(),
        )


def _written_s(file: Path) -> float:
    """Return when a file was written last; one that another program deletes meanwhile is the oldest."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def new_log(folder: Path, kind: str = "worker") -> Path:
    """Make an empty log file of its own for a child and delete the oldest ones of its kind."""
    logs = sorted(folder.glob(f"{kind}-*.log"), key=_written_s)
    for old in logs[: max(0, len(logs) - KEPT_LOGS + 1)]:
        with contextlib.suppress(OSError):  # Windows keeps a log that a living child writes
            old.unlink()
    path = folder / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}.log"
    path.touch(mode=0o600)
    lock_down_file(path)
    return path
