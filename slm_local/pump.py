"""From an engine's events to whoever shows them: a thread that reads, a queue, a pace at which it is emptied.

The engine is never slowed by a display: a token costs the display nothing but its place in the queue.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from slm_local.generation import AnswerDelta, StreamEvent, ThinkDelta

Event = TypeVar("Event")

Delta = ThinkDelta | AnswerDelta

EMBEDDED_PACE = 60.0
"""Tokens a second at which the embedded models are shown: their own speed is too fast to be watched."""

PACE_BURST_S = 0.2
"""How much of its rate a pacer may save up: enough for two frames, too little to be seen as a jump."""


@dataclass(slots=True)
class Pacer:
    """Lets deltas through at no more than so many tokens a second; None: as they come."""

    tokens_per_s: float | None
    _saved: float = 1.0
    _last_s: float | None = None

    def take(self, waiting: deque[tuple[float, StreamEvent]], now_s: float) -> list[tuple[float, StreamEvent]]:
        """Remove and return the events that are due."""
        if self.tokens_per_s is not None:
            since_s = now_s - self._last_s if self._last_s is not None else 0.0
            most = max(1.0, self.tokens_per_s * PACE_BURST_S)
            self._saved, self._last_s = min(most, self._saved + since_s * self.tokens_per_s), now_s
        due: list[tuple[float, StreamEvent]] = []
        while waiting:
            at_s, event = waiting[0]
            if self.tokens_per_s is not None and isinstance(event, ThinkDelta | AnswerDelta) and event.tokens:
                if self._saved < 1.0:
                    break
                if event.tokens > self._saved:
                    event, rest = _split(event, int(self._saved))
                    waiting[0] = (at_s, rest)
                    self._saved -= event.tokens
                    due.append((at_s, event))
                    continue
                self._saved -= event.tokens
            due.append(waiting.popleft())
        return due


def _split(delta: Delta, tokens: int) -> tuple[Delta, Delta]:
    """Divide a delta of many tokens after so many of them, its text in proportion."""
    at = len(delta.text) * tokens // delta.tokens
    return (
        replace(delta, text=delta.text[:at], tokens=tokens),
        replace(delta, text=delta.text[at:], tokens=delta.tokens - tokens),
    )


POLL_S = 0.2
"""A wait without an end can't be interrupted on Windows."""


@dataclass(slots=True)
class Pump(Generic[Event]):
    """Reads events in a thread of its own; `waiting` holds those that came, each with its time by `perf_counter`."""

    events: Iterator[Event]
    note: Callable[[Event], None]
    """Is told of every event as soon as it came."""
    waiting: deque[tuple[float, Event]] = field(default_factory=deque)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once the last event is in `waiting`, or an error ended them."""
    error: BaseException | None = None

    def start(self) -> threading.Thread:
        """Begin to read."""
        thread = threading.Thread(target=self._run, name="events", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            for event in self.events:
                self.note(event)
                self.waiting.append((time.perf_counter(), event))
        except BaseException as error:  # for whoever shows them to raise again
            self.error = error
        finally:
            self.ended.set()


class Mailbox(Generic[Event]):
    """What several threads tell one reader, in the order in which it came."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[tuple[Event | None, BaseException | None]] = queue.SimpleQueue()

    def tell(self, event: Event) -> None:
        """Let the reader have an event."""
        self._told.put((event, None))

    def end(self, error: BaseException | None = None) -> None:
        """Let the reader come to its end behind what was told so far, or have an error raised."""
        self._told.put((None, error))

    def read(self) -> Iterator[Event]:
        """Yield what is told until the end; waits can be interrupted on every system."""
        while True:
            try:
                event, error = self._told.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if event is None:
                return
            yield event
