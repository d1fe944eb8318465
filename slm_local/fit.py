"""Whether a model fits this machine, and how fast it should be: arithmetic on facts, nothing is measured or read.

Memory = weights + KV cache + compute buffers + runtime; speed = memory bandwidth / bytes of weights read for a token.
Weights that llama.cpp repacks for the processor become memory of its own while the file's pages, which the system may
drop at any time, are not counted. Where a fact is missing the result says so; every constant has its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Variant

Verdict = Literal["Perfect", "Good", "Marginal", "Too large", "Unknown"]

KV_BYTES_PER_VALUE = 2.0
"""f16, the engine's default."""

CONTEXT_STEP = 256
"""llama.cpp rounds a context up to this many tokens (GGML_PAD in llama_context)."""

BATCH_TOKENS = 512
"""Tokens of a prompt decoded in one call: `LoadSettings.batch_tokens`."""

OUTPUTS = 8
"""Sequences whose logits are kept at once, as the llama.cpp backend opens its context."""

FLOATS_PER_HIDDEN = 20
"""Floats of the compute buffer per batch token and hidden unit: 3 x FFN + 4 x hidden, as measured with llama.cpp
0.3.36 on SmolLM2-135M (13.5 MiB) and stories260K (1.5 MiB), at the widest FFN of the registry, 5.3 x hidden."""

MASK_BYTES = 2
"""Per batch token and context token: the f16 attention mask (8.0 MiB for 8,192 tokens, measured likewise)."""

ASSUMED_HIDDEN = 8192
"""Hidden size for the compute buffer where it is not known: that of a 70B model."""

RUNTIME_BYTES = 64 * 2**20
"""A child process with Python, llama.cpp and the template engine, before any model (24 MiB of it without Python's)."""

VOCABULARY_BYTES = 450
"""Per token of the vocabulary: llama.cpp's tables took 21 MiB for 49,152 tokens (SmolLM2-135M, measured)."""

USABLE_SHARE = 0.95
"""Largest share of the free memory that a model may take: the rest moves while it loads."""

VERDICTS: tuple[tuple[float, Verdict], ...] = ((0.5, "Perfect"), (0.8, "Good"), (USABLE_SHARE, "Marginal"))
"""Largest share of the free memory for each word: half leaves room for everything else that a person runs, above
four fifths the system begins to swap when they open one thing more."""

ASSUMED_READ_GB_S = 40.0
"""Bandwidth where none was measured: what processor cores read on an ordinary laptop with two channels of DDR4-3200
(51 GB/s on paper); newer ones do better, so the speed foretold is rather too low."""

CACHED_BYTES = 256 * 2**20
"""A model that reads less for a token lives in the processor's caches in part: bandwidth says nothing of its speed
(a 98 MB model ran at a third of what bandwidth allows)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What running a variant with a context takes here; None where a fact is missing."""

    context_tokens: int
    weights_bytes: int | None
    kv_bytes: int | None
    buffer_bytes: int
    """Compute buffers, vocabulary and runtime."""
    total_bytes: int | None
    free_bytes: int
    verdict: Verdict
    largest_context_tokens: int | None
    """The longest context that fits, in whole steps; 0 when none does, None where it can't be told."""
    read_bytes_per_token: int | None
    """Bytes of weights that a decoded token reads, at an empty context."""
    read_gb_s: float
    is_measured: bool
    """Whether the bandwidth was measured here; else it is `ASSUMED_READ_GB_S`."""
    decode_tps: float | None
    """Decoded tokens per second at an empty context; None, too, where bandwidth is not what bounds it."""

    @property
    def fits(self) -> bool:
        """Whether it fits the memory now free; True where that can't be told."""
        return self.verdict != "Too large"


def predict(spec: ModelSpec, variant: Variant, context_tokens: int, hardware: Hardware) -> Fit:
    """Foretell memory and speed of one variant with one context on this machine."""
    kv_per_token = spec.shape.kv_bytes_per_token(KV_BYTES_PER_VALUE)
    cells = -(-context_tokens // CONTEXT_STEP) * CONTEXT_STEP
    weights = variant.size_bytes
    kv = None if kv_per_token is None else kv_per_token * cells
    buffers = buffer_bytes(spec, cells)
    total = None if weights is None or kv is None else weights + kv + buffers
    read = read_bytes_per_token(spec, variant)
    gb_s = hardware.read_gb_s or ASSUMED_READ_GB_S
    return Fit(
        context_tokens=context_tokens,
        weights_bytes=weights,
        kv_bytes=kv,
        buffer_bytes=buffers,
        total_bytes=total,
        free_bytes=hardware.free_ram_bytes,
        verdict=_verdict(weights, total, hardware.free_ram_bytes),
        largest_context_tokens=_largest_context(spec, variant, hardware.free_ram_bytes),
        read_bytes_per_token=read,
        read_gb_s=gb_s,
        is_measured=hardware.read_gb_s is not None,
        decode_tps=None if read is None or read < CACHED_BYTES else gb_s * 1e9 / read,
    )


def buffer_bytes(spec: ModelSpec, cells: int) -> int:
    """Return the bytes of compute buffers, logits, vocabulary and runtime for a context of so many KV cells."""
    hidden = spec.shape.hidden or ASSUMED_HIDDEN
    vocabulary = spec.shape.vocabulary or 0
    compute = BATCH_TOKENS * (4 * FLOATS_PER_HIDDEN * hidden + MASK_BYTES * cells)
    logits = 2 * 4 * OUTPUTS * vocabulary  # in the graph, and beside it where they are read
    return compute + logits + VOCABULARY_BYTES * vocabulary + RUNTIME_BYTES


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


def _largest_context(spec: ModelSpec, variant: Variant, free_bytes: int) -> int | None:
    kv_per_token = spec.shape.kv_bytes_per_token(KV_BYTES_PER_VALUE)
    if variant.size_bytes is None or kv_per_token is None:
        return None
    room = int(USABLE_SHARE * free_bytes) - variant.size_bytes - buffer_bytes(spec, 0)
    per_step = CONTEXT_STEP * (kv_per_token + BATCH_TOKENS * MASK_BYTES)
    return max(0, room // per_step) * CONTEXT_STEP


def _verdict(weights: int | None, total: int | None, free_bytes: int) -> Verdict:
    if total is None:
        return "Too large" if weights is not None and weights > USABLE_SHARE * free_bytes else "Unknown"
    return next((word for share, word in VERDICTS if total <= share * free_bytes), "Too large")
