"""Every way to run a model on this machine: which variant, engine, context and threads, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from slm_local.config import Settings
from slm_local.errors import EngineMissing, UsageError
from slm_local.fit import Fit, predict
from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.selector.sentences import (
    LEAST_CONTEXT_TOKENS,
    download_reason,
    gigabytes,
    key,
    memory_reason,
    speed_reason,
    variant_reason,
)

DEFAULT_CONTEXT_TOKENS = 16_384
"""Room for a long thought and a conversation around it; the command line's contract."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A variant and the engine that would run it."""

    variant: Variant
    backend: str
    device: str
    why: str


def rank(spec: ModelSpec, hardware: Hardware, settings: Settings, have: Sequence[Variant] | None = None) -> list[Plan]:
    """Return every way to run a model here, best first; never empty.

    `have` are the variants that lie on this disk (None: those of the spec that have a path). A plan that does not fit
    is in the list and says so. Errors: `EngineMissing`, `UsageError` for a quantization or a context that the model
    does not have.
    """
    variants = _with_paths(spec, have)
    candidates = _candidates(spec, hardware, settings, variants)
    asked = _asked_context(spec, settings)
    ranked: list[tuple[tuple[bool, bool, bool, int], Plan]] = []
    for position, candidate in enumerate(candidates):
        plan = _plan(spec, candidate, hardware, settings, asked)
        order = (candidate.variant.path is None, not plan.fits, not candidate.variant.verified, position)
        ranked.append((order, plan))
    plans = [plan for _, plan in sorted(ranked, key=lambda each: each[0])]
    return [plan if plan.fits else _with_way_out(plan, variants, hardware, asked) for plan in plans]


def _with_paths(spec: ModelSpec, have: Sequence[Variant] | None) -> tuple[Variant, ...]:
    """Return the spec's variants, those that are here with their paths, each file once."""
    if have is None:
        return spec.variants
    absent = [each for each in spec.variants if all(key(each) != key(here) for here in have)]
    return (*have, *absent)


def _candidates(
    spec: ModelSpec, hardware: Hardware, settings: Settings, variants: Sequence[Variant]
) -> list[Candidate]:
    """Pair variants with engines: one a quantization (that which is here, else the first), and all that are here."""
    if spec.family == "scripted":
        why = "scripted: plays a file, for tests"
        return [Candidate(variant=each, backend="scripted", device="cpu", why=why) for each in variants]
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
            why_here = f"llama.cpp on the CPU: {why}"
            found.append(Candidate(variant=variant, backend="llamacpp", device="cpu", why=why_here))
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


def _plan(spec: ModelSpec, candidate: Candidate, hardware: Hardware, settings: Settings, asked: int | None) -> Plan:
    variant, backend = candidate.variant, candidate.backend
    fit, context_reason = _fit(spec, variant, hardware, asked, backend=backend, device=candidate.device)
    threads = settings.threads or hardware.physical_cores
    cores = "as asked" if settings.threads else "one for each physical core"
    reasons = [candidate.why, context_reason, f"{threads} {'thread' if threads == 1 else 'threads'}: {cores}"]
    if backend != "scripted":
        reasons.insert(1, variant_reason(spec, variant, settings))
        if variant.path is None:
            reasons.insert(2, download_reason(variant, hardware))
        reasons += [memory_reason(variant, fit), speed_reason(spec, fit, backend)]
    return Plan(
        spec=spec,
        variant=variant,
        backend=backend,
        device=candidate.device,
        context_tokens=fit.context_tokens,
        threads=threads,
        memory_bytes=fit.total_bytes,
        free_ram_bytes=fit.free_bytes,
        fits=fit.fits,
        expected_decode_tps=fit.decode_tps,
        reasons=tuple(reasons),
        verdict=fit.verdict,
        short_bytes=fit.short_bytes,
        largest_context_tokens=fit.largest_context_tokens,
    )


def _fit(
    spec: ModelSpec, variant: Variant, hardware: Hardware, asked: int | None, *, backend: str, device: str
) -> tuple[Fit, str]:
    """Foretell what the context to open takes, and say which bound decided the context."""

    def at(context: int) -> Fit:
        return predict(spec, variant, context, hardware, backend=backend, device=device)

    if asked is not None:
        return at(asked), f"context {asked:,}: as asked"
    wanted = min(DEFAULT_CONTEXT_TOKENS, spec.context_tokens or DEFAULT_CONTEXT_TOKENS)
    fit = at(wanted)
    largest = fit.largest_context_tokens
    if largest is not None and min(wanted, LEAST_CONTEXT_TOKENS) <= largest < wanted:
        return at(largest), f"context {largest:,}: the longest that fits, with {gigabytes(fit.free_bytes)} free"
    bound = "the model's own limit" if wanted == spec.context_tokens else "the default"
    return fit, f"context {wanted:,}: {bound}"


def _with_way_out(plan: Plan, variants: Iterable[Variant], hardware: Hardware, asked: int | None) -> Plan:
    """Add to a plan that does not fit the largest other quantization that would, with a context as asked."""
    fitting: list[Variant] = []
    for variant in variants:
        if variant.kind != plan.variant.kind or variant.quant == plan.variant.quant or not variant.verified:
            continue
        fit, _ = _fit(plan.spec, variant, hardware, asked, backend=plan.backend, device=plan.device)
        if fit.fits and fit.total_bytes is not None:
            fitting.append(variant)
    best = max(fitting, key=lambda each: each.size_bytes or 0, default=None)
    return replace(plan, fitting_quant=best.quant if best is not None else None)
