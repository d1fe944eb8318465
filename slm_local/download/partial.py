"""A file on its way: bytes are appended to `.part` and hashed as they come.

What lay there from an earlier run is hashed first, so that a power cut's damage shows in the digest. The bytes are
bound to commit and ETag, so that two revisions never mix.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from slm_local.download.places import (
    PartRecord,
    forget_part,
    part_of,
    read_part_record,
    sync_folder,
    write_part_record,
)
from slm_local.download.refusals import PULL, more_room
from slm_local.download.values import OrderedFile, RemoteFile
from slm_local.errors import DownloadFailed
from slm_local.model import gigabytes
from slm_local.paths import make_folder
from slm_local.sanitize import shell_word
from slm_local.system import lock_down_file

READ_BYTES = 1 << 20

FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""What a disk, a file system or a quota says when no more goes in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """A file's digests: of its bytes, and as git hashes it."""

    sha256: str
    git_blob: str

    def is_that_of(self, remote: RemoteFile) -> bool:
        """Tell whether the bytes are the ones that the Hub states."""
        return remote.sha256 == self.sha256 if remote.sha256 else remote.git_blob == self.git_blob

    def beside(self, remote: RemoteFile) -> tuple[str, str]:
        """Return what was found and what the Hub states, by the same kind of digest."""
        if remote.sha256:
            return self.sha256, remote.sha256
        return self.git_blob, remote.git_blob or "none"


class Digest:
    """Hashes the bytes of a file of known size as they come."""

    def __init__(self, size_bytes: int) -> None:
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._sha256.update(chunk)
        self._git.update(chunk)

    def result(self) -> Digests:
        """Return the digests of all that came."""
        return Digests(sha256=self._sha256.hexdigest(), git_blob=self._git.hexdigest())


def digests_of(path: Path, size_bytes: int, seen: Callable[[int], None]) -> Digests:
    """Hash a whole file; `seen` is called with the bytes read so far."""
    digest = Digest(size_bytes)
    with path.open("rb") as file:
        for done in _feed(file, digest):
            seen(done)
    return digest.result()


class Partial:
    """The partial file of one ordered file, open for appending; a context manager that closes it."""

    def __init__(self, file: OrderedFile, commit: str, again: str = PULL) -> None:
        self.size_bytes = 0
        self._place = file.place
        self._path = part_of(file.place)
        self._remote = file.remote
        self._expected = file.remote.sha256 or file.remote.git_blob or ""
        self._commit = commit
        self._again = again
        self._digest = Digest(file.remote.size_bytes)
        self._record: PartRecord | None = None
        make_folder(self._path.parent)
        if self._path.is_symlink():
            raise DownloadFailed(
                f"{self._path} is a link, which is not written through", hint=f"rm {shell_word(str(self._path))}"
            )
        self._file = self._path.open("a+b", buffering=0)
        lock_down_file(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        is_empty = self._file.seek(0, os.SEEK_END) == 0
        self._file.close()
        if failed and is_empty:
            self.discard()

    @property
    def etag(self) -> str | None:
        """Return the ETag that the bytes here are bound to."""
        return self._record.etag if self._record else None

    def take_up(self, seen: Callable[[int], None]) -> str | None:
        """Hash what lies here; return why it had to be thrown away, where it had."""
        here = self._file.seek(0, os.SEEK_END)
        record = read_part_record(self._place)
        if here == 0:
            return None
        if here > self._remote.size_bytes or record is None or record.digest != self._expected:
            self.start_over()
            return "the part that lay here belongs to another version of the file"
        self._file.seek(0)
        for done in _feed(self._file, self._digest):
            seen(done)
        self.size_bytes = here
        self._record = replace(record, commit=self._commit)  # the same bytes, by their digest, at this commit too
        return None

    def is_bound_to(self, commit: str | None, etag: str | None) -> bool:
        """Tell whether bytes of this commit and ETag may follow those that are here."""
        if self._record is None or self.size_bytes == 0:
            return True
        return (commit or self._commit, etag) == (self._record.commit, self._record.etag)

    def bind(self, commit: str | None, etag: str | None) -> None:
        """Note what the first byte belongs to, before it is written."""
        if self.size_bytes == 0:
            self._record = PartRecord(
                commit=commit or self._commit,
                etag=etag,
                size_bytes=self._remote.size_bytes,
                digest=self._expected,
            )
            write_part_record(self._place, self._record)

    def append(self, chunk: bytes) -> None:
        """Write and hash the next bytes; `DownloadFailed` where the disk is full."""
        rest = memoryview(chunk)
        try:
            while rest:
                written = self._file.write(rest)
                self._digest.feed(rest[:written])
                self.size_bytes += written
                rest = rest[written:]
        except OSError as error:
            raise self._cannot_write(error) from error

    def start_over(self) -> None:
        """Throw away what is here."""
        self._file.truncate(0)
        self.size_bytes = 0
        self._digest = Digest(self._remote.size_bytes)
        self._record = None
        forget_part(self._place)

    def digests(self) -> Digests:
        """Return the digests of what is here."""
        return self._digest.result()

    def save(self) -> None:
        """Have the bytes reach the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._cannot_write(error) from error

    def discard(self) -> None:
        """Remove the file and what is recorded of it, after it was closed."""
        self._path.unlink(missing_ok=True)
        forget_part(self._place)

    def finish(self) -> None:
        """Give the file its final name, after it was closed, whole and verified."""
        try:
            self._path.replace(self._place)
            sync_folder(self._place.parent)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> DownloadFailed:
        if error.errno in FULL:
            return DownloadFailed(
                f"the disk of {self._path.parent} is full: {gigabytes(self.size_bytes)} of "
                f"{gigabytes(self._remote.size_bytes)} of {self._place.name} are kept there",
                hint=more_room(self._again),
            )
        return DownloadFailed(f"cannot write {self._path}: {error.strerror}", hint="slm doctor")


def _feed(file: BinaryIO | FileIO, digest: Digest) -> Iterator[int]:
    done = 0
    while chunk := file.read(READ_BYTES):
        digest.feed(chunk)
        done += len(chunk)
        yield done
