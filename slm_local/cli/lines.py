"""Where the chat's lines come from: a person with history and editing, or a pipe with a prompt a line."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from slm_local.cli.prompt import whole_text
from slm_local.cli.render import DIM, Terminal
from slm_local.paths import make_folder
from slm_local.system import TypedLine, lock_down_file

PROMPT, MORE = ">>> ", "... "
MANY = '"""'

HISTORY_LINES = 1000


class Lines:
    """Reads entries; a context manager that keeps the history of what was typed.

    Editing and history come with the module readline, which Windows has not: there the console's own editing serves.
    """

    def __init__(self, terminal: Terminal, history: Path) -> None:
        self._terminal = terminal
        self._history = history
        self._is_person = sys.stdin is not None and sys.stdin.isatty()
        self._readline: Any = None
        self._typed: deque[TypedLine] = deque()
        """Lines that were typed before anybody read them."""

    def __enter__(self) -> Lines:
        if self._is_person:
            with contextlib.suppress(ImportError):
                self._readline = import_module("readline")
        if self._readline is not None:
            with contextlib.suppress(OSError, ValueError):  # none yet, or another library's
                self._readline.read_history_file(self._history)
            self._readline.set_history_length(HISTORY_LINES)
        return self

    def __exit__(self, *failure: object) -> None:
        if self._readline is None:
            return
        try:
            make_folder(self._history.parent)
            self._readline.write_history_file(self._history)
            lock_down_file(self._history)
        except OSError as error:
            self._terminal.say(f"the history of this chat was not kept: {error}", DIM)

    def typed_before(self, lines: Iterable[TypedLine]) -> None:
        """Take lines that were typed while something else was going on: they are read next."""
        self._typed.extend(lines)

    def read(self) -> str | None:
        """Return the next entry, several lines where they stand between triple quotes; None at the end.

        `KeyboardInterrupt` when Ctrl-C was pressed at the prompt.
        """
        line = self._line(PROMPT)
        if line is None or not line.lstrip().startswith(MANY):
            return line
        lines = [line.lstrip()[len(MANY) :]]
        while not lines[-1].rstrip().endswith(MANY):
            following = self._line(MORE)
            if following is None:
                self._terminal.say(f"the text has no {MANY} at its end and was not sent", DIM)
                return None
            lines.append(following)
        lines[-1] = lines[-1].rstrip()[: -len(MANY)]
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        line = self._typed_line(prompt) if self._is_person else self._piped_line()
        return None if line is None else whole_text(line, self._terminal, "the line")

    def _typed_line(self, prompt: str) -> bytes | None:
        if self._typed:
            line = self._typed.popleft()
            self._terminal.say(f"{prompt}{(line or b'').decode(errors='replace')}")
            return line
        try:
            if not self._terminal.out_is_terminal:  # stdout is data
                self._terminal.talk(prompt)
                prompt = ""
            return input(prompt).encode("utf-8", "surrogateescape")
        except EOFError:
            self._terminal.talk("\n")
            return None

    def _piped_line(self) -> bytes | None:
        data = sys.stdin.buffer.readline() if sys.stdin is not None else b""
        return data.rstrip(b"\r\n") if data else None
