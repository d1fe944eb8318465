"""Whether what is kept is still whole: files are hashed again and compared with what is recorded or known of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from slm_local.download.course import Course
from slm_local.download.kept import DAMAGED, KeptFile, KeptModel, held, not_removable
from slm_local.download.partial import digests_of
from slm_local.download.places import forget, read_record
from slm_local.errors import ModelBroken
from slm_local.gguf_header import checked_header
from slm_local.registry.local import parts_of

Verdict = Literal["whole", "damaged", "differs", "unpinned", "partial", "set aside", "unreadable"]
"""`differs`: unrecorded, and not the upload that the registry knows; `set aside`: damaged, and replaced since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of looking at a file again."""

    file: KeptFile
    verdict: Verdict
    sha256: str | None
    """Of the bytes now; None where there was nothing to compare it with, or the size told enough."""
    remark: str


def look_again(model: KeptModel, cache_dir: Path, course: Course) -> Iterator[Finding]:
    """Hash a model's files and compare them with what was recorded of them, else with the registry's digest."""
    for file in model.files:
        yield _finding(file, model, cache_dir, course)
        course.passed(file.place.name, file.size_bytes)


def set_aside(file: KeptFile) -> KeptFile:
    """Give a damaged file a name that nothing trusts, and forget what was recorded; `slm pull` then fetches it anew.

    `UsageError` where the system does not let it be renamed.
    """
    aside = file.place.with_name(file.place.name + DAMAGED)
    try:
        with held(file.place):
            file.path.replace(aside)
    except OSError as error:
        raise not_removable(file.path, error) from error
    forget(file.place)
    return replace(file, path=aside)


def _finding(file: KeptFile, model: KeptModel, cache_dir: Path, course: Course) -> Finding:
    if not file.is_whole:
        return _unfinished(file, has_whole=any(each.path == file.place for each in model.files))
    record = read_record(file.place)
    pinned = model.variant.sha256 if model.variant is not None and file.place == model.target else None
    if record is not None and record.size_bytes != file.size_bytes:
        remark = f"has {file.size_bytes:,} bytes, not {record.size_bytes:,}"
        return Finding(file=file, verdict="damaged", sha256=None, remark=remark)
    if record is None and pinned is None:
        return _by_header(file, cache_dir, None, "nothing to compare it with", "unpinned")
    try:
        digests = digests_of(file.path, file.size_bytes, lambda done: course.at(file.place.name, done))
    except OSError as error:
        return Finding(file=file, verdict="unreadable", sha256=None, remark=f"can't be read: {error.strerror}")
    return _compared(file, digests.sha256, record.sha256 if record is not None else None, pinned, cache_dir)


def _unfinished(file: KeptFile, *, has_whole: bool) -> Finding:
    if file.is_partial:
        return Finding(file=file, verdict="partial", sha256=None, remark="a download that has not ended")
    if has_whole:
        return Finding(file=file, verdict="set aside", sha256=None, remark="damaged, and replaced since")
    return Finding(file=file, verdict="damaged", sha256=None, remark="set aside by an earlier look")


def _compared(file: KeptFile, digest: str, recorded: str | None, pinned: str | None, cache_dir: Path) -> Finding:
    if recorded is not None and digest != recorded:
        return Finding(file=file, verdict="damaged", sha256=digest, remark=f"its sha256 was {recorded}")
    if pinned is None or digest == pinned:
        source = "the download" if recorded is not None else "the registry"
        return Finding(file=file, verdict="whole", sha256=digest, remark=f"as {source} has it")
    if recorded is not None:
        remark = "as the download has it; the registry knows another upload of it"
        return Finding(file=file, verdict="whole", sha256=digest, remark=remark)
    return _by_header(file, cache_dir, digest, f"the registry's has the sha256 {pinned}", "differs")


def _by_header(file: KeptFile, cache_dir: Path, digest: str | None, remark: str, verdict: Verdict) -> Finding:
    """Judge a file that no digest vouches for: damaged where its header is, else as the caller says."""
    first = next(parts_of(file.place))
    if file.place.name.lower().endswith(".gguf") and file.place == first:
        try:
            checked_header(file.path, cache_dir, allow_vocab_only=True)
        except ModelBroken as error:
            remark = error.message.removeprefix(f"{file.path} ")
            return Finding(file=file, verdict="damaged", sha256=digest, remark=remark)
    return Finding(file=file, verdict=verdict, sha256=digest, remark=remark)
