"""Values to lines of JSON and back, for the pipe between parent and child, and for the link to a server.

JSON and not pickle: the child runs native code on files we did not write, and what it sends must stay data.
"""

from __future__ import annotations

import dataclasses
import json
from types import ModuleType
from typing import Any

from slm_local import errors, generation


class Wire:
    """The language of one kind of connection: JSON, and in it the dataclasses of some modules."""

    def __init__(self, *modules: ModuleType) -> None:
        self._classes: dict[str, type[Any]] = {
            name: cls
            for module in modules
            for name, cls in vars(module).items()
            if isinstance(cls, type) and dataclasses.is_dataclass(cls)
        }
        self._fields = {
            name: tuple(each.name for each in dataclasses.fields(cls)) for name, cls in self._classes.items()
        }

    def to_line(self, message: dict[str, Any]) -> bytes:
        """Return a message as one line; its values may be the modules' dataclasses."""
        return json.dumps(self._plain(message), separators=(",", ":")).encode("ascii") + b"\n"

    def from_line(self, line: bytes) -> dict[str, Any]:
        """Return the message of a line. Errors: ValueError or TypeError for what is none."""
        message = self._value(json.loads(line))
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
        return message

    def _plain(self, value: Any) -> Any:
        name = type(value).__name__
        if name in self._fields and isinstance(value, self._classes[name]):
            return {"_": name, **{field: self._plain(getattr(value, field)) for field in self._fields[name]}}
        if isinstance(value, dict):
            return {key: self._plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        return value

    def _value(self, plain: Any) -> Any:
        if isinstance(plain, dict):
            name = plain.pop("_", None)
            fields = {key: self._value(item) for key, item in plain.items()}
            if name is None:
                return fields
            if name not in self._classes:
                raise ValueError(f"unknown value {name!r}")
            return self._classes[name](**fields)
        if isinstance(plain, list):
            return tuple(self._value(item) for item in plain)
        return plain


PIPE = Wire(generation, errors)
"""What a child and its parent speak."""

to_line, from_line = PIPE.to_line, PIPE.from_line
