"""Checks of single values in a registry file. They know TOML's values, not models.

A check takes a value and returns what is meant by it, or raises `Fault` with the path of the key that is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from slm_local.generation import Thinking
from slm_local.thinking import read_thinking

Path = tuple[str | int, ...]
"""Keys and positions that lead to a value inside an entry."""

Check = Callable[[object], Any]
Schema = Mapping[str, Check]

REPO_LENGTH = 96
FILE_LENGTH = 255
TEXT_LENGTH = 100_000
"""The longest text: a chat template is one."""

WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³")}
)
"""Names that Windows gives to devices in every folder, whatever their suffix."""

SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

NOT_ALLOWED = frozenset({"url", "endpoint", "host", "command", "cmd", "exec", "env", "token"})
"""Keys that would reach outside: refused by name, in every file."""


class Fault(Exception):
    """One thing wrong with an entry: where, and a sentence about it."""

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def within(self, step: str | int) -> Fault:
        """Return the same fault seen from one level further out."""
        return Fault(self.message, (step, *self.path))


def unknown_keys(table: Mapping[str, object], schema: Schema) -> list[tuple[Path, str]]:
    """Return the path of every key, at any depth, that its schema does not have, with a sentence about each.

    `Fault` for a key that is refused in every file.
    """
    found: list[tuple[Path, str]] = []
    for key, value in table.items():
        if key in NOT_ALLOWED:
            raise Fault("is not allowed: models come from repositories, by owner/name", (key,))
        if key not in schema:
            close = get_close_matches(key, schema, 1, 0.6)
            known = f"did you mean {close[0]}?" if close else f"known: {', '.join(schema)}"
            found.append(((key,), f"is unknown; {known}"))
        elif isinstance(check := schema[key], Table | ListOf):
            try:
                found += [((key, *path), message) for path, message in check.unknown(value)]
            except Fault as fault:
                raise fault.within(key) from None
    return found


def checked(table: object, schema: Schema) -> dict[str, Any]:
    """Return what is meant by a table's keys; an unknown one is a fault."""
    if not isinstance(table, dict):
        raise Fault(f"must be a table, not {_kind(table)}")
    for path, message in unknown_keys(dict.fromkeys(table), schema):
        raise Fault(message, path)
    meant = {}
    for key, value in table.items():
        try:
            meant[key] = schema[key](value)
        except Fault as fault:
            raise fault.within(key) from None
    return meant


@dataclass(frozen=True, slots=True)
class Table:
    """Checks a table against a schema of its own."""

    schema: Schema
    short: str | None = None
    """The key that a bare value in place of the table stands for."""

    def __call__(self, value: object) -> dict[str, Any]:
        """Return what is meant by the table's keys."""
        if self.short is not None and isinstance(value, str | int | float):
            return {self.short: self.schema[self.short](value)}
        return checked(value, self.schema)

    def unknown(self, value: object) -> list[tuple[Path, str]]:
        """Return the unknown keys in it; none where it is no table."""
        return unknown_keys(value, self.schema) if isinstance(value, dict) else []


@dataclass(frozen=True, slots=True)
class ListOf:
    """Checks every item of a list."""

    check: Check

    def __call__(self, value: object) -> tuple[Any, ...]:
        """Return what is meant by the items."""
        if not isinstance(value, list):
            raise Fault(f"must be a list in [ ], not {_kind(value)}")
        meant = []
        for position, item in enumerate(value):
            try:
                meant.append(self.check(item))
            except Fault as fault:
                raise fault.within(position) from None
        return tuple(meant)

    def unknown(self, value: object) -> list[tuple[Path, str]]:
        """Return the unknown keys in its items; none where it is no list of tables."""
        if not isinstance(value, list) or not isinstance(self.check, Table):
            return []
        return [((at, *path), message) for at, item in enumerate(value) for path, message in self.check.unknown(item)]


def text(value: object) -> str:
    """Check a text that is not empty."""
    if not isinstance(value, str):
        raise Fault(f"must be text in quotes, not {_kind(value)}")
    if not value.strip():
        raise Fault("must not be empty")
    if len(value) > TEXT_LENGTH:
        raise Fault(f"is longer than {TEXT_LENGTH:,} characters")
    return value


def flag(value: object) -> bool:
    """Check true or false."""
    if not isinstance(value, bool):
        raise Fault(f"must be true or false, not {_kind(value)}")
    return value


def count(low: int, high: int) -> Check:
    """Check a whole number in a range."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Fault(f"must be a whole number, not {_kind(value)}")
        if not low <= value <= high:
            raise Fault(f"must be from {low:,} to {high:,}, not {value:,}")
        return value

    return check


def number(low: float, high: float) -> Check:
    """Check a number in a range."""

    def check(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Fault(f"must be a number, not {_kind(value)}")
        if not math.isfinite(value) or not low <= value <= high:
            raise Fault(f"must be from {low:g} to {high:g}, not {value}")
        return float(value)

    return check


def matching(pattern: str, sentence: str) -> Check:
    """Check a text against a pattern; the sentence says what it must be."""

    def check(value: object) -> str:
        if not re.fullmatch(pattern, text(value)):
            raise Fault(f"{sentence}, not {value!r}")
        return str(value)

    return check


def thinking(value: object) -> Thinking:
    """Check how long a model is to think where nobody says."""
    try:
        return read_thinking(value)
    except ValueError as error:
        raise Fault(f"{error}, not {value!r}") from None


def repository(value: object) -> str:
    """Check a Hub repository, `owner/name`, by the Hub's own rules."""
    name = text(value)
    if "://" in name:
        raise Fault(f"an address is not allowed, only owner/name, not {name!r}")
    if len(name) > REPO_LENGTH:
        raise Fault(f"must have at most {REPO_LENGTH} characters, not {len(name)}")
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
    if not re.fullmatch(f"{part}/{part}", name) or ".." in name or "--" in name or name.endswith(".git"):
        raise Fault(f"must be owner/name of letters, digits, '-', '_' and '.', not {name!r}")
    return name


def file_name(value: object) -> str:
    """Check a file's path inside a repository: relative, with forward slashes, safe on every system."""
    name = text(value)
    parts = name.split("/")
    if len(name.encode()) > FILE_LENGTH:
        raise Fault(f"must have at most {FILE_LENGTH} bytes")
    if any(not _is_safe(part) for part in parts):
        raise Fault(f"must be a relative file name that is safe on every system, not {name!r}")
    return name


def rounded_size(value: object) -> int:
    """Check a size such as "4.6 GiB" and return it in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?B)", text(value))
    if not found:
        raise Fault(f'must be a size such as "4.6 GiB", not {value!r}')
    return int(float(found[1]) * SIZE_UNITS[found[2]])


def scores(value: object) -> dict[str, float | str]:
    """Check a table of figures as their source prints them, with that source."""
    if not isinstance(value, dict):
        raise Fault(f"must be a table, not {_kind(value)}")
    if "source" not in value:
        raise Fault("says no source")
    return checked(value, {key: text if key == "source" else _figure for key in value})


def _figure(value: object) -> float:
    """Check a figure and keep it as it is printed: 1205 stays a whole number."""
    found = number(-1e9, 1e9)(value)
    return value if isinstance(value, int) else found


def _is_safe(part: str) -> bool:
    return (
        part not in ("", ".", "..")
        and not re.search(r'[\x00-\x1f\x7f\\<>:"|?*]', part)
        and not part.startswith(("~", " "))
        and not part.endswith((".", " "))
        and part.partition(".")[0].lower() not in WINDOWS_DEVICES
    )


def _kind(value: object) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")
