"""The prompts typed before: the file that the plain chat keeps, too, read and written without its library.

A line is an entry; one of many lines stands between triple quotes, as the plain chat takes it.
"""

from __future__ import annotations

import re
from pathlib import Path

from slm_local.paths import make_folder
from slm_local.system import lock_down_file

MANY = '"""'
MAX_ENTRIES = 1000

LIBEDIT_HEAD = "_HiStOrY_V2_"
"""The first line of the file where Python's readline is libedit (macOS): blanks and the like are written as octal."""


class Entries:
    """What was typed, oldest first, and a place in it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._is_libedit = False
        self._typed = self._read()
        self._at = len(self._typed)
        self._draft = ""

    def add(self, text: str, *, is_lasting: bool = True) -> None:
        """Keep an entry, at once on the disk where that can be written and it is one that lasts."""
        self._at = len(self._typed)
        if self._typed[-1:] != [text]:
            self._typed.append(text)
            self._at += 1
            if is_lasting:
                self._write(text)

    def earlier(self, draft: str) -> str | None:
        """Return the entry before, None at the first; `draft` comes back when the last one is passed again."""
        if self._at == 0:
            return None
        if self._at == len(self._typed):
            self._draft = draft
        self._at -= 1
        return self._typed[self._at]

    def later(self) -> str | None:
        """Return the entry after, or the draft; None when nothing follows."""
        if self._at == len(self._typed):
            return None
        self._at += 1
        return self._draft if self._at == len(self._typed) else self._typed[self._at]

    def _read(self) -> list[str]:
        try:
            lines = self._file.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return []
        if lines[0] == LIBEDIT_HEAD:
            self._is_libedit = True
            lines = [re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line) for line in lines[1:]]
        return _entries(lines)[-MAX_ENTRIES:]

    def _write(self, text: str) -> None:
        shown = f"{MANY}{text}{MANY}" if "\n" in text else text
        if self._is_libedit:
            shown = re.sub(r"[\\ \t]", lambda match: f"\\{ord(match[0]):03o}", shown)
        try:
            make_folder(self._file.parent)
            with self._file.open("a", encoding="utf-8", errors="replace") as file:
                file.write(shown + "\n")
            lock_down_file(self._file)
        except OSError:
            return  # a history that can't be written is none; the chat goes on


def _entries(lines: list[str]) -> list[str]:
    """Join the lines between triple quotes to one entry."""
    found: list[str] = []
    many: list[str] | None = None
    for line in lines:
        if many is not None:
            many.append(line)
        elif line.startswith(MANY) and not line.endswith(MANY, len(MANY)):
            many = [line.removeprefix(MANY)]
        elif line:
            found.append(line.removeprefix(MANY).removesuffix(MANY) if line.startswith(MANY) else line)
        if many is not None and line.endswith(MANY) and len(many) > 1:
            many[-1] = many[-1].removesuffix(MANY)
            found.append("\n".join(many))
            many = None
    return found + (many or [])
