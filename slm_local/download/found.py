"""What models other programs keep on this disk, and which of them are models of the registry.

ollama, LM Studio, the Hub's cache, llama.cpp and Jan are looked into, each by its own layout (`found_ollama`,
`found_hub`, `found_folders`). Nothing is copied, changed or hashed: a model is known again by the digest that its
program recorded, else by its header.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slm_local.download import found_folders, found_hub, found_ollama
from slm_local.download.found_search import FoundModel, Machine, Search
from slm_local.errors import ModelBroken
from slm_local.gguf_header import checked_header
from slm_local.model import ModelSpec, Variant
from slm_local.registry import spec_for_file

__all__ = ["Findings", "FoundModel", "found_models", "found_spec", "found_variants", "look_around"]

PROGRAMS: tuple[tuple[str, Callable[[Machine, Search], None]], ...] = (
    ("ollama", found_ollama.find),
    ("LM Studio", found_folders.find_lm_studio),
    ("Hub cache", found_hub.find_hub),
    ("llama.cpp", found_hub.find_llamacpp),
    ("Jan", found_folders.find_jan),
)

BYTES_PER_PARAMETER = (0.1, 4.6)
"""What a parameter can take in a GGUF file, from below one bit to f32: other sizes are other models, unread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found, each file once, and what was passed over and why."""

    models: tuple[FoundModel, ...]
    remarks: tuple[str, ...]
    """One line each, as a terminal may be shown it."""


def found_models(environment: Mapping[str, str] | None = None) -> tuple[FoundModel, ...]:
    """Return the models that other programs keep on this disk, each file once."""
    return look_around(environment).models


def look_around(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Findings:
    """Look where other programs keep their models; what can't be read is a remark."""
    environment = os.environ if environment is None else environment
    home = _home(environment, platform)
    if home is None:
        return Findings(models=(), remarks=("there is no home folder to look for other programs' models in",))
    machine = Machine(environment=environment, platform=platform, home=home)
    models: list[FoundModel] = []
    remarks: list[str] = []
    for program, find in PROGRAMS:
        search = Search(program)
        find(machine, search)
        models += search.models
        remarks += search.remarks
    return Findings(models=_each_once(models), remarks=tuple(dict.fromkeys(remarks)))


def found_spec(found: FoundModel, models: Sequence[ModelSpec], cache_dir: Path) -> ModelSpec:
    """Return what a found GGUF file is, by its stated digest and its header: a model of the registry, or only a file.

    Its one variant lies where it was found. `ModelBroken` says what is wrong with the file.
    """
    header = checked_header(found.path, cache_dir)
    spec, _ = spec_for_file(header, models, sha256=found.sha256, file=found.file)
    own = spec.variants[0]
    if own.repo is None:
        own = replace(own, repo=found.repo, file=found.file, sha256=found.sha256)
    return replace(spec, variants=(own,))


def found_variants(
    spec: ModelSpec, models: Sequence[ModelSpec], found: Sequence[FoundModel], cache_dir: Path
) -> tuple[Variant, ...]:
    """Return the found models that are this one of the registry, where they lie; those known by digest first.

    Broken files are left out: `slm ls` says what is wrong with them.
    """
    by_digest: list[Variant] = []
    others: list[Variant] = []
    digests = {variant.sha256 for variant in spec.variants if variant.sha256 is not None}
    for each in found:
        if each.kind == "openvino":
            others += _openvino_variants(spec, each)
        elif each.sha256 in digests or _may_be(spec, each):
            try:
                known = found_spec(each, models, cache_dir)
            except ModelBroken:
                continue
            if known.id == spec.id and known.origin != "file":
                (by_digest if each.sha256 in digests else others).extend(known.variants)
    return (*by_digest, *others)


def _openvino_variants(spec: ModelSpec, found: FoundModel) -> list[Variant]:
    same = (each for each in spec.variants if each.kind == "openvino" and each.repo == found.repo)
    return [replace(each, path=str(found.path), size_bytes=found.size_bytes, size_is_exact=True) for each in same]


def _may_be(spec: ModelSpec, found: FoundModel) -> bool:
    if spec.parameters is None:
        return True
    least, most = (share * spec.parameters for share in BYTES_PER_PARAMETER)
    return least <= found.size_bytes <= most


def _each_once(models: Sequence[FoundModel]) -> tuple[FoundModel, ...]:
    """Leave out a file found before, by inode or by stated digest and size; the first keeps the others' names."""
    kept: list[FoundModel] = []
    place: dict[tuple[object, ...], int] = {}
    for model in models:
        keys: list[tuple[object, ...]] = [model.file_id, *([(model.sha256, model.size_bytes)] if model.sha256 else [])]
        known = next((place[key] for key in keys if key in place), None)
        if known is None:
            known = len(kept)
            kept.append(model)
        else:
            first = kept[known]
            repo, file = (first.repo, first.file) if first.repo else (model.repo, model.file)
            also = (*first.also, f"{model.program} {model.name}")
            kept[known] = replace(first, also=also, sha256=first.sha256 or model.sha256, repo=repo, file=file)
        for key in keys:
            place.setdefault(key, known)
    return tuple(kept)


def _home(environment: Mapping[str, str], platform: str) -> Path | None:
    given = environment.get("USERPROFILE" if platform == "win32" else "HOME")
    try:
        return Path(given) if given else Path.home()
    except RuntimeError:
        return None
