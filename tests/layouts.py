"""Lays model files out as other programs lay theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL, PROJECTOR, ADAPTER = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "projector", "adapter"))


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blob(folder: Path, content: bytes, *, separator: str = "-") -> str:
    """Keep bytes as ollama keeps a blob; return their digest as a manifest writes it."""
    hexadecimal = hashlib.sha256(content).hexdigest()
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "blobs" / f"sha256{separator}{hexadecimal}").write_bytes(content)
    return f"sha256:{hexadecimal}"


def manifest(digest: str, *others: tuple[str, str]) -> dict[str, Any]:
    """Return a manifest of a model and of other layers, each as type and digest."""
    layers = [{"mediaType": kind, "digest": each, "size": 1} for kind, each in ((MODEL, digest), *others)]
    return {"schemaVersion": 2, "config": {"digest": "sha256:" + "0" * 64}, "layers": layers}


def name_in_ollama(folder: Path, name: str, value: object, *, version: str = "manifests") -> Path:
    """Write a manifest, or what should be one, under `host/namespace/model/tag`."""
    file = folder / version / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return file


def as_ollama(folder: Path, model: Path, name: str = "registry.ollama.ai/library/tiny/latest") -> Path:
    """Lay a model out as ollama would; return its blob."""
    digest = blob(folder, model.read_bytes())
    name_in_ollama(folder, name, manifest(digest))
    return folder / "blobs" / digest.replace(":", "-")


def as_hub(cache: Path, repo: str, file: str, model: Path, *, commit: str = "a" * 40, links: bool = True) -> Path:
    """Lay a file out as the Hub's cache would; return its path in the snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    stored = folder / "blobs" / digest_of(model)
    place = folder / "snapshots" / commit / file
    for path in (stored, place, folder / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")
    if links:
        stored.write_bytes(model.read_bytes())
        place.symlink_to(stored)
    else:
        place.write_bytes(model.read_bytes())
    return place


def copied(model: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(model.read_bytes())
    return place


def entry(name: str, model: Path, quant: str = "Q8_0") -> str:
    """Return a models.toml entry for a file, with its digest, as a registry would have it."""
    lines: Sequence[str] = (
        f"[models.{name}]",
        f'name = "{name}"',
        "sampling = { temperature = 0.0 }",
        'tags = { open = "<think>", close = "</think>" }',
        'think = { switch = "enable_thinking" }',
        f'variants = [{{ quant = "{quant}", repo = "own/{name}-GGUF", file = "{name}-{quant}.gguf", '
        f'size_bytes = {model.stat().st_size}, sha256 = "{digest_of(model)}" }}]',
    )
    return "\n".join(lines) + "\n"
