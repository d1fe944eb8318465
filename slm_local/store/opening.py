"""Opens the history file: private, durable, checked where its last end was not a clean one.

A file that is damaged is moved aside and a new one begun; one from a newer program is left exactly as it is.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from slm_local.paths import make_folder
from slm_local.sanitize import shell_word
from slm_local.store.orphans import orphans, settle
from slm_local.store.schema import MIGRATIONS, migrate, version_of
from slm_local.store.values import HistoryUnusable
from slm_local.system import lock_down_file

FILE = "slm.db"

BUSY_S = 5.0
"""Longest wait for another program that is writing; each of its writes takes milliseconds."""

BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
SIDE_FILES = ("-wal", "-shm")

SETTINGS = ("foreign_keys = ON", "secure_delete = ON", "journal_mode = WAL", "synchronous = FULL")
"""A commit is on the disk when it returns, and what is removed is overwritten."""


class _Damaged(sqlite3.DatabaseError):
    """A check found something."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells one file from another of the same name."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An open history file and what a person is to be told of it."""

    connection: sqlite3.Connection
    identity: Identity | None
    notices: tuple[str, ...] = ()


def open_file(folder: Path, *, is_suspect: bool = False) -> Opened:
    """Open the history in a folder, made if it must be; one that is suspect is checked. Errors: `HistoryUnusable`."""
    path = make_folder(folder) / FILE
    try:
        if path.exists():
            return _opened(path, is_suspect)
    except (sqlite3.Error, OSError) as error:
        if not is_broken(error):
            raise unusable(error, path) from error
    from filelock import FileLock

    try:
        with FileLock(path.with_suffix(".lock"), timeout=BUSY_S, mode=0o600):
            return _opened_or_anew(path, is_suspect)
    except (sqlite3.Error, OSError) as error:
        raise unusable(error, path) from error


def identity_of(path: Path) -> Identity | None:
    """Return which file lies at a path now; None: none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Identity(found.st_dev, found.st_ino)


def is_broken(error: sqlite3.Error | OSError) -> bool:
    """Return whether an error says that the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, _Damaged) or (code is not None and code & 0xFF in BROKEN)


def unusable(error: sqlite3.Error | OSError, path: Path) -> HistoryUnusable:
    """Say what keeps the history from being read or written, and what to type."""
    code = getattr(error, "sqlite_errorcode", None)
    hint = f"ls -l {shell_word(str(path))}"
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return HistoryUnusable("another program holds the history", hint="try again when it is done")
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            hint = "df -h"
    return HistoryUnusable(f"the history in {path} can't be used: {error}", hint=hint)


def _opened_or_anew(path: Path, is_suspect: bool) -> Opened:
    """Open the file, begun where there is none; one that is still damaged is moved aside. Called by one at a time."""
    notices: tuple[str, ...] = ()
    if path.exists():
        try:
            return _opened(path, is_suspect)
        except sqlite3.Error as error:
            if not is_broken(error):
                raise
            backup = path.with_name(f"slm-broken-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.db")
            notices = (f"the history was damaged ({error}); it is now {backup}, and a new one is begun",)
        path.rename(backup)
        for suffix in SIDE_FILES:
            with suppress(FileNotFoundError):
                _beside(path, suffix).rename(_beside(backup, suffix))
    for suffix in SIDE_FILES:  # those of a deleted file would be taken for the new one's
        _beside(path, suffix).unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    opened = _opened(path, is_suspect=False)
    return Opened(connection=opened.connection, identity=opened.identity, notices=notices)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _opened(path: Path, is_suspect: bool) -> Opened:
    lock_down_file(path)
    address = path.absolute().as_uri()
    with closing(sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=BUSY_S)) as reader:
        _refuse_newer(path, version_of(reader))
    connection = sqlite3.connect(
        f"{address}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        for setting in SETTINGS:
            connection.execute(f"PRAGMA {setting}")
        migrate(connection)
        lost = orphans(connection)
        if lost or is_suspect:  # the last end was not a clean one
            _check(connection)
            settle(connection, lost)
    except BaseException:
        connection.close()
        raise
    return Opened(connection=connection, identity=identity_of(path))


def _refuse_newer(path: Path, version: int) -> None:
    if version > len(MIGRATIONS):
        raise HistoryUnusable(
            f"the history in {path} was written by a newer slm (format {version}, this one knows {len(MIGRATIONS)})",
            hint="python -m pip install --upgrade slm-local",
        )


def _check(connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _Damaged(found)
