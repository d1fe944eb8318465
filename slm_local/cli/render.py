"""What reaches the terminal: data on stdout, talk on stderr, every untrusted text made visible first.

The one place that writes. It knows how to show a line, a table, an error, a passing status; not what they are about.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any, TextIO
from unicodedata import combining, east_asian_width

from slm_local.errors import SlmError
from slm_local.sanitize import UNSAFE, one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

DIM, RED, YELLOW, RESET = "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
ERASE_LINE = "\r\x1b[2K"

MIN_COLUMNS, MIN_ROWS = 20, 5
"""What a smaller terminal is taken to be: lines then wrap by themselves, and nothing is lost."""

MAX_ERROR_CHARS = 1000

MIN_TITLE_COLUMNS = 8
"""What is left of a rule's title before its remark goes."""


class Terminal:
    """Stdout and stderr of this process, and whether each may be shown escapes. Any thread may talk."""

    def __init__(self, out: TextIO, err: TextIO, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._out, self._err = out, err
        self._lock = threading.Lock()
        self._status = ""
        is_plain = bool(environment.get("NO_COLOR")) or environment.get("TERM") == "dumb"
        self.out_is_terminal, self.err_is_terminal = out.isatty(), err.isatty()
        self.out_is_rich = self.out_is_terminal and not is_plain and _takes_escapes(out)
        self.err_is_rich = self.err_is_terminal and not is_plain and _takes_escapes(err)

    def write(self, text: str) -> None:
        """Write data to stdout, as it is; the caller has made it visible where a person reads it."""
        self._clear_status()
        self._out.write(text)
        self._out.flush()

    def line(self, text: str = "") -> None:
        """Write one line of visible text to stdout."""
        self.write(visible(text) + "\n")

    def paragraph(self, text: str, *, first: str = "", rest: str = "") -> None:
        """Write visible text to stdout behind `first`; on a terminal folded at words, further lines behind `rest`."""
        columns = self.columns if self.out_is_terminal else sys.maxsize
        shown = visible(text).replace("\n", " ")
        folded = TextWrapper(
            columns,
            initial_indent=first,
            subsequent_indent=rest,
            break_on_hyphens=False,
            break_long_words=False,  # paths and addresses are copied
        )
        for line in folded.wrap(shown):
            self.write(line + "\n")

    def json(self, value: Any, *, is_line: bool = False) -> None:
        """Write a value as JSON to stdout, with the exact text: on one line, unless a person reads it."""
        self.write(json_text(value, 2 if self.out_is_terminal and not is_line else None) + "\n")

    def table(self, rows: Sequence[Sequence[str]], *, head: Sequence[str] = ()) -> None:
        """Write rows as columns that line up, the head first, without lines between."""
        cells = [[one_line(cell, 400) for cell in row] for row in ([head, *rows] if head else rows)]
        widths = [max(columns_of(row[at]) for row in cells) for at in range(len(cells[0]))] if cells else []
        for number, row in enumerate(cells):
            padded = [cell + " " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=True)]
            text = "  ".join(padded).rstrip()
            self.write((self.paint(text, DIM) if head and number == 0 else text) + "\n")

    def paint(self, text: str, style: str) -> str:
        """Return a text for stdout in a style, where stdout takes one."""
        return f"{style}{text}{RESET}" if self.out_is_rich else text

    def say(self, text: str, style: str = "") -> None:
        """Write lines of talk to stderr."""
        text = visible(text)
        self.talk((f"{style}{text}{RESET}" if style and self.err_is_rich else text) + "\n")

    def talk(self, text: str) -> None:
        """Write to stderr what is visible already."""
        self._clear_status()
        self._err.write(text)
        self._err.flush()

    def status(self, text: str) -> None:
        """Show a passing line on stderr until something else is written; only on a terminal that can erase it."""
        if not self.err_is_rich:
            return
        with self._lock:
            self._status = one_line(text, self.columns - 1)
            self._err.write(f"{ERASE_LINE}{DIM}{self._status}{RESET}")
            self._err.flush()

    def error(self, error: SlmError) -> None:
        """Say what happened in one line and what to type in another."""
        self._clear_status()
        self._err.write(self._painted("error:", RED) + " " + one_line(error.message, MAX_ERROR_CHARS) + "\n")
        if error.hint:
            self.hint(error.hint)
        self._err.flush()

    def hint(self, text: str) -> None:
        """Say what to type."""
        self._err.write(self._painted("hint:", YELLOW) + " " + one_line(text, MAX_ERROR_CHARS) + "\n")

    @property
    def columns(self) -> int:
        """Return the terminal's width now."""
        return max(MIN_COLUMNS, shutil.get_terminal_size().columns)

    @property
    def rows(self) -> int:
        """Return the terminal's height now."""
        return max(MIN_ROWS, shutil.get_terminal_size().lines)

    @cached_property
    def console(self) -> Console:
        """Return Rich's console on stdout, which never reads markup and never colours what it guesses at."""
        from rich.console import Console
        from rich.theme import Theme

        return Console(
            file=self._out,
            theme=Theme({"markdown.code": "bold cyan", "markdown.code_block": "none"}),
            markup=False,
            emoji=False,
            highlight=False,
            force_terminal=self.out_is_rich,
        )

    @cached_property
    def err_console(self) -> Console:
        """Return Rich's console on stderr, for progress; what is given to it is visible already."""
        from rich.console import Console

        self._clear_status()
        return Console(file=self._err, markup=False, emoji=False, highlight=False, force_terminal=self.err_is_rich)

    @contextmanager
    def drawing(self) -> Iterator[Console]:
        """Give Rich's console for what is written to stdout in one go; untrusted text in it is visible already."""
        from rich.console import ConsoleDimensions

        self._clear_status()
        self.console.size = ConsoleDimensions(self.columns, self.rows)
        with self.console:
            yield self.console

    def _painted(self, text: str, style: str) -> str:
        return f"{style}{text}{RESET}" if self.err_is_rich else text

    def _clear_status(self) -> None:
        with self._lock:
            if self._status:
                self._status = ""
                self._err.write(ERASE_LINE)
                self._err.flush()


def standard_terminal() -> Terminal:
    """Return the terminal of this process; pipes carry UTF-8 on every system, nothing ever fails to encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    nowhere = io.StringIO()
    return Terminal(sys.stdout or nowhere, sys.stderr or nowhere)


def can_ask(terminal: Terminal) -> bool:
    """Tell whether there is a person who sees a question and has a key to press."""
    return sys.stdin is not None and sys.stdin.isatty() and terminal.err_is_terminal


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON with the exact text, in which whatever a terminal may not be shown is an escape."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return UNSAFE.sub(lambda match: json.dumps(match.group())[1:-1], text)


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a line takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def rule(title: str, columns: int, remark: str = "") -> str:
    """Return a titled rule with a remark at the right; a long title is cut first, then the remark goes."""
    right = f" {remark} ──" if remark else ""
    room = columns - columns_of(right) - len("──  ──")
    if room < MIN_TITLE_COLUMNS and remark:
        return rule(title, columns)
    while columns_of(title) > room:
        title = title.rstrip("…")[:-1] + "…"
    return f"── {title} ──" + "─" * (room - columns_of(title)) + right


def _takes_escapes(stream: TextIO) -> bool:
    """Return whether a terminal understands escapes; old Windows consoles do not."""
    takes = True
    if sys.platform == "win32":
        from rich.console import Console

        takes = not Console(file=stream).legacy_windows
    return takes
