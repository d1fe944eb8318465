"""Write a GGUF file of a real model's size without that model: its shape, its vocabulary, random weights.

    python docs/benchmarks/synthetic.py FOLDER --vocabularies llama_cpp_python-0.3.36/vendor/llama.cpp/models

What a runtime needs in memory and how fast it decodes does not depend on what the weights say, so such a file serves
to measure both (not to judge answers: it babbles). The vocabularies are those that llama-cpp-python's source package
ships for llama.cpp's own tests. Weights are not computed: a few megabytes of random blocks, small and finite, written
again and again, so that a file is there as fast as the disk takes it. Needs the `gguf` package (extra `train`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType

WEIGHT_STD = 0.02
"""Spread of the weights, that of a fresh transformer: activations stay finite through all layers."""

CHUNK_BLOCKS = 29_989
"""Blocks of randomness that are repeated: a prime number, so that no two rows of a matrix are alike."""

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
"""A chat template for the vocabularies that come without one."""

FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}
"""`general.file_type` of the quantizations that can be written. Source: llama.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The shape of a dense decoder with a gated feed-forward part, as llama, qwen2 and qwen3 have it."""

    name: str
    architecture: str
    vocabulary: str
    """The file of the vocabulary."""
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    rope_base: float
    tied: bool = False


MODELS = {
    "1.5b": Model(
        name="Synthetic 1.5B (shape of DeepSeek-R1-Distill-Qwen-1.5B)",
        architecture="qwen2",
        vocabulary="ggml-vocab-qwen2.gguf",
        layers=28,
        hidden=1536,
        ffn=8960,
        heads=12,
        kv_heads=2,
        head_dim=128,
        context_tokens=131_072,
        rope_base=10_000.0,
    ),
    "8b": Model(
        name="Synthetic 8B (shape of DeepSeek-R1-Distill-Llama-8B)",
        architecture="llama",
        vocabulary="ggml-vocab-llama-bpe.gguf",
        layers=32,
        hidden=4096,
        ffn=14_336,
        heads=32,
        kv_heads=8,
        head_dim=128,
        context_tokens=131_072,
        rope_base=500_000.0,
    ),
}
"""Shapes. Source: the models' config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of the file; `shape` as numpy has it, the fastest dimension last."""

    name: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType


def write_model(
    model: Model, quant: str, vocabularies: Path, file: Path, *, is_sparse: bool = False, template: str | None = None
) -> None:
    """Write the file; `is_sparse` leaves the weights a hole: it takes no disk and all weights are zero.

    `template` replaces the vocabulary's chat template.
    """
    reader = gguf.GGUFReader(vocabularies / model.vocabulary)
    rows = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(None, model.architecture)
    _add_facts(writer, model, quant, rows)
    has_template = template is None and gguf.Keys.Tokenizer.CHAT_TEMPLATE in reader.fields
    for key, field in reader.fields.items():
        if key.startswith("tokenizer.") and (has_template or not key.startswith(gguf.Keys.Tokenizer.CHAT_TEMPLATE)):
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    if not has_template:
        writer.add_chat_template(template or TEMPLATE)
    write_file(writer, tuple(tensors(model, quant, rows)), file, is_sparse=is_sparse)


def write_file(writer: gguf.GGUFWriter, content: tuple[Tensor, ...], file: Path, *, is_sparse: bool = False) -> None:
    """Write header and tensors, each tensor's bytes padded as the format wants it."""
    for tensor in content:
        writer.add_tensor_info(tensor.name, _byte_shape(tensor), np.dtype(np.uint8), _bytes(tensor), tensor.type)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    chunks: dict[gguf.GGMLQuantizationType, bytes] = {}
    with file.open("r+b") as out:
        begin = gguf.GGUFWriter.ggml_pad(out.seek(0, 2), writer.data_alignment)
        for tensor in content:
            out.seek(begin)
            if not is_sparse:
                if tensor.type not in chunks:
                    chunks[tensor.type] = _random_blocks(tensor.type)
                _repeat(out, chunks[tensor.type], _bytes(tensor))
            begin += gguf.GGUFWriter.ggml_pad(_bytes(tensor), writer.data_alignment)
        out.truncate(begin)


def tensors(model: Model, quant: str, rows: int) -> Iterator[Tensor]:
    """Give the tensors in the order and with the types that llama-quantize chooses."""
    matrix = {"F16": Q.F16, "Q4_0": Q.Q4_0, "Q8_0": Q.Q8_0, "Q4_K_M": Q.Q4_K}[quant]
    finer = {"Q4_0": Q.Q4_0, "Q4_K_M": Q.Q6_K}.get(quant, matrix)
    head = Q.Q6_K if quant in ("Q4_0", "Q4_K_M") else matrix
    hidden, ffn = model.hidden, model.ffn
    queries, values = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield Tensor(name="token_embd.weight", shape=(rows, hidden), type=head if model.tied else matrix)
    for layer in range(model.layers):
        fine = finer if _is_finer(layer, model.layers) else matrix
        sizes = {
            "attn_norm.weight": ((hidden,), Q.F32),
            "attn_q.weight": ((queries, hidden), matrix),
            "attn_k.weight": ((values, hidden), matrix),
            "attn_v.weight": ((values, hidden), fine),
            "attn_output.weight": ((hidden, queries), matrix),
            "ffn_norm.weight": ((hidden,), Q.F32),
            "ffn_gate.weight": ((ffn, hidden), matrix),
            "ffn_up.weight": ((ffn, hidden), matrix),
            "ffn_down.weight": ((hidden, ffn), fine),
        }
        if model.architecture == "qwen2":
            sizes |= {
                f"attn_{name}.bias": ((n,), Q.F32) for name, n in zip("qkv", (queries, values, values), strict=True)
            }
        if model.architecture == "qwen3":
            sizes |= {f"attn_{name}_norm.weight": ((model.head_dim,), Q.F32) for name in "qk"}
        for name, (shape, kind) in sizes.items():
            yield Tensor(name=f"blk.{layer}.{name}", shape=shape, type=kind)
    yield Tensor(name="output_norm.weight", shape=(hidden,), type=Q.F32)
    if not model.tied:
        yield Tensor(name="output.weight", shape=(rows, hidden), type=head)


def _is_finer(layer: int, layers: int) -> bool:
    """Tell whether a layer is one of those that Q4_K_M gives six bits. Source: use_more_bits of llama-quant.cpp."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _add_facts(writer: gguf.GGUFWriter, model: Model, quant: str, rows: int) -> None:
    writer.add_name(model.name)
    writer.add_file_type(FILE_TYPES[quant])
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context_tokens)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(rows)


def _byte_shape(tensor: Tensor) -> tuple[int, ...]:
    elements, size = gguf.GGML_QUANT_SIZES[tensor.type]
    return (*tensor.shape[:-1], tensor.shape[-1] // elements * size)


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(_byte_shape(tensor), dtype=np.int64))


def _random_blocks(kind: gguf.GGMLQuantizationType) -> bytes:
    """Return blocks of one type whose values have a mean of nought and a spread of `WEIGHT_STD`.

    Each block is random bytes but for its scale, which is chosen by how far the quanta spread: 4.6 for 0..15, 74 for
    a signed byte, 258 and 1,367 for the products of Q4_K's and Q6_K's inner scales and quanta.
    """
    size = gguf.GGML_QUANT_SIZES[kind][1]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (CHUNK_BLOCKS, size), dtype=np.uint8)
    match kind:
        case Q.F32:
            return np.ones(CHUNK_BLOCKS, dtype=np.float32).tobytes()
        case Q.F16:
            return random.normal(0.0, WEIGHT_STD, CHUNK_BLOCKS).astype(np.float16).tobytes()
        case Q.Q4_0:
            blocks[:, :2] = _half(WEIGHT_STD / 4.6)
        case Q.Q8_0:
            blocks[:, :2] = _half(WEIGHT_STD / 74)
        case Q.Q4_K:
            blocks[:, :2], blocks[:, 2:4] = _half(WEIGHT_STD / 258), _half(7.5 * WEIGHT_STD / 258)
        case Q.Q6_K:
            blocks[:, -2:] = _half(WEIGHT_STD / 1367)
        case _:
            raise ValueError(f"no random blocks of {kind.name}")
    return blocks.tobytes()


def _half(value: float) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)


def _repeat(out: BinaryIO, chunk: bytes, size: int) -> None:
    """Write `size` bytes: the chunk as often as it takes, and as much of it as is left."""
    for _ in range(size // len(chunk)):
        out.write(chunk)
    out.write(chunk[: size % len(chunk)])


def main() -> None:
    """Write the files that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write, e.g. synthetic-8b-Q4_K_M.gguf (4.9 GB)")
    parser.add_argument("--vocabularies", type=Path, required=True, help="folder of the ggml-vocab-*.gguf files")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--quant", choices=tuple(FILE_TYPES), default="Q4_K_M")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name in asked.models:
        file = asked.folder / f"synthetic-{name}-{asked.quant}.gguf"
        write_model(MODELS[name], asked.quant, asked.vocabularies, file)
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
