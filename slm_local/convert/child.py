"""One long job in a child process: its lines are progress and go into a bounded log; it ends when its parent does.

Used from both sides: `run_child` by the parent, `enter` by the child.
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from slm_local.errors import Interrupted, UsageError
from slm_local.generation import Control
from slm_local.paths import make_folder, paths
from slm_local.system import describe_exit, ignore_interrupts, kill_tree, restrict_core_dumps, spawn_options
from slm_local.worker import child_environment, new_log

MARK = "slm: "
"""What a child begins a line with that it has to say to its parent: a JSON object follows."""

TICK_S = 1.0
"""How often a silent child is reported as still at it."""

LOG_LIMIT_BYTES = 1_000_000

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What draws and erases progress bars on a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a child ended."""

    status: int
    last_line: str
    log_path: Path

    @property
    def reason(self) -> str:
        """Return why it failed, from what it wrote last, else from its exit status."""
        return self.last_line if self.last_line and self.status > 0 else describe_exit(self.status)


def run_child(
    module: str,
    order: Mapping[str, object],
    *,
    what: str,
    control: Control,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Ended:
    """Run `python -m module ORDER` to its end; blocks. `what` begins the log's name.

    `on_line` gets every line without escapes, a bar's states each as one; `on_tick` is called about every `TICK_S`
    seconds. `Interrupted` when cancelled; then, and on any exception of the callbacks, the child is killed with its
    group.
    """
    log_path = new_log(make_folder(paths().logs), what)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, json.dumps(order)],
        stdin=subprocess.PIPE,  # its end tells the child that nobody waits any more
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**child_environment(), **(variables or {})},
        **spawn_options(),
    )

    def kill() -> None:
        kill_tree(child)

    control.on_cancel(kill)
    last_line = ""
    try:
        for line in _lines(child, on_tick or (lambda: None)):
            _log(log_path, line)
            last_line = line.strip() or last_line
            on_line(line)
        status = child.wait()
    except BaseException:
        kill_tree(child)
        raise
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
    if control.cancelled:
        raise Interrupted("it was stopped; nothing is left of it")
    return Ended(status=status, last_line=last_line, log_path=log_path)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock that all conversions of a user share: each takes much memory. `UsageError` while another has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(make_folder(paths().cache) / "convert.lock", timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            "another slm is converting or quantizing: one at a time", hint="end that one, or wait"
        ) from None
    try:
        yield
    finally:
        lock.release()


def enter() -> None:
    """Make this process the child of a job: deaf to Ctrl-C, without core files, gone as soon as its parent is."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    ignore_interrupts()
    restrict_core_dumps()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin: its lock, held at the interpreter's end, would abort it
        pass
    os._exit(1)


def _lines(child: subprocess.Popen[bytes], on_tick: Callable[[], None]) -> Iterator[str]:
    """Give what a child writes, line by line, until it closes its pipe."""
    assert child.stdout is not None
    chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(child.stdout, chunks), daemon=True).start()
    held, told_at = b"", time.monotonic()
    while True:
        try:
            chunk = chunks.get(timeout=TICK_S)
        except queue.Empty:
            chunk = None
        if time.monotonic() - told_at >= TICK_S:
            told_at = time.monotonic()
            on_tick()
        if chunk is None:
            continue
        *whole, held = re.split(rb"\r\n|\r|\n", held + chunk) if chunk else (held, b"")
        for line in whole:
            yield ESCAPES.sub("", line.decode("utf-8", "replace"))
        if not chunk:
            return


def _read(pipe: IO[bytes], chunks: queue.SimpleQueue[bytes]) -> None:
    """Hand on what comes through a pipe; an empty chunk is its end."""
    chunk = b"-"
    while chunk:
        try:
            chunk = os.read(pipe.fileno(), 1 << 16)
        except (OSError, ValueError):  # the parent closed it
            chunk = b""
        chunks.put(chunk)


def _log(path: Path, line: str) -> None:
    with path.open("ab") as log:
        if log.tell() > LOG_LIMIT_BYTES:
            log.truncate(0)
            log.write(b"[log emptied: it had outgrown its limit]\n")
        log.write(line.encode("utf-8", "replace") + b"\n")
