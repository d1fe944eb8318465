"""Fetches an order's files, one after the other, each under a lock that all processes share.

Who comes second waits and then finds it done. Files that lie here unvouched are hashed before they are trusted, and
never overwritten where they differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from slm_local.download.client import open_client
from slm_local.download.hub import Hub
from slm_local.download.order import look
from slm_local.download.order import order_of as order_of
from slm_local.download.partial import digests_of
from slm_local.download.places import read_record, write_record
from slm_local.download.progress import Progress
from slm_local.download.refusals import more_room
from slm_local.download.stopping import Stop
from slm_local.download.transfer import Job, record_of, transfer
from slm_local.download.values import (
    PATIENCE,
    Fetched,
    FetchProgress,
    Order,
    OrderedFile,
    Patience,
)
from slm_local.errors import DownloadFailed, Interrupted
from slm_local.generation import Control
from slm_local.model import gigabytes
from slm_local.paths import make_folder, paths
from slm_local.registry.local import RECORDS
from slm_local.sanitize import shell_word

RESERVE_BYTES = 1 << 30
"""Left free on the disk: a system without any misbehaves in worse ways than a refused download."""

STICK_RESERVE_BYTES = 1 << 20
"""Left free on a disk that is not the models folder's: room for the records."""

LOCK_WAIT_S = 0.2


def fetch(
    order: Order,
    hub: Hub,
    *,
    control: Control | None = None,
    on_progress: Callable[[FetchProgress], None] | None = None,
    patience: Patience = PATIENCE,
    again: str | None = None,
) -> Fetched:
    """Bring every file of an order here, verified, and return what came; blocks until then.

    `again` is the line that goes on with it, for hints; it becomes the Hub's. `DownloadFailed` keeps what came unless
    its digest was wrong; a cancel or Ctrl-C keeps it too and raises `Interrupted`.
    """
    hub.again = again or hub.again
    with ExitStack() as stack:
        run = _Run(order, hub, control, on_progress, patience, stack)
        try:
            for file in sorted(order.files, key=lambda each: not each.needs_check):
                run.bring(file)  # what may have to be refused comes first: nothing else is replaced then
        except (KeyboardInterrupt, Interrupted):
            here = sum(look(file, order.commit).here_bytes for file in order.files)
            kept = f"{gigabytes(here)} of {gigabytes(order.total_bytes)} are kept in {order.target.parent}"
            raise Interrupted(f"the download was stopped: {kept}", hint=hub.again) from None
        except OSError as error:
            raise DownloadFailed(
                f"cannot write {error.filename or order.target}: {error.strerror}", hint=hub.again
            ) from error
    return Fetched(
        target=order.target,
        files=tuple(file.place for file in order.files),
        received_bytes=run.progress.received_bytes,
        bytes_per_s=run.progress.mean_bytes_per_s,
        warnings=tuple(run.warnings),
    )


class _Run:
    """One call of `fetch`."""

    def __init__(
        self,
        order: Order,
        hub: Hub,
        control: Control | None,
        on_progress: Callable[[FetchProgress], None] | None,
        patience: Patience,
        stack: ExitStack,
    ) -> None:
        self.progress = Progress(order, on_progress)
        self.warnings: list[str] = []
        self._order = order
        self._hub = hub
        self._patience = patience
        self._stack = stack
        self._stop = Stop(control)
        self._has_waited = False

    @cached_property
    def _job(self) -> Job:
        """Return what is needed once bytes must come."""
        return Job(
            repo=self._order.repo,
            commit=self._order.commit,
            files=self._order.files,
            hub=self._hub,
            client=self._stack.enter_context(open_client(self._patience)),
            patience=self._patience,
            progress=self.progress,
            stop=self._stop,
        )

    def bring(self, file: OrderedFile) -> None:
        """Have one file in its place, by whoever fetches it."""
        self._stop.check()
        if not look(file, self._order.commit).is_here:
            self._hub.check_online(f"{self._order.repo}/{file.remote.path}")
            self._check_space()
            with _locked(file.place, lambda: self._wait_for(file)):
                self._bring_locked(look(file, self._order.commit))
        self.progress.at("verifying", file, file.remote.size_bytes)
        record = read_record(file.place)
        if file.known_sha256 and record and record.sha256 != file.known_sha256:
            self.warnings.append(
                f"{file.remote.path} is not the file that the registry knows, its owner has uploaded another: "
                f"sha256 {record.sha256}, not {file.known_sha256}"
            )

    def _bring_locked(self, file: OrderedFile) -> None:
        if file.is_here:
            return
        if file.needs_check:
            self._check(file)
            return
        if file.is_stale:
            self.progress.at("downloading", file, file.here_bytes, f"{file.place.name} here is another version")
        transfer(self._job, file)

    def _check(self, file: OrderedFile) -> None:
        """Hash a file that someone put in its place; a different one is theirs, and stays."""

        def seen(done_bytes: int) -> None:
            self._stop.check()
            self.progress.at("checking", file, done_bytes)

        size_bytes = file.place.stat().st_size
        if size_bytes != file.remote.size_bytes:
            raise self._not_ours(file, f"it has {size_bytes:,} bytes, the Hub's has {file.remote.size_bytes:,}")
        found = digests_of(file.place, size_bytes, seen)
        if not found.is_that_of(file.remote):
            raise self._not_ours(file, "its digest is {}, the Hub states {}".format(*found.beside(file.remote)))
        write_record(file.place, record_of(self._order.repo, self._order.commit, file, found, None))

    def _not_ours(self, file: OrderedFile, why: str) -> DownloadFailed:
        return DownloadFailed(
            f"{file.place} is not the Hub's file, and is not overwritten: {why}",
            hint=f"mv {shell_word(str(file.place))} {shell_word(f'{file.place}.old')}",
        )

    def _wait_for(self, file: OrderedFile) -> None:
        self._stop.check()
        told = None if self._has_waited else f"another slm is fetching {file.remote.path}: waiting for it"
        self._has_waited = True
        self.progress.at("waiting", file, look(file, self._order.commit).here_bytes, told)

    def _check_space(self) -> None:
        """Raise `DownloadFailed` where what is missing would not go onto the disk; nothing was written for it yet."""
        files = [look(file, self._order.commit) for file in self._order.files]
        missing = sum(file.remote.size_bytes - file.here_bytes for file in files)
        target = self._order.target.absolute()
        folder = next(each for each in target.parents if each.exists())
        reserve = RESERVE_BYTES if target.is_relative_to(paths().models_dir.absolute()) else STICK_RESERVE_BYTES
        free = shutil.disk_usage(folder).free
        if missing and free < missing + reserve:
            raise DownloadFailed(
                f"the disk of {folder} has {gigabytes(free)} free: {gigabytes(missing)} are still to come, "
                f"and {gigabytes(reserve)} stay free",
                hint=more_room(self._hub.again),
            )


@contextmanager
def _locked(place: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that all processes share for a file; `wait` is called again and again until then."""
    from filelock import FileLock, Timeout

    lock = FileLock(make_folder(place.parent / RECORDS) / f"{place.name}.lock", mode=0o600)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout:
            wait()
    try:
        yield
    finally:
        lock.release()
