"""Where the KV states of chats are kept beside the history, and how much room they may take.

It knows names, sizes and ages; what is in a file, and whether it may be used, is for the engine that wrote it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from slm_local.errors import SlmError
from slm_local.paths import make_folder
from slm_local.system import lock_down_file

FOLDER = "states"
GB = 10**9
MOST_GB = 2.0
"""Room for all states where nobody says otherwise, unless a tenth of the free disk is less."""
MOST_SHARE = 0.1
FULLEST = 0.9
"""Most of the free disk that a state may take, whatever was said."""
STALE_S = 3600.0
"""What was half written so long ago was left behind by a process that was killed."""

_numbers = itertools.count()


class States:
    """The states in one folder. `most_gb` None: as much as suits the disk; 0: none are kept."""

    def __init__(self, data: Path, most_gb: float | None = None) -> None:
        self._folder = data / FOLDER
        self._most_gb = most_gb

    @property
    def are_kept(self) -> bool:
        """Return whether any may be kept."""
        return self._most_gb is None or self._most_gb > 0.0

    def of_chat(self, chat: int) -> Path:
        """Return the place of a chat's state, whether or not there is one."""
        return self._folder / f"chat-{chat}.state"

    def of_start(self, key: str, chat: int) -> Path:
        """Return the place of the state of what a chat's first prompt began with; `key` is made of that."""
        return self._folder / f"chat-{chat}.start-{key}.state"

    def started_with(self, key: str) -> Path | None:
        """Return the state of a beginning that some chat had, the newest; None where there is none."""
        return max(self._folder.glob(f"chat-*.start-{key}.state"), key=_used_s, default=None)

    def used(self, place: Path) -> None:
        """Take note that a state was used: what was not for the longest time goes first."""
        with contextlib.suppress(OSError):
            os.utime(place)

    @contextlib.contextmanager
    def writing(self, place: Path) -> Iterator[tuple[Path, int]]:
        """Give a file to write, and how many bytes it may take; left with that file there, it gets its place.

        Others give way then, the longest unused first. Errors: `ConfigError`, `OSError`.
        """
        make_folder(self._folder)
        self._sweep()
        part = self._folder / f"{os.getpid()}-{next(_numbers)}.part"
        try:
            most = self._most_bytes()
            part.touch(mode=0o600)
            lock_down_file(part)
            yield part, most
            if part.stat().st_size:
                part.replace(place)
                self._make_room(most, place)
        finally:
            part.unlink(missing_ok=True)

    def _most_bytes(self) -> int:
        free = shutil.disk_usage(self._folder).free
        if self._most_gb is not None:
            return int(min(self._most_gb * GB, free * FULLEST))
        return int(min(MOST_GB * GB, free * MOST_SHARE))

    def _make_room(self, most_bytes: int, newest: Path) -> None:
        states = sorted(self._folder.glob("*.state"), key=lambda place: (place == newest, _used_s(place)))
        total = sum(_size(place) for place in states)
        for place in states:
            if total <= most_bytes:
                return
            total -= _size(place)
            place.unlink(missing_ok=True)

    def _sweep(self) -> None:
        for part in self._folder.glob("*.part"):
            if time.time() - _used_s(part) > STALE_S:
                part.unlink(missing_ok=True)


def forget_states(data: Path, chat: int) -> None:
    """Remove whatever is kept of a chat. Errors: `SlmError` where that can't be."""
    for place in (data / FOLDER).glob(f"chat-{chat}.*"):
        try:
            place.unlink(missing_ok=True)
        except OSError as error:
            raise SlmError(f"what is kept of chat {chat} can't be removed: {error}", hint=f"rm {place}") from error


def _used_s(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:
        return 0.0


def _size(place: Path) -> int:
    try:
        return place.stat().st_size
    except OSError:
        return 0
