"""Carries files between this disk and a folder such as a stick: copied, hashed on the way, put in place whole.

What lies there already is never written over; what came with a record must have the recorded bytes.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slm_local.download.course import Course, Tell
from slm_local.download.fetch import STICK_RESERVE_BYTES
from slm_local.download.kept import held, remove_empty
from slm_local.download.partial import FULL, READ_BYTES, Digest, digests_of
from slm_local.download.places import Record, forget, part_of, place_of, read_record, sync_folder, write_record
from slm_local.errors import DownloadFailed, ModelBroken, SlmError, UsageError
from slm_local.model import Variant, gigabytes
from slm_local.paths import make_folder, paths
from slm_local.registry.local import FOLDER_FILES, RECORDS, files_of
from slm_local.sanitize import shell_word

COPY = ".copy"
"""What the name of a file ends in while it is copied; it lies among the records, where nothing looks for models."""

Outcome = Literal["copied", "here", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A file to be carried: from where to where, and what is known of its bytes."""

    source: Path
    place: Path
    size_bytes: int
    record: Record | None = None
    """What was recorded when it was fetched: its bytes must still have that digest."""
    known_sha256: str | None = None
    """The registry's digest, where it knows one: a difference is a remark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What became of a file."""

    source: Path
    size_bytes: int
    outcome: Outcome
    remark: str = ""
    place: Path | None = None
    """None for a file that has no place here."""


def carry(variant: Variant, folder: Path, on_progress: Tell | None = None) -> Path:
    """Copy a model that is here into a folder, laid out and recorded so that `slm import` there can verify it.

    Returns where it lies then. Errors: `UsageError` for a folder that can't be one, `DownloadFailed` where it does not
    fit in, `ModelBroken` where the bytes here are no longer those that were fetched.
    """
    assert variant.path is not None
    source = Path(variant.path)
    _open_folder(folder)
    target = _target_in(folder, variant, source)
    parcels = [
        Parcel(
            source=file,
            place=target / file.relative_to(source) if source.is_dir() else target.with_name(file.name),
            size_bytes=file.stat().st_size,
            record=read_record(file),
        )
        for file in files_of(source)
    ]
    if len(parcels) == 1:  # another program may keep it under a name of its own
        parcels = [Parcel(source=source, place=target, size_bytes=parcels[0].size_bytes, record=parcels[0].record)]
    for carried in deliver(parcels, folder, STICK_RESERVE_BYTES, on_progress):
        if carried.outcome == "refused":
            raise _not_carried(carried, source)
    return target


def _not_carried(carried: Carried, source: Path) -> SlmError:
    if carried.place is not None and os.path.lexists(carried.place):
        return UsageError(f"{carried.place}: {carried.remark}", hint=f"rm {shell_word(str(carried.place))}")
    return ModelBroken(f"{carried.source} {carried.remark}", hint=f"slm verify {shell_word(str(source))}")


def deliver(parcels: Sequence[Parcel], root: Path, reserve_bytes: int, tell: Tell | None = None) -> list[Carried]:
    """Copy files below `root`; each is in its place with the right bytes, or not at all.

    `DownloadFailed`, before the first byte where that can be known, when the disk has no room for them.
    """
    course = Course("copying", sum(parcel.size_bytes for parcel in parcels), tell)
    _check_space([parcel for parcel in parcels if not os.path.lexists(parcel.place)], root, reserve_bytes)
    done = []
    for parcel in parcels:
        try:
            outcome, remark = _delivered(parcel, root, course)
        except OSError as error:
            if error.errno in FULL:
                raise _no_room(parcel, error) from error
            outcome, remark = "refused", f"can't be copied: {error.strerror}"
        except SlmError as error:
            outcome, remark = "refused", error.message
        if outcome == "refused":
            _tidy(parcel.place, root)
        done.append(
            Carried(
                source=parcel.source,
                size_bytes=parcel.size_bytes,
                outcome=outcome,
                remark=remark,
                place=parcel.place,
            )
        )
        course.passed(parcel.place.name, parcel.size_bytes)
    return done


def _delivered(parcel: Parcel, root: Path, course: Course) -> tuple[Outcome, str]:
    real_root = Path(os.path.realpath(root))
    for folder in (parcel.place.parent, parcel.place.parent / RECORDS):
        if not Path(os.path.realpath(folder)).is_relative_to(real_root):
            return "refused", f"would be written outside {root}: a link leads out of it"
    if os.path.lexists(parcel.place):
        return _beside_what_is_there(parcel, course)
    return _copied(parcel, course)


def _beside_what_is_there(parcel: Parcel, course: Course) -> tuple[Outcome, str]:
    """Tell whether what lies in the place is the same file; it is never written over."""
    other: tuple[Outcome, str] = "refused", "another file lies there, and is not written over"
    if parcel.place.is_symlink() or not parcel.place.is_file() or parcel.place.stat().st_size != parcel.size_bytes:
        return other
    there = read_record(parcel.place)
    if there is not None and parcel.record is not None:
        return ("here", "") if there.sha256 == parcel.record.sha256 else other
    ours = parcel.record.sha256 if parcel.record is not None else _sha256(parcel.source, parcel, course)
    if _sha256(parcel.place, parcel, course) != ours:
        return other
    if parcel.record is not None:
        write_record(parcel.place, parcel.record)
    return "here", ""


def _copied(parcel: Parcel, course: Course) -> tuple[Outcome, str]:
    coming = make_folder(parcel.place.parent / RECORDS) / f"{parcel.place.name}{COPY}"
    with held(parcel.place):
        try:
            sha256 = _copy(parcel, coming, course)
            if sha256 is None or (parcel.record is not None and sha256 != parcel.record.sha256):
                return "refused", "is damaged: its bytes are not those that were fetched"
            coming.replace(parcel.place)
        finally:
            coming.unlink(missing_ok=True)
        sync_folder(parcel.place.parent)
        part_of(parcel.place).unlink(missing_ok=True)
    forget(parcel.place)  # of a download that had begun
    if parcel.record is not None:
        write_record(parcel.place, parcel.record)
    is_other = parcel.known_sha256 not in (None, sha256)
    return "copied", "not the upload that the registry knows" if is_other else ""


def _tidy(place: Path, root: Path) -> None:
    """Remove the folders that were made for a file that did not come."""
    if not os.path.lexists(place) and not part_of(place).exists():
        forget(place)
        remove_empty(place.parent, root)


def _copy(parcel: Parcel, coming: Path, course: Course) -> str | None:
    """Copy and hash; None where the file has not the size that it had."""
    coming.unlink(missing_ok=True)
    digest, done = Digest(parcel.size_bytes), 0
    with parcel.source.open("rb") as source, coming.open("xb") as target:
        while chunk := source.read(READ_BYTES):
            target.write(chunk)
            digest.feed(chunk)
            done += len(chunk)
            course.at(parcel.place.name, done)
        target.flush()
        os.fsync(target.fileno())
    return digest.result().sha256 if done == parcel.size_bytes else None


def _sha256(path: Path, parcel: Parcel, course: Course) -> str:
    return digests_of(path, parcel.size_bytes, lambda done: course.at(parcel.place.name, done)).sha256


def _open_folder(folder: Path) -> None:
    """Create a folder to carry to, where it is not there; `UsageError` where it can't be one."""
    real, ours = Path(os.path.realpath(folder)), Path(os.path.realpath(paths().models_dir))
    if real.is_relative_to(ours) or ours.is_relative_to(real):
        raise UsageError(f"{folder} is where slm keeps its models", hint="slm pull MODEL --to ANOTHER_FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} is no folder and can't be made one", hint="slm pull MODEL --to DIR") from error


def _target_in(folder: Path, variant: Variant, source: Path) -> Path:
    """Return where a model lies below a folder: as in ours, else as it would be fetched, else by its name."""
    models_dir = paths().models_dir
    if source.is_relative_to(models_dir):
        return folder / source.relative_to(models_dir)
    if variant.repo is not None and variant.file is not None:
        return place_of(folder, variant.repo, variant.file)
    if variant.repo is not None:
        return place_of(folder, variant.repo, FOLDER_FILES[0]).parent
    return folder / source.name


def _check_space(coming: Sequence[Parcel], root: Path, reserve_bytes: int) -> None:
    wanted = sum(parcel.size_bytes for parcel in coming)
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if coming and free < wanted + reserve_bytes:
        reserve = f" and {gigabytes(reserve_bytes)} to spare" if reserve_bytes >= 10**9 else ""
        raise DownloadFailed(
            f"{gigabytes(wanted)} are to be copied to {root}{reserve}, and {gigabytes(free)} are free there",
            hint=f"df -h {shell_word(str(root))}",
        )


def _no_room(parcel: Parcel, error: OSError) -> DownloadFailed:
    if error.errno == errno.EFBIG:
        return DownloadFailed(
            f"the file system of {parcel.place.parent} takes no file of {gigabytes(parcel.size_bytes)}, as FAT32 does",
            hint="format the stick as exFAT, then the same line again",
        )
    return DownloadFailed(
        f"the disk of {parcel.place.parent} is full", hint=f"df -h {shell_word(str(parcel.place.parent))}"
    )
