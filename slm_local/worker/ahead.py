"""The child that is started before anybody knows what it will load, and what it most likely will.

Two thirds of a second of imports and of reading the model's file pass while the parent imports what it needs itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_local.errors import SlmError
from slm_local.paths import make_folder
from slm_local.worker import Child, Worker

FILE = "opened.json"
KEPT = 64
"""References of which it is remembered what they opened."""


ELSEWHERE = "openai"
"""The backend that needs no child."""


@dataclass(frozen=True, slots=True)
class Likely:
    """What a reference will most likely have loaded."""

    backend: str
    path: str = ""
    """A file that was checked and loaded before, and has not changed since; empty for none."""


_ahead: list[tuple[Worker, Likely]] = []
"""The child that was started before it was asked for, if there is one."""


def start(log_folder: Path, likely: Likely) -> None:
    """Start the child that `take` will want, so that it is ready when the plan is. It never fails: `take` would."""
    if likely.backend == ELSEWHERE:
        return
    with contextlib.suppress(OSError, SlmError):
        worker = Worker(Child(log_folder))
        _ahead.append((worker, likely))
        worker.expect(likely.backend, likely.path)


def take(log_folder: Path, backend: str, path: str) -> Worker:
    """Return a child that is to load a file: the one started ahead, where it is not at something else."""
    while _ahead:
        worker, likely = _ahead.pop()
        if worker.is_alive and likely.backend == backend and likely.path in ("", path):
            return worker
        worker.kill()
    return Worker(Child(log_folder))


def end() -> None:
    """End the child that nobody took."""
    while _ahead:
        _ahead.pop()[0].kill()


def likely_for(cache: Path, words: Sequence[str], backend: str | None) -> Likely:
    """Return what the model that is named among some words will most likely have loaded.

    It is what the first word that ever named one had loaded last, if by the `backend` asked for.
    """
    kept = _kept(cache)
    known = next((kept[word] for word in words if word in kept), None)
    match known:
        case {"backend": str(last), "path": str(path), "file": file} if backend in (None, last):
            return Likely(last, path if file == _state(path) else "")
    first = words[0].lower() if words else ""
    if re.match(r"https?://[^/]+/.*#", first):
        return Likely(ELSEWHERE)
    return Likely(backend or ("scripted" if first.startswith("scripted:") else "llamacpp"))


def remember(cache: Path, reference: str, backend: str, path: str) -> None:
    """Keep what a reference had loaded; what can't be kept costs the next start its head start."""
    state = _state(path)
    opened = {"backend": backend, "path": path, "file": state}
    kept = _kept(cache)
    if (state is None and backend != ELSEWHERE) or kept.get(reference) == opened:
        return
    kept.pop(reference, None)
    kept[reference] = opened
    new = cache / f"{FILE}.{os.getpid()}"
    with contextlib.suppress(OSError, SlmError):
        make_folder(cache)
        try:
            new.write_text(json.dumps(dict(list(kept.items())[-KEPT:])), encoding="utf-8")
            os.replace(new, cache / FILE)
        finally:
            new.unlink(missing_ok=True)


def _kept(cache: Path) -> dict[str, Any]:
    try:
        kept = json.loads((cache / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _state(path: str) -> list[int] | None:
    """Return what changes with a file; None for none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]
