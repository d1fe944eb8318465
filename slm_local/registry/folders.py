"""What an OpenVINO folder says of its model: which registry model it is, else its facts from config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_local.errors import ModelBroken
from slm_local.model import ModelSpec, SamplingDefaults, Shape, Variant
from slm_local.reasoning import derive_tags, derive_think_control
from slm_local.registry.local import RECORDS, made_record, recorded, size_of

CONVERT_AGAIN = "convert or fetch it again: slm convert MODEL"

CONFIG_LIMIT_BYTES = 4 << 20
"""A config.json has a few kilobytes; a tokenizer_config.json of 100,000 added tokens would have this."""


def spec_for_folder(folder: Path, models: Sequence[ModelSpec]) -> tuple[ModelSpec, str]:
    """Return the spec of an OpenVINO folder, and a line that says how it came about.

    A folder that was fetched from a repository of the registry, or converted from a registry model, gets that model's
    facts; for any other they are read from its config.json and chat template. Errors: `ModelBroken`.
    """
    config = settings_in(folder / "config.json")
    made = made_record(folder)
    repo = _repository(folder)
    quant = str(made.get("quant") or _quantization(config, repo or folder.name))
    variant = Variant(
        kind="openvino",
        quant=quant,
        repo=repo,
        size_bytes=size_of(folder),
        device="npu" if made.get("device") == "npu" else None,
        path=str(folder),
    )
    for model in models:
        known = next((each for each in model.variants if each.kind == "openvino" and each.repo == repo), None)
        if known is not None and repo is not None:
            variant = replace(known, path=str(folder), size_bytes=variant.size_bytes, size_is_exact=True)
            return _recognised(model, variant, f"{folder.name} is {model.id}, fetched from {repo}")
        if made.get("model") == model.id:
            return _recognised(model, variant, f"{folder.name} was made from {model.id}")
    template = chat_template(folder)
    tags = derive_tags(template, lambda _: False)
    spec = ModelSpec(
        id=folder.name,
        name=folder.name,
        architecture=_text(config.get("model_type")),
        shape=_shape(config),
        context_tokens=_whole(config.get("max_position_embeddings")),
        sampling=_sampling(settings_in(folder / "generation_config.json")),
        tags=tags,
        think=derive_think_control(template) if tags is not None else None,
        variants=(variant,),
        origin="file",
    )
    marks = f"thinking is marked by {tags.open} and {tags.close}" if tags else "its template marks no thinking"
    return spec, f"{folder.name} is not in the registry: {marks}"


def chat_template(folder: Path) -> str | None:
    """Return a folder's chat template: a file of its own, else in the tokenizer's settings, the default of several."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    found = settings_in(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default", next(iter(named.values()), None))
    return found if isinstance(found, str) else None


def _recognised(model: ModelSpec, variant: Variant, what: str) -> tuple[ModelSpec, str]:
    rules = "sampling and thinking tags apply" if model.thinks else "sampling applies"
    return replace(model, variants=(variant,)), f"{what}: its {rules}"


def _repository(folder: Path) -> str | None:
    """Return the repository that a folder's records name."""
    for file in sorted((folder / RECORDS).glob("*.json")):
        repo = recorded(folder / file.name.removesuffix(".json")).get("repo")
        if isinstance(repo, str):
            return repo
    return None


def _quantization(config: Mapping[str, Any], name: str) -> str:
    quantized = config.get("quantization_config")
    bits = quantized.get("bits") if isinstance(quantized, dict) else None
    words = name.lower().replace("_", "-").split("-")
    said = next((word for word in words if word in ("int4", "int8", "nf4", "fp16", "fp32", "bf16")), "")
    return said or (f"int{bits}" if bits in (4, 8) else "ir")


def _shape(config: Mapping[str, Any]) -> Shape:
    heads, hidden = _whole(config.get("num_attention_heads")), _whole(config.get("hidden_size"))
    tied = config.get("tie_word_embeddings")
    return Shape(
        layers=_whole(config.get("num_hidden_layers")),
        hidden=hidden,
        heads=heads,
        kv_heads=_whole(config.get("num_key_value_heads")) or heads,
        head_dim=_whole(config.get("head_dim")) or (hidden // heads if hidden and heads else None),
        ffn=_whole(config.get("intermediate_size")),
        vocabulary=_whole(config.get("vocab_size")),
        tied=tied if isinstance(tied, bool) else None,
    )


def _sampling(config: Mapping[str, Any]) -> SamplingDefaults:
    if config.get("do_sample") is False:
        return SamplingDefaults(temperature=0.0)
    return SamplingDefaults(
        temperature=_number(config.get("temperature")),
        top_p=_number(config.get("top_p")),
        top_k=_whole(config.get("top_k")),
        min_p=_number(config.get("min_p")),
    )


def settings_in(file: Path) -> Mapping[str, Any]:
    """Return what a JSON file of a folder holds; nothing where there is none. Errors: `ModelBroken`."""
    try:
        if file.stat().st_size > CONFIG_LIMIT_BYTES:
            raise ModelBroken(f"{file} is too large to be settings", hint=CONVERT_AGAIN)
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelBroken(f"{file} can't be read: {error}", hint=CONVERT_AGAIN) from error
    if not isinstance(found, dict):
        raise ModelBroken(f"{file} holds no settings", hint=CONVERT_AGAIN)
    return found


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
