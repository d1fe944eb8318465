"""The form of a registry entry: every key, its type and its range."""

from __future__ import annotations

from slm_local.registry.checks import (
    ListOf,
    Schema,
    Table,
    count,
    file_name,
    flag,
    matching,
    number,
    repository,
    rounded_size,
    scores,
    text,
    thinking,
)

SHAPE: Schema = {
    "layers": count(1, 10_000),
    "hidden": count(1, 1_000_000),
    "heads": count(1, 10_000),
    "kv_heads": count(1, 10_000),
    "head_dim": count(1, 100_000),
    "ffn": count(1, 10_000_000),
    "kv_layers": count(0, 10_000),
    "vocabulary": count(1, 10_000_000),
    "tied": flag,
}

SAMPLING: Schema = {
    "temperature": number(0.0, 10.0),
    "top_p": number(0.0, 1.0),
    "top_k": count(0, 1_000_000),
    "min_p": number(0.0, 1.0),
    "repeat_penalty": number(0.01, 10.0),
    "presence_penalty": number(-10.0, 10.0),
}

VARIANT: Schema = {
    "kind": matching("gguf|openvino|checkpoint", "must be gguf, openvino or checkpoint"),
    "quant": text,
    "repo": repository,
    "file": file_name,
    "revision": matching(r"[0-9a-f]{40}", "must be a commit of 40 hexadecimal digits"),
    "size_bytes": count(1, 2**50),
    "size": rounded_size,
    "sha256": matching(r"[0-9a-f]{64}", "must be 64 hexadecimal digits in lower case"),
    "device": matching("cpu|gpu|npu", "must be cpu, gpu or npu"),
    "verified": flag,
}

ENTRY: Schema = {
    "name": text,
    "aliases": ListOf(matching(r"[^\s@#/\\]+", "must be a name without spaces, '@', '#' and slashes")),
    "family": text,
    "licence": text,
    "gated": flag,
    "original_repo": repository,
    "parameters": count(1, 10**14),
    "active_parameters": count(1, 10**14),
    "active_ffn": number(0.0, 1000.0),
    "architecture": text,
    "shape": Table(SHAPE),
    "context_tokens": count(32, 2**31 - 1),
    "sampling": Table(SAMPLING),
    "sampling_no_think": Table(SAMPLING),
    "tags": Table({"open": text, "close": text, "force_open": flag, "skip": ListOf(text), "answer_open": text}),
    "think": Table({"switch": text, "off_word": text, "off_block": flag, "default": thinking}, short="default"),
    "bridge": text,
    "template": text,
    "system": text,
    "advises_against_system": flag,
    "variants": ListOf(Table(VARIANT)),
    "verified": flag,
    "released": matching(r"\d{4}-\d{2}(-\d{2})?", "must be a date such as 2025-01 or 2025-01-20"),
    "notes": ListOf(text),
    "scores": scores,
}
"""The keys of an entry, in both files."""

OWN_ONLY: Schema = {"embedded": flag, "refusal": text}
"""Keys of the package's own file."""

USER_ONLY: Schema = {
    "base": text,
    "variants": ListOf(Table({**VARIANT, "path": matching(r"(/|~/|[A-Za-z]:[\\/]).+", "must be a whole path")})),
    "remote": matching(r"https?://[^\s/#]+[^\s#]*#\S+", "must be http(s)://host/v1#model-name"),
    "key_env": matching(r"[A-Za-z_][A-Za-z0-9_]*", "must be the name of a variable, not a key itself"),
}
"""Keys of a user's file: the model that an entry goes on from, forms of it that lie anywhere on this disk, or the
address of one that runs elsewhere and the variable with the key for it."""
