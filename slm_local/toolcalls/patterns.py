"""Patterns of literals, white space and names, matched against a text that may go on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from slm_local.toolcalls.families import NAME, SPACE, Pattern

_SPACES = re.compile(r"\s*")
_NAMES = re.compile(r"[A-Za-z0-9_.-]*")


class Open(Enum):
    """Stands for what the rest of the text will decide."""

    OPEN = "open"


OPEN = Open.OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Where a pattern ends, and the name in it."""

    end: int
    name: str = ""


def match(pattern: Pattern, text: str, at: int) -> Match | Open | None:
    """Match a pattern at a place; `OPEN` where the text ends before that is decided."""
    name = ""
    for part in pattern:
        if part in (SPACE, NAME):
            run = (_SPACES if part == SPACE else _NAMES).match(text, at)
            assert run is not None
            if run.end() == len(text):
                return OPEN
            if part == NAME:
                name = run.group()
                if not name:
                    return None
            at = run.end()
        elif text.startswith(part, at):
            at += len(part)
        else:
            return OPEN if part.startswith(text[at:]) else None
    return Match(end=at, name=name)
