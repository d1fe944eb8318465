"""What downloading speaks of: a repository's files, an order for some of them, progress, what came. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Stage = Literal["waiting", "checking", "downloading", "retrying", "verifying", "copying"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download waits for what; tests have less of it."""

    connect_s: float = 10.0
    stall_s: float = 30.0
    """Nothing came for so long: the connection is given up and another one tried. As ollama does."""
    waits_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Before each further try in a row that brought nothing new; after the last one it fails."""
    longest_wait_s: float = 300.0
    """The most that a server's own `Retry-After` is waited for."""


PATIENCE = Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a repository, as the Hub lists it."""

    path: str
    """Within the repository, with slashes; untrusted."""
    size_bytes: int
    sha256: str | None = None
    """Digest of a large file (LFS or Xet); None for a small one."""
    git_blob: str | None = None
    """SHA-1 of a small file as git hashes it: `blob <size>\\0` and the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRepo:
    """A repository at one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool = False
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedFile:
    """A file to be fetched, and where it will lie."""

    remote: RemoteFile
    place: Path
    """Final place; the partial file beside it ends in `.part`."""
    here_bytes: int
    """What lies here already: all of it (verified), or a partial file's size."""
    known_sha256: str | None = None
    """The registry's digest, where it knows one: a difference is a warning."""
    needs_check: bool = False
    """A file lies in its place of which no record says that it was verified: it is hashed before it is trusted."""
    is_stale: bool = False
    """The file in its place is another version or damaged: it is replaced once the right one has come."""

    @property
    def is_here(self) -> bool:
        """Whether the verified file is in its place."""
        is_doubtful = self.needs_check or self.is_stale
        return not is_doubtful and self.here_bytes == self.remote.size_bytes and self.place.exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What fetching a variant means: the files of one commit, and what is still to come."""

    repo: str
    commit: str
    files: tuple[OrderedFile, ...]
    target: Path
    """What a plan's `variant.path` will be: the file, a split model's first part, or the folder."""

    @property
    def total_bytes(self) -> int:
        """Return the size of all files."""
        return sum(each.remote.size_bytes for each in self.files)

    @property
    def missing_bytes(self) -> int:
        """Return what is still to be fetched."""
        return sum(each.remote.size_bytes - each.here_bytes for each in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """How far a download is; sent at most ten times a second, and at once when the stage changes."""

    stage: Stage
    file: str
    done_bytes: int
    """Of all files together, what lay here included."""
    total_bytes: int
    bytes_per_s: float | None = None
    remaining_s: float | None = None
    message: str | None = None
    """A sentence for the person: why it waits or tries again; each is sent once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What a download left here."""

    target: Path
    files: tuple[Path, ...]
    received_bytes: int
    """Bytes that came over the network, thrown away ones included."""
    bytes_per_s: float | None
    """None where less than a megabyte came."""
    warnings: tuple[str, ...] = ()
