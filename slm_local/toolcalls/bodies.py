"""What stands in a call: JSON or elements, read from a text that may go on.

What is decided of a text holds of every longer one, so that it makes no difference in which pieces a call comes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from slm_local.template.turns import Json
from slm_local.toolcalls.families import NAME, SPACE
from slm_local.toolcalls.patterns import OPEN, Open, match

LONGEST_WORD = len("-Infinity")
"""Characters that JSON's decoder reads at once: fewer at a text's end may be the beginning of a good one."""

PARAMETER = (SPACE, "<parameter=", NAME, ">")
END = (SPACE, "</function>")
PARAMETER_END = "</parameter>"

Types: TypeAlias = "Mapping[str, Json]"
"""The declared schema of each of a function's parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A body: where it ends, and what it says."""

    end: int
    value: dict[str, Json]


def read_object(text: str, at: int) -> Read | Open | None:
    """Read a JSON object that begins at a place; None: it is none."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        is_cut = error.msg.startswith(("Unterminated", "Invalid \\uXXXX")) or len(text) - error.pos < LONGEST_WORD
        return OPEN if is_cut else None
    except (ValueError, RecursionError):
        return None
    return Read(end=end, value=value) if isinstance(value, dict) else None


def read_parameters(text: str, at: int, types: Types) -> Read | Open | None:
    """Read `<parameter=NAME>VALUE</parameter>` elements up to `</function>`; None: something else is among them."""
    values: dict[str, Json] = {}
    while True:
        end = match(END, text, at)
        if not isinstance(end, Open) and end is not None:
            return Read(end=end.end, value=values)
        begun = match(PARAMETER, text, at)
        if begun is None or isinstance(begun, Open):
            return OPEN if isinstance(end, Open) or isinstance(begun, Open) else None
        stop = text.find(PARAMETER_END, begun.end)
        if stop < 0:
            return OPEN
        values[begun.name] = _typed(text[begun.end : stop].removeprefix("\n").removesuffix("\n"), types.get(begun.name))
        at = stop + len(PARAMETER_END)


def _typed(text: str, schema: Json) -> Json:
    """Return an element's text as the value that its schema asks for; text where it asks for that, or for nothing."""
    kind = schema.get("type", "string") if isinstance(schema, dict) else "string"
    if kind == "string":
        return text
    try:
        value: Json = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text
    return value


def _no_number(word: str) -> Json:
    raise ValueError(f"{word} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
