"""Values to lines of JSON and back, for the pipe between parent and child.

JSON and not pickle: the child runs native code on files we did not write, and what it sends must stay data.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from slm_local import errors, generation

_CLASSES: dict[str, type[Any]] = {
    name: cls
    for module in (generation, errors)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls)
}
_FIELDS = {name: tuple(field.name for field in dataclasses.fields(cls)) for name, cls in _CLASSES.items()}


def to_line(message: dict[str, Any]) -> bytes:
    """Return a message as one line; its values may be the dataclasses of `generation` and `errors`."""
    return json.dumps(_plain(message), separators=(",", ":")).encode("ascii") + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """Return the message of a line. Errors: ValueError for what is none."""
    message = _value(json.loads(line))
    if not isinstance(message, dict):
        raise ValueError("a message is an object")
    return message


def _plain(value: Any) -> Any:
    name = type(value).__name__
    if name in _FIELDS and isinstance(value, _CLASSES[name]):
        return {"_": name, **{field: _plain(getattr(value, field)) for field in _FIELDS[name]}}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _value(plain: Any) -> Any:
    if isinstance(plain, dict):
        name = plain.pop("_", None)
        fields = {key: _value(item) for key, item in plain.items()}
        if name is None:
            return fields
        if name not in _CLASSES:
            raise ValueError(f"unknown value {name!r}")
        return _CLASSES[name](**fields)
    if isinstance(plain, list):
        return tuple(_value(item) for item in plain)
    return plain
