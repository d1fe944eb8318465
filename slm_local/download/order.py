"""What fetching a variant means: which files of its repository, at one commit, and which of them are here already.

It asks the Hub once and looks at sizes and records on this disk; it hashes and writes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from slm_local.download.hub import Hub
from slm_local.download.places import part_of, place_of, read_part_record, read_record
from slm_local.download.values import Order, OrderedFile, RemoteFile, RemoteRepo
from slm_local.errors import DownloadFailed
from slm_local.model import Variant
from slm_local.registry.local import parts_of
from slm_local.sanitize import one_line

OPENVINO_PATTERNS = ("*.xml", "*.bin", "*.json", "*.jinja", "*.txt", "*.model")
"""What OpenVINO GenAI reads of a folder that optimum-intel wrote."""

CHECKPOINT_PATTERNS = ("*.safetensors", "*.json", "tokenizer.*", "*.jinja", "*.model", "*.txt")
"""What transformers reads of a repository: never what it would have to unpickle (*.bin, *.pt, *.pth)."""

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")

DOUBLES = "consolidated*"
"""The same weights once more, for another program (Mistral's)."""

CLOSE_NAMES = 3


def order_of(variant: Variant, hub: Hub, models_dir: Path) -> Order:
    """Ask the Hub for a variant's files at one commit, and mark what is here of them.

    `DownloadFailed` where the Hub does not have them, or where a name may not be written.
    """
    if variant.repo is None:
        raise DownloadFailed(f"this {variant.quant} is only a file: no repository has it", hint="slm ls")
    return order_at(hub.repository(variant.repo, variant.revision), variant, models_dir)


def order_at(found: RemoteRepo, variant: Variant, models_dir: Path) -> Order:
    """Return what fetching a variant means, of a repository that the Hub has described."""
    files = tuple(_ordered(each, variant, found, models_dir) for each in _wanted(variant, found))
    if len({str(each.place).casefold() for each in files}) < len(files):
        raise DownloadFailed(f"{found.repo} has files whose names differ by case only", hint=_show(found))
    first = files[0].place
    target = first if variant.kind == "gguf" else first.parent
    return Order(repo=found.repo, commit=found.commit, files=files, target=target)


def _wanted(variant: Variant, found: RemoteRepo) -> list[RemoteFile]:
    """Return a variant's files; of a folder, last those by which it is known: they come when all else is here."""
    match variant.kind:
        case "gguf":
            return _gguf(variant.file or "", found)
        case "openvino":
            return _folder(found, OPENVINO_PATTERNS, needed="openvino_*model.xml", last="*.xml")
        case "checkpoint":
            return _folder(found, CHECKPOINT_PATTERNS, needed="*.safetensors", last="config.json")
        case "remote":
            raise DownloadFailed("what runs elsewhere is not fetched", hint="slm ls")


def _gguf(file: str, found: RemoteRepo) -> list[RemoteFile]:
    if file.lower().endswith(ARCHIVES):
        raise DownloadFailed(f"{one_line(file)!r} is an archive, and none is ever unpacked", hint=_show(found))
    listed = {each.path: each for each in found.files}
    names = [path.as_posix() for path in parts_of(Path(file))]
    for name in names:
        if name not in listed:
            there = [path for path in listed if path.lower().endswith(".gguf")]
            close = ", ".join(map(one_line, get_close_matches(name, there, CLOSE_NAMES, 0.0)))
            also = f"; it has {close}" if close else ""
            raise DownloadFailed(f"{found.repo} has no file {one_line(name)}{also}", hint=_show(found))
    return [listed[name] for name in names]


def _folder(found: RemoteRepo, patterns: tuple[str, ...], *, needed: str, last: str) -> list[RemoteFile]:
    def fits(path: str, *patterns: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in patterns)

    top = [each for each in found.files if "/" not in each.path and fits(each.path, *patterns)]
    files = [each for each in top if not fits(each.path, DOUBLES)] or top
    for pattern in (needed, last):
        if not any(fits(each.path, pattern) for each in files):
            raise DownloadFailed(f"{found.repo} has no file {pattern} that could be run", hint=_show(found))
    return sorted(files, key=lambda each: (fits(each.path, last), fits(each.path, "*.bin", "*.safetensors"), each.path))


def _ordered(remote: RemoteFile, variant: Variant, found: RemoteRepo, models_dir: Path) -> OrderedFile:
    if remote.sha256 is None and remote.git_blob is None:
        raise DownloadFailed(f"the Hub states no digest of {found.repo}/{one_line(remote.path)}", hint=_show(found))
    place = place_of(models_dir, found.repo, remote.path)
    return look(
        OrderedFile(
            remote=remote,
            place=place,
            here_bytes=0,
            known_sha256=variant.sha256 if remote.path == variant.file else None,
        ),
        found.commit,
    )


def look(file: OrderedFile, commit: str) -> OrderedFile:
    """Mark what is here of a file, now."""
    size, here = file.remote.size_bytes, _size(file.place)
    is_verified = _is_verified(file.remote, file.place, here, commit)
    counts = here == size and is_verified is not False
    return replace(
        file,
        here_bytes=size if counts else _part_bytes(file),
        needs_check=here is not None and is_verified is None,
        is_stale=is_verified is False,
    )


def _part_bytes(file: OrderedFile) -> int:
    """Return what has come of this very file: a partial one of another version is thrown away and counts nothing."""
    here, record = _size(part_of(file.place)) or 0, read_part_record(file.place)
    is_its = record is not None and record.digest == (file.remote.sha256 or file.remote.git_blob)
    return here if is_its and here <= file.remote.size_bytes else 0


def _is_verified(remote: RemoteFile, place: Path, here: int | None, commit: str) -> bool | None:
    """Say whether a record vouches for a file, or shows that it is an older one; None where none does either."""
    record = read_record(place)
    if here is None or record is None:
        return None
    if record.size_bytes != here or here != remote.size_bytes:
        return False
    if remote.sha256 is not None:
        return record.sha256 == remote.sha256
    return True if record.commit == commit or record.etag == remote.git_blob else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _show(found: RemoteRepo) -> str:
    return f"slm show hf:{found.repo}"
