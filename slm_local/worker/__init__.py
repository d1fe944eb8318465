"""The parent side of an engine: load a model in it, stream from it, see it die.

It speaks in lines over a `Channel`, and does not know whether a child, a thread or a server is at its other end.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from slm_local.errors import FailureRecord, Interrupted, SlmError, WorkerCrashed, error_of
from slm_local.generation import (
    Control,
    Done,
    GenerationRequest,
    LoadSettings,
    ModelFacts,
    Prepared,
    PromptProgress,
    Started,
    StateMoved,
    StateOrder,
    StreamEvent,
    TokenOrder,
    Tokens,
)
from slm_local.worker.channels import Channel, Child, Threads, child_environment, new_log
from slm_local.worker.wire import from_line, to_line

__all__ = ["Channel", "Child", "Threads", "Worker", "child_environment", "new_log"]

KILL_GRACE_S = 2.0
"""Wait after a cancel, on top of twice the measured time of one prefill chunk, before a silent child is killed."""
KILL_AT_LAST_S = 20.0
"""The same for a child that goes on speaking: it is busy with other requests, and they would end with it."""
LIVENESS_POLL_S = 0.5
"""How often a waiting parent looks whether the child still lives: the end of its pipe alone proves nothing."""
CLOSE_WAIT_S = 2.0
GONE_WAIT_S = 10.0
"""Longest wait for the status of a child whose pipe has ended: one that gives much memory back takes a while."""

T = TypeVar("T")

_CANCEL = object()
_END_THINKING = object()
_ENDED = object()


class Worker:
    """One engine with one model. Streams may run in several threads at once."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._write_lock = threading.Lock()
        self._start_lock = threading.Lock()
        self._ids = itertools.count(1)
        self._inboxes: dict[int, queue.SimpleQueue[Any]] = {0: queue.SimpleQueue()}
        self._chunk_s = 0.0
        self._heard_at = 0.0
        self._stop_lock = threading.Lock()
        self._stopping: dict[int, threading.Timer] = {}
        """Requests that are over, but at which the child still computes; each with what kills it if that goes on."""
        self._how = ""
        """Why it was killed."""
        self._is_closed = False
        threading.Thread(target=self._read, name="slm-worker-reader", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """Return the process id of the child; None where there is none."""
        return self._channel.pid

    @property
    def log_path(self) -> Path | None:
        """Return where the child logs; None where there is none."""
        return self._channel.log_path

    @property
    def is_alive(self) -> bool:
        """Return whether the engine runs."""
        return self._channel.wait(0.0) is None

    def expect(self, backend: str, model_path: str = "") -> None:
        """Have the child import what a backend needs, and read a model that it will most likely be told to load."""
        self._send({"op": "expect", "backend": backend, "model_path": model_path})

    def load(
        self, settings: LoadSettings, control: Control, on_wait: Callable[[float, float | None], None]
    ) -> ModelFacts:
        """Load a model; blocks. `on_wait` gets the seconds waited and the fraction loaded (None: not begun).

        Errors: the child's own, `WorkerCrashed`, `Interrupted` when cancelled (the child is killed).
        """
        begun = time.monotonic()
        inbox = self._inboxes[0]
        control.on_cancel(lambda: inbox.put(_CANCEL))
        self._send({"op": "load", "settings": settings})
        try:
            return self._loaded(inbox, begun, on_wait)
        except BaseException:
            self.kill()  # whatever it does now, nobody waits for it
            raise

    def _loaded(
        self, inbox: queue.SimpleQueue[Any], begun: float, on_wait: Callable[[float, float | None], None]
    ) -> ModelFacts:
        fraction: float | None = None
        while True:
            message = self._next(inbox, wait_s=0.1)
            if message is _CANCEL:
                raise Interrupted("loading was stopped")
            if message is not None:
                if message["op"] == "loaded":
                    return _expect(ModelFacts, message["facts"])
                fraction = message["fraction"]
            on_wait(time.monotonic() - begun, fraction)

    def stream(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]:
        """Run one request; yield its events.

        A cancelled request still ends with its `Done`; a control that ends thinking has the answer begin. Errors: the
        child's own; `WorkerCrashed` when the child died or had to be killed because it did not answer a cancel.
        """
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        control.on_cancel(lambda: inbox.put(_CANCEL))  # maybe from a signal handler: it must not wait for the pipe
        control.on_end_thinking(lambda: inbox.put(_END_THINKING))
        is_over = False
        message = {"op": "start", "request": request}
        known = [("end_thinking", control.thinking_ended), ("cancel", control.cancelled)]
        request_id = self._start(message, inbox, [word for word, is_so in known if is_so])
        try:
            for event in self._events(request_id, inbox):
                is_over = isinstance(event, Done)
                yield event
        except SlmError:
            is_over = True
            raise
        finally:
            self._inboxes.pop(request_id, None)
            if not is_over:  # the consumer went away
                self._send({"op": "cancel", "id": request_id})

    def _start(self, message: dict[str, Any], inbox: queue.SimpleQueue[Any], known: Sequence[str] = ()) -> int:
        """Send what is to be done and return its id; several threads may do so: the child sees ids count upwards.

        `known` is what was asked of it already: it is sent first, so that not one token is thought, or written.
        """
        with self._start_lock:
            request_id = next(self._ids)
            self._inboxes[request_id] = inbox
            for word in known:
                self._send({"op": word, "id": request_id})
            self._send({**message, "id": request_id})
        return request_id

    def _events(self, request_id: int, inbox: queue.SimpleQueue[Any]) -> Iterator[StreamEvent]:
        cancelled_at: float | None = None
        progress_at = time.monotonic()
        while True:
            message = self._next(inbox, wait_s=LIVENESS_POLL_S, cancelled_at=cancelled_at)
            if message is _CANCEL:
                self._send({"op": "cancel", "id": request_id})
                cancelled_at = time.monotonic()
            elif message is _END_THINKING:
                self._send({"op": "end_thinking", "id": request_id})
            elif message is not None:
                event = message["event"]
                if isinstance(event, (Started, PromptProgress)):
                    now = time.monotonic()
                    if isinstance(event, PromptProgress):
                        self._chunk_s = now - progress_at
                    progress_at = now
                yield event
                if isinstance(event, Done):
                    return

    def prepare(self, request: GenerationRequest, control: Control) -> Iterator[PromptProgress | Prepared]:
        """Have the child read what the next prompt will begin with; yield how far it is, `Prepared` last.

        Any later request ends it at once, as `control` does. It ends without `Prepared` where the child is gone, which
        is told to whoever asks it for something. Errors: the child's own.
        """
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        control.on_cancel(lambda: inbox.put(_CANCEL))
        request_id = self._start({"op": "prepare", "request": request}, inbox)
        try:
            while (message := self._news(inbox)) is not _ENDED:
                if message is _CANCEL:
                    self._send({"op": "cancel", "id": request_id})
                    continue
                if message["op"] == "failed":
                    raise error_of(_expect(FailureRecord, message["record"]))
                yield message["event"]
                if isinstance(message["event"], Prepared):
                    return
        finally:
            self._inboxes.pop(request_id, None)

    def move_state(self, order: StateOrder, on_wait: Callable[[float], None] = lambda waited_s: None) -> StateMoved:
        """Have the child save or restore a KV state; blocks. `on_wait` gets the seconds waited, ten times a second.

        What went wrong is a note. Torn out of it, as by Ctrl-C, it leaves a child that is still at it: to be killed.
        """
        begun = time.monotonic()
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        request_id = self._start({"op": "state", "order": order}, inbox)
        try:
            while True:
                try:
                    message = inbox.get(timeout=0.1)
                except queue.Empty:
                    if not self.is_alive:
                        return StateMoved(tokens=0, note="the engine is gone")
                    on_wait(time.monotonic() - begun)
                    continue
                if message is _ENDED:
                    return StateMoved(tokens=0, note="the engine is gone")
                if message["op"] == "failed":
                    return StateMoved(tokens=0, note=_expect(FailureRecord, message["record"]).message)
                return _expect(StateMoved, message["event"])
        finally:
            self._inboxes.pop(request_id, None)

    def tokens(self, order: TokenOrder) -> Tokens:
        """Have a text or a conversation tokenized, or ids looked up; blocks, while replies go on.

        Errors: the child's own (`UsageError`, a template's), `WorkerCrashed`.
        """
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        request_id = self._start({"op": "tokens", "order": order}, inbox)
        try:
            while (message := self._next(inbox, wait_s=LIVENESS_POLL_S)) is None:
                pass
            return _expect(Tokens, message["tokens"])
        finally:
            self._inboxes.pop(request_id, None)

    def _news(self, inbox: queue.SimpleQueue[Any]) -> Any:
        """Wait for the next message; `_ENDED` where none can come."""
        while True:
            try:
                return inbox.get(timeout=LIVENESS_POLL_S)
            except queue.Empty:
                if not self.is_alive:
                    return _ENDED

    def close(self) -> None:
        """End the engine: by asking, else by killing it."""
        if self._is_closed:
            return
        self._is_closed = True
        if self.is_alive:
            self._send({"op": "close"})
            if self._channel.wait(CLOSE_WAIT_S) is None:
                self._channel.kill()
        self._release()

    def kill(self) -> None:
        """Kill the engine and everything it started."""
        self._is_closed = True
        self._channel.kill()
        self._release()

    def _follow_stop(self, message: dict[str, Any]) -> None:
        """Kill the child if it goes on computing for a request that is over."""
        request_id = message.get("id", 0)
        with self._stop_lock:
            if message["op"] == "stopped":
                self._stopping.pop(request_id).cancel()
            elif message.get("stops"):
                self._watch_stop(request_id, time.monotonic())

    def _watch_stop(self, request_id: int, since: float) -> None:
        timer = threading.Timer(self._grace_s, self._end_unstopped, (request_id, since))
        timer.daemon = True
        self._stopping[request_id] = timer
        timer.start()

    def _end_unstopped(self, request_id: int, since: float) -> None:
        with self._stop_lock:
            if request_id not in self._stopping or self._is_closed:
                return
            if not self._is_stuck(since):
                self._watch_stop(request_id, since)
                return
        self._kill_unstopped()

    @property
    def _grace_s(self) -> float:
        return KILL_GRACE_S + 2 * self._chunk_s

    def _is_stuck(self, since: float) -> bool:
        """Tell whether a child that was to stop by then does not: it is silent, or speaks of others for too long."""
        now = time.monotonic()
        return now - max(since, self._heard_at) > self._grace_s or now - since > KILL_AT_LAST_S + self._grace_s

    def _release(self) -> None:
        with self._stop_lock:
            for timer in self._stopping.values():
                timer.cancel()
        self._channel.hang_up()

    def _next(self, inbox: queue.SimpleQueue[Any], *, wait_s: float, cancelled_at: float | None = None) -> Any:
        """Return the next message, or None after `wait_s`; raise what ended the child or the request."""
        try:
            message = inbox.get(timeout=wait_s)
        except queue.Empty:
            if self.is_alive:
                if cancelled_at is not None and self._is_stuck(cancelled_at):
                    self._kill_unstopped()
                    raise self._crash() from None
                return None
            message = self._last_words(inbox)
        if message is _ENDED:
            raise self._crash()
        if isinstance(message, dict) and message["op"] == "failed":
            raise error_of(_expect(FailureRecord, message["record"]))
        return message

    def _last_words(self, inbox: queue.SimpleQueue[Any]) -> Any:
        """Return what a child said before it died and is being read yet; `_ENDED` once there is no more."""
        try:
            return inbox.get(timeout=CLOSE_WAIT_S)
        except queue.Empty:  # what it started may hold its pipe open
            return _ENDED

    def _crash(self) -> WorkerCrashed:
        how = self._channel.wait(GONE_WAIT_S) or "it closed its pipe"
        self.kill()
        return WorkerCrashed(self._how or f"{self._channel.name} is gone: {how}", hint=self._channel.crash_hint)

    def _kill_unstopped(self) -> None:
        self._how = "the engine did not stop when asked and was ended; what it wrote so far is kept"
        self.kill()

    def _send(self, message: dict[str, Any]) -> None:
        with self._write_lock, contextlib.suppress(OSError, ValueError):  # gone: whoever waits for its answer is told
            self._channel.write(to_line(message))

    def _read(self) -> None:
        """Hand the engine's messages to whom they belong, in a thread of its own, until there are no more."""
        try:
            for line in self._channel.lines():
                message = from_line(line)
                self._heard_at = time.monotonic()
                self._follow_stop(message)
                inbox = self._inboxes.get(message.get("id", 0))
                if inbox is not None:
                    inbox.put(message)
        except (OSError, ValueError):
            self._channel.kill()  # what it sends is no message: it can't be trusted with the rest
        finally:
            for inbox in list(self._inboxes.values()):
                inbox.put(_ENDED)


def _expect(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise SlmError(f"the engine process sent {type(value).__name__} in place of {kind.__name__}")
    return value
