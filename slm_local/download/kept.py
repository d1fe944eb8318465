"""What is kept below the models folder: which files make a model, and how they go.

It knows this program's own folder; other programs' models are `found`'s business, and nothing here touches them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from slm_local.download.places import forget, forget_part, part_of, read_part_record, read_record
from slm_local.download.quants import quant_name
from slm_local.errors import UsageError
from slm_local.model import ModelSpec, Variant
from slm_local.registry import Registry, Resolved, find_local, scan
from slm_local.registry.local import RECORDS, UNFINISHED, graph_in, is_own, parts_of
from slm_local.registry.references import OPENVINO_FILES, is_there

PART, DAMAGED = UNFINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A file below the models folder, whole, partial or set aside."""

    place: Path
    """Where it lies when it is whole."""
    path: Path
    """Where it lies."""
    size_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether it has its final name."""
        return self.path == self.place

    @property
    def is_partial(self) -> bool:
        """Whether a download of it has begun and not ended."""
        return self.path.name.endswith(PART) and not self.is_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptModel:
    """One form of a model: a GGUF file with all its parts, or a folder; whole or not."""

    target: Path
    """The file, the first of its parts, or the folder."""
    files: tuple[KeptFile, ...]
    model: str | None = None
    """The registry's name for it, where it is one of the registry's."""
    variant: Variant | None = None
    """The registry's facts of it."""

    @property
    def size_bytes(self) -> int:
        """Return what it takes on the disk."""
        return sum(file.size_bytes for file in self.files)

    @property
    def quant(self) -> str:
        """Return the quantization, from the registry or the name; empty where neither says."""
        if self.variant is not None:
            return self.variant.quant
        return "original" if self.is_checkpoint else quant_name(self.target.name)

    @property
    def is_checkpoint(self) -> bool:
        """Whether these are a model's original weights."""
        return any(file.place.name.endswith(".safetensors") for file in self.files)

    @property
    def is_whole(self) -> bool:
        """Whether no part of it is still to come or set aside."""
        return all(file.is_whole for file in self.files)


def kept_files(models_dir: Path) -> Iterator[KeptFile]:
    """Give every file below a folder but records, and links that lead out of it."""
    root = Path(os.path.realpath(models_dir))
    for at, folders, names in os.walk(models_dir):
        folders[:] = sorted(name for name in folders if name != RECORDS)
        for path in (Path(at) / name for name in sorted(names)):
            if is_own(path, root):
                yield KeptFile(place=_place_of(path), path=path, size_bytes=path.stat().st_size)


def kept_models(models_dir: Path) -> tuple[KeptModel, ...]:
    """Return every model that lies in the models folder, in the order of their places."""
    files = list(kept_files(models_dir))
    folders = {file.place.parent for file in files if file.place.name in OPENVINO_FILES} - {models_dir}
    groups: dict[Path, list[KeptFile]] = {}
    for file in files:
        groups.setdefault(_target(file.place, models_dir, folders), []).append(file)
    models = (KeptModel(target=target, files=tuple(group)) for target, group in sorted(groups.items()))
    return tuple(each for each in models if each.target in folders or any(_is_of_a_model(file) for file in each.files))


def known(models: Sequence[KeptModel], specs: Sequence[ModelSpec], models_dir: Path) -> tuple[KeptModel, ...]:
    """Return what is kept, with name and variant where the registry has one fetched to that place or lying there."""
    files = scan(models_dir)
    fetched: dict[Path, tuple[str, Variant]] = {}
    lying: dict[Path, tuple[str, Variant]] = {}
    for spec in specs:
        if spec.original_repo is not None:
            original = Variant(kind="checkpoint", quant="original", repo=spec.original_repo)
            fetched.setdefault(models_dir / spec.original_repo, (spec.id, original))
        for each in spec.variants:
            if each.repo is not None:
                fetched.setdefault(models_dir / each.repo / (each.file or ""), (spec.id, each))
        for each in find_local(spec, files):
            lying.setdefault(Path(str(each.path)), (spec.id, each))
    facts = {**lying, **fetched}
    named = ((each, *facts.get(each.target, (None, None))) for each in models)
    return tuple(replace(each, model=name, variant=variant) for each, name, variant in named)


def resolved_kept(reference: str, registry: Registry) -> Resolved:
    """Resolve a reference to what may be kept: a model, or a folder of original weights, which nothing runs."""
    if is_there(reference):
        folder = Path(reference).expanduser()
        if any(folder.glob("*.safetensors*")) and graph_in(folder) is None:
            return Resolved(reference=reference, kind="path", path=str(folder))
    return registry.resolve(reference)


def kept_of(resolved: Resolved, specs: Sequence[ModelSpec], models_dir: Path) -> tuple[KeptModel, ...]:
    """Return what is kept of the model that a reference names; a path may also name one unfinished file."""
    if resolved.kind == "registry" and resolved.spec is not None:
        ours = known(kept_models(models_dir), (resolved.spec,), models_dir)
        return tuple(each for each in ours if each.model is not None)
    ours = known(kept_models(models_dir), specs, models_dir)
    if resolved.path is not None:
        given = Path(resolved.path)
        return tuple(found for each in ours if (found := _named_by(given, each)) is not None)
    if resolved.repo is not None:
        folder = models_dir / resolved.repo
        return tuple(each for each in ours if each.target.is_relative_to(folder) and _is_asked_for(each, resolved))
    return ()


def remove(model: KeptModel, models_dir: Path) -> int:
    """Remove a model's files, what is recorded of them and the folders that are empty then; return the bytes freed.

    The largest goes first: where it is in use, nothing is lost. `UsageError` for a file that can't be removed.
    """
    freed = 0
    for file in sorted(model.files, key=lambda each: each.size_bytes, reverse=True):
        try:
            with held(file.place):
                file.path.unlink(missing_ok=True)
        except OSError as error:
            raise not_removable(file.path, error) from error
        freed += file.size_bytes
        if file.is_partial:
            forget_part(file.place)
        if not file.place.exists() and not part_of(file.place).exists():
            forget(file.place)
        remove_empty(file.place.parent, models_dir)
    return freed


def remove_empty(folder: Path, models_dir: Path) -> None:
    """Remove a folder and those above it as long as they are empty, the models folder never."""
    while folder != models_dir and folder.is_relative_to(models_dir):
        with suppress(OSError):
            (folder / RECORDS).rmdir()
        try:
            folder.rmdir()
        except OSError:  # other files are in it
            return
        folder = folder.parent


@contextmanager
def held(place: Path) -> Iterator[None]:
    """Hold the lock that downloads of a file share; `UsageError` while another process has it."""
    if not (place.parent / RECORDS).is_dir():  # nothing of slm's is there to be shared
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(place.parent / RECORDS / f"{place.name}.lock", timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{place.name} is being fetched by another slm", hint="end that one first, or wait") from None
    try:
        yield
    finally:
        lock.release()


def not_removable(path: Path, error: OSError) -> UsageError:
    """Make the error for a file that the system keeps; Windows does so while a program has it open."""
    if isinstance(error, PermissionError) and getattr(error, "winerror", None) in (5, 32):
        return UsageError(f"{path.name} is in use by another program", hint="end what runs the model, then try again")
    return UsageError(f"{path} can't be removed: {error.strerror}", hint="slm ls")


def _place_of(path: Path) -> Path:
    """Return the place of what may be partial or set aside."""
    endings = [ending for ending in UNFINISHED if path.name.endswith(ending) and path.name != ending]
    return path.with_name(path.name.removesuffix(endings[0])) if endings else path


def _target(place: Path, models_dir: Path, folders: set[Path]) -> Path:
    """Return what a file belongs to: its GGUF model, the OpenVINO folder it lies in, else its repository."""
    if place.name.lower().endswith(".gguf"):
        return next(parts_of(place))
    steps = place.relative_to(models_dir).parts
    repository = models_dir.joinpath(*steps[:2]) if len(steps) > 2 else place
    return next((parent for parent in place.parents if parent in folders), repository)


def _is_of_a_model(file: KeptFile) -> bool:
    is_named = file.place.name.lower().endswith(".gguf") or not file.is_whole
    return is_named or read_record(file.place) is not None or read_part_record(file.place) is not None


def _named_by(given: Path, model: KeptModel) -> KeptModel | None:
    """Return the model, or one unfinished file of it, that a path names; None where it names neither."""
    if any(_is_same(given, path) for path in (model.target, *(each.path for each in model.files if each.is_whole))):
        return model
    unfinished = tuple(each for each in model.files if not each.is_whole and _is_same(given, each.path))
    return replace(model, files=unfinished) if unfinished else None


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_asked_for(model: KeptModel, resolved: Resolved) -> bool:
    if resolved.file is not None:
        return model.target.as_posix().endswith(f"/{resolved.repo}/{resolved.file}")
    return resolved.quant is None or model.quant.casefold() == resolved.quant.casefold()
