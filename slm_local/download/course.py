"""How far hashing or copying is, over all files together; told at most ten times a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from slm_local.download.progress import INTERVAL_S
from slm_local.download.values import FetchProgress, Stage

Tell = Callable[[FetchProgress], None]


class Course:
    """Counts the bytes of files that are gone through one after the other."""

    def __init__(self, stage: Stage, total_bytes: int, tell: Tell | None) -> None:
        self._stage = stage
        self._total_bytes = total_bytes
        self._tell = tell
        self._before = 0
        self._told_at = 0.0

    def at(self, file: str, done_bytes: int) -> None:
        """Say that so much of a file is done."""
        now = time.monotonic()
        if self._tell is None or now - self._told_at < INTERVAL_S:
            return
        self._told_at = now
        done = self._before + done_bytes
        self._tell(FetchProgress(stage=self._stage, file=file, done_bytes=done, total_bytes=self._total_bytes))

    def passed(self, file: str, size_bytes: int) -> None:
        """Say that a file is done with, whether all of it was read or not."""
        self._before += size_bytes
        self._told_at = 0.0
        self.at(file, 0)
