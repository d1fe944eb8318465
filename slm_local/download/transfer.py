"""Brings one file here, whatever happens on the way: tries again, starts over where it must, verifies, then names it.

Every try asks the resolve address again for what is missing. It gives up after so many tries in a row that brought no
byte beyond the farthest one, and keeps what came.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slm_local.download.client import Answer, TryAgain, asking
from slm_local.download.hub import Hub
from slm_local.download.order import look
from slm_local.download.partial import Digests, Partial
from slm_local.download.places import Record, part_of, write_record
from slm_local.download.progress import Progress
from slm_local.download.stopping import Stop
from slm_local.download.values import OrderedFile, Patience
from slm_local.errors import DownloadFailed
from slm_local.model import gigabytes

if TYPE_CHECKING:
    import httpx

LEAST_GROWTH_BYTES = 1 << 16
"""A server that ends every connection after less would never be given up, and a file of 5 GB never come."""

STARTING_OVER = "starting over at the beginning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all files of one order share while they are fetched."""

    repo: str
    commit: str
    files: tuple[OrderedFile, ...]
    hub: Hub
    client: httpx.Client
    patience: Patience
    progress: Progress
    stop: Stop


def transfer(job: Job, file: OrderedFile) -> Digests:
    """Fetch and verify a file whose lock is held, and put it in its place with its record."""
    with Partial(file, job.commit, job.hub.again) as partial:
        thrown_away = partial.take_up(lambda done: _checked(job, file, done))
        if thrown_away:
            job.progress.at("downloading", file, 0, f"{thrown_away}: {STARTING_OVER}")
        _receive_all(job, file, partial)
        job.progress.at("verifying", file, partial.size_bytes)
        digests, etag = partial.digests(), partial.etag
        is_right = digests.is_that_of(file.remote)
        if is_right:
            partial.save()
    if not is_right:
        partial.discard()
        found, stated = digests.beside(file.remote)
        raise DownloadFailed(
            f"{file.remote.path} came with wrong bytes and was removed: its digest is {found}, the Hub states {stated}",
            hint=job.hub.again,
        )
    _take_older_away(job, file)
    partial.finish()
    write_record(file.place, record_of(job.repo, job.commit, file, digests, etag))
    return digests


def _take_older_away(job: Job, file: OrderedFile) -> None:
    """Have what lies here of another version look unfinished: beside a file of this one it would pass for its rest."""
    for other in job.files:
        if other.place != file.place and look(other, job.commit).is_stale:
            part = part_of(other.place)
            if part.exists():  # of this version, begun before
                other.place.unlink()
            else:
                other.place.replace(part)


def record_of(repo: str, commit: str, file: OrderedFile, digests: Digests, etag: str | None) -> Record:
    """Return what is kept of a verified file."""
    return Record(
        repo=repo,
        file=file.remote.path,
        commit=commit,
        etag=etag,
        size_bytes=file.remote.size_bytes,
        sha256=digests.sha256,
        verified_against="sha256" if file.remote.sha256 else "git blob",
    )


def _checked(job: Job, file: OrderedFile, done_bytes: int) -> None:
    job.stop.check()
    job.progress.at("checking", file, done_bytes)


def _receive_all(job: Job, file: OrderedFile, partial: Partial) -> None:
    """Try until all bytes are here; the count of tries begins anew as the file grows beyond where it ever was."""
    farthest, failed = partial.size_bytes, 0
    while partial.size_bytes < file.remote.size_bytes:
        job.stop.check()
        try:
            _receive(job, file, partial)
            continue
        except TryAgain as fault:
            job.stop.check()  # the end that was asked for looks like a lost connection
            reason, wished_s = fault.reason, fault.wait_s
        if partial.size_bytes >= farthest + LEAST_GROWTH_BYTES:
            farthest, failed = partial.size_bytes, 0
        if failed == len(job.patience.waits_s):
            raise _given_up(job, file, partial, reason)
        wait_s = min(job.patience.waits_s[failed] if wished_s is None else wished_s, job.patience.longest_wait_s)
        failed += 1
        told = f"{reason}: trying again in {wait_s:g} s ({failed} of {len(job.patience.waits_s)})"
        job.progress.at("retrying", file, partial.size_bytes, told)
        job.stop.wait(wait_s)


def _receive(job: Job, file: OrderedFile, partial: Partial) -> None:
    """Append what one request brings; returns when all is here, else `TryAgain` says why not."""
    start = partial.size_bytes
    headers = {"Range": f"bytes={start}-"} if start else {}
    with asking(job.client, job.hub, job.repo, job.commit, file.remote.path, headers) as answer:
        _check_continues(job, file, partial, answer)
        _check_length(answer, partial.size_bytes, file.remote.size_bytes)
        partial.bind(answer.commit, answer.etag)
        job.stop.watch(answer.response)
        try:
            for chunk in _timed(job, answer):
                _append(file, partial, chunk)
                job.progress.at("downloading", file, partial.size_bytes)
                job.stop.check()
        finally:
            job.stop.watch(None)
    if partial.size_bytes < file.remote.size_bytes:
        raise TryAgain(f"the connection ended after {gigabytes(partial.size_bytes)}")


def _check_continues(job: Job, file: OrderedFile, partial: Partial, answer: Answer) -> None:
    """Throw away what is here unless the answer's bytes follow it: of the same commit and ETag, at the right place.

    An answer from the first byte on is used; after any other the next try starts there.
    """
    why = None
    if not partial.is_bound_to(answer.commit, answer.etag):
        why = "the file changed on the Hub"
    elif answer.status == 416:
        why = "the server knows no such part of the file"
    elif answer.status == 200 and partial.size_bytes:
        why = "the server does not go on where it ended"
    if why is None:
        return
    partial.start_over()
    if answer.status != 200:
        raise TryAgain(f"{why}, {STARTING_OVER}")
    job.progress.at("downloading", file, 0, f"{why}: {STARTING_OVER}")


def _check_length(answer: Answer, start: int, size_bytes: int) -> None:
    headers = answer.response.headers
    if answer.status == 206:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", ""))
        if told is None or int(told[1]) != start or told[2] not in ("*", str(size_bytes)):
            raise TryAgain("the server sends another part of the file than was asked for")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) != size_bytes - start:
        raise TryAgain(f"the server announces {int(length):,} bytes where {size_bytes - start:,} are missing")


def _append(file: OrderedFile, partial: Partial, chunk: bytes) -> None:
    if partial.size_bytes + len(chunk) > file.remote.size_bytes:
        partial.start_over()
        raise TryAgain(f"more bytes came than the file has, {STARTING_OVER}")
    partial.append(chunk)


def _timed(job: Job, answer: Answer) -> Iterator[bytes]:
    began = time.monotonic()
    for chunk in answer.response.iter_raw():
        now = time.monotonic()
        job.progress.received(len(chunk), now - began)
        began = now
        yield chunk


def _given_up(job: Job, file: OrderedFile, partial: Partial, reason: str) -> DownloadFailed:
    kept = f"{gigabytes(partial.size_bytes)} of {gigabytes(file.remote.size_bytes)} are kept"
    tries = len(job.patience.waits_s) + 1
    return DownloadFailed(
        f"{file.remote.path} could not be fetched: {reason}; {tries} tries in a row brought nothing new, {kept}",
        hint=job.hub.again,
    )
