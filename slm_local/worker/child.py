"""The child's loop: messages in, steps, events out. One thread reads the pipe, one drives the model."""

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
from dataclasses import replace
from typing import Any

from slm_local.backends import backend_named, read_ahead
from slm_local.backends.base import Backend
from slm_local.driver import Driver, DriverEvent
from slm_local.errors import SlmError
from slm_local.generation import AnswerDelta, Control, Done, LoadSettings, ThinkDelta
from slm_local.system import ignore_interrupts, restrict_core_dumps
from slm_local.worker.wire import from_line, to_line

COALESCE_S = 1 / 15
"""Deltas of one kind that come closer together than this go over the pipe as one: no eye sees the difference, and the
parent, which runs on the cores that decode, is woken less often."""
LOG_CHECK_S = 1.0


def serve(pipe: int, bound_log: Callable[[], None]) -> None:
    """Serve one parent until its pipe closes; never returns."""
    ignore_interrupts()
    restrict_core_dumps()
    child = _Child(pipe, bound_log)
    threading.Thread(target=child.read, daemon=True).start()
    threading.Thread(target=child.flush, daemon=True).start()
    child.run()


class _Child:
    def __init__(self, pipe: int, bound_log: Callable[[], None]) -> None:
        self._out = os.fdopen(pipe, "wb", buffering=0)
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
        self._driving = threading.Lock()
        """Held by the driving thread but for the time in which the backend computes."""
        self._stopping: list[int] = []
        """Requests that are over for their parent, while the backend may still be at them."""
        self._holds = threading.Event()
        self._sending = threading.RLock()

    # ---- the reading thread

    def read(self) -> None:
        """Read messages until the pipe closes, then end the process at once: the parent is gone."""
        for line in sys.stdin.buffer:
            message = from_line(line)
            if message["op"] == "cancel":
                self._cancel(message["id"])
            elif message["op"] == "end_thinking" and self._driver is not None:
                self._driver.end_thinking(message["id"])
            else:
                if self._driver is not None and message["op"] in ("start", "state", "close"):
                    self._driver.make_way()
                self._messages.put(message)
        os._exit(0)

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
                self._stopping.append(request_id)
            self._send({"op": "event", "id": request_id, "event": event, "stops": is_last})

    # ---- the flushing thread

    def flush(self) -> None:
        """Send what is held back as soon as it is due, also while a step takes long."""
        while True:
            self._holds.wait()
            self._holds.clear()
            time.sleep(COALESCE_S)
            with self._sending:
                for request_id in list(self._held):
                    self._release(request_id)

    # ---- the driving thread

    def run(self) -> None:
        """Handle messages and step while anything is live."""
        while True:
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
                case "close":
                    if self._driver is not None:
                        self._driver.close()
                    os._exit(0)
        except SlmError as error:
            self._fail(request_id, error)
        except Exception:
            traceback.print_exc()  # into the log
            self._fail(request_id, _our_bug())

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
                traceback.print_exc()
                failure = error if isinstance(error, SlmError) else _our_bug()
                for request_id in driver.abandon():
                    self._fail(request_id, failure)
            while self._stopping:
                self._send({"op": "stopped", "id": self._stopping.pop()})
        now = time.monotonic()
        if now - self._log_checked_at > LOG_CHECK_S:
            self._log_checked_at = now
            self._bound_log()

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

    def _hold(self, request_id: int, event: ThinkDelta | AnswerDelta) -> None:
        """Send a delta at once when the last one was long ago, else leave it to the flushing thread."""
        with self._sending:
            held = self._held.get(request_id)
            if held is not None and type(held) is type(event) and held.injected == event.injected:
                event = replace(event, text=held.text + event.text, tokens=held.tokens + event.tokens)
            elif held is not None:
                self._release(request_id)
            self._held[request_id] = event
            if time.monotonic() - self._sent_at >= COALESCE_S:
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
        self._send({"op": "failed", "id": request_id, "record": error.record()})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            with self._sending:
                self._out.write(to_line(message))
        except OSError:
            os._exit(0)  # the parent is gone


def _our_bug() -> SlmError:
    kind, value, _ = sys.exc_info()
    name = kind.__name__ if kind else "error"
    return SlmError(f"a bug of slm in the engine process: {name}: {value}", hint="run again with SLM_DEBUG=1")
