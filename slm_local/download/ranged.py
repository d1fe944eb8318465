"""Reads the header of a GGUF file that lies in a repository: by range, once, without the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from slm_local.download.client import ranged_bytes
from slm_local.download.hub import Hub
from slm_local.download.values import RemoteFile, RemoteRepo
from slm_local.errors import DownloadFailed, ModelBroken
from slm_local.gguf_header import Bytes, GgufHeader, keep, read_header, recall
from slm_local.gguf_header.faults import NEWER_ENGINE, OTHER_GGUF, broken
from slm_local.gguf_header.reader import MAX_HEADER_BYTES
from slm_local.sanitize import one_line

FIRST_BYTES = 2 << 20
MOST_BYTES = 8 << 20
"""A header is asked for in ranges that double from the first to the second: those of today's vocabularies (6 to 16 MB)
take two to four requests."""


def remote_header(repo: RemoteRepo, file: RemoteFile, hub: Hub, cache_dir: Path) -> GgufHeader:
    """Read and check a header in a repository, by range, or from the cache where it was read at this commit before.

    Of a split model the headers of all parts are read. Its `path` is `owner/name/path`. Errors: `ModelBroken`,
    `DownloadFailed`.
    """
    identity = (f"hub:{repo.repo}/{file.path}", repo.commit, file.size_bytes)
    header = recall(cache_dir, identity)
    if header is not None:
        return header
    try:
        header = read_header(Path(repo.repo, file.path), files=_InRepository(repo, hub))
    except ModelBroken as error:
        hint = error.hint if error.hint in (NEWER_ENGINE, OTHER_GGUF) else OTHER_GGUF  # there is nothing here to mend
        raise ModelBroken(error.message, hint=hint) from error
    header = replace(header, path=f"{repo.repo}/{file.path}")
    keep(cache_dir, identity, header)
    return header


class _InRepository:
    """The files of a repository at one commit, for the header reader."""

    def __init__(self, repo: RemoteRepo, hub: Hub) -> None:
        self._repo = repo
        self._hub = hub
        self._files = {Path(repo.repo, each.path): each for each in repo.files}

    def has(self, path: Path) -> bool:
        """Tell whether the repository lists such a file."""
        return path in self._files

    @contextmanager
    def open(self, path: Path) -> Iterator[Bytes]:
        """Open a file; nothing is asked for before it is read."""
        file = self._files.get(path)
        if file is None:
            raise broken(path, "is not in the repository", OTHER_GGUF)

        def fetch(start: int, end: int) -> bytes:
            return ranged_bytes(self._hub, self._repo.repo, self._repo.commit, file.path, start, end)

        yield Bytes(size_bytes=file.size_bytes, read=_Ahead(fetch, min(file.size_bytes, MAX_HEADER_BYTES), path).read)


class _Ahead:
    """A beginning of a file, fetched by ranges that grow, given out as it is asked for."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, path: Path) -> None:
        self._fetch = fetch
        self._size = size
        self._path = path
        self._step = FIRST_BYTES
        self._fetched = 0
        self._held = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes: as many as asked for, fewer at the end."""
        while len(self._held) < size and self._fetched < self._size:
            end = min(self._fetched + self._step, self._size)
            came = self._fetch(self._fetched, end)
            if len(came) != end - self._fetched:
                raise DownloadFailed(
                    f"{one_line(str(self._path))} broke off: {len(came):,} of {end - self._fetched:,} bytes came",
                    hint="slm ls --all",
                )
            self._held += came
            self._fetched, self._step = end, min(2 * self._step, MOST_BYTES)
        given, self._held = self._held[:size], self._held[size:]
        return given
