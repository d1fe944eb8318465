"""One reply on its way: the thread that reads it, the pace at which it is shown, how it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator

from slm_local.errors import SlmError
from slm_local.generation import Control, Finish, Reply, StreamEvent
from slm_local.metrics import Collector
from slm_local.pump import Pacer, Pump

STOP_WAIT_S = 10.0
"""Longest wait for an engine that was told to stop; past it the child is killed with the engine's close."""


class Exchange:
    """A generation under way."""

    def __init__(
        self, prompt: str, events: Iterator[StreamEvent], control: Control, *, pace: float | None, load_s: float
    ) -> None:
        self.prompt = prompt
        self._control = control
        self._collector = Collector(load_s=load_s)
        self._pump = Pump(events, self._collector.feed)
        self._pace = pace
        self._pacer = Pacer(pace)
        self._shown_s = time.perf_counter()
        self._thread = self._pump.start()

    @property
    def has_ended(self) -> bool:
        """Return whether everything came and was taken."""
        return self._pump.ended.is_set() and not self._pump.waiting

    @property
    def is_stopping(self) -> bool:
        """Return whether the person stopped it."""
        return self._control.cancelled

    @property
    def is_hurried(self) -> bool:
        """Return whether the answer was asked for before the thinking ended."""
        return self._control.thinking_ended

    def take(self) -> list[tuple[float, StreamEvent]]:
        """Return the events that are due to be shown, each with the time at which it came."""
        taken = self._pacer.take(self._pump.waiting, time.perf_counter())
        if taken:
            self._shown_s = taken[-1][0]
        if self._pacer.tokens_per_s is None and not self._control.cancelled:
            self._pacer = Pacer(self._pace)
        return taken

    def now_s(self) -> float:
        """Return the time as it is for whoever watches: while events wait to be shown, when the last one shown came."""
        return self._shown_s if self._pump.waiting else time.perf_counter()

    def stop(self) -> None:
        """Ask for its end; what came by then is shown at once."""
        self._pacer = Pacer(None)
        self._control.cancel()

    def answer_now(self) -> None:
        """Ask for the end of the thinking; what was thought by then is shown at once."""
        self._pacer = Pacer(None)
        self._control.end_thinking()

    def join(self) -> None:
        """Wait for its end, after `stop`."""
        self._thread.join(STOP_WAIT_S)

    def outcome(self) -> tuple[Reply, SlmError | None]:
        """Return the reply so far and the engine's error; any other error is raised."""
        error = self._pump.error
        if error is not None and not isinstance(error, SlmError):
            raise error
        finish: Finish = "error" if error is not None else "cancelled"
        return self._collector.reply(finish), error
