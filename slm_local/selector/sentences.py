"""The words for a plan: why this variant, what it takes in memory, how fast it is, why it does not fit."""

from __future__ import annotations

from slm_local.config import Settings
from slm_local.errors import DoesNotFit
from slm_local.fit import Fit, usable_bytes
from slm_local.hardware import Hardware
from slm_local.measured import Measurement
from slm_local.model import ModelSpec, Plan, Variant, gigabytes
from slm_local.selector.ways import ENGINE_NAMES, Way, is_for_npu
from slm_local.system import Program

REPACKED = frozenset({"Q4_0", "IQ4_NL", "MXFP4"})
"""Quantizations that llama.cpp rearranges whole at load, for kernels made for this processor (ggml-cpu/repack.cpp)."""

LEAST_CONTEXT_TOKENS = 512
"""With less than this (or the model's own limit, where that is less) a model is of no use: it does not fit."""

THOUGHT_TOKENS = 1000
"""Tokens of thinking whose time is told: a short thought of a reasoning model."""

TELLING_SHARE = 0.1
"""A program is named where it holds at least so much of what is short: ending a smaller one would not help."""


def does_not_fit(plan: Plan, holder: Program | None = None) -> DoesNotFit:
    """Make the error for a plan that needs more memory than there is: how much is short, and what to type instead.

    `holder` is the program that holds most memory now.
    """
    needed = plan.memory_bytes or plan.variant.size_bytes or 0
    free = plan.free_ram_bytes
    short = plan.short_bytes or 0
    said = [
        f"{plan.spec.id} {plan.variant.quant} with a context of {plan.context_tokens:,} tokens needs "
        f"{gigabytes(needed)}; {gigabytes(usable_bytes(free))} of the {gigabytes(free)} free can be used: "
        f"{gigabytes(short)} short"
    ]
    if holder is not None and holder.held_bytes >= TELLING_SHARE * short:
        said.append(f"{holder.name} holds {gigabytes(holder.held_bytes)}")
    hints = []
    longest = min(plan.largest_context_tokens or 0, plan.spec.context_tokens or plan.context_tokens)
    if LEAST_CONTEXT_TOKENS <= longest < plan.context_tokens:
        said.append(f"the longest context that fits is {longest:,}")
        hints.append(f"--ctx {longest}")
    if plan.fitting_quant is not None:
        said.append(f"{plan.fitting_quant} would fit")
        hints.append(f"--quant {plan.fitting_quant}")
    hint = "   or: ".join(hints) or "close other programs, or choose a smaller one: slm ls --all"
    return DoesNotFit("; ".join(said), hint=hint)


def variant_reason(spec: ModelSpec, variant: Variant, settings: Settings, backend: str = "llamacpp") -> str:
    """Say why this variant."""
    is_repacked = backend == "llamacpp" and variant.quant in REPACKED
    repacked = "; llama.cpp repacks it for this processor" if is_repacked else ""
    if settings.quant is not None:
        why = "as asked" if variant.path is not None else "as asked, not here yet"
    elif variant.path is not None:
        why = "it ships inside the package" if spec.embedded else "it is here"
    else:
        why = f"{_rank_of(spec, variant)}, not here yet"
    if not variant.verified:
        why += ", known second-hand only"
    return f"{variant.quant}: {why}{repacked}"


def download_reason(variant: Variant, hardware: Hardware) -> str:
    """Say how much is to be fetched, and how long that takes at the speed of the last download."""
    if variant.size_bytes is None:
        return "to be fetched first; its size is not known"
    about = "" if variant.size_is_exact else "about "
    what = f"{about}{gigabytes(variant.size_bytes)} to fetch"
    speed = hardware.download_bytes_s
    if not speed:
        return what
    return f"{what}, about {duration(variant.size_bytes / speed)} at {gigabytes(round(speed))}/s as last seen"


def memory_reason(variant: Variant, fit: Fit) -> str:
    """Say what it takes of the free memory, and whether that fits."""
    free = f"{gigabytes(fit.free_bytes)} free"
    if fit.weights_bytes is None:
        return f"memory can't be foretold: the size of {variant.quant} is not known"
    about = "" if variant.size_is_exact and fit.weights_bytes == variant.size_bytes else "about "
    verdict = fit.verdict + (f", {gigabytes(fit.short_bytes)} short" if fit.short_bytes else "")
    if fit.total_bytes is None or fit.kv_bytes is None:
        known = ", KV cache not known" if fit.fits else f": {verdict}"
        return f"needs {about}{gigabytes(fit.weights_bytes)} of {free} for its weights{known}"
    parts = f"weights {gigabytes(fit.weights_bytes)}, KV cache {gigabytes(fit.kv_bytes)}"
    buffers = f"buffers {gigabytes(fit.buffer_bytes)}"
    return f"needs {about}{gigabytes(fit.total_bytes)} of {free} ({parts}, {buffers}): {verdict}"


def speed_reason(spec: ModelSpec, fit: Fit, way: Way, measurement: Measurement | None) -> str:
    """Say how fast it is as measured here, else how fast it should be, from what; and how long a thought takes then."""
    what = "tokens of thinking" if spec.thinks else "tokens"
    if measurement is not None:
        speed, tps = f"reads {rate(measurement.prefill_tps)} tok/s and decodes", measurement.decode_tps
        return f"{speed} {rate(tps)}, measured here, so {THOUGHT_TOKENS:,} {what} take {_thought(tps)}"
    if fit.read_bytes_per_token is None:
        return "speed can't be foretold: the file's size is not known"
    if fit.decode_tps is None:
        return "speed is not foretold: a model this small is not bound by memory"
    bandwidth = f"{fit.read_gb_s:.0f} GB/s measured here" if fit.is_measured else f"an assumed {fit.read_gb_s:.0f} GB/s"
    share = f"{fit.engine_share:.0%}"
    reached = f"last got {share}" if fit.is_share_measured else f"gets an assumed {share}"
    engine = ENGINE_NAMES.get(way.backend, way.backend)
    place = "" if way.kind == "cpu" else f" on the {'NPU' if way.kind == 'npu' else 'GPU'}"
    source = f"{gigabytes(fit.read_bytes_per_token)} read a token at {bandwidth}, of which {engine}{place} {reached}"
    thought = f"{THOUGHT_TOKENS:,} {what} take about {_thought(fit.decode_tps)}"
    return f"about {rate(fit.decode_tps)} tok/s ({source}), so {thought}"


def rate(tps: float) -> str:
    """Write a speed as people read it: 9.2, 26, 1,204."""
    return f"{tps:,.0f}" if tps >= 10 else f"{tps:.1f}"


def _thought(tps: float) -> str:
    return duration(THOUGHT_TOKENS / tps)


def duration(seconds: float) -> str:
    """Write a time as people read it: 41 s, 1 min 50 s, 12 min, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return (
        f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    )


def key(variant: Variant) -> tuple[str | None, str | None, str]:
    """Return what tells a variant of a model from its others."""
    return (variant.repo, variant.file, variant.quant)


def _rank_of(spec: ModelSpec, variant: Variant) -> str:
    if is_for_npu(variant):
        return "made for an NPU"
    first = next((each for each in spec.variants if each.kind == variant.kind), None)
    if first is None or key(first) != key(variant):
        return "another one"
    return "OpenVINO's own form" if variant.kind == "openvino" else "the registry's first choice"
