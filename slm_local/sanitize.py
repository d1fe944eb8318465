"""Untrusted text -> what a terminal may be shown. Everything shown passes through here; what is kept stays exact.

Control characters other than newline and tab, bidi controls, invisible characters and lone surrogates become visible
stand-ins. Kept: the joiners U+200C and U+200D and the variation selectors U+FE00-FE0F, which scripts and emoji need.
"""

from __future__ import annotations

import re
import sys
from shlex import quote

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0, delete, C1
    "\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # bidi, zero width, line separators
    "\ud800-\udfff"  # surrogates
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # invisible controls of shorthand and music
    "\U000e0000-\U000e0fff]"  # tags and other default-ignorables
)

PLAIN_ON_WINDOWS = re.compile(r"[\w./\\:=-]+")
"""What neither PowerShell nor cmd reads anything into."""

READ_IN_QUOTES = re.compile('[$`"\u201c-\u201e]')
"""What PowerShell reads something into between double quotes; it takes the typographic ones for such, too."""


def visible(text: str) -> str:
    """Return a whole text as a terminal may be shown it; a line end of two characters becomes a newline.

    For text that comes in chunks, see `Visible`.
    """
    return UNSAFE.sub(_stand_in, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = 200) -> str:
    """Return a name or a message as one line of at most `limit` characters; "…" marks what was cut."""
    line = visible(text[: limit + 1]).replace("\n", "␊").replace("\t", "␉")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shell_word(text: str, platform: str = sys.platform) -> str:
    """Return a text as it is typed as one word of a command: quoted where a shell would read more into it.

    On Windows it is written for PowerShell; cmd runs nothing of it either.
    """
    if platform != "win32":
        return quote(text)
    return text if PLAIN_ON_WINDOWS.fullmatch(text) else f'"{READ_IN_QUOTES.sub(_escaped, text)}"'


class Visible:
    """`visible` for a text that comes in chunks: joined, they give the same however the text was cut."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, chunk: str) -> str:
        """Return what can be shown; a carriage return at the end waits for what follows it."""
        text = self._held + chunk
        self._held = "\r" if text.endswith("\r") else ""
        return visible(text[: len(text) - len(self._held)])

    def flush(self) -> str:
        """Return what was held back, at the text's end."""
        held, self._held = self._held, ""
        return visible(held)


def _escaped(match: re.Match[str]) -> str:
    return f"`{match.group()}"


def _stand_in(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
