"""What a GGUF file's header says of its model: the facts that fit, speed and recognition follow from."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from slm_local.gguf_header.checks import (
    check_architecture,
    check_experts,
    check_hyperparameters,
    check_tokenizer,
    check_tokens,
)
from slm_local.gguf_header.faults import OTHER_GGUF, broken, quoted
from slm_local.gguf_header.formats import ARRAY, FILE_TYPES, FULL_ATTENTION_INTERVAL, RECURRENT
from slm_local.gguf_header.reader import RawHeader, Tensor, read_raw
from slm_local.gguf_header.source import ON_DISK, Files
from slm_local.gguf_header.values import U16, Values
from slm_local.model import SamplingDefaults, Shape

THINK_TEXTS = (
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<thought>", "</thought>", "<reasoning>", "</reasoning>"),
    *("<seed:think>", "</seed:think>", "<|begin_of_thought|>", "<|end_of_thought|>"),
    *("<|START_THINKING|>", "<|END_THINKING|>", "<|channel|>", "<|channel>", "<channel|>"),
)
"""Marks of thinking that families of models have as tokens of their own. Source: their chat templates."""

DEFAULT_IDS = {"llama": (1, 2)}
"""BOS and EOS where the file names none, by tokenizer, as llama.cpp has them."""

PART_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Facts from a checked header, all parts of a split model together; None where the file does not say."""

    path: str
    size_bytes: int
    """Of all parts."""
    version: int
    architecture: str
    name: str | None
    licence: str | None
    quant: str
    """As the field writes it: Q4_K_M, Q8_0, F16, ...; from the majority of the weights where the file does not say."""
    parameters: int
    active_parameters: int | None
    """Parameters used for a token, in a mixture of experts; None: all."""
    shape: Shape
    """The largest head counts, where layers differ."""
    context_tokens: int | None
    value_length: int | None
    """Dimension of a value head, where a key head's is `shape.head_dim`."""
    sliding_window: int | None
    """Tokens that windowed layers look back; None: every layer sees all."""
    windowed_layers: int | None
    """How many layers have the window; None where the file leaves that to its architecture."""
    experts: int
    experts_used: int
    tensor_bytes: int
    decode_bytes: int
    """Bytes of weights read for one decoded token."""
    tokenizer: str
    bos_id: int | None
    eos_id: int | None
    bos_text: str
    """Empty where there is none."""
    eos_text: str
    adds_bos: bool | None
    think_tokens: tuple[str, ...]
    """Which of `THINK_TEXTS` are tokens of their own."""
    chat_template: str | None
    sampling: SamplingDefaults
    """What the file itself recommends (`general.sampling.*`)."""
    split_count: int
    """Files that the model is split into."""
    vocab_only: bool
    """A tokenizer without weights."""


def read_header(path: Path, *, allow_vocab_only: bool = False, files: Files = ON_DISK) -> GgufHeader:
    """Read and check a GGUF file's header, and those of its other parts if it is split.

    `ModelBroken` names the file and what is wrong with it, in one line, before any native code sees it.
    """
    raw = read_raw(path, files)
    values = Values(raw)
    parts = [raw, *_other_parts(values, files)]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    architecture = check_architecture(values)
    vocabulary = check_tokenizer(values)
    tokens = check_tokens(values)
    if tensors:
        layers = check_hyperparameters(values, architecture)
    elif allow_vocab_only:
        layers = values.whole(f"{architecture}.block_count") or 0
    else:
        raise broken(path, "holds a vocabulary without weights", OTHER_GGUF)
    experts, experts_used = check_experts(values, architecture, layers)
    share = experts_used / experts if experts else 1.0
    shape = _shape(values, architecture, layers, vocabulary, tensors)
    window, windowed_layers = _window(values, architecture, layers)
    bos_id, eos_id = _special_ids(values, vocabulary)
    return GgufHeader(
        path=str(path),
        size_bytes=sum(part.size_bytes for part in parts),
        version=raw.version,
        architecture=architecture,
        name=values.descriptive("general.name"),
        licence=values.descriptive("general.license"),
        quant=_quant(values, tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        active_parameters=_active_parameters(tensors, share) if experts else None,
        shape=shape,
        context_tokens=values.whole(f"{architecture}.context_length"),
        value_length=values.whole(f"{architecture}.attention.value_length") or shape.head_dim,
        sliding_window=window,
        windowed_layers=windowed_layers,
        experts=experts,
        experts_used=experts_used,
        tensor_bytes=sum(tensor.size_bytes for tensor in tensors),
        decode_bytes=_decode_bytes(tensors, share),
        tokenizer=values.word("tokenizer.ggml.model") or "",
        bos_id=bos_id,
        eos_id=eos_id,
        bos_text=values.token(bos_id),
        eos_text=values.token(eos_id),
        adds_bos=values.flag("tokenizer.ggml.add_bos_token"),
        think_tokens=tuple(text for text in THINK_TEXTS if text.encode() in tokens),
        chat_template=values.template("tokenizer.chat_template"),
        sampling=_sampling(values),
        split_count=len(parts),
        vocab_only=not tensors,
    )


def _other_parts(values: Values, files: Files) -> list[RawHeader]:
    """Read the other files of a split model, which must lie beside its first."""
    path = values.raw.path
    count, number = values.whole("split.count", U16) or 0, values.whole("split.no", U16) or 0
    if count < 2:
        return []
    named = PART_NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise broken(path, f"is one of {count} parts, but is not named so (…-00001-of-{count:05d}.gguf)")
    names = [path.with_name(f"{named['prefix']}-{part + 1:05d}-of-{count:05d}.gguf") for part in range(count)]
    if number != 0 and not files.has(names[0]):
        raise broken(path, f"is part {number + 1} of {count}, and the first is missing: {names[0].name}")
    if number != 0:
        raise broken(path, f"is part {number + 1} of {count}; name the first", f"slm show {quoted(names[0])}")
    missing = [name for name in names[1:] if not files.has(name)]
    if missing:
        raise broken(missing[0], f"is missing: part {names.index(missing[0]) + 1} of {count} of this model")
    parts = [read_raw(name, files) for name in names[1:]]
    for part, expected in zip(parts, range(1, count), strict=True):
        if Values(part).whole("split.no", U16) != expected:
            raise broken(part.path, f"is not part {expected + 1} of {count}, though named so")
    return parts


def _quant(values: Values, tensors: tuple[Tensor, ...]) -> str:
    file_type = values.whole("general.file_type")
    if file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    size_of: Counter[str] = Counter()
    for tensor in tensors:
        size_of[tensor.type.name] += tensor.size_bytes
    return size_of.most_common(1)[0][0] if size_of else "unknown"


def _shape(values: Values, architecture: str, layers: int, vocabulary: int, tensors: tuple[Tensor, ...]) -> Shape:
    hidden = values.whole(f"{architecture}.embedding_length")
    heads = max(values.per_layer(f"{architecture}.attention.head_count", layers) or (0,), default=0)
    kv_per_layer = values.per_layer(f"{architecture}.attention.head_count_kv", layers)
    key_length = values.whole(f"{architecture}.attention.key_length")
    kept = _kv_layers(values, architecture, layers, kv_per_layer)
    return Shape(
        layers=layers or None,
        hidden=hidden,
        heads=heads or None,
        kv_heads=max(kv_per_layer or (0,), default=0) or heads or None,
        head_dim=key_length or (hidden // heads if hidden and heads else None),
        ffn=_ffn(values, architecture, layers),
        kv_layers=kept,
        vocabulary=vocabulary,
        tied=not _has_output(tensors) if tensors else None,
        state_bytes=_state_bytes(values, architecture, hidden or 0, kept=kept, layers=layers),
    )


def _ffn(values: Values, architecture: str, layers: int) -> int | None:
    """Return the width of the feed-forward part, of a mixture that of the experts in use or of a wider dense layer."""
    dense = max(values.per_layer(f"{architecture}.feed_forward_length", layers) or (0,), default=0)
    used = values.whole(f"{architecture}.expert_used_count") or 0
    if not used:
        return dense or None
    of_experts = used * (values.whole(f"{architecture}.expert_feed_forward_length") or dense)
    has_dense_layers = bool(values.whole(f"{architecture}.leading_dense_block_count"))
    return max(of_experts, dense if has_dense_layers else 0) or None


def _state_bytes(values: Values, architecture: str, hidden: int, *, kept: int | None, layers: int) -> int | None:
    """Return the recurrent state of one sequence, in f32; None where there is none or its size is not known.

    Source: n_embd_r and n_embd_s of llama-hparams.cpp (short convolutions and Mamba's states; gated delta nets too).
    """
    short = values.whole(f"{architecture}.shortconv.l_cache")
    inner = values.whole(f"{architecture}.ssm.inner_size")
    state = values.whole(f"{architecture}.ssm.state_size")
    if kept is None or not (short or (inner and state)):
        return None
    if short:
        return 4 * (layers - kept) * hidden * (short - 1)
    assert inner is not None
    assert state is not None
    groups = values.whole(f"{architecture}.ssm.group_count") or 0
    kernel = values.whole(f"{architecture}.ssm.conv_kernel") or 1
    return 4 * (layers - kept) * ((kernel - 1) * (inner + 2 * groups * state) + state * inner)


def _kv_layers(values: Values, architecture: str, layers: int, kv_per_layer: tuple[int, ...] | None) -> int | None:
    """Count the layers that keep a KV cache; None for all."""
    recurrent = values.per_layer(f"{architecture}.attention.recurrent_layers", layers)
    if architecture in RECURRENT:
        kept = 0
    elif recurrent is not None:
        kept = recurrent.count(0)
    elif architecture in FULL_ATTENTION_INTERVAL:
        interval = values.whole(f"{architecture}.full_attention_interval") or FULL_ATTENTION_INTERVAL[architecture]
        kept = layers // interval
    else:
        kept = sum(map(bool, kv_per_layer)) if kv_per_layer else layers
    return kept if kept < layers else None


def _window(values: Values, architecture: str, layers: int) -> tuple[int | None, int | None]:
    """Return the sliding window and how many layers have it."""
    window = values.whole(f"{architecture}.attention.sliding_window") or None
    key = f"{architecture}.attention.sliding_window_pattern"
    entry = values.entry(key)
    if window is None or entry is None:
        return window, None
    if entry.type == ARRAY:
        return window, sum(map(bool, values.per_layer(key, layers) or ()))
    period = values.whole(key) or 0
    return window, layers - layers // period if period else layers


def _special_ids(values: Values, vocabulary: int) -> tuple[int | None, int | None]:
    """Return the ids of BOS and EOS; one that no token has is none, as llama.cpp has it."""
    defaults = DEFAULT_IDS.get(values.word("tokenizer.ggml.model") or "", (None, None))
    named = [values.whole(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")]
    bos, eos = (default if found is None else found for found, default in zip(named, defaults, strict=True))
    return bos if bos is not None and bos < vocabulary else None, eos if eos is not None and eos < vocabulary else None


def _active_parameters(tensors: tuple[Tensor, ...], share: float) -> int:
    return round(sum(tensor.elements * (share if _is_expert(tensor) else 1) for tensor in tensors))


def _decode_bytes(tensors: tuple[Tensor, ...], share: float) -> int:
    """Return the bytes of weights that decoding a token reads.

    A table of embeddings is looked up in, not read, unless it is the output layer, too.
    """
    looked_up = {"per_layer_token_embd.weight"}
    if _has_output(tensors):
        looked_up.add("token_embd.weight")
    read = [tensor for tensor in tensors if tensor.name not in looked_up]
    return round(sum(tensor.size_bytes * (share if _is_expert(tensor) else 1) for tensor in read))


def _has_output(tensors: tuple[Tensor, ...]) -> bool:
    return any(tensor.name == "output.weight" for tensor in tensors)


def _is_expert(tensor: Tensor) -> bool:
    return "_exps." in tensor.name


def _sampling(values: Values) -> SamplingDefaults:
    top_k = values.number("general.sampling.top_k")
    return SamplingDefaults(
        temperature=_decimal(values.number("general.sampling.temp")),
        top_p=_decimal(values.number("general.sampling.top_p")),
        top_k=None if top_k is None else int(top_k),
        min_p=_decimal(values.number("general.sampling.min_p")),
        repeat_penalty=_decimal(values.number("general.sampling.penalty_repeat")),
    )


def _decimal(value: float | None) -> float | None:
    """Return 0.95 for the f32 0.949999988."""
    return None if value is None else float(f"{value:.6g}")
