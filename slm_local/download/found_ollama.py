"""Models of ollama: a manifest for each name, which says by digest which blob is the model.

Source: ollama's manifest/manifest.go and paths.go (2026): `manifests/<host>/<namespace>/<model>/<tag>` is JSON, in
newer versions `manifests-v2/…`, a link to a blob; a layer of type `…image.model` names `blobs/sha256-<hex>` (older
versions: `sha256:<hex>`). A manifest list holds one manifest a runner, whole or as the digest of a blob. What has no
model layer (models in the cloud, MLX tensors) is nothing that can be run here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm_local.download.found_search import Machine, Search
from slm_local.registry.recognise import plain_digest

IMAGE = "application/vnd.ollama.image."
MANIFEST_LIST = "application/vnd.ollama.manifest.list.v2+json"
RUNNERS = ("ollama", "llamacpp", "")
"""Runners whose weights are GGUF files, in ollama's own order; an old manifest names none."""

OWN_HOST, OWN_NAMESPACE = "registry.ollama.ai", "library"
HUB_HOSTS = ("hf.co", "huggingface.co")

DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
"""Nothing else may become part of a path (ollama CVE-2024-37032)."""

SERVICE_FOLDER = "/usr/share/ollama/.ollama/models"
"""Where the service keeps its models that ollama's installer sets up on Linux."""

NOT_USED = {"adapter": "its adapter is not applied", "projector": "text only: its projector is not used"}


def find(machine: Machine, search: Search) -> None:
    """Add every model that has a manifest and a blob."""
    for folder in folders(machine):
        if search.entries(folder):
            for manifest, name, repo in _manifests(folder, search):
                _take(manifest, name, repo, folder / "blobs", search)


def folders(machine: Machine) -> list[Path]:
    """Return where ollama may keep its models here."""
    places = [machine.folder("OLLAMA_MODELS"), machine.home / ".ollama" / "models"]
    if machine.platform == "linux":
        places.append(Path(SERVICE_FOLDER))
    return [place for place in dict.fromkeys(places) if place is not None]


def _manifests(folder: Path, search: Search) -> Iterator[tuple[Path, str, str | None]]:
    """Give every manifest with the model's name and its Hub repository, a newer manifest before an older one."""
    seen: set[str] = set()
    for version in ("manifests-v2", "manifests"):
        for host in search.entries(folder / version):
            for namespace in search.entries(Path(host.path)):
                for model in search.entries(Path(namespace.path)):
                    for tag in search.entries(Path(model.path)):
                        name = _name(host.name, namespace.name, model.name, tag.name)
                        repo = f"{namespace.name}/{model.name}" if host.name in HUB_HOSTS else None
                        if name not in seen:
                            seen.add(name)
                            yield Path(tag.path), name, repo


def _name(host: str, namespace: str, model: str, tag: str) -> str:
    """Return a model's name as ollama shows it."""
    if host != OWN_HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == OWN_NAMESPACE else f"{namespace}/{model}:{tag}"


def _take(manifest: Path, name: str, repo: str | None, blobs: Path, search: Search) -> None:
    read = search.json(manifest)
    if read is None:
        return
    layers = _layers(read, blobs, search)
    if layers is None:
        search.remark(f"{name} is passed over, its manifest is damaged: {manifest}")
        return
    models = [layer for layer in layers if layer.get("mediaType") == f"{IMAGE}model"]
    if not models:
        return
    blob = _blob(blobs, models[0].get("digest"))
    if blob is None:
        search.remark(f"{name} is passed over, its file is not there: ollama pull {name}")
        return
    kinds = {str(layer.get("mediaType")).removeprefix(IMAGE) for layer in layers}
    notes = tuple(note for kind, note in NOT_USED.items() if kind in kinds)
    search.add(blob, name, sha256=plain_digest(models[0]["digest"]), repo=repo, notes=notes)


def _layers(manifest: object, blobs: Path, search: Search) -> list[dict[str, Any]] | None:
    """Return a manifest's layers; none in a list without one for GGUF files, None where it is damaged."""
    if not isinstance(manifest, dict):
        return None
    if manifest.get("mediaType") == MANIFEST_LIST:
        children = manifest.get("manifests")
        if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
            return None
        chosen = _for_gguf(children)
        if chosen is None:
            return []
        if "layers" not in chosen:
            blob = _blob(blobs, chosen.get("digest"))
            read = search.json(blob) if blob is not None else None
            chosen = read if isinstance(read, dict) else {}
        manifest = chosen
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return None
    return layers


def _for_gguf(children: list[dict[str, Any]]) -> dict[str, Any] | None:
    usable = [child for child in children if child.get("format") in (None, "", "gguf")]
    by_runner = {str(child.get("runner") or "").lower(): child for child in reversed(usable)}
    return next((by_runner[runner] for runner in RUNNERS if runner in by_runner), None)


def _blob(blobs: Path, digest: object) -> Path | None:
    """Return the file of a digest; None where there is none or the digest is no SHA-256."""
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        return None
    hexadecimal = digest[len("sha256:") :]
    names = (f"sha256-{hexadecimal.lower()}", f"sha256-{hexadecimal}", f"sha256:{hexadecimal}")
    try:
        return next((blobs / name for name in names if (blobs / name).is_file()), None)
    except OSError:
        return None
