"""Scripted models for tests on a terminal: what is said, how fast, and where it stays."""

from __future__ import annotations

from typing import Any
from zlib import crc32

Row = dict[str, Any]

VOCABULARY = 2**24

FOREVER_S = 600
"""Longer than any test."""


def thinking_row(*pieces: str, delay_s: float = 0.0) -> list[Row]:
    """Return rows that think: the pieces between tags."""
    return [piece(text, delay_s) for text in ("<think>", *pieces, "</think>")]


def piece(text: str, delay_s: float = 0.0) -> Row:
    """Return a row of one token; the same text is the same token, since a model that repeats itself is stopped."""
    return {"text": text, "ids": [crc32(text.encode()) % VOCABULARY], **({"delay": delay_s} if delay_s else {})}


STUCK = piece("never", FOREVER_S)
"""Keeps a generation under way; a cancel ends it."""
END: Row = {"text": "", "ids": [2], "end": "stop"}

SUM = [*thinking_row("7 + 8 = 15, carry 1."), piece("It is **85**.")]
"""Thinks, answers; `END` or `STUCK` is to follow."""
