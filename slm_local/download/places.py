"""Where fetched files lie, and what is recorded of each: `<owner>/<name>/<path>`, beside it `.slm/<file>.json`.

Names come from the Hub and from registries and are trusted by nobody: whatever could leave the models folder, on any
system, is refused. It opens no model and no socket.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from slm_local.errors import DownloadFailed
from slm_local.paths import make_folder
from slm_local.registry import checks
from slm_local.registry.local import RECORDS, UNFINISHED
from slm_local.sanitize import one_line, visible

PART = UNFINISHED[0]
"""What a partial file's name ends in."""

RECORD_BYTES = 1 << 16
"""A record has some hundred bytes; more is not one."""

Verified = Literal["sha256", "git blob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a file that was fetched and verified."""

    repo: str
    file: str
    """Path within the repository."""
    commit: str
    etag: str | None
    size_bytes: int
    sha256: str
    """Of the bytes, always computed here."""
    verified_against: Verified


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """What a partial file's bytes belong to."""

    commit: str
    etag: str | None
    size_bytes: int
    digest: str
    """The whole file's, as the Hub states it: a sha256, or the SHA-1 of a git blob."""


def place_of(models_dir: Path, repo: str, file: str) -> Path:
    """Return where a repository's file lies; `DownloadFailed` for a name that is not safe on every system.

    Folders in between may be links, but none that leads out of the models folder.
    """
    try:
        parts = [*checks.repository(repo).split("/"), *checks.file_name(file).split("/")]
    except checks.Fault as fault:
        raise _unsafe(f"{repo}/{file}", fault.message) from None
    except UnicodeEncodeError:  # a lone surrogate, from JSON
        raise _unsafe(f"{repo}/{file}", "is not a file name") from None
    if visible(file) != file:
        raise _unsafe(f"{repo}/{file}", "has characters in it that can't be seen")
    if any(part.casefold() == RECORDS for part in parts) or parts[-1].casefold().endswith(UNFINISHED):
        raise _unsafe(f"{repo}/{file}", "is a name that is kept for downloads themselves")
    if any(len(part.encode()) > checks.FILE_LENGTH - 2 * len(PART) - len(".json") for part in parts):
        raise _unsafe(f"{repo}/{file}", "is too long for a file name")
    place = models_dir.joinpath(*parts)
    root = Path(os.path.realpath(models_dir))
    written = (place.parent, place.parent / RECORDS, part_of(place))
    if not all(Path(os.path.realpath(each)).is_relative_to(root) for each in written):
        raise _unsafe(f"{repo}/{file}", f"would be written outside {models_dir}: a link leads out of it")
    return place


def part_of(place: Path) -> Path:
    """Return where a file lies while it comes."""
    return place.with_name(place.name + PART)


def read_record(place: Path) -> Record | None:
    """Return what is recorded of a file; None where nothing is, or nothing that makes sense."""
    values = _read(_records(place) / f"{place.name}.json", Record)
    return Record(**values) if values is not None and re.fullmatch(r"[0-9a-f]{64}", values["sha256"]) else None


def write_record(place: Path, record: Record) -> None:
    """Record a file that was verified, and what was known of it as a partial one no more."""
    _write(_records(place) / f"{place.name}.json", record)
    forget_part(place)


def read_part_record(place: Path) -> PartRecord | None:
    """Return what a partial file belongs to; None where that is not known."""
    values = _read(_records(place) / f"{place.name}{PART}.json", PartRecord)
    return PartRecord(**values) if values is not None else None


def write_part_record(place: Path, record: PartRecord) -> None:
    """Record what the bytes of a partial file belong to: before the first of them is written."""
    _write(_records(place) / f"{place.name}{PART}.json", record)


def forget_part(place: Path) -> None:
    """Remove what is recorded of a partial file, not the file."""
    (_records(place) / f"{place.name}{PART}.json").unlink(missing_ok=True)


def forget(place: Path) -> None:
    """Remove all that is recorded of a file and of its partial one, not the files themselves."""
    forget_part(place)
    for suffix in (".json", ".lock"):
        (_records(place) / f"{place.name}{suffix}").unlink(missing_ok=True)
    with suppress(OSError):  # records of other files, or no such folder
        _records(place).rmdir()


def partials(models_dir: Path) -> list[tuple[Path, int, int | None]]:
    """Return the place, the bytes here and, where known, the bytes in all of every partial file below a folder."""
    found = []
    for at, folders, names in os.walk(models_dir):
        folders[:] = sorted(name for name in folders if name != RECORDS)
        for name in sorted(name for name in names if name.endswith(PART)):
            place = Path(at, name.removesuffix(PART))
            record = read_part_record(place)
            with suppress(FileNotFoundError):
                found.append((place, part_of(place).stat().st_size, record.size_bytes if record else None))
    return found


def sync_folder(folder: Path) -> None:
    """Have a rename in a folder outlast a power cut; Windows does so by itself."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unsafe(name: str, why: str) -> DownloadFailed:
    return DownloadFailed(f"the file {one_line(name)!r} is refused: it {why}", hint="slm ls --all")


def _records(place: Path) -> Path:
    return place.parent / RECORDS


def _read(path: Path, kind: type[Record] | type[PartRecord]) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    known = {each.name: values.get(each.name) for each in fields(kind)}
    is_count = isinstance(known["size_bytes"], int) and known["size_bytes"] >= 0
    texts = [value for name, value in known.items() if name not in ("size_bytes", "etag")]
    is_sound = is_count and all(isinstance(text, str) for text in texts) and isinstance(known["etag"], str | None)
    return known if is_sound else None


def _write(path: Path, record: Record | PartRecord) -> None:
    from tempfile import NamedTemporaryFile

    folder = make_folder(path.parent)
    with NamedTemporaryFile(
        "w", encoding="utf-8", dir=folder, suffix=".new", delete=False
    ) as file:  # its owner's alone
        try:
            json.dump(asdict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)
