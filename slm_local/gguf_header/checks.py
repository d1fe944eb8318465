"""Refuse what llama.cpp would fail on without saying why, or end the process over: each with its own message.

Source: load_hparams in llama-model.cpp, load in llama-vocab.cpp.
"""

from __future__ import annotations

from slm_local.gguf_header.faults import NEWER_ENGINE, OTHER_GGUF, broken, shown
from slm_local.gguf_header.formats import (
    ARCHITECTURES,
    ENGINE_VERSION,
    MERGING_TOKENIZERS,
    NOT_WRITERS,
    RECURRENT,
    ROPE_SCALINGS,
    STRING,
    TOKENIZERS,
)
from slm_local.gguf_header.values import F32, I32, Values

MAX_LAYERS = 512
MAX_EXPERTS = 1024
"""llama.cpp's own limits, beyond which it aborts."""


def check_architecture(values: Values) -> str:
    """Return the architecture; `ModelBroken` where there is none, or none that the engine can write text with."""
    path = values.raw.path
    kind = values.word("general.type")
    if kind not in (None, "", "model"):
        raise broken(path, f"holds {shown(kind)!r} data (general.type), which is no model by itself", OTHER_GGUF)
    architecture = values.word("general.architecture")
    if not architecture:
        raise broken(path, "names no architecture (general.architecture)")
    if architecture in NOT_WRITERS:
        raise broken(path, f"is a {architecture} model, which writes no text by itself", OTHER_GGUF)
    if architecture not in ARCHITECTURES and not _engine_is_newer():
        raise broken(path, f"has the architecture {shown(architecture)!r}, which needs a newer engine", NEWER_ENGINE)
    return architecture


def check_tokenizer(values: Values) -> int:
    """Return the size of the vocabulary; `ModelBroken` where it is missing or does not hold together."""
    path = values.raw.path
    kind = values.word("tokenizer.ggml.model")
    if kind in (None, "", "none", "no_vocab"):
        raise broken(path, "has no tokenizer (tokenizer.ggml.model)", OTHER_GGUF)
    if kind not in TOKENIZERS and not _engine_is_newer():
        raise broken(path, f"has the tokenizer {shown(kind or '')!r}, which needs a newer engine", NEWER_ENGINE)
    size = values.array_size("tokenizer.ggml.tokens", STRING)
    if not size:
        raise broken(path, "has no vocabulary (tokenizer.ggml.tokens)", OTHER_GGUF)
    for key, items in (("tokenizer.ggml.token_type", (I32,)), ("tokenizer.ggml.scores", (F32, I32))):
        count = values.array_size(key, *items)
        if count is not None and count < size:
            raise broken(path, f"has {count:,} entries under {key} for {size:,} tokens; it is damaged")
    merges = values.array_size("tokenizer.ggml.merges", STRING)
    if merges is None and kind in MERGING_TOKENIZERS and values.word("tokenizer.ggml.pre") != "kimi-k2":
        raise broken(path, "has no merges (tokenizer.ggml.merges), without which it can't read text")
    return size


def check_tokens(values: Values) -> set[bytes]:
    """Return the tokens that llama.cpp tells apart; `ModelBroken` where two are the same, for there it aborts.

    It reads a token up to its first zero byte, and gives empty ones names of their own.
    """
    seen: set[bytes] = set()
    for token in values.tokens():
        text = token.partition(b"\0")[0] if b"\0" in token else token
        if text in seen:
            raise broken(values.raw.path, f"has the token {shown(text)!r} twice; it is damaged")
        if text:
            seen.add(text)
    return seen


def check_hyperparameters(values: Values, architecture: str) -> int:
    """Return the number of layers; `ModelBroken` where a number is missing or impossible."""
    path = values.raw.path
    for name in ("context_length", "embedding_length", "block_count"):
        _positive(values, f"{architecture}.{name}")
    layers = _positive(values, f"{architecture}.block_count")
    if layers > MAX_LAYERS:
        raise broken(path, f"claims {layers:,} layers; the engine takes {MAX_LAYERS}")
    extra = values.whole(f"{architecture}.nextn_predict_layers") or 0
    if extra >= layers:
        raise broken(path, f"claims {extra:,} of {layers:,} layers to predict further tokens; it is damaged")
    heads = values.per_layer(f"{architecture}.attention.head_count", layers)
    values.per_layer(f"{architecture}.attention.head_count_kv", layers)
    if not any(heads or ()) and architecture not in RECURRENT:
        raise broken(path, f"lacks {shown(architecture)}.attention.head_count; it is damaged")
    if heads and max(heads) > _positive(values, f"{architecture}.embedding_length"):
        raise broken(path, f"claims {max(heads):,} attention heads; it is damaged")
    epsilons = [f"{architecture}.attention.layer_norm{kind}_epsilon" for kind in ("_rms", "")]
    if not any(epsilon in values for epsilon in epsilons):
        raise broken(path, f"lacks {shown(epsilons[0])}; it is damaged")
    scaling = values.word(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling not in ROPE_SCALINGS:
        raise broken(path, f"scales positions by {shown(scaling)!r}, which needs a newer engine", NEWER_ENGINE)
    return layers


def check_experts(values: Values, architecture: str, layers: int) -> tuple[int, int]:
    """Return how many experts there are and the most that one layer uses for a token; zeros for a dense model."""
    experts = values.whole(f"{architecture}.expert_count") or 0
    used = max(values.per_layer(f"{architecture}.expert_used_count", layers) or (0,), default=0)
    if experts > MAX_EXPERTS or used > experts or (experts and not used):
        raise broken(values.raw.path, f"claims to use {used:,} of {experts:,} experts; it is damaged")
    return experts, used


def _positive(values: Values, key: str) -> int:
    value = values.whole(key)
    if not value:
        raise broken(values.raw.path, f"{'lacks' if value is None else 'has 0 as'} {shown(key)}; it is damaged")
    return value


def _engine_is_newer() -> bool:
    """Return whether the engine installed here is newer than the lists of names, and so may know more."""
    from importlib import metadata

    try:
        installed = metadata.version("llama-cpp-python").split(".")[:3]
        return tuple(int(part) for part in installed) > ENGINE_VERSION
    except (metadata.PackageNotFoundError, ValueError):
        return False
