"""What a folder from elsewhere holds that can be taken: which files make models, and where each would lie here.

The folder is trusted in nothing: a record only says what to compare the bytes with, names that could lead out of our
folder are refused, and so are links that lead out of the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from slm_local.download.carry import Carried, Parcel
from slm_local.download.kept import KeptFile, KeptModel, kept_files, kept_models
from slm_local.download.places import Record, place_of, read_record
from slm_local.errors import DownloadFailed, ModelBroken, UsageError
from slm_local.gguf_header import checked_header
from slm_local.model import ModelSpec, Variant
from slm_local.registry import checks
from slm_local.registry.local import FOLDER_FILES, graph_in, is_whole_folder, parts_of
from slm_local.registry.recognise import ROUNDED_SIZE

FOLDER_SUFFIXES = frozenset({".xml", ".bin", ".json", ".txt", ".jinja", ".model"})
"""What an OpenVINO folder without records is taken with: graphs, weights, configuration, tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """What a folder holds."""

    parcels: tuple[Parcel, ...]
    refused: tuple[Carried, ...]


def cargo_in(folder: Path, models_dir: Path, models: Sequence[ModelSpec], cache_dir: Path) -> Cargo:
    """Return what of a folder can be copied into the models folder, and what can't and why.

    `UsageError` for what is no folder, holds no model, or is the models folder.
    """
    real, ours = Path(os.path.realpath(folder)), Path(os.path.realpath(models_dir))
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", hint="slm import DIR")
    if real.is_relative_to(ours) or ours.is_relative_to(real):
        raise UsageError(f"{folder} is where slm keeps its models: they are here", hint="slm ls")
    parcels: list[Parcel] = []
    refused = [_refused(path, 0, "is a link that leads out of the folder") for path in _links_out(folder, real)]
    for model in _models_in(folder):
        try:
            parcels += _parcels(model, folder, models_dir, models, cache_dir)
        except (DownloadFailed, ModelBroken) as error:
            why = error.message.removeprefix(f"{model.target} ")
            refused.append(_refused(model.target, model.size_bytes, why))
    if not parcels and not refused:
        raise UsageError(f"{folder} holds neither .gguf files nor OpenVINO folders", hint="slm pull MODEL --to DIR")
    return Cargo(parcels=tuple(parcels), refused=tuple(refused))


def _models_in(folder: Path) -> tuple[KeptModel, ...]:
    """Return the models in a folder, or the one that the folder itself is."""
    if graph_in(folder) is None:
        return kept_models(folder)
    return (KeptModel(target=folder, files=tuple(file for file in kept_files(folder) if file.path.parent == folder)),)


def _parcels(
    model: KeptModel, folder: Path, models_dir: Path, models: Sequence[ModelSpec], cache_dir: Path
) -> list[Parcel]:
    """Return a model's files with their places; `DownloadFailed` or `ModelBroken` where it can't be taken."""
    if not model.is_whole:
        raise ModelBroken("is a download that has not ended, or was found damaged")
    recorded = [(file, record) for file in model.files if (record := read_record(file.path)) is not None]
    _check_whole(model, cache_dir, is_recorded=bool(recorded))
    if recorded:
        return [_recorded_parcel(file, record, models_dir, models) for file, record in recorded]
    variant = _variant_of(model, models)
    is_folder = model.target.is_dir()
    return [
        Parcel(
            source=file.path,
            place=_unrecorded_place(file, model, variant, folder, models_dir),
            size_bytes=file.size_bytes,
            known_sha256=variant.sha256 if variant is not None and file.path == model.target else None,
        )
        for file in model.files
        if not is_folder or file.path.suffix.lower() in FOLDER_SUFFIXES
    ]


def _check_whole(model: KeptModel, cache_dir: Path, *, is_recorded: bool) -> None:
    """Raise `ModelBroken` where a part is missing, or the header of a file that nothing vouches for is broken."""
    is_folder = model.target.is_dir()
    if is_folder and graph_in(model.target) is not None:
        if not is_whole_folder(model.target, Path(os.path.realpath(model.target))):
            raise ModelBroken(f"is no whole OpenVINO model: it takes {', '.join(FOLDER_FILES)}, each with its .bin")
    elif not is_folder and not is_recorded:
        checked_header(model.target, cache_dir)
    elif not is_folder and not {*parts_of(model.target)} <= {file.place for file in model.files}:
        raise ModelBroken(f"is not whole: only {len(model.files)} of its parts are there")


def _recorded_parcel(file: KeptFile, record: Record, models_dir: Path, models: Sequence[ModelSpec]) -> Parcel:
    if record.size_bytes != file.size_bytes:
        raise ModelBroken(f"is damaged: {file.path.name} has {file.size_bytes:,} bytes, not {record.size_bytes:,}")
    if PurePosixPath(record.file).name != file.path.name:
        raise DownloadFailed(f"has a record that is another file's: {record.file}")
    same = [each for spec in models for each in spec.variants if (each.repo, each.file) == (record.repo, record.file)]
    return Parcel(
        source=file.path,
        place=place_of(models_dir, record.repo, record.file),
        size_bytes=file.size_bytes,
        record=record,
        known_sha256=same[0].sha256 if same else None,
    )


def _unrecorded_place(
    file: KeptFile, model: KeptModel, variant: Variant | None, folder: Path, models_dir: Path
) -> Path:
    """Return where a file would be fetched to, where the registry knows it; else its place in the other folder."""
    if variant is not None and variant.repo is not None:
        if variant.file is None:
            return place_of(models_dir, variant.repo, file.path.relative_to(model.target).as_posix())
        return place_of(models_dir, variant.repo, PurePosixPath(variant.file).with_name(file.path.name).as_posix())
    name = file.path.relative_to(folder.parent if model.target == folder else folder).as_posix()
    try:
        return models_dir / checks.file_name(name)
    except (checks.Fault, UnicodeEncodeError):
        raise DownloadFailed("has a name that is not safe on every system") from None


def _variant_of(model: KeptModel, models: Sequence[ModelSpec]) -> Variant | None:
    """Return the registry's variant that has this name and, as far as it knows one, this size."""
    is_folder = model.target.is_dir()
    for variant in (each for spec in models for each in spec.variants if each.repo is not None and each.path is None):
        name = PurePosixPath(variant.file).name if variant.file else str(variant.repo).rpartition("/")[2]
        is_named = name == model.target.name and (variant.kind == "openvino") == is_folder
        if is_named and (is_folder or _has_size(model, variant)):
            return variant
    return None


def _has_size(model: KeptModel, variant: Variant) -> bool:
    if variant.size_bytes is None:
        return True
    allowed = 0.0 if variant.size_is_exact else ROUNDED_SIZE
    return abs(model.size_bytes - variant.size_bytes) <= allowed * variant.size_bytes


def _links_out(folder: Path, root: Path) -> Iterator[Path]:
    """Give links to folders and to what is named as a model's file that lead out of the folder."""
    for at, folders, names in os.walk(folder):
        for path in (Path(at) / name for name in sorted((*folders, *names))):
            is_of_a_model = path.suffix.lower() == ".gguf" or path.name.startswith("openvino_") or path.is_dir()
            if path.is_symlink() and is_of_a_model and not Path(os.path.realpath(path)).is_relative_to(root):
                yield path


def _refused(path: Path, size_bytes: int, why: str) -> Carried:
    return Carried(source=path, size_bytes=size_bytes, outcome="refused", remark=why)
