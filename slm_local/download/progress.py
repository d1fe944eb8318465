"""How far a download is, told to whoever asked: at most ten times a second, and at once when the stage changes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from slm_local.download.values import FetchProgress, Order, OrderedFile, Stage

INTERVAL_S = 0.1

WINDOW_S = 5.0
"""The speed shown is that of the last so many seconds."""

MEASURED_BYTES = 10**6
"""Less than that says nothing of a connection's speed."""


class Progress:
    """Counts the bytes of an order's files; knows nothing of where they come from."""

    def __init__(self, order: Order, tell: Callable[[FetchProgress], None] | None) -> None:
        self.received_bytes = 0
        self.received_s = 0.0
        self._total = order.total_bytes
        self._done = {each.place: each.here_bytes for each in order.files}
        self._tell = tell
        self._stage: Stage | None = None
        self._told_at = 0.0
        self._window: deque[tuple[float, int]] = deque()

    def at(self, stage: Stage, file: OrderedFile, done_bytes: int, message: str | None = None) -> None:
        """Say that so much of a file is here; a message is always passed on."""
        self._done[file.place] = done_bytes
        now = time.monotonic()
        is_due = now - self._told_at >= INTERVAL_S or stage != self._stage or message is not None
        if self._tell is None or not is_due:
            return
        self._stage, self._told_at = stage, now
        done = sum(self._done.values())
        speed = self._bytes_per_s(now) if stage == "downloading" else None
        self._tell(
            FetchProgress(
                stage=stage,
                file=file.remote.path,
                done_bytes=done,
                total_bytes=self._total,
                bytes_per_s=speed,
                remaining_s=(self._total - done) / speed if speed else None,
                message=message,
            )
        )

    def received(self, count: int, within_s: float) -> None:
        """Count bytes that came over the network, and the time they took."""
        self.received_bytes += count
        self.received_s += within_s
        self._window.append((time.monotonic(), count))

    @property
    def mean_bytes_per_s(self) -> float | None:
        """Return the speed while bytes came; None where less than a megabyte did."""
        if self.received_bytes < MEASURED_BYTES or self.received_s <= 0:
            return None
        return self.received_bytes / self.received_s

    def _bytes_per_s(self, now: float) -> float | None:
        while self._window and now - self._window[0][0] > WINDOW_S:
            self._window.popleft()
        if len(self._window) < 2:
            return None
        span = now - self._window[0][0]
        return sum(count for _, count in list(self._window)[1:]) / span if span > 0 else None
