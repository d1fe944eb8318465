"""What was measured on this machine before: a line of JSON a run, in `bench.jsonl` in the data folder.

Lines are only ever appended, under a lock, so a run keeps its number. What can't be read is passed over and counted;
what figures a run has is its writer's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_local.errors import ConfigError, UsageError
from slm_local.paths import make_folder

FILE = "bench.jsonl"

SCHEMA = 1

LOCK_S = 5.0
"""Longest wait for another program that writes a line."""

LAST = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A measurement that was kept."""

    number: int
    """From 1, in the order of their ends."""
    at: str
    """ISO 8601, UTC."""
    slm: str
    """The version that measured."""
    machine: str
    """As `measured.machine_name` calls it."""
    figures: Mapping[str, Any]
    """As `slm bench --json` prints them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """All runs that could be read, oldest first."""

    runs: tuple[Run, ...]
    unread: int
    """Lines that are damaged or of a newer version."""


def append_run(data_dir: Path, *, at: str, slm: str, machine: str, figures: Mapping[str, Any]) -> int:
    """Keep a run and return its number; whole or not at all. Errors: `ConfigError` where it can't be written."""
    from filelock import FileLock, Timeout

    path = make_folder(data_dir) / FILE
    try:
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_S, mode=0o600):
            lines = _lines(path)
            number = 1 + len(lines)
            record = {"schema": SCHEMA, "run": number, "at": at, "slm": slm, "machine": machine, "figures": figures}
            torn = b"\n" if path.exists() and not path.read_bytes().endswith(b"\n") and lines else b""
            _write(path, torn + json.dumps(record).encode() + b"\n")
    except (OSError, Timeout) as error:
        raise ConfigError(
            f"the run can't be kept in {path}: {error}", hint="set SLM_HOME to a folder you may write, or free its name"
        ) from error
    return number


def load_runs(data_dir: Path) -> Kept:
    """Read what was kept. Errors: `ConfigError` where the file is there and can't be read."""
    path = data_dir / FILE
    try:
        lines = _lines(path)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read: {error.strerror}", hint="set SLM_HOME to a folder of yours"
        ) from error
    runs = [run for line in lines if (run := _run(line)) is not None]
    return Kept(runs=tuple(runs), unread=len(lines) - len(runs))


def run_asked(kept: Kept, asked: str, *, machine: str, model: str) -> Run:
    """Return the run of a number, or the last one of a model on a machine. Errors: `UsageError`."""
    if asked == LAST:
        same = [run for run in kept.runs if run.machine == machine and run.figures.get("model") == model]
        if not same:
            raise UsageError(f"{model} was not measured on this machine before", hint="slm bench --runs")
        return same[-1]
    found = [run for run in kept.runs if str(run.number) == asked.removeprefix("#")]
    if not found:
        raise UsageError(f"there is no run {asked}: give a number, or {LAST}", hint="slm bench --runs")
    return found[0]


def _lines(path: Path) -> Sequence[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()


def _write(path: Path, line: bytes) -> None:
    """Append in one write; what an interrupted one left is taken back."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(line) != len(line):
            file.truncate(before)
            raise OSError("the disk is full")


def _run(line: bytes) -> Run | None:
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        values = json.loads(line)
        run = Run(
            number=values["run"],
            at=values["at"],
            slm=values["slm"],
            machine=values["machine"],
            figures=values["figures"],
        )
        texts = all(isinstance(each, str) for each in (run.at, run.slm, run.machine))
        if values["schema"] == SCHEMA and type(run.number) is int and texts and isinstance(run.figures, dict):
            return run
    return None
