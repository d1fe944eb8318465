"""Which forms of a model lie below the models folder: by their place as fetched, else by exact name.

What was fetched lies at `<owner>/<name>/<path in the repository>`; a person may put files anywhere. Only names, sizes
and the records of downloads are looked at; no model is opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_local.gguf_header.facts import PART_NAME
from slm_local.model import ModelSpec, Variant
from slm_local.registry.references import OPENVINO_FILES

RECORDS = ".slm"
"""The folder beside fetched files that holds what is recorded of each."""

FOLDER_FILES = ("openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml")
"""What OpenVINO GenAI needs of a folder, each with its `.bin` (openvino.genai, src/cpp/src/tokenizer). The graph has
another name in models that also see."""

SUFFIXES = (".xml", ".bin")

CHECKPOINT_CONFIG = "config.json"
"""What a download of original weights ends with."""

MADE = "slm-convert.json"
"""The file in an OpenVINO folder that `slm convert` made: of which model, and how."""

UNFINISHED = (".part", ".damaged")
"""What the names of files end in that nothing takes for a model: still coming, found damaged and set aside."""

NAMED, SIZED, IN_PLACE = range(3)
"""How surely a file is a variant's: by name alone, by its exact size, by lying where it would be fetched to."""


def scan(models_dir: Path) -> dict[str, list[Path]]:
    """Return every model below a folder by its name: GGUF files, a split one's first, and whole OpenVINO folders.

    Partial files and links that lead out of the folder are passed over; none where there is no such folder.
    """
    found: dict[str, list[Path]] = {}
    root = Path(os.path.realpath(models_dir))
    for at, folders, names in os.walk(models_dir):
        folder = Path(at)
        folders[:] = sorted(name for name in folders if name != RECORDS)
        if is_whole_folder(folder, root):
            found.setdefault(folder.name, []).append(folder)
        for name in sorted(names):
            if name.lower().endswith(".gguf") and not _is_later_part(name, names) and is_own(folder / name, root):
                found.setdefault(name, []).append(folder / name)
    return found


def find_local(spec: ModelSpec, models: Path | Mapping[str, Sequence[Path]]) -> tuple[Variant, ...]:
    """Return the variants that lie in the models folder (or in a `scan` of it), with path and true size.

    A file counts once: for the variant that would be fetched to its place, else for the one whose size it has, else
    for the first of its name. Split files count when every part is there. Variants that have a path of their own, as
    embedded ones do, are always here. So are folders that were converted here from the model.
    """
    files = scan(models) if isinstance(models, Path) else models
    found: dict[Path, Variant] = {}
    sureness: dict[Path, int] = {}
    for variant in spec.variants:
        own = (Path(variant.path),) if variant.path is not None else None
        for path in files.get(_local_name(variant), ()) if own is None else own:
            size = size_of(path)
            sure = IN_PLACE if own is not None else _sureness(variant, path, size)
            if sure is not None and sure > sureness.get(path, -1):
                sureness[path] = sure
                found[path] = replace(variant, path=str(path), size_bytes=size, size_is_exact=True)
    for path in (path for name, places in files.items() if not name.lower().endswith(".gguf") for path in places):
        facts = made_record(path)
        if facts.get("model") == spec.id:
            found[path] = _made(path, facts)
    return tuple(found.values())


def made_record(folder: Path) -> Mapping[str, Any]:
    """Return what `slm convert` recorded of a folder that it made; nothing where it did not, or that can't be read."""
    return _read(folder / MADE)


def parts_of(path: Path) -> Iterator[Path]:
    """Give the paths of all files of a GGUF model, whichever is named; itself alone where its name says no parts."""
    named = PART_NAME.fullmatch(path.name)
    if named is None or named["count"] == "00000":
        yield path
        return
    for number in range(1, int(named["count"]) + 1):
        yield path.with_name(f"{named['prefix']}-{number:05d}-of-{named['count']}.gguf")


def files_of(path: Path) -> Iterator[Path]:
    """Give the files of a model, given its file, the first of its parts or its folder; of a folder, those there."""
    if not path.is_dir():
        yield from parts_of(path)
    for at, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name != RECORDS)
        yield from (Path(at) / name for name in sorted(names) if not name.endswith(UNFINISHED))


def size_of(path: Path) -> int | None:
    """Return the bytes of a model: its file's, all parts', a folder's; None where one is missing."""
    try:
        return sum(file.stat().st_size for file in files_of(path))
    except OSError:
        return None


def is_own(path: Path, root: Path) -> bool:
    """Tell whether a path is a file that really lies below `root`, which has no links in it."""
    return path.is_file() and (not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(root))


def graph_in(folder: Path) -> Path | None:
    """Return the file of an OpenVINO folder that holds the model's graph; None where there is none."""
    return next((folder / name for name in OPENVINO_FILES if (folder / name).is_file()), None)


def is_whole_folder(folder: Path, root: Path) -> bool:
    """Tell whether an OpenVINO folder has all that is needed, and all that is recorded, none of it partial."""
    graph = graph_in(folder)
    if graph is None:
        return False
    needed = [path.with_suffix(end) for path in (graph, *map(folder.joinpath, FOLDER_FILES[1:])) for end in SUFFIXES]
    return all(is_own(each, root) for each in needed) and _has_all_recorded(folder)


def checkpoint_here(repo: str, models_dir: Path) -> Path | None:
    """Return the folder that a repository's original weights lie in, whole; None where they do not."""
    folder = models_dir / repo
    root = Path(os.path.realpath(models_dir))
    needed = (folder / CHECKPOINT_CONFIG, *folder.glob("*.safetensors"))
    is_whole = len(needed) > 1 and all(is_own(each, root) for each in needed) and _has_all_recorded(folder)
    return folder if is_whole else None


def recorded(place: Path) -> Mapping[str, Any]:
    """Return what is recorded of a fetched file; nothing where that can't be read."""
    return _read(place.parent / RECORDS / f"{place.name}.json")


def _read(file: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _made(folder: Path, facts: Mapping[str, Any]) -> Variant:
    """Return the variant that a converted folder is."""
    return Variant(
        kind="openvino",
        quant=str(facts.get("quant", "")),
        size_bytes=size_of(folder),
        device="npu" if facts.get("device") == "npu" else None,
        path=str(folder),
    )


def _sureness(variant: Variant, path: Path, size: int | None) -> int | None:
    """Say how surely a path is a variant's; None where parts are missing or it is known as another repository's."""
    if size is None:
        return None
    place = f"{variant.repo}/{variant.file}" if variant.file else str(variant.repo)
    if variant.repo is not None and path.as_posix().endswith(f"/{place}"):
        return IN_PLACE
    if variant.size_is_exact and variant.size_bytes == size:
        return SIZED
    first = graph_in(path) or path
    return NAMED if recorded(first).get("repo", variant.repo) == variant.repo else None


def _local_name(variant: Variant) -> str:
    if variant.file is not None:
        return Path(variant.file).name
    return (variant.repo or "").rpartition("/")[2] if variant.kind == "openvino" else ""


def _is_later_part(name: str, beside: Sequence[str]) -> bool:
    """Tell whether a file is a further part of a split model whose first lies beside it."""
    named = PART_NAME.fullmatch(name)
    return named is not None and int(named["number"]) > 1 and next(parts_of(Path(name))).name in beside


def _has_all_recorded(folder: Path) -> bool:
    """Tell whether nothing in a folder is partial, and every file that is recorded has the size it came with."""
    if any(folder.glob("*.part")):
        return False
    names = [each.name.removesuffix(".json") for each in (folder / RECORDS).glob("*.json")]
    whole = [name for name in names if not name.endswith(".part")]
    return all(_has_size(folder / name, recorded(folder / name).get("size_bytes")) for name in whole)


def _has_size(path: Path, size: object) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
