"""An answer in any pieces -> text and calls.

No character is lost: what looks like a call and is none comes out as text, and a call keeps what it was made of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from slm_local.template.turns import Json, function_names, tools_of
from slm_local.toolcalls.bodies import Read, Types, read_object, read_parameters
from slm_local.toolcalls.families import Pattern, ToolFamily
from slm_local.toolcalls.patterns import OPEN, Match, Open, match


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a function that was offered."""

    name: str
    arguments: str
    """JSON text of an object."""
    source: str = ""
    """What it was in the answer, with the white space and the markup around it."""


class ToolCallParser:
    """Finds the calls in one answer, of the functions that its request offers.

    A call comes out whole, once it is seen what follows it. White space around calls belongs to them. The texts and the
    calls' sources are, joined, all that was fed, and the same whatever the pieces.
    """

    def __init__(self, family: ToolFamily, tools: str) -> None:
        """Take the request's tools (`GenerationRequest.tools`). Errors: `UsageError` for tools that are none."""
        self._family = family
        self._types = _types_of(tools)
        self._text = ""  # fed, not yet decided
        self._is_bare = True  # nothing but white space and calls came so far
        self._call: ToolCall | None = None  # read, but it is open what belongs to it
        self._firsts = {head[0][0] for head in (*family.heads, *family.bare_heads)}
        self._out: list[str | ToolCall] = []

    def feed(self, text: str) -> list[str | ToolCall]:
        """Take a piece of the answer; return what is certain by now, in order."""
        self._text += text
        return self._decided(is_last=False)

    def finish(self) -> list[str | ToolCall]:
        """Return what was held back: a call that was never finished is text."""
        return self._decided(is_last=True)

    def _decided(self, *, is_last: bool) -> list[str | ToolCall]:
        while self._advance(is_last=is_last):
            pass
        out, self._out = self._out, []
        return out

    def _advance(self, *, is_last: bool) -> bool:
        """Decide about the start of the undecided text; return False to wait for more."""
        if self._call is not None:
            return self._end_call(is_last=is_last)
        found = self._opening(is_last=is_last)
        if found is None:
            self._say(len(self._text) if is_last else len(self._text.rstrip()))
            return False
        begin, head = found
        call = self._read(begin, head, is_last=is_last) if isinstance(head, Match) else head
        if call is None:
            self._say(begin + 1)
            return True
        self._say(len(self._text[:begin].rstrip()))
        if isinstance(call, Open):
            return False
        self._call = replace(call, source="")
        self._take(self._text.index(call.source) + len(call.source))
        return True

    def _opening(self, *, is_last: bool) -> tuple[int, Match | Open] | None:
        """Return where the next call begins, or may begin."""
        heads = self._family.heads
        for at, first in enumerate(self._text):
            if first not in self._firsts:
                continue
            is_bare = self._is_bare and not self._text[:at].strip()
            found = _best((*heads, *self._family.bare_heads) if is_bare else heads, self._text, at)
            if isinstance(found, Match) or (isinstance(found, Open) and not is_last):
                return at, found
        return None

    def _read(self, begin: int, head: Match, *, is_last: bool) -> ToolCall | Open | None:
        """Read the call that begins at a place; None: it is none."""
        text, family = self._text, self._family
        if family.body == "parameters":
            read = read_parameters(text, head.end, self._types.get(head.name, {}))
        else:
            read = read_object(text, text.index("{", begin))
        if read is None or isinstance(read, Open):
            return None if is_last else read
        call = self._call_of(head.name, read)
        if call is None:
            return None
        closed = match(family.close, text, read.end)
        if isinstance(closed, Open) and not is_last:
            return OPEN
        end = closed.end if isinstance(closed, Match) else read.end
        return replace(call, source=text[begin:end])

    def _call_of(self, name: str, read: Read) -> ToolCall | None:
        """Return the call that a body stands for; None: of no function that was offered, or not with an object."""
        arguments: Json = read.value
        if self._family.body == "object":
            named, arguments = _named(read.value)
            name = named if isinstance(named, str) else ""
        if name not in self._types or not isinstance(arguments, dict):
            return None
        try:
            return ToolCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False, allow_nan=False))
        except ValueError:  # a number beyond all bounds
            return None

    def _end_call(self, *, is_last: bool) -> bool:
        """Add what stands behind a call to it, and give it out once something else follows."""
        blank = len(self._text) - len(self._text.lstrip())
        mark = next((mark for mark in self._family.after if self._text.startswith(mark, blank)), "")
        rest = self._text[blank:]
        self._take(blank + len(mark))
        if mark:
            return True
        if not is_last and (not rest or any(mark.startswith(rest) for mark in self._family.after)):
            return False
        assert self._call is not None
        self._out.append(self._call)
        self._call = None
        return bool(rest)

    def _take(self, count: int) -> None:
        """Move characters from the undecided text to the call."""
        assert self._call is not None
        self._call = replace(self._call, source=self._call.source + self._text[:count])
        self._text = self._text[count:]

    def _say(self, count: int) -> None:
        """Give out characters as text."""
        said, self._text = self._text[:count], self._text[count:]
        self._is_bare = self._is_bare and not said.strip()
        if not said:
            return
        last = self._out[-1] if self._out else None
        if isinstance(last, str):
            self._out[-1] = last + said
        else:
            self._out.append(said)


def _best(heads: tuple[Pattern, ...], text: str, at: int) -> Match | Open | None:
    """Return the first head that stands at a place, else that one may."""
    found = [match(head, text, at) for head in heads]
    whole = next((each for each in found if isinstance(each, Match)), None)
    return whole if whole is not None else OPEN if OPEN in found else None


def _named(value: dict[str, Json]) -> tuple[Json, Json]:
    """Return a call's function and arguments, by the names that models give them; arguments may be JSON in a text."""
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name", inner)
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        read = read_object(arguments, 0)
        arguments = read.value if isinstance(read, Read) and read.end == len(arguments) else None
    return name, arguments


def _types_of(tools: str) -> dict[str, Types]:
    """Return the declared parameters of each function."""
    declared = tools_of(tools)
    found: dict[str, Types] = {}
    for name, tool in zip(function_names(declared), declared, strict=True):
        assert isinstance(tool, dict)
        function = tool["function"]
        assert isinstance(function, dict)
        parameters = function["parameters"]
        assert isinstance(parameters, dict)
        properties = parameters.get("properties")
        found[name] = properties if isinstance(properties, dict) else {}
    return found
