"""Whether a model fits this machine, and how fast it should be: arithmetic on facts, nothing is measured or read.

Memory = weights + KV cache + compute and output buffers + runtime; speed = memory bandwidth, times the share of it that
the engine reaches, over the bytes of weights read for a token. Weights that llama.cpp repacks for the processor become
memory of its own; the pages of the file that they came from are not counted, for the system drops them when it needs
memory. OpenVINO needs more for a GGUF file than the file has. Where a fact is missing the result says so; every
constant has its source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from slm_local.buffers import BATCH_TOKENS, CONTEXT_STEP, OUTPUTS, compute_bytes, kv_cells, output_bytes
from slm_local.hardware import Device, Hardware
from slm_local.measured import CACHED_BYTES
from slm_local.model import ModelSpec, Variant

Verdict = Literal["Fits", "Tight", "Too large", "Unknown"]

KV_BYTES_PER_VALUE = 2.0
"""f16, the engine's default."""

OPENVINO_CPU_KV_BYTES = 1.125
"""u8, which OpenVINO says of its own KV cache on a processor, with a scale and a zero point for every 64 values."""

RUNTIME_BYTES = 36 * 2**20
"""A child process with Python, llama.cpp and the template engine, before any model: 32 MiB were measured with a model
of 2 MB on Linux (docs/benchmarks/memory.py)."""

OPENVINO_RUNTIME_BYTES = 129 * 2**20
"""The same with OpenVINO GenAI, measured with the same model."""

OPENVINO_EMBEDDING_BYTES = 6.4
"""Per value of the embedding table of a GGUF file, beside the file's size: OpenVINO unpacks that table to floats. 6.2
were measured with SmolLM2-135M in Q4_1, 6.4 with a 1.5B model of random weights in Q4_0; an OpenVINO folder's table
stays packed."""

VOCABULARY_BYTES = 320
"""Per token of the vocabulary, for llama.cpp's tables: of what processes held beyond all else that is counted here, 16
MiB went with 49,152 tokens and 50 MiB with 151,936 (docs/benchmarks/memory.py)."""

FITS_SHARE = 0.8
"""Up to so much of the free memory a model fits well: above four fifths the system begins to swap when one opens one
thing more."""

USABLE_SHARE = 0.95
"""Largest share of the free memory that a model may take: the rest moves while it loads."""

ASSUMED_READ_GB_S = 40.0
"""Bandwidth where none was measured: what processor cores read on an ordinary laptop with two channels of DDR4-3200
(51 GB/s on paper); newer ones do better, so the speed foretold is rather too low."""

ASSUMED_CARD_READ_GB_S = 180.0
"""Bandwidth of a graphics card's own memory, which is not measured: about that of the slowest Arc card, the A380."""

ASSUMED_SHARE = 0.7
"""Share of the bandwidth that an engine reaches where none was measured: an assumption, and said to be one. Between 0.6
and 0.85 is expected of llama.cpp where memory bounds it."""

ASSUMED_SHARES = {"cpu": 0.6, "gpu": 1.0, "npu": 0.4, "card": 0.6}
"""The same for OpenVINO, by kind of device, of what the processor's cores read. Reported of a Core Ultra 7 258V and 7B
models: llama.cpp 11.6 tok/s on the cores, OpenVINO 26.5 on the GPU; of Qwen3-8B: OpenVINO 6.1 on the cores, 9.7 on the
GPU, 4.7 on the NPU (openvino.genai issue 3862); of another: 14.4 on the cores, 3.7 on the NPU (issue 1084)."""

SLOW_GPU_SHARE = 0.5
"""Of an Intel GPU before Iris Xe, and of any GPU for a model of less than `GPU_PARAMETERS`."""

GPU_PARAMETERS = 1.2e9
"""A GPU spends some milliseconds a token on starting its kernels: 2 to 7 follow from OpenVINO's published figures for
1.5B and 7B models on one chip. A smaller model is decoded in that time by the cores alone."""

FOLDER_BYTES = {4: 0.59, 8: 1.0, 16: 2.0, 32: 4.0}
"""Bytes a parameter of an OpenVINO folder, by the bits of its weights: 0.57 to 0.60 in the int4 repositories whose size
was seen, 1.0 in the one of int8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What running a variant with a context takes here; None where a fact is missing."""

    context_tokens: int
    weights_bytes: int | None
    """What they take in memory."""
    kv_bytes: int | None
    """The KV cache, and the recurrent states of a hybrid model."""
    compute_bytes: int
    """Activations of one batch."""
    output_bytes: int
    """Logits of all sequences."""
    runtime_bytes: int
    """The process, with the vocabulary's tables."""
    total_bytes: int | None
    free_bytes: int
    verdict: Verdict
    short_bytes: int | None
    """How much memory is missing, counting `USABLE_SHARE` of what is free; None where it fits or can't be told."""
    largest_context_tokens: int | None
    """The longest context that fits, in whole steps; 0 when none does, None where it can't be told."""
    read_bytes_per_token: int | None
    """Bytes of weights that a decoded token reads, at an empty context."""
    read_gb_s: float
    is_measured: bool
    """Whether the bandwidth was measured here; else it is assumed."""
    engine_share: float
    is_share_measured: bool
    """Whether the engine's share of the bandwidth was; else it is `assumed_share`."""
    decode_tps: float | None
    """Decoded tokens per second at an empty context; None, too, where bandwidth is not what bounds it."""

    @property
    def fits(self) -> bool:
        """Whether it fits the memory now free; True where that can't be told."""
        return self.verdict != "Too large"

    @property
    def buffer_bytes(self) -> int:
        """All but weights and KV cache."""
        return self.compute_bytes + self.output_bytes + self.runtime_bytes


def predict(
    spec: ModelSpec,
    variant: Variant,
    context_tokens: int,
    hardware: Hardware,
    *,
    backend: str = "llamacpp",
    device: str = "cpu",
) -> Fit:
    """Foretell memory and speed of one variant with one context, on one device of this machine."""
    target = device_of(hardware, backend, device)
    weights, kv = (
        weights_bytes(spec, variant, backend),
        kv_bytes(spec, context_tokens, _kv_value_bytes(backend, device)),
    )
    compute, output, runtime = compute_bytes(spec, context_tokens), output_bytes(spec), runtime_bytes(spec, backend)
    total = None if weights is None or kv is None else weights + kv + compute + output + runtime
    free = free_bytes(hardware, target)
    least = total if total is not None else weights
    short = None if least is None else max(0, least - usable_bytes(free)) or None
    read = read_bytes_per_token(spec, variant)
    is_card = target is not None and target.integrated is False
    gb_s = ASSUMED_CARD_READ_GB_S if is_card else hardware.read_gb_s or ASSUMED_READ_GB_S
    measured = hardware.engine_shares.get(share_key(backend, device))
    share = measured or assumed_share(spec, backend, target)
    is_bound = read is not None and read >= CACHED_BYTES
    return Fit(
        context_tokens=context_tokens,
        weights_bytes=weights,
        kv_bytes=kv,
        compute_bytes=compute,
        output_bytes=output,
        runtime_bytes=runtime,
        total_bytes=total,
        free_bytes=free,
        verdict=_verdict(total, short, free),
        short_bytes=short,
        largest_context_tokens=_largest_context(spec, weights, free, backend=backend, device=device),
        read_bytes_per_token=read,
        read_gb_s=gb_s,
        is_measured=hardware.read_gb_s is not None and not is_card,
        engine_share=share,
        is_share_measured=measured is not None,
        decode_tps=gb_s * 1e9 * share / read if is_bound and read else None,
    )


def device_of(hardware: Hardware, backend: str, device: str) -> Device | None:
    """Return the device that an engine knows by a name; None for one that was not listed."""
    return next((each for each in hardware.devices if each.name == device and each.engine in (None, backend)), None)


def free_bytes(hardware: Hardware, device: Device | None) -> int:
    """Return the memory free for a model on a device: its own, else what it can address of the machine's."""
    if device is not None and device.free_bytes is not None:
        return device.free_bytes
    reach = device.memory_bytes if device is not None and device.kind == "gpu" else None
    return min(hardware.free_ram_bytes, reach or hardware.free_ram_bytes)


def share_key(backend: str, device: str) -> str:
    """Return by which name an engine's share of the bandwidth is kept: its own on the processor."""
    return backend if device == "cpu" else f"{backend} {device}"


def assumed_share(spec: ModelSpec, backend: str, device: Device | None) -> float:
    """Return the share of the bandwidth that an engine is taken to reach on a device."""
    if backend != "openvino":
        return ASSUMED_SHARE
    if device is None or device.kind == "cpu":
        return ASSUMED_SHARES["cpu"]
    if device.integrated is False:
        return ASSUMED_SHARES["card"]
    if device.kind == "gpu" and (is_slow_gpu(device) or is_small_for_gpu(spec)):
        return SLOW_GPU_SHARE
    return ASSUMED_SHARES[device.kind]


def is_small_for_gpu(spec: ModelSpec) -> bool:
    """Tell whether a model has too few parameters for a GPU inside the processor to decode it faster than the cores."""
    return spec.parameters is not None and spec.parameters < GPU_PARAMETERS


def is_slow_gpu(device: Device) -> bool:
    """Tell whether a GPU is of the generations that processors outran: those named HD and UHD Graphics."""
    return device.kind == "gpu" and "HD Graphics" in device.description


def weights_bytes(spec: ModelSpec, variant: Variant, backend: str) -> int | None:
    """Return the memory that the weights of a variant take in an engine; None where its size is not known."""
    if variant.size_bytes is None or backend != "openvino" or variant.kind != "gguf":
        return variant.size_bytes
    table = (spec.shape.vocabulary or 0) * (spec.shape.hidden or 0)
    return variant.size_bytes + round(OPENVINO_EMBEDDING_BYTES * table)


def weight_bits(quant: str) -> int | None:
    """Return the bits of a quantization's weights: 4 of Q4_K_M, int4-cw and nf4; None where its name says none."""
    named = re.search(r"(?:q|int|nf|fp|f)(\d+)", quant.casefold())
    return int(named[1]) if named else None


def assumed_size_bytes(spec: ModelSpec, variant: Variant) -> int | None:
    """Return about how large an OpenVINO folder is whose size is not known, from its parameters; None for all else."""
    per_parameter = FOLDER_BYTES.get(weight_bits(variant.quant) or 0)
    if variant.kind != "openvino" or per_parameter is None or spec.parameters is None:
        return None
    return round(per_parameter * spec.parameters)


def usable_bytes(free: int) -> int:
    """Return how much of the free memory a model may take."""
    return int(USABLE_SHARE * free)


def kv_bytes(spec: ModelSpec, context_tokens: int, bytes_per_value: float = KV_BYTES_PER_VALUE) -> int | None:
    """Return the bytes of the KV cache for a context, and of recurrent states; None where the shape is not known."""
    per_token = spec.shape.kv_bytes_per_token(bytes_per_value)
    return None if per_token is None else per_token * kv_cells(context_tokens) + OUTPUTS * (spec.shape.state_bytes or 0)


def runtime_bytes(spec: ModelSpec, backend: str = "llamacpp") -> int:
    """Return the bytes of the process and of the vocabulary's tables."""
    process = OPENVINO_RUNTIME_BYTES if backend == "openvino" else RUNTIME_BYTES
    return process + VOCABULARY_BYTES * (spec.shape.vocabulary or 0)


def read_bytes_per_token(spec: ModelSpec, variant: Variant) -> int | None:
    """Return the bytes of weights that decoding a token reads; None where size or active share is not known.

    From the file's tensor table where its header was read; else its size times the share of parameters in use: those
    active for a token, without an embedding table that is only looked up in (as if all had the same quantization).
    """
    if variant.decode_bytes is not None:
        return variant.decode_bytes
    if variant.size_bytes is None:
        return None
    if not spec.parameters:
        return None if "moe" in (spec.architecture or "") else variant.size_bytes
    looked_up = 0
    if spec.shape.tied is False:
        looked_up = (spec.shape.vocabulary or 0) * (spec.shape.hidden or 0)
    in_use = (spec.active_parameters or spec.parameters) - looked_up
    return round(variant.size_bytes * in_use / spec.parameters)


def training_flops(spec: ModelSpec, tokens: int) -> float | None:
    """Return the FLOPs of training on a text of so many tokens, as the DeepSeekMoE paper counts them.

    s * [6 * (4 + 8m) * L * d^2 + 12 * L * d * s + 6 * V * d]: forward and backward of an idealised model, whose
    attention has 4d^2 and whose feed-forward block 8d^2 weights a layer, with full attention and the output head; m are
    the feed-forward blocks a token passes. Inference, forward alone, spends about a third. None where a fact is
    missing.
    """
    layers, hidden, vocabulary = spec.shape.layers, spec.shape.hidden, spec.shape.vocabulary
    blocks = spec.active_ffn if spec.active_ffn is not None or spec.active_parameters is not None else 1.0
    if layers is None or hidden is None or vocabulary is None or blocks is None or spec.shape.kv_layers is not None:
        return None
    weights = (4 + 8 * blocks) * layers * hidden**2
    return tokens * (6.0 * weights + 12.0 * layers * hidden * tokens + 6.0 * vocabulary * hidden)


def _kv_value_bytes(backend: str, device: str) -> float:
    return OPENVINO_CPU_KV_BYTES if (backend, device) == ("openvino", "cpu") else KV_BYTES_PER_VALUE


def _largest_context(spec: ModelSpec, weights: int | None, free: int, *, backend: str, device: str) -> int | None:
    if weights is None or kv_bytes(spec, 0) is None:
        return None
    least = weights + output_bytes(spec) + runtime_bytes(spec, backend)
    per_value = _kv_value_bytes(backend, device)

    def needed(context: int) -> int:
        return least + compute_bytes(spec, context) + (kv_bytes(spec, context, per_value) or 0)

    usable = usable_bytes(free)
    if needed(BATCH_TOKENS) > usable:  # below a batch the buffers shrink with the context
        return CONTEXT_STEP if needed(CONTEXT_STEP) <= usable else 0
    per_step = needed(BATCH_TOKENS + CONTEXT_STEP) - needed(BATCH_TOKENS)
    return BATCH_TOKENS + (usable - needed(BATCH_TOKENS)) // per_step * CONTEXT_STEP


def _verdict(total: int | None, short: int | None, free: int) -> Verdict:
    if short:
        return "Too large"
    if total is None:
        return "Unknown"
    return "Fits" if total <= FITS_SHARE * free else "Tight"
