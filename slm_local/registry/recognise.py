"""What a GGUF file's header says of thinking, and which registry model the file is, if any."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from slm_local.generation import ReasoningTags, ThinkControl
from slm_local.model import ModelSpec, SamplingDefaults, Shape, Variant
from slm_local.reasoning import derive_tags, derive_think_control

if TYPE_CHECKING:
    from slm_local.gguf_header import GgufHeader

ROUNDED_SIZE = 0.06
"""How far a rounded size may be off: half of the last digit of "1.0 GiB", and a little."""

COMPARED = tuple(field.name for field in fields(Shape) if field.name not in ("kv_layers", "tied", "state_bytes"))
"""Dimensions that tell models apart; the others a registry states in its own way or not at all."""

DIGEST = re.compile(r"[0-9a-f]{64}")

QUANT_SUFFIX = re.compile(r"[-._](I?Q\d\w*|MXFP4\w*|NVFP4|B?F16|F32)$", re.IGNORECASE)


def spec_for_file(
    header: GgufHeader, models: Sequence[ModelSpec], *, sha256: str | None = None, file: str | None = None
) -> tuple[ModelSpec, str]:
    """Return the spec of a GGUF file, and a line that says how it came about.

    A file that is a registry model (by digest, by file name and size, or by its name and shape) gets that
    model's sampling, tags and think control; for any other they are derived from its template and vocabulary.
    `sha256` is what a record says of it, without one what a store of blobs named it by; `file` is its name in its
    repository, where it lies here under another one.
    """
    path = Path(header.path)
    sha256 = sha256 or stated_digest(path)
    files = {path.name, Path(file or path.name).name}
    title = _title(path, header)
    model, proof = _recognised(files, header, models, sha256)
    variant = Variant(
        kind="gguf",
        quant=header.quant,
        size_bytes=header.size_bytes,
        decode_bytes=header.decode_bytes,
        path=str(path),
    )
    if model is not None:
        what = "sampling and thinking tags apply" if model.thinks else "sampling applies"
        called = title if title != model.id else "this file"
        return _with_header(model, header, variant, files, sha256), f"{called} is {model.id} {proof}: its {what}"
    tags, control, source = derived_thinking(header)
    own_id = path.stem if path.suffix.lower() == ".gguf" else title
    spec = ModelSpec(
        id=own_id,
        name=header.name or own_id,
        licence=header.licence,
        parameters=header.parameters,
        active_parameters=header.active_parameters,
        architecture=header.architecture,
        shape=header.shape,
        context_tokens=header.context_tokens,
        sampling=header.sampling,
        tags=tags,
        think=control,
        variants=(variant,),
        origin="file",
    )
    return (
        spec,
        f"{title} is not in the registry: {_thinking_line(tags, control, source)}, {_sampling_line(header)}",
    )


def derived_thinking(header: GgufHeader) -> tuple[ReasoningTags | None, ThinkControl | None, str]:
    """Derive tags and think control from a template and a vocabulary; the third says which of them told."""
    tags, source = derive_tags(header.chat_template, lambda _: False), "template"
    if tags is None:
        tags, source = derive_tags(None, header.think_tokens.__contains__), "vocabulary"
    if tags is None:
        return None, None, ""
    return tags, derive_think_control(header.chat_template), source


def plain_digest(value: object) -> str | None:
    """Return a SHA-256 as 64 small letters, without `sha256:` or `sha256-` before it; None for anything else."""
    if not isinstance(value, str):
        return None
    digest = value.lower().removeprefix("sha256:").removeprefix("sha256-")
    return digest if DIGEST.fullmatch(digest) else None


def stated_digest(path: Path) -> str | None:
    """Return the digest by which a store of blobs named a file, or what a link leads to; it is not checked.

    ollama keeps `blobs/sha256-<hex>`, the Hub's cache `blobs/<hex>`.
    """
    try:
        blob = Path(os.path.realpath(path))
    except (OSError, ValueError):
        return None
    return plain_digest(blob.name) if blob.parent.name == "blobs" else None


def _title(path: Path, header: GgufHeader) -> str:
    """Return what a file is called in a sentence: its name; a blob's says nothing, so the one inside it."""
    if plain_digest(path.name) is None:
        return path.name
    return header.name or path.name[: len("sha256-") + 12]


def _recognised(
    files: set[str], header: GgufHeader, models: Sequence[ModelSpec], sha256: str | None
) -> tuple[ModelSpec | None, str]:
    fitting = [model for model in models if _shape_agrees(model, header)]
    for model in fitting:
        if sha256 is not None and any(variant.sha256 == sha256 for variant in model.variants):
            return model, "by its digest"
    for model in fitting:
        if any(_is_file(variant, files, header) for variant in model.variants):
            return model, "by file name and size"
    own_names = {_plain(header.name or ""), *(_plain(QUANT_SUFFIX.sub("", Path(file).stem)) for file in files)}
    for model in fitting:
        if _has_shape(model) and _names(model) & own_names:
            return model, "by its name and shape"
    return None, ""


def _is_file(variant: Variant, files: set[str], header: GgufHeader) -> bool:
    if variant.file is None or Path(variant.file).name not in files or variant.size_bytes is None:
        return False
    allowed = 0.0 if variant.size_is_exact else ROUNDED_SIZE
    return abs(header.size_bytes - variant.size_bytes) <= allowed * variant.size_bytes


def _names(model: ModelSpec) -> set[str]:
    """Return the names that a file of the model may carry: its own, and those of its files without quantization."""
    files = (Path(variant.file).stem for variant in model.variants if variant.file)
    return {_plain(model.name), *(_plain(QUANT_SUFFIX.sub("", stem)) for stem in files)}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _has_shape(model: ModelSpec) -> bool:
    return model.architecture is not None and model.shape.layers is not None


def _shape_agrees(model: ModelSpec, header: GgufHeader) -> bool:
    """Tell whether nothing that both know of architecture and dimensions differs."""
    if model.architecture not in (None, header.architecture):
        return False
    pairs = ((getattr(model.shape, name), getattr(header.shape, name)) for name in COMPARED)
    return all(ours is None or theirs is None or ours == theirs for ours, theirs in pairs)


def _with_header(
    model: ModelSpec, header: GgufHeader, variant: Variant, files: set[str], sha256: str | None
) -> ModelSpec:
    """Return the model with what the header says; its one variant is the file, the registry's own where it is that."""
    named = [each for each in model.variants if each.file and Path(each.file).name in files]
    same = [each for each in model.variants if sha256 is not None and each.sha256 == sha256]
    same += [each for each in named if _is_file(each, files, header)]
    if same:
        variant = replace(
            same[0],
            path=variant.path,
            size_bytes=header.size_bytes,
            size_is_exact=True,
            decode_bytes=header.decode_bytes,
        )
    elif named:
        variant = replace(variant, quant=named[0].quant)
    return replace(
        model,
        shape=header.shape,
        parameters=model.parameters or header.parameters,
        active_parameters=model.active_parameters or header.active_parameters,
        context_tokens=model.context_tokens or header.context_tokens,
        variants=(variant,),
    )


def _thinking_line(tags: ReasoningTags | None, control: ThinkControl | None, source: str) -> str:
    if tags is None or control is None:
        return "neither its template nor its vocabulary marks thinking"
    switch = f", switched by {control.switch or control.off_word}" if control.switch or control.off_word else ""
    return f"from its {source}, thinking is marked by {tags.open} and {tags.close}{switch}"


def _sampling_line(header: GgufHeader) -> str:
    is_given = header.sampling != SamplingDefaults()
    return "sampling as the file advises" if is_given else "greedy, for nothing advises a sampling"
