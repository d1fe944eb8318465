"""Puts files into a models folder as a download would leave them, with records of their real digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from slm_local.download.places import Record, part_of, place_of, write_record
from slm_local.model import ModelSpec, Variant
from tests.conftest import TINY_WEIGHTS

REPO = "maker/model-GGUF"
FILE = "model-Q8_0.gguf"
OPENVINO_REPO = "OpenVINO/model-int4-ov"
OPENVINO_FILES = tuple(
    f"openvino_{part}{suffix}" for part in ("model", "tokenizer", "detokenizer") for suffix in (".xml", ".bin")
)

GGUF = (TINY_WEIGHTS / "tiny-reasoner.gguf").read_bytes()

SPLIT_FILE = "parts/model-Q4_0-00001-of-00002.gguf"

SPEC = ModelSpec(
    id="model",
    name="Model",
    variants=(
        Variant(kind="gguf", quant="Q8_0", repo=REPO, file=FILE, size_bytes=len(GGUF)),
        Variant(kind="gguf", quant="Q4_0", repo=REPO, file=SPLIT_FILE),
        Variant(kind="openvino", quant="int4", repo=OPENVINO_REPO),
    ),
)
"""A model of a registry, in three forms."""


def put(path: Path, content: bytes = b"bytes") -> Path:
    """Write a file, and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def record_of(content: bytes, repo: str = REPO, file: str = FILE) -> Record:
    """Return what a download records of these bytes."""
    return Record(
        repo=repo,
        file=file,
        commit="c" * 40,
        etag=None,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        verified_against="sha256",
    )


def fetched(models_dir: Path, content: bytes = b"bytes", repo: str = REPO, file: str = FILE) -> Path:
    """Leave what a download of a file leaves; return its place."""
    place = put(place_of(models_dir, repo, file), content)
    write_record(place, record_of(content, repo, file))
    return place


def begun(models_dir: Path, repo: str = REPO, file: str = FILE, content: bytes = b"some") -> Path:
    """Leave a partial file; return it."""
    return put(part_of(place_of(models_dir, repo, file)), content)


def fetched_folder(models_dir: Path, repo: str = OPENVINO_REPO) -> Path:
    """Leave what a download of an OpenVINO folder leaves; return the folder."""
    for name in (*OPENVINO_FILES, "config.json"):
        fetched(models_dir, name.encode(), repo, name)
    return models_dir / repo


def left(folder: Path) -> list[str]:
    """Return what is below a folder, files and empty folders."""
    ends = (path for path in sorted(folder.rglob("*")) if path.is_file() or not any(path.iterdir()))
    return [path.relative_to(folder).as_posix() for path in ends]
