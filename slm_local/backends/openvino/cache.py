"""Compiled models on disk, a folder a model and device: known as there or not, and never more than a bound.

Imports no runtime, so that the parent can tell beforehand that a load will compile.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slm_local.generation import LoadSettings
from slm_local.paths import make_folder, paths

FOLDER = "openvino"

LARGEST_BYTES = 16 << 30
"""What all compiled models together may take: three of 8 billion parameters in 4 bits."""

SHARE_OF_FREE = 0.25
"""Nor more than this share of what is free on the disk, what they take now included."""

BLOB_FACTOR = 1.5
"""A compiled model's size beside its weights', at most; 1.46 was seen for a 135M model in Q4_1."""


def compile_folder(settings: LoadSettings) -> Path:
    """Return where this model, compiled for this device by this OpenVINO, belongs; it need not exist."""
    root = Path(settings.cache_dir) if settings.cache_dir is not None else paths().cache / FOLDER
    facts = [settings.device, _openvino_version()]
    for file in model_files(Path(settings.model_path)):
        found = file.stat()
        facts += [str(file.resolve()), str(found.st_size), str(found.st_mtime_ns)]
    return root / hashlib.sha256("\0".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def model_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the model itself: a GGUF file, or the two of an OpenVINO folder."""
    if path.is_dir():
        return (path / "openvino_model.xml", path / "openvino_model.bin")
    return (path,)


def will_compile(settings: LoadSettings) -> bool:
    """Tell whether loading compiles the model for its device for the first time, which takes seconds to minutes."""
    try:
        return not blobs(compile_folder(settings))
    except OSError:
        return False  # a file is missing: the load says so


def blobs(folder: Path) -> set[str]:
    """Return the names of the compiled models in a folder."""
    return {file.name for file in folder.glob("*.blob")}


def open_cache(settings: LoadSettings) -> Path | None:
    """Return the folder to compile into, marked as used now; None where the disk has no room for it.

    Others are removed, those used longest ago first, until this one fits within the bound.
    """
    folder = compile_folder(settings)
    needed = int(sum(file.stat().st_size for file in model_files(Path(settings.model_path))) * BLOB_FACTOR)
    root = make_folder(folder.parent)
    taken = size_of(folder)
    bound = _bound(root)
    if max(needed, taken) > bound:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    make_folder(folder)
    with contextlib.suppress(OSError):
        os.utime(folder)
    _shrink(root, keep=folder, bound=bound - max(needed, taken))
    return folder


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _bound(root: Path) -> int:
    return min(LARGEST_BYTES, int((shutil.disk_usage(root).free + size_of(root)) * SHARE_OF_FREE))


def _shrink(root: Path, *, keep: Path, bound: int) -> None:
    """Remove folders, oldest use first, until those but `keep` take at most `bound` bytes."""
    others = [each for each in root.iterdir() if each.is_dir() and each != keep]
    others.sort(key=lambda each: each.stat().st_mtime)
    sizes = {each: size_of(each) for each in others}
    for each in others:
        if sum(sizes.values()) <= bound:
            return
        shutil.rmtree(each, ignore_errors=True)
        del sizes[each]


def _openvino_version() -> str:
    try:
        return version("openvino")
    except PackageNotFoundError:
        return ""
