"""When to draw: at most ten times a second, and less often where a frame is dear."""

from __future__ import annotations

import time
from collections.abc import Callable

from textual.timer import Timer
from textual.widget import Widget

FRAME_S = 1 / 10
"""Smooth to the eye, and cheap on a machine that is thinking."""

MAX_FRAME_S = 1 / 3

MAX_SHARE = 0.025
"""Most of one core that drawing may take from a model: frames that cost more come less often."""


class Frames:
    """Calls back for a frame as long as the callback says that something moves."""

    def __init__(self, owner: Widget, draw: Callable[[], bool]) -> None:
        self._owner, self._draw = owner, draw
        self._timer: Timer | None = None
        self._cost_s = 0.0
        """What the app's thread computed for a frame, drawing included: a mean that forgets."""
        self._computed_s = 0.0
        self.count = 0

    @property
    def is_running(self) -> bool:
        """Return whether a frame is to come."""
        return self._timer is not None

    @property
    def interval_s(self) -> float:
        """Return the time from one frame to the next."""
        return min(MAX_FRAME_S, max(FRAME_S, self._cost_s / MAX_SHARE))

    def start(self) -> None:
        """Begin to draw, unless it is under way."""
        if self._timer is None:
            self._computed_s = time.thread_time()
            self._timer = self._owner.set_timer(FRAME_S, self._frame)

    def _frame(self) -> None:
        computed_s = time.thread_time()
        self._cost_s += (computed_s - self._computed_s - self._cost_s) / 4
        self._computed_s = computed_s
        self._timer = None
        self.count += 1
        with self._owner.app.batch_update():
            goes_on = self._draw()
        if goes_on:
            self._timer = self._owner.set_timer(self.interval_s, self._frame)
