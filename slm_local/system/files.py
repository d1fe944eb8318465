"""Small files: who may read them, and what systems write into theirs."""

from __future__ import annotations

import sys
from pathlib import Path


def lock_down_file(path: Path) -> None:
    """Let only its owner read and write a file.

    On Windows nothing is to be done: files below LocalAppData inherit rights of the owner alone.
    """
    if sys.platform != "win32":
        path.chmod(0o600)


def text_in(file: Path) -> str:
    """Return what stands in a small file, stripped; empty where it can't be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number_in(file: Path) -> int | None:
    """Return the number that stands in a file; None where none does."""
    try:
        return int(text_in(file))
    except ValueError:
        return None
