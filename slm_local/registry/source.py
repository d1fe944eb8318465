"""Reads a registry file and says where in it a key stands. It knows TOML, not what the keys mean."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_local.errors import ConfigError
from slm_local.registry import checks
from slm_local.registry.checks import Fault

LIMIT_BYTES = 10_000_000
"""A larger file is no registry; reading it would take seconds."""

SCHEMA = 1
"""The version of the file's form that this program reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A registry file as it was read."""

    name: str
    """How messages call it."""
    hint: str
    """What to type when it is broken."""
    text: str
    entries: dict[str, dict[str, Any]]

    def error(self, model: str, fault: Fault) -> ConfigError:
        """Make the error that names file, line, model and key."""
        return ConfigError(f"{self.place(model, fault.path)}{_key(fault.path)} {fault.message}", hint=self.hint)

    def place(self, model: str, path: checks.Path = ()) -> str:
        """Say where a key of an entry stands: file, line where it is found, model."""
        line = _line(self.text, model, path)
        return f"{self.name}{f' line {line}' if line else ''}, model {model}:"


def read(file: Path, name: str, hint: str) -> Source:
    """Read a registry file. `ConfigError` names the file, and the line where one is at fault."""
    try:
        data = file.read_bytes()[: LIMIT_BYTES + 1]
        if len(data) > LIMIT_BYTES:
            raise ConfigError(f"{name} is larger than {LIMIT_BYTES // 10**6} MB", hint=hint)
        text = data.decode("utf-8-sig")
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{name} can't be read: {error.strerror}", hint=hint) from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name} line {line} is not UTF-8 text: {error.reason}", hint=hint) from error
    except tomllib.TOMLDecodeError as error:
        end = f"at line {text.count(chr(10)) + 1}, column {len(text) - text.rfind(chr(10))}"
        message = str(error).replace("at end of document", end)
        raise ConfigError(f"{name} is not TOML: {message}", hint=hint) from error
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply to be a registry", hint=hint) from None
    source = Source(name=name, hint=hint, text=text, entries=tables.get("models", {}))
    _check_outline(source, tables)
    return source


def _check_outline(source: Source, tables: dict[str, Any]) -> None:
    """Check everything outside the entries."""
    outline = {"schema": checks.count(1, SCHEMA), "models": lambda value: value}
    try:
        checks.checked(tables, outline)
    except Fault as fault:
        found = re.search(rf"(?m)^\s*\[*\s*[\"']?{re.escape(str(fault.path[0]))}\b", source.text)
        line = f" line {source.text.count(chr(10), 0, found.end()) + 1}" if found else ""
        newer = f"; this program reads form {SCHEMA}" if fault.path == ("schema",) else ""
        raise ConfigError(f"{source.name}{line}:{_key(fault.path)} {fault.message}{newer}", hint=source.hint) from None
    if not isinstance(source.entries, dict):
        raise ConfigError(f"{source.name}: key 'models' must hold tables such as [models.my-name]", hint=source.hint)
    for model, entry in source.entries.items():
        if not isinstance(entry, dict):
            raise source.error(model, Fault("must be a table: [models.my-name]"))
        if not re.fullmatch(r"(?!(hf|https?|scripted):)[A-Za-z0-9][\w.:+-]{0,95}", model):
            raise source.error(model, Fault("must be a name of letters, digits, '-', '_', '.', ':' and '+'"))


def _key(path: checks.Path) -> str:
    """Name a key: `key 'sampling.top_p'`, `key 'sha256' of item 2 of 'variants'`."""
    positions = [step for step in path if isinstance(step, int)]
    if not path:
        return ""
    if not positions:
        return f" key '{'.'.join(str(step) for step in path)}'"
    at = path.index(positions[0])
    item = f"item {positions[0] + 1} of '{path[at - 1]}'"
    return f" key '{path[-1]}' of {item}" if at + 1 < len(path) else f" {item}"


def _line(text: str, model: str, path: checks.Path) -> int | None:
    """Find the line of a key, as near as the file's layout lets it; None where even the entry is not found."""
    lines = text.splitlines()
    header = re.compile(rf"\s*\[+\s*models\s*\.\s*[\"']?{re.escape(model)}[\"']?\s*[.\]]")
    at = next((number for number, line in enumerate(lines) if header.match(line)), None)
    if at is None:
        return None
    own = range(at, _end_of_entry(lines, at, header))
    for step in path:
        if isinstance(step, str):
            key = re.compile(rf"(?:^|[\s{{,.\[\"']){re.escape(step)}[\"']?\s*[=\]]")
            at = next((number for number in own if number >= at and key.search(lines[number])), at)
        else:
            items = [number for number in own if number >= at and re.search(r"\{|^\s*\[\[|^\s*[\"']", lines[number])]
            at = items[step] if step < len(items) else at
    return at + 1


def _end_of_entry(lines: list[str], start: int, header: re.Pattern[str]) -> int:
    for number in range(start + 1, len(lines)):
        if re.match(r"\s*\[+\s*[\w\"']", lines[number]) and not header.match(lines[number]):
            return number
    return len(lines)
