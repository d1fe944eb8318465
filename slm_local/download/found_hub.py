"""Models in the Hub's cache and in llama.cpp's, which is the Hub's since 2026 and was a flat folder before.

Sources: huggingface_hub (constants.py, file_download.py): `models--<owner>--<name>/snapshots/<commit>/<file>` is a
link to `blobs/<sha256>`, or the file itself where the system has no links. llama.cpp's common/hf-cache.cpp (LLAMA_CACHE
first, else the Hub's cache) and, before, common/arg.cpp: `<owner>_<name>_<file>.gguf`, beside
`manifest=<owner>=<name>=<tag>.json`, whose `ggufFile` has the file's name, size and digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slm_local.download.found_search import FoundModel, Machine, Search, is_model_name
from slm_local.registry.local import FOLDER_FILES, size_of
from slm_local.registry.recognise import plain_digest, stated_digest
from slm_local.registry.references import is_repository

REPO_PREFIX = "models--"
SNAPSHOT_DEPTH = 4
"""Folders that a repository's files may lie deep; quantizations have one of their own at times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What a manifest of llama.cpp says of one file."""

    repo: str
    file: str
    size_bytes: int | None
    sha256: str | None


def find_hub(machine: Machine, search: Search) -> None:
    """Add every GGUF file and OpenVINO folder in the Hub's cache."""
    for folder in hub_folders(machine):
        _take_cache(folder, search)


def find_llamacpp(machine: Machine, search: Search) -> None:
    """Add every GGUF file in llama.cpp's cache, in its newer layout and in its older one."""
    for folder in llamacpp_folders(machine):
        _take_cache(folder, search)
        _take_flat(folder, search)


def hub_folders(machine: Machine) -> list[Path]:
    """Return where the Hub's cache may be here: where variables say, and where it is without them."""
    below = [
        machine.folder("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"),
        _below(machine.folder("HF_HOME"), "hub"),
        _below(machine.folder("XDG_CACHE_HOME"), "huggingface", "hub"),
        machine.home / ".cache" / "huggingface" / "hub",
    ]
    return [each for each in dict.fromkeys(below) if each is not None]


def llamacpp_folders(machine: Machine) -> list[Path]:
    """Return where llama.cpp may keep its own cache here."""
    match machine.platform:
        case "win32":
            own = _below(machine.folder("LOCALAPPDATA") or machine.home / "AppData" / "Local", "llama.cpp")
        case "darwin":
            own = machine.home / "Library" / "Caches" / "llama.cpp"
        case _:
            own = _below(machine.folder("XDG_CACHE_HOME") or machine.home / ".cache", "llama.cpp")
    return [each for each in dict.fromkeys([machine.folder("LLAMA_CACHE"), own]) if each is not None]


def _below(folder: Path | None, *names: str) -> Path | None:
    return None if folder is None else folder.joinpath(*names)


def _take_cache(folder: Path, search: Search) -> None:
    for entry in search.entries(folder):
        repo = entry.name.removeprefix(REPO_PREFIX).replace("--", "/")
        if entry.name.startswith(REPO_PREFIX) and is_repository(repo):
            for snapshot in _snapshots(Path(entry.path), search):
                _take_snapshot(snapshot, repo, search)


def _snapshots(repo_folder: Path, search: Search) -> list[Path]:
    """Return a repository's commits that are here, the one that `main` stands for first."""
    main = (search.text(repo_folder / "refs" / "main") or "").strip()
    found = [Path(entry.path) for entry in search.entries(repo_folder / "snapshots")]
    return sorted(found, key=lambda path: path.name != main)


def _take_snapshot(snapshot: Path, repo: str, search: Search) -> None:
    for path in search.files_below(snapshot, SNAPSHOT_DEPTH):
        inside = path.relative_to(snapshot).as_posix()
        if is_model_name(path.name):
            search.add(path, f"{repo}/{inside}", sha256=stated_digest(path), repo=repo, file=inside)
        elif path.name == FOLDER_FILES[0]:
            _take_openvino(path, repo, search)


def _take_openvino(graph: Path, repo: str, search: Search) -> None:
    """Add the folder of an OpenVINO model, if all that is needed lies in it."""
    needed = [graph.with_name(name).with_suffix(suffix) for name in FOLDER_FILES for suffix in (".xml", ".bin")]
    size = size_of(graph.parent)
    if size is None or not all(path.is_file() for path in needed):
        return
    weights = graph.with_suffix(".bin").stat()
    search.models.append(
        FoundModel(
            path=graph.parent,
            program=search.program,
            name=repo,
            size_bytes=size,
            file_id=(weights.st_dev, weights.st_ino),
            repo=repo,
            kind="openvino",
        )
    )


def _take_flat(folder: Path, search: Search) -> None:
    entries = search.entries(folder)
    records = {name: record for entry in entries for name, record in _records(entry, search)}
    for entry in entries:
        if not is_model_name(entry.name):
            continue
        record = records.get(entry.name)
        if record is None:
            search.add(Path(entry.path), entry.name)
            continue
        is_that_file = record.size_bytes is None or _size(entry) == record.size_bytes
        search.add(
            Path(entry.path),
            f"{record.repo}/{record.file}",
            sha256=record.sha256 if is_that_file else None,
            repo=record.repo,
            file=record.file,
        )


def _records(entry: os.DirEntry[str], search: Search) -> Iterator[tuple[str, _Record]]:
    """Give the name under which a manifest's file lies in the cache, and what the manifest says of it."""
    parts = entry.name.removesuffix(".json").split("=")
    if parts[0] != "manifest" or len(parts) != 4:
        return
    repo = f"{parts[1]}/{parts[2]}"
    read = search.json(Path(entry.path))
    gguf = read.get("ggufFile") if isinstance(read, dict) else None
    file = gguf.get("rfilename") if isinstance(gguf, dict) else None
    if not isinstance(gguf, dict) or not isinstance(file, str) or not is_repository(repo):
        return
    stored = gguf.get("lfs")
    size = gguf.get("size")
    digest = plain_digest(stored.get("sha256")) if isinstance(stored, dict) else None
    record = _Record(
        repo=repo,
        file=file,
        size_bytes=size if isinstance(size, int) else None,
        sha256=digest or plain_digest(gguf.get("blobId")),
    )
    yield f"{repo}/{file}".replace("/", "_"), record


def _size(entry: os.DirEntry[str]) -> int | None:
    try:
        return entry.stat().st_size
    except OSError:
        return None
