"""Where the bytes of a header come from: files on this disk; `download.remote` adds files in a repository.

A source gives a file's bytes from the beginning on, as many at a time as the reader asks for, and knows the size of the
whole. It knows nothing of GGUF.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slm_local.gguf_header.faults import broken, quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """A file that is open for reading."""

    size_bytes: int
    """Of the whole file."""
    read: Callable[[int], bytes]
    """Return the next bytes: at most so many, at least one, or none at the end."""


class Files(Protocol):
    """The place where a model's file lies, and beside it the other parts of a split one."""

    def has(self, path: Path) -> bool:
        """Tell whether there is such a file."""
        ...

    def open(self, path: Path) -> AbstractContextManager[Bytes]:
        """Open a file; `ModelBroken` where that can't be done."""
        ...


class OnDisk:
    """The files of this disk."""

    def has(self, path: Path) -> bool:
        """Tell whether there is such a file."""
        return path.is_file()

    @contextmanager
    def open(self, path: Path) -> Iterator[Bytes]:
        """Open a file; `ModelBroken` where it is none, may not be read, or breaks off while it is read."""
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise broken(path, "is not there", "slm ls") from error
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise broken(path, f"can't be reached: {error}", "slm ls") from error
        if stat.S_ISDIR(found.st_mode):
            raise broken(path, "is a folder, not a GGUF file", f"slm show {quoted(path)}")
        if not stat.S_ISREG(found.st_mode):
            raise broken(path, "is not a regular file", "slm ls")
        try:
            with path.open("rb", buffering=0) as file:
                yield Bytes(size_bytes=found.st_size, read=file.read)
        except PermissionError as error:
            raise broken(path, "may not be read by you", f"chmod u+r {quoted(path)}") from error
        except OSError as error:
            raise broken(path, f"can't be read: {error.strerror}") from error


ON_DISK = OnDisk()
