"""Engine processes of tests, forked from one that has imported what they all do: it costs 20 ms in place of 300 to 500.

Only in tests: `python -m slm_local.worker` is what users get, and what tests with the mark `real_child` start.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from slm_local.errors import EngineMissing
from slm_local.worker.channels import child_environment

LENGTH = struct.Struct("!I")
NUMBER = struct.Struct("!i")
FDS = 4
"""What is sent for a child: its ends of the pipes for input and output, its log, where to say how it ended."""


class Forked(subprocess.Popen[bytes]):
    """A child of the nursery, to be used as one that was started here."""

    def __init__(self, pid: int, stdin: BinaryIO, stdout: BinaryIO, ended: int) -> None:
        self.pid = pid
        self.args = ["slm_local.worker"]
        self.stdin, self.stdout, self.stderr = stdin, stdout, None
        self.returncode: int | None = None
        self._ended = ended
        self._reading = threading.Lock()

    def __del__(self) -> None:
        os.close(self._ended)

    def poll(self) -> int | None:
        """Return how it ended; None where it has not."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        status = self._look(timeout)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def _look(self, timeout: float | None) -> int | None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._ended, selectors.EVENT_READ)
            if self.returncode is None and selector.select(timeout):
                with self._reading:
                    if self.returncode is None:
                        self.returncode = NUMBER.unpack(os.read(self._ended, NUMBER.size))[0]
        return self.returncode


class Nursery:
    """The process that the children of one test process are forked from."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._asking = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.forking", str(theirs.fileno())],
                cwd=Path(__file__).parents[1],
                env={**child_environment(), "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def spawn(self, log_path: Path) -> subprocess.Popen[bytes]:
        """Return a child that does what `python -m slm_local.worker LOG` does."""
        said = json.dumps({"log": str(log_path), "folder": os.getcwd(), "environment": child_environment()}).encode()
        child_in, stdin = os.pipe()
        stdout, child_out = os.pipe()
        ended, ends = os.pipe()
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
        theirs = [child_in, child_out, log, ends]
        with self._asking:
            socket.send_fds(self._socket, [LENGTH.pack(len(said))], theirs)
            self._socket.sendall(said)
            pid = NUMBER.unpack(_exactly(self._socket, NUMBER.size))[0]
        for each in theirs:
            os.close(each)
        return Forked(pid, os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb"), ended)

    def close(self) -> None:
        """End it; the children end with their pipes."""
        self._socket.close()
        self._process.wait()


def _exactly(connection: socket.socket, size: int) -> bytes:
    said = b""
    while len(said) < size:
        more = connection.recv(size - len(said))
        if not more:
            raise EOFError
        said += more
    return said


def _serve(connection: socket.socket) -> None:
    """Fork a child whenever one is asked for, and say how each ended, until nobody asks any more."""
    ends: dict[int, int] = {}
    wakes, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(wakes, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == wakes:
                    os.read(wakes, 512)
                    _tell_ends(ends)
                    continue
                said, fds, _, _ = socket.recv_fds(connection, LENGTH.size, FDS)
                if not said:
                    return
                asked = json.loads(_exactly(connection, LENGTH.unpack(said)[0]))
                leads, led = os.pipe()
                pid = os.fork()
                if not pid:
                    selector.close()
                    _become_child(asked, fds, led, [connection.detach(), wakes, woken, leads, *ends.values()])
                ends[pid] = fds.pop()
                for each in (*fds, led):
                    os.close(each)
                os.read(leads, 1)  # it leads a group of its own by now
                os.close(leads)
                connection.sendall(NUMBER.pack(pid))


def _tell_ends(ends: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            fd = ends.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(fd, NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os.close(fd)


def _become_child(asked: dict[str, object], fds: list[int], led: int, others: list[int]) -> None:
    """Be `python -m slm_local.worker LOG`; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.write(led, b"1")
        for target, fd in enumerate(fds[:3]):
            os.dup2(fd, target)
        for fd in (*fds, led, *others):
            os.close(fd)
        os.chdir(str(asked["folder"]))
        os.environ.clear()
        os.environ.update(asked["environment"])  # type: ignore[call-overload]
        from slm_local.worker.__main__ import bound_log, redirect_output
        from slm_local.worker.child import serve

        serve(redirect_output(str(asked["log"])), bound_log)
    finally:
        os._exit(1)


def _import_all() -> None:
    """Import what children import, but for OpenVINO, which begins threads that a fork would lose."""
    gc.disable()
    for name in ("worker.__main__", "worker.child", "backends.scripted", "backends.llamacpp"):
        importlib.import_module(f"slm_local.{name}")
    with contextlib.suppress(EngineMissing):
        importlib.import_module("slm_local.backends.llamacpp.library").bindings()
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        _serve(connection)
