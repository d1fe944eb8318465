"""Whether a model fits this machine, and how fast it should be: arithmetic on facts, nothing is measured or read.

Memory = weights + KV cache + compute and output buffers + runtime; speed = memory bandwidth, times the share of it that
the engine reaches, over the bytes of weights read for a token. Weights that llama.cpp repacks for the processor become
memory of its own; the pages of the file that they came from are not counted, for the system drops them when it needs
memory. Where a fact is missing the result says so; every constant has its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slm_local.buffers import BATCH_TOKENS, CONTEXT_STEP, OUTPUTS, compute_bytes, kv_cells, output_bytes
from slm_local.hardware import Hardware
from slm_local.measured import CACHED_BYTES
from slm_local.model import ModelSpec, Variant

Verdict = Literal["Fits", "Tight", "Too large", "Unknown"]

KV_BYTES_PER_VALUE = 2.0
"""f16, the engine's default."""

RUNTIME_BYTES = 36 * 2**20
"""A child process with Python, llama.cpp and the template engine, before any model: 32 MiB were measured with a model
of 2 MB on Linux (docs/benchmarks/memory.py)."""

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

ASSUMED_SHARE = 0.7
"""Share of the bandwidth that an engine reaches where none was measured: an assumption, and said to be one. Between 0.6
and 0.85 is expected of llama.cpp where memory bounds it; OpenVINO on integrated GPUs was reported at 0.7."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What running a variant with a context takes here; None where a fact is missing."""

    context_tokens: int
    weights_bytes: int | None
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
    """Whether the bandwidth was measured here; else it is `ASSUMED_READ_GB_S`."""
    engine_share: float
    is_share_measured: bool
    """Whether the engine's share of the bandwidth was; else it is `ASSUMED_SHARE`."""
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
    weights, kv = variant.size_bytes, kv_bytes(spec, context_tokens)
    compute, output, runtime = compute_bytes(spec, context_tokens), output_bytes(spec), runtime_bytes(spec)
    total = None if weights is None or kv is None else weights + kv + compute + output + runtime
    free = free_bytes(hardware, device)
    least = total if total is not None else weights
    short = None if least is None else max(0, least - usable_bytes(free)) or None
    read = read_bytes_per_token(spec, variant)
    gb_s = hardware.read_gb_s or ASSUMED_READ_GB_S
    share = hardware.engine_shares.get(backend)
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
        largest_context_tokens=_largest_context(spec, variant, free),
        read_bytes_per_token=read,
        read_gb_s=gb_s,
        is_measured=hardware.read_gb_s is not None,
        engine_share=share or ASSUMED_SHARE,
        is_share_measured=share is not None,
        decode_tps=gb_s * 1e9 * (share or ASSUMED_SHARE) / read if is_bound and read else None,
    )


def free_bytes(hardware: Hardware, device: str) -> int:
    """Return the memory free for a model on a device: its own, else the machine's that it shares."""
    own = next((each.free_bytes for each in hardware.devices if each.name == device), None)
    return hardware.free_ram_bytes if own is None else own


def usable_bytes(free: int) -> int:
    """Return how much of the free memory a model may take."""
    return int(USABLE_SHARE * free)


def kv_bytes(spec: ModelSpec, context_tokens: int) -> int | None:
    """Return the bytes of the KV cache for a context, and of recurrent states; None where the shape is not known."""
    per_token = spec.shape.kv_bytes_per_token(KV_BYTES_PER_VALUE)
    return None if per_token is None else per_token * kv_cells(context_tokens) + OUTPUTS * (spec.shape.state_bytes or 0)


def runtime_bytes(spec: ModelSpec) -> int:
    """Return the bytes of the process and of the vocabulary's tables."""
    return RUNTIME_BYTES + VOCABULARY_BYTES * (spec.shape.vocabulary or 0)


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


def _largest_context(spec: ModelSpec, variant: Variant, free: int) -> int | None:
    def needed(context: int) -> int:
        assert variant.size_bytes is not None
        rest = compute_bytes(spec, context) + output_bytes(spec) + runtime_bytes(spec)
        return variant.size_bytes + (kv_bytes(spec, context) or 0) + rest

    if variant.size_bytes is None or kv_bytes(spec, 0) is None:
        return None
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
