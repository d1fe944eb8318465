"""The engine's loop: messages in, steps, events out. One thread reads the pipe, one drives the model.

It runs as a process of its own, where native code computes, or in threads of the parent, where others do.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from slm_local.backends import backend_named, read_ahead
from slm_local.backends.base import Backend
from slm_local.driver import Driver, DriverEvent
from slm_local.errors import SlmError
from slm_local.generation import AnswerDelta, Control, Done, LoadSettings, ThinkDelta
from slm_local.reasoning import joined_deltas
from slm_local.system import ignore_interrupts, restrict_core_dumps
from slm_local.worker.wire import from_line, to_line

COALESCE_S = 1 / 15
"""Deltas of one kind that come closer together than this go over the pipe as one: no eye sees the difference, and the
parent, which runs on the cores that decode, is woken less often."""
FLUSH_S = 0.1
"""What was held back goes out after so long, where no later delta took it along: a thread that wakes more often holds
up those that compute, which wait for each other at every layer."""
LOG_CHECK_S = 1.0


def serve(pipe: int, bound_log: Callable[[], None]) -> None:
    """Serve one parent until its pipe closes; never returns."""
    ignore_interrupts()
    restrict_core_dumps()
    child = _Child(sys.stdin.buffer, os.fdopen(pipe, "wb", buffering=0), bound_log, is_process=True)
    threading.Thread(target=child.read, daemon=True).start()
    threading.Thread(target=child.flush, daemon=True).start()
    child.run()


def serve_in_threads(orders: BinaryIO, events: BinaryIO, on_end: Callable[[], None]) -> None:
    """Serve one parent from threads of its own process until `orders` ends; returns at once.

    Both ends are closed then, and `on_end` is called.
    """
    child = _Child(orders, events, lambda: None, is_process=False)

    def drive() -> None:
        try:
            child.run()
        finally:
            events.close()
            on_end()

    for target in (child.read, child.flush, drive):
        threading.Thread(target=target, name=f"slm-engine-{target.__name__}", daemon=True).start()


class _Child:
    def __init__(self, orders: BinaryIO, events: BinaryIO, bound_log: Callable[[], None], *, is_process: bool) -> None:
        self._in, self._out = orders, events
        self._is_process = is_process
        self._is_over = False
        self._bound_log = bound_log
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._load_control = Control()
        self._shown_percent = -1
        self._ahead: tuple[str, Backend | None] = ("", None)
        """A backend that was made ahead, with its name."""
        self._driver: Driver | None = None
        self._sent_at = 0.0
        self._log_checked_at = 0.0
        self._held: dict[int, ThinkDelta | AnswerDelta] = {}
        self._begun: set[int] = set()
        """Requests of which a delta was sent: the first one waits for nothing."""
        self._driving = threading.Lock()
        """Held by the driving thread but for the time in which the backend computes."""
        self._stopping: list[int] = []
        """Requests that are over for their parent, while the backend may still be at them."""
        self._holds = threading.Event()
        self._sending = threading.RLock()

    # ---- the reading thread

    def read(self) -> None:
        """Read messages until the pipe closes, then end, a process at once: the parent is gone."""
        for line in self._in:
            message = from_line(line)
            if message["op"] == "cancel":
                self._cancel(message["id"])
            elif message["op"] == "end_thinking" and self._driver is not None:
                self._driver.end_thinking(message["id"])
            else:
                if self._driver is not None and message["op"] in ("start", "state", "close"):
                    self._driver.make_way()
                self._messages.put(message)
        if self._is_process:
            os._exit(0)
        self._in.close()
        self._load_control.cancel()
        if self._driver is not None:
            self._driver.halt()
        self._messages.put({"op": "close"})

    def _cancel(self, request_id: int) -> None:
        driver = self._driver
        if driver is None:
            self._load_control.cancel()
            return
        driver.cancel(request_id)
        if self._driving.acquire(blocking=False):  # else the driving thread sees it before the backend computes again
            try:
                self._end_cancelled(driver)
            finally:
                self._driving.release()

    def _end_cancelled(self, driver: Driver) -> None:
        """Say at once that what was cancelled is over, though the backend has yet to stop."""
        for request_id, event in driver.end_cancelled():
            self._release(request_id)
            is_last = isinstance(event, Done)
            if is_last:
                self._begun.discard(request_id)
                self._stopping.append(request_id)
            self._send({"op": "event", "id": request_id, "event": event, "stops": is_last})

    # ---- the flushing thread

    def flush(self) -> None:
        """Send what is held back while a step takes long."""
        while not self._is_over:
            self._holds.wait()
            self._holds.clear()
            time.sleep(FLUSH_S)
            with self._sending:
                for request_id in list(self._held):
                    self._release(request_id)

    # ---- the driving thread

    def run(self) -> None:
        """Handle messages and step while anything is live."""
        while not self._is_over:
            is_busy = self._driver is not None and self._driver.is_busy
            try:
                message = self._messages.get(block=not is_busy)
            except queue.Empty:
                message = None
            if message is not None:
                self._handle(message)
            elif self._driver is not None:
                self._step(self._driver)

    def _handle(self, message: dict[str, Any]) -> None:
        request_id = message.get("id", 0)
        with self._driving:
            self._do(request_id, message)

    def _do(self, request_id: int, message: dict[str, Any]) -> None:
        try:
            match message["op"]:
                case "expect":
                    self._read_ahead(message["backend"], message["model_path"])
                case "load":
                    self._load(message["settings"])
                case "start":
                    assert self._driver is not None
                    self._send_all(self._driver.start(request_id, message["request"]))
                case "prepare":
                    assert self._driver is not None
                    self._send_all(self._driver.prepare(request_id, message["request"]))
                case "state":
                    assert self._driver is not None
                    self._send_all(self._driver.move_state(request_id, message["order"]))
                case "tokens":
                    assert self._driver is not None
                    self._send({"op": "tokens", "id": request_id, "tokens": self._driver.tokens(message["order"])})
                case "close":
                    self._close()
        except SlmError as error:
            self._fail(request_id, error)
        except Exception:
            self._log_bug()
            self._fail(request_id, _our_bug())

    def _close(self) -> None:
        if self._driver is not None:
            self._driver.close()
        if self._is_process:
            os._exit(0)
        self._is_over = True
        self._holds.set()  # for the flushing thread to see it

    def _read_ahead(self, name: str, model_path: str) -> None:
        self._ahead = (name, read_ahead(name, model_path, self._load_control, self._progress))

    def _load(self, settings: LoadSettings) -> None:
        name, backend = self._ahead
        if backend is None or name != settings.backend:
            backend = backend_named(settings.backend)
        driver = Driver(backend, computing=self._computing)
        facts = driver.load(settings, self._load_control, self._progress)
        self._driver = driver
        self._send({"op": "loaded", "facts": facts})
        if self._is_process:
            gc.collect()
            gc.freeze()  # what is loaded stays: later collections need not look at it
            gc.enable()  # off since the process began

    def _progress(self, fraction: float) -> None:
        if int(fraction * 100) > self._shown_percent:
            self._shown_percent = int(fraction * 100)
            self._send({"op": "progress", "fraction": fraction})

    @contextmanager
    def _computing(self) -> Iterator[None]:
        self._driving.release()
        try:
            yield
        finally:
            self._driving.acquire()

    def _step(self, driver: Driver) -> None:
        with self._driving:
            try:
                self._send_all(driver.step())
            except Exception as error:
                self._log_bug()
                failure = error if isinstance(error, SlmError) else _our_bug()
                for request_id in driver.abandon():
                    self._fail(request_id, failure)
            while self._stopping:
                self._send({"op": "stopped", "id": self._stopping.pop()})
        now = time.monotonic()
        if now - self._log_checked_at > LOG_CHECK_S:
            self._log_checked_at = now
            self._bound_log()

    def _log_bug(self) -> None:
        """Write what went wrong into the log; threads have none but the terminal, which is the person's."""
        if self._is_process or os.environ.get("SLM_DEBUG"):
            traceback.print_exc()

    # ---- sending

    def _send_all(self, events: list[tuple[int, DriverEvent]]) -> None:
        for request_id, event in events:
            if isinstance(event, SlmError):
                self._fail(request_id, event)
            elif isinstance(event, (ThinkDelta, AnswerDelta)):
                self._hold(request_id, event)
            else:
                self._release(request_id)
                self._send({"op": "event", "id": request_id, "event": event})
                if isinstance(event, Done):
                    self._begun.discard(request_id)

    def _hold(self, request_id: int, event: ThinkDelta | AnswerDelta) -> None:
        """Send a request's first delta, and one after a while without, at once; else with the next, or a bit later."""
        with self._sending:
            held = self._held.get(request_id)
            joined = joined_deltas(held, event) if held is not None else event
            if joined is None:
                self._release(request_id)
            self._held[request_id] = joined or event
            if request_id not in self._begun or time.monotonic() - self._sent_at >= COALESCE_S:
                self._begun.add(request_id)
                self._release(request_id)
            else:
                self._holds.set()

    def _release(self, request_id: int) -> None:
        with self._sending:
            held = self._held.pop(request_id, None)
            if held is not None:
                self._sent_at = time.monotonic()
                self._send({"op": "event", "id": request_id, "event": held})

    def _fail(self, request_id: int, error: SlmError) -> None:
        self._release(request_id)
        self._begun.discard(request_id)
        self._send({"op": "failed", "id": request_id, "record": error.record()})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            with self._sending:
                self._out.write(to_line(message))
        except (OSError, ValueError):  # the parent is gone
            if self._is_process:
                os._exit(0)


def _our_bug() -> SlmError:
    kind, value, _ = sys.exc_info()
    name = kind.__name__ if kind else "error"
    return SlmError(f"a bug of slm in the engine process: {name}: {value}", hint="run again with SLM_DEBUG=1")
