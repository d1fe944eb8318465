"""Ranks the ways to run a model on this machine, each with its reasons, and names models that suit it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slm_local.config import Settings
from slm_local.errors import DoesNotFit, EngineMissing, UsageError
from slm_local.fit import Fit, predict
from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Plan, Variant

DEFAULT_CONTEXT_TOKENS = 16_384
"""Room for a long thought and a conversation around it; the command line's contract."""

LEAST_CONTEXT_TOKENS = 512
"""With less than this (or the model's own limit, where that is less) a model is of no use: it does not fit."""

PATIENCE_TPS = 1024 / 180
"""Slowest speed at which a thinking model suits a machine: 1,024 tokens of thinking within three minutes."""

SUGGESTED_CONTEXT_TOKENS = 8_192

REPACKED = frozenset({"Q4_0", "IQ4_NL", "MXFP4"})
"""Quantizations that llama.cpp rearranges whole at load, for kernels made for this processor (ggml-cpu/repack.cpp)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A variant and the engine that would run it."""

    variant: Variant
    backend: str
    why: str


def rank(spec: ModelSpec, hardware: Hardware, settings: Settings, have: Sequence[Variant] | None = None) -> list[Plan]:
    """Return every way to run a model here, best first; never empty.

    `have` are the variants that lie on this disk (None: those of the spec that have a path). A plan that does not fit
    is in the list and says so, unless the user asked for its context. Errors: `EngineMissing`, `UsageError` for a
    quantization or a context that the model does not have, `DoesNotFit` for an asked context that does not fit.
    """
    candidates = _candidates(spec, hardware, settings, _with_paths(spec, have))
    context = _asked_context(spec, settings)
    ranked: list[tuple[tuple[bool, bool, bool, int], Plan, Fit]] = []
    for position, candidate in enumerate(candidates):
        plan, fit = _plan(spec, candidate, hardware, settings, context)
        order = (candidate.variant.path is None, not plan.fits, not candidate.variant.verified, position)
        ranked.append((order, plan, fit))
    ranked.sort(key=lambda each: each[0])
    _, best, fit = ranked[0]
    if context is not None and not best.fits:
        raise does_not_fit(best, fit.largest_context_tokens)
    return [plan for _, plan, _ in ranked]


def does_not_fit(plan: Plan, largest_context_tokens: int | None = None) -> DoesNotFit:
    """Make the error for a plan that needs more memory than there is, with both figures and what to type instead."""
    needed = gigabytes(plan.memory_bytes or plan.variant.size_bytes or 0)
    what = f"{plan.spec.id} {plan.variant.quant} with a context of {plan.context_tokens:,} tokens"
    message = f"{what} needs {needed} and {gigabytes(plan.free_ram_bytes)} are free"
    if largest_context_tokens:
        longest = min(largest_context_tokens, plan.spec.context_tokens or largest_context_tokens)
        return DoesNotFit(f"{message}; the longest context that fits is {longest:,}", hint=f"--ctx {longest}")
    return DoesNotFit(message, hint="close other programs, or choose a smaller one: slm ls --all")


def suggest(models: Sequence[ModelSpec], hardware: Hardware, count: int = 3) -> list[ModelSpec]:
    """Return the reasoning models that suit this machine best, at most one a family.

    First those that leave memory for other programs and think fast enough, the largest first (weights are the best
    guess at ability that the registry has), newer before older; then those that merely fit, the smallest first.
    """
    eager: list[tuple[int, str, ModelSpec]] = []
    patient: list[tuple[int, str, ModelSpec]] = []
    for spec in models:
        variant = next((each for each in spec.variants if each.kind == "gguf" and each.verified), None)
        if variant is None or variant.size_bytes is None or not spec.thinks or not spec.verified or spec.embedded:
            continue
        fit = predict(spec, variant, min(SUGGESTED_CONTEXT_TOKENS, spec.context_tokens or 0), hardware)
        if fit.verdict in ("Perfect", "Good") and (fit.decode_tps or PATIENCE_TPS) >= PATIENCE_TPS:
            eager.append((variant.size_bytes, spec.released or "", spec))
        elif fit.fits and fit.total_bytes is not None:
            patient.append((-variant.size_bytes, spec.released or "", spec))
    best: dict[str, ModelSpec] = {}
    for ranked in (eager, patient):
        for _, _, spec in sorted(ranked, key=lambda each: each[:2], reverse=True):
            best.setdefault(spec.family or spec.id, spec)
    return list(best.values())[:count]


def gigabytes(size_bytes: int) -> str:
    """Write a size as people read it: 4.9 GB, 98 MB."""
    if size_bytes < 10**6:
        return f"{size_bytes / 1e3:.0f} kB"
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes < 10**9 else f"{size_bytes / 1e9:.1f} GB"


def _with_paths(spec: ModelSpec, have: Sequence[Variant] | None) -> tuple[Variant, ...]:
    """Return the spec's variants, those that are here with their paths, each file once."""
    if have is None:
        return spec.variants
    absent = [each for each in spec.variants if all(_key(each) != _key(here) for here in have)]
    return (*have, *absent)


def _key(variant: Variant) -> tuple[str | None, str | None, str]:
    return (variant.repo, variant.file, variant.quant)


def _candidates(
    spec: ModelSpec, hardware: Hardware, settings: Settings, variants: Sequence[Variant]
) -> list[Candidate]:
    """Pair variants with engines: one a quantization (that which is here, else the first), and all that are here."""
    if spec.family == "scripted":
        return [
            Candidate(variant=each, backend="scripted", why="scripted: plays a file, for tests") for each in variants
        ]
    runnable = [each for each in variants if each.kind == "gguf"]
    if not runnable:
        raise EngineMissing(
            f"{spec.id} is known as an OpenVINO folder only, and this version has no engine for it",
            hint="slm ls --all",
        )
    if "llamacpp" not in hardware.engines:
        raise EngineMissing("llama.cpp is not installed", hint='pip install "slm-local[llamacpp]"')
    why = "the one you asked for" if settings.backend != "auto" else "the only engine installed here"
    chosen = _of_quant(spec, runnable, settings.quant)
    seen: set[str] = set()
    found = []
    for variant in sorted(chosen, key=lambda each: each.path is None):
        if variant.path is not None or variant.quant not in seen:
            found.append(Candidate(variant=variant, backend="llamacpp", why=f"llama.cpp on the CPU: {why}"))
        seen.add(variant.quant)
    return found


def _of_quant(spec: ModelSpec, variants: Sequence[Variant], quant: str | None) -> list[Variant]:
    if quant is None:
        return list(variants)
    chosen = [each for each in variants if each.quant.casefold() == quant.casefold()]
    if not chosen:
        known = list(dict.fromkeys(each.quant for each in variants))
        raise UsageError(f"{spec.id} has no {quant}; there is {', '.join(known)}", hint=f"--quant {known[0]}")
    return chosen


def _asked_context(spec: ModelSpec, settings: Settings) -> int | None:
    asked, own = settings.context_tokens, spec.context_tokens
    if asked is not None and own is not None and asked > own:
        raise UsageError(
            f"{spec.id} was made for contexts of at most {own:,} tokens, not {asked:,}", hint=f"--ctx {own}"
        )
    return asked


def _plan(
    spec: ModelSpec, candidate: Candidate, hardware: Hardware, settings: Settings, asked: int | None
) -> tuple[Plan, Fit]:
    variant = candidate.variant
    wanted = min(DEFAULT_CONTEXT_TOKENS, spec.context_tokens or DEFAULT_CONTEXT_TOKENS)
    largest = predict(spec, variant, wanted, hardware).largest_context_tokens
    context, context_reason = _context(spec, asked, wanted, largest, hardware)
    fit = predict(spec, variant, context, hardware)
    threads = settings.threads or hardware.physical_cores
    cores = "as asked" if settings.threads else "one for each physical core"
    plan = Plan(
        spec=spec,
        variant=variant,
        backend=candidate.backend,
        device="cpu",
        context_tokens=context,
        threads=threads,
        memory_bytes=fit.total_bytes,
        free_ram_bytes=hardware.free_ram_bytes,
        fits=fit.fits,
        expected_decode_tps=fit.decode_tps,
        reasons=(
            candidate.why,
            *([] if candidate.backend == "scripted" else [_variant_reason(spec, variant, settings)]),
            context_reason,
            f"{threads} {'thread' if threads == 1 else 'threads'}: {cores}",
            *([] if candidate.backend == "scripted" else [_memory_reason(variant, fit), _speed_reason(fit)]),
        ),
    )
    return plan, fit


def _context(
    spec: ModelSpec, asked: int | None, wanted: int, largest: int | None, hardware: Hardware
) -> tuple[int, str]:
    """Return the context to open, and which bound decided it."""
    if asked is not None:
        return asked, f"context {asked:,}: as asked"
    if largest is not None and min(wanted, LEAST_CONTEXT_TOKENS) <= largest < wanted:
        return largest, f"context {largest:,}: the longest that fits, with {gigabytes(hardware.free_ram_bytes)} free"
    bound = "the model's own limit" if wanted == spec.context_tokens else "the default"
    return wanted, f"context {wanted:,}: {bound}"


def _variant_reason(spec: ModelSpec, variant: Variant, settings: Settings) -> str:
    repacked = "; llama.cpp repacks it for this processor" if variant.quant in REPACKED else ""
    if settings.quant is not None:
        why = "as asked" if variant.path is not None else "as asked, not here yet"
    elif variant.path is not None:
        why = "it ships inside the package" if spec.embedded else "it is here"
    else:
        why = "the registry's first choice, not here yet" if _is_first(spec, variant) else "another one, not here yet"
    if not variant.verified:
        why += ", known second-hand only"
    return f"{variant.quant}: {why}{repacked}"


def _is_first(spec: ModelSpec, variant: Variant) -> bool:
    first = next((each for each in spec.variants if each.kind == "gguf"), None)
    return first is not None and _key(first) == _key(variant)


def _memory_reason(variant: Variant, fit: Fit) -> str:
    free = f"{gigabytes(fit.free_bytes)} free"
    if fit.weights_bytes is None:
        return f"memory can't be foretold: the size of {variant.quant} is not known"
    about = "" if variant.size_is_exact else "about "
    if fit.total_bytes is None or fit.kv_bytes is None:
        verdict = " (Too large)" if not fit.fits else ", KV cache not known"
        return f"needs {about}{gigabytes(fit.weights_bytes)} of {free} for its weights{verdict}"
    parts = f"weights {gigabytes(fit.weights_bytes)}, KV cache {gigabytes(fit.kv_bytes)}"
    buffers = f"buffers {gigabytes(fit.buffer_bytes)}"
    return f"needs {about}{gigabytes(fit.total_bytes)} of {free} ({parts}, {buffers}): {fit.verdict}"


def _speed_reason(fit: Fit) -> str:
    if fit.read_bytes_per_token is None:
        return "speed can't be foretold: the file's size is not known"
    if fit.decode_tps is None:
        return "speed is not foretold: a model this small is not bound by memory"
    read = gigabytes(fit.read_bytes_per_token)
    kind = "a measured" if fit.is_measured else "an assumed"
    digits = 0 if fit.decode_tps >= 10 else 1
    return f"about {fit.decode_tps:.{digits}f} tokens/s: {read} read per token at {kind} {fit.read_gb_s:.0f} GB/s"
