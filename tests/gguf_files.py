"""Small GGUF files made here byte by byte: one that llama.cpp loads, and many that are broken, each in one way.

Nothing but `struct` writes them, so that they do not share the reader's mistakes.
"""

from __future__ import annotations

import functools
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

U8, U16, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 2, 4, 5, 6, 7, 8, 9, 10
FORMATS = {U8: "B", U16: "H", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q"}

MIB = 1 << 20

Keys = dict[str | bytes, bytes]
"""Encoded values by key."""


def plain(text: str | bytes) -> bytes:
    """Encode a string as GGUF has it: length, then bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: float) -> bytes:
    """Encode a value with its type."""
    return struct.pack("<I" + FORMATS[kind], kind, value)


def u32(value: int) -> bytes:
    return scalar(U32, value)


def text(value: str | bytes) -> bytes:
    return struct.pack("<I", STRING) + plain(value)


def numbers(kind: int, values: list[Any]) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, len(values)) + struct.pack(f"<{len(values)}{FORMATS[kind]}", *values)


def texts(values: list[str] | list[bytes]) -> bytes:
    return struct.pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(plain(value) for value in values)


@dataclass
class DraftTensor:
    """A tensor as it will be written; `offset` None: where it belongs."""

    name: str | bytes
    dims: tuple[int, ...]
    data: bytes
    kind: int = 0
    offset: int | None = None


@dataclass
class Draft:
    """A GGUF file before it is written; what is None is counted."""

    keys: Keys = field(default_factory=dict)
    tensors: list[DraftTensor] = field(default_factory=list)
    more_keys: list[tuple[str, bytes]] = field(default_factory=list)
    """Written after `keys`: for a key that is there twice."""
    magic: bytes = b"GGUF"
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32

    def header(self) -> bytes:
        """Return everything before the padding and the weights."""
        pairs = [*self.keys.items(), *self.more_keys]
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(pairs) if self.key_count is None else self.key_count
        parts = [self.magic, struct.pack("<IQQ", self.version, tensor_count, key_count)]
        parts += [plain(key) + value for key, value in pairs]
        place = 0
        for tensor in self.tensors:
            offset = place if tensor.offset is None else tensor.offset
            parts.append(plain(tensor.name) + struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims))
            parts.append(struct.pack("<IQ", tensor.kind, offset))
            place += self._padded(len(tensor.data))
        return b"".join(parts)

    def encode(self) -> bytes:
        """Return the whole file."""
        header = self.header()
        parts = [header, bytes(self._padded(len(header)) - len(header))] if self.tensors else [header]
        for tensor in self.tensors:
            parts += [tensor.data, bytes(self._padded(len(tensor.data)) - len(tensor.data))]
        return b"".join(parts)

    def _padded(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment


TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

HIDDEN, FEED, HEADS, KV_HEADS, LAYERS, CONTEXT = 32, 64, 4, 2, 2, 256
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<think>", "</think>", "▁a", "b", "▁ab"]
TOKEN_TYPES = [2, 3, 3, *[6] * 256, 4, 4, 1, 1, 1]


def small_model(*, seed: int = 0, template: str | None = TEMPLATE) -> Draft:
    """Draft a model that llama.cpp loads: architecture llama, two layers, random weights, a byte vocabulary."""
    keys: Keys = {
        "general.architecture": text("llama"),
        "general.type": text("model"),
        "general.name": text("Small Random"),
        "general.license": text("apache-2.0"),
        "general.file_type": u32(0),
        "llama.block_count": u32(LAYERS),
        "llama.context_length": u32(CONTEXT),
        "llama.embedding_length": u32(HIDDEN),
        "llama.feed_forward_length": u32(FEED),
        "llama.attention.head_count": u32(HEADS),
        "llama.attention.head_count_kv": u32(KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": scalar(F32, 1e-5),
        "llama.rope.dimension_count": u32(HIDDEN // HEADS),
        "llama.rope.scaling.type": text("none"),
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.tokens": texts(TOKENS),
        "tokenizer.ggml.scores": numbers(F32, [0.0] * len(TOKENS)),
        "tokenizer.ggml.token_type": numbers(I32, TOKEN_TYPES),
        "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2),
        "tokenizer.ggml.add_bos_token": scalar(BOOL, True),
    }
    if template is not None:
        keys["tokenizer.chat_template"] = text(template)
    return Draft(keys=keys, tensors=_weights(seed))


def _weights(seed: int) -> list[DraftTensor]:
    key_size = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (HIDDEN, len(TOKENS)), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": (HIDDEN, key_size),
            f"blk.{layer}.attn_v.weight": (HIDDEN, key_size),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_gate.weight": (HIDDEN, FEED),
            f"blk.{layer}.ffn_up.weight": (HIDDEN, FEED),
            f"blk.{layer}.ffn_down.weight": (FEED, HIDDEN),
        }
    return [DraftTensor(name, dims, _floats(seed, name, math.prod(dims))) for name, dims in shapes.items()]


@functools.cache
def _floats(seed: int, name: str, count: int) -> bytes:
    source = random.Random(f"{seed} {name}")
    return struct.pack(f"<{count}f", *(source.gauss(0, 0.2) for _ in range(count)))


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """A broken file and words of the one message that fits it."""

    id: str
    content: Callable[[], bytes]
    says: str


def _cut(share: float = 1.0, less: int = 0) -> bytes:
    whole = small_model().encode()
    return whole[: int(len(whole) * share) - less]


def _with(keys: Keys | None = None, without: tuple[str, ...] = (), **fields: Any) -> Callable[[], bytes]:
    """Return a maker of the small model with keys added or replaced, keys left out, fields of the draft changed."""

    def make() -> bytes:
        draft = small_model()
        draft.keys |= keys or {}
        for key in without:
            del draft.keys[key]
        for name, value in fields.items():
            setattr(draft, name, value)
        return draft.encode()

    return make


def _tensor(number: int = 3, **fields: Any) -> Callable[[], bytes]:
    """Return a maker of the small model with one tensor changed."""

    def make() -> bytes:
        draft = small_model()
        for name, value in fields.items():
            setattr(draft.tensors[number], name, value)
        return draft.encode()

    return make


def _beginning(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _case(id_: str, content: Callable[[], bytes], says: str) -> Malformed:
    return Malformed(id=id_, content=content, says=says)


def malformed() -> list[Malformed]:
    """Return every kind of broken file, each with its own message."""
    return [*_not_gguf(), *_broken_frame(), *_broken_values(), *_broken_tensors(), *_broken_model()]


def _not_gguf() -> list[Malformed]:
    old = "ggml format from before GGUF"
    pickled = "is a PyTorch checkpoint"
    return [
        _case("empty", _beginning(b""), "is empty"),
        _case("web-page", _beginning(b"\n<!DOCTYPE html><html><title>404</title>"), "holds a web page"),
        _case("openvino-xml", _beginning(b'<?xml version="1.0"?>\n<net name="Model0">'), "part of an OpenVINO model"),
        _case(
            "lfs-pointer", _beginning(b"version https://git-lfs.github.com/spec/v1\noid sha256:00"), "Git LFS pointer"
        ),
        _case("plain-text", _beginning(b"Entry not found\n"), "is a text, not a model; it begins: Entry not found"),
        _case("json", _beginning(b'{"error": "Repository is gated"}'), 'it begins: {"error": "Repository is gated"}'),
        _case("zip", _beginning(b"PK\x03\x04" + bytes(60)), "is a zip archive"),
        _case("pytorch-zip", _beginning(b"PK\x03\x04" + bytes(22) + b"archive/data.pkl"), pickled),
        _case("pickle", _beginning(b"\x80\x02}q\x00(X\x05\x00\x00\x00"), pickled),
        _case("safetensors", _beginning(struct.pack("<Q", 64) + b'{"__metadata__":{}}'), "is a safetensors checkpoint"),
        _case("gzip", _beginning(b"\x1f\x8b\x08" + bytes(20)), "is a gzip archive"),
        _case("zeros", _beginning(bytes(4096)), "download that was never finished"),
        _case("ggml", _beginning(b"lmgg" + bytes(60)), old),
        _case("ggmf", _beginning(b"fmgg" + bytes(60)), old),
        _case("ggjt", _beginning(b"tjgg" + bytes(60)), old),
        _case("random-bytes", _beginning(bytes(range(200, 250))), "begins with the bytes c8 c9 ca cb"),
        _case("swapped-magic", _with(magic=b"FUGG"), "for big-endian machines"),
    ]


def _broken_frame() -> list[Malformed]:
    in_header = "is truncated: it ends inside its header"
    cases = [
        _case("magic-only", _beginning(b"GGUF"), in_header),
        _case("version-0", _with(version=0), "has GGUF version 0"),
        _case("version-1", _with(version=1), "has GGUF version 1"),
        _case("version-99", _with(version=99), "has GGUF version 99"),
        _case("big-endian", _with(version=3 << 24), "for big-endian machines"),
        _case("cut-in-counts", lambda: small_model().encode()[:20], in_header),
        _case("cut-in-key", lambda: small_model().encode()[:40], in_header),
        _case("cut-at-10-percent", lambda: _cut(0.1), "bytes are there"),
        _case("cut-at-50-percent", lambda: _cut(0.5), "bytes are there"),
        _case("cut-at-90-percent", lambda: _cut(0.9), "bytes are there"),
        _case("cut-by-one-byte", lambda: _cut(less=1), ", 1 missing"),
        _case("one-key-too-many", _with(key_count=len(small_model().keys) + 1), "whose name would be"),
        _case("duplicate-key", _with(more_keys=[("general.name", text("again"))]), "has the key general.name twice"),
        _case("nameless-key", _with({"": u32(1)}), "has a key without a name"),
        _case("long-key", _with({"k" * 70_000: u32(1)}), "whose name would be 70,000 bytes"),
    ]
    for power in (31, 40, 63):
        count = 1 << power
        cases += [
            _case(f"tensors-2^{power}", _with(tensor_count=count), f"claims {count:,} tensors"),
            _case(f"keys-2^{power}", _with(key_count=count), f"claims {count:,} keys"),
            _case(f"string-2^{power}", _with({"x": struct.pack("<IQ", STRING, count)}), f"a text of {count:,} bytes"),
            _case(f"array-2^{power}", _with({"x": struct.pack("<IIQ", ARRAY, U8, count)}), f"array of {count:,} items"),
            _case(
                f"item-2^{power}",
                _with({"x": struct.pack("<IIQQ", ARRAY, STRING, 1, count)}),
                f"a text of {count:,} bytes",
            ),
        ]
    return cases


def _broken_values() -> list[Malformed]:
    many = 3 << 20
    return [
        _case("many-texts", _with({"x": struct.pack("<IIQ", ARRAY, STRING, many)}), f"array of {many:,} texts"),
        _case(
            "many-tokens",
            _with({"tokenizer.ggml.tokens": struct.pack("<IIQ", ARRAY, STRING, 600_000)}),
            "array of 600,000 texts under tokenizer.ggml.tokens",
        ),
        _case("array-past-the-end", _with({"x": struct.pack("<IIQ", ARRAY, F32, MIB)}), "it ends inside its header"),
        _case("nested-array", _with({"x": struct.pack("<IIQ", ARRAY, ARRAY, 1)}), "has an array of arrays under x"),
        _case("unknown-value-type", _with({"x": struct.pack("<IQ", 13, 0)}), "value of unknown type 13 under x"),
        _case("unknown-item-type", _with({"x": struct.pack("<IIQ", ARRAY, 77, 1)}), "array of unknown type 77 under x"),
        _case("alignment-0", _with({"general.alignment": u32(0)}), "has an alignment of 0"),
        _case("alignment-4", _with({"general.alignment": u32(4)}), "has an alignment of 4"),
        _case("alignment-48", _with({"general.alignment": u32(48)}), "has an alignment of 48"),
        _case("alignment-2^31", _with({"general.alignment": u32(1 << 31)}), "has an alignment of 2,147,483,648"),
        _case("alignment-type", _with({"general.alignment": scalar(U64, 32)}), "general.alignment that is not of type"),
        _case("architecture-type", _with({"general.architecture": u32(1)}), "general.architecture as u32, not string"),
        _case("layers-type", _with({"llama.block_count": scalar(U64, 2)}), "llama.block_count as u64, not u32"),
        _case("template-type", _with({"tokenizer.chat_template": texts(["a"])}), "chat_template as array of string"),
        _case("template-bytes", _with({"tokenizer.chat_template": text(b"\xff{{")}), "chat template that is not UTF-8"),
        _case(
            "template-size", _with({"tokenizer.chat_template": text("x" * 5 * MIB)}), "chat template of 5,242,880 bytes"
        ),
        _case(
            "tokens-type", _with({"tokenizer.ggml.tokens": numbers(U32, [1])}), "tokens as array of u32, not an array"
        ),
        _case("flag-type", _with({"tokenizer.ggml.add_bos_token": u32(1)}), "add_bos_token as u32, not bool"),
        _case("heads-type", _with({"llama.attention.head_count": numbers(F32, [4.0, 4.0])}), "as array of f32"),
    ]


def _broken_tensors() -> list[Malformed]:
    return [
        _case("five-dimensions", _tensor(dims=(2, 2, 2, 2, 2)), "has 5 dimensions in the tensor blk.0.attn_q.weight"),
        _case("no-dimensions", _tensor(dims=()), "has 0 dimensions"),
        _case("zero-dimension", _tensor(dims=(32, 0)), "has a dimension of 0"),
        _case("overflowing-dimensions", _tensor(dims=(1 << 40, 1 << 40)), "has impossible dimensions"),
        _case("unknown-tensor-type", _tensor(kind=5000), "in type 5000, which does not exist"),
        _case("withdrawn-tensor-type", _tensor(kind=31), "in type 31, which does not exist or was withdrawn"),
        _case("newer-tensor-type", _tensor(kind=43), "in type 43, which needs a newer engine"),
        _case("broken-block", _tensor(kind=12), "has rows of 32 in the tensor blk.0.attn_q.weight, which Q4_K"),
        _case("misaligned-tensor", _tensor(offset=7), "at 7, no multiple of 32"),
        _case("tensor-outside", _tensor(offset=1 << 40), "has the tensor blk.0.attn_q.weight outside the file"),
        _case("overlapping-tensors", _tensor(offset=0), "overlapping the one before it"),
        _case("gap", _tensor(offset=len(TOKENS) * HIDDEN * 4 + 1024), "has a gap of"),
        _case(
            "smaller-tensor", _tensor(dims=(32, 16)), "has a gap of 2,048 bytes before the tensor blk.0.attn_k.weight"
        ),
        _case("duplicate-tensor", _tensor(name="token_embd.weight"), "has the tensor token_embd.weight twice"),
        _case("long-tensor-name", _tensor(name="t" * 64), "whose name would be 64 bytes long"),
        _case("one-tensor-too-many", _with(tensor_count=21), "has a tensor"),
        _case("no-tensors", _with(tensors=[]), "holds a vocabulary without weights"),
    ]


def _broken_model() -> list[Malformed]:
    missing = [
        ("general.architecture", "names no architecture"),
        ("llama.block_count", "lacks llama.block_count"),
        ("llama.context_length", "lacks llama.context_length"),
        ("llama.embedding_length", "lacks llama.embedding_length"),
        ("llama.attention.head_count", "lacks llama.attention.head_count"),
        ("llama.attention.layer_norm_rms_epsilon", "lacks llama.attention.layer_norm_rms_epsilon"),
        ("tokenizer.ggml.model", "has no tokenizer"),
        ("tokenizer.ggml.tokens", "has no vocabulary"),
    ]
    return [
        *(_case(f"missing-{key}", _with(without=(key,)), says) for key, says in missing),
        _case("unknown-architecture", _with({"general.architecture": text("llama9")}), "'llama9', which needs a newer"),
        _case("encoder", _with({"general.architecture": text("bert")}), "is a bert model, which writes no text"),
        _case("adapter", _with({"general.type": text("adapter")}), "holds 'adapter' data"),
        _case("no-vocabulary", _with({"tokenizer.ggml.model": text("none")}), "has no tokenizer"),
        _case("unknown-tokenizer", _with({"tokenizer.ggml.model": text("new")}), "the tokenizer 'new', which needs"),
        _case("no-merges", _with({"tokenizer.ggml.model": text("gpt2")}), "has no merges"),
        _case("few-token-types", _with({"tokenizer.ggml.token_type": numbers(I32, [1])}), "has 1 entries under"),
        _case("duplicate-token", _with({"tokenizer.ggml.tokens": texts(["a", "b", "a"])}), "has the token 'a' twice"),
        _case(
            "token-cut-by-zero", _with({"tokenizer.ggml.tokens": texts(["", "a", "", "a\0b"])}), "the token 'a' twice"
        ),
        _case("few-scores", _with({"tokenizer.ggml.scores": numbers(F32, [1.0])}), "has 1 entries under"),
        _case("no-layers", _with({"llama.block_count": u32(0)}), "has 0 as llama.block_count"),
        _case("too-many-layers", _with({"llama.block_count": u32(1 << 31)}), "claims 2,147,483,648 layers"),
        _case("no-heads", _with({"llama.attention.head_count": u32(0)}), "lacks llama.attention.head_count"),
        _case(
            "too-many-heads", _with({"llama.attention.head_count": u32(1 << 20)}), "claims 1,048,576 attention heads"
        ),
        _case("heads-of-few", _with({"llama.attention.head_count_kv": numbers(U32, [2] * 3)}), "3 numbers under"),
        _case("negative-heads", _with({"llama.attention.head_count_kv": numbers(I32, [2, -2])}), "a negative number"),
        _case("experts", _with({"llama.expert_count": u32(4)}), "claims to use 0 of 4 experts"),
        _case("all-extra-layers", _with({"llama.nextn_predict_layers": u32(2)}), "claims 2 of 2 layers to predict"),
        _case("rope", _with({"llama.rope.scaling.type": text("spiral")}), "scales positions by 'spiral'"),
        _case("part-of-many", _with({"split.count": scalar(U16, 3)}), "is one of 3 parts"),
    ]
