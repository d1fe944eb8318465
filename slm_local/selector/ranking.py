"""Every way to run a model on this machine, the best first: context, threads, memory and speed of each, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from slm_local.config import Settings
from slm_local.errors import UsageError
from slm_local.fit import Fit, assumed_size_bytes, predict, weight_bits
from slm_local.hardware import Hardware
from slm_local.measured import Measurement
from slm_local.model import ModelSpec, Plan, Variant, gigabytes
from slm_local.selector.comparison import Case, Place, Rated, lost_because, route_reason
from slm_local.selector.rules import LEAST_BITS, cost, loudness, reply_s, sizes_in_order
from slm_local.selector.sentences import (
    LEAST_CONTEXT_TOKENS,
    download_reason,
    key,
    memory_reason,
    speed_reason,
    variant_reason,
)
from slm_local.selector.ways import Way, ways_here

DEFAULT_CONTEXT_TOKENS = 16_384
"""Room for a long thought and a conversation around it; the command line's contract."""

NPU_CONTEXT_TOKENS = 8_192
"""The same on an NPU, which is compiled for it and computes over all of it at every token."""

FIXED = "; fixed on an NPU: half for the prompt, thoughts read again included"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """The context to open, with what it takes, and which bound decided it."""

    fit: Fit
    reason: str


def rank(
    spec: ModelSpec,
    hardware: Hardware,
    settings: Settings,
    have: Sequence[Variant] | None = None,
    measured: Sequence[Measurement] | None = None,
    unreadable: Mapping[str, str] | None = None,
) -> list[Plan]:
    """Return the ways to run a model here, best first; the first one runs, others may not (`Plan.runs`).

    `have` are the variants that lie on this disk (None: those of the spec that have a path), `measured` what races on
    this machine found: it goes before the rules of thumb; `unreadable` says of GGUF files here, by path, why OpenVINO
    can't read them, where a look at their tensors told. A plan that does not fit is in the list and says so. Of what
    is not here every quantization and every device is shown once. Errors: `EngineMissing`; `UsageError` for a
    quantization, a context, an engine or a device with which the model can't be run here.
    """
    _check_context(spec, settings)
    variants = _variants(spec, have)
    case = Case(
        spec=spec,
        hardware=hardware,
        settings=settings,
        variants=variants,
        measured=tuple(measured or ()),
        unreadable=unreadable or {},
    )
    rated = _all_rated(case)
    plans = [_plan(case, each, rated) for each in _shown(case, rated)]
    if all(plan.fits for plan in plans):
        return plans
    others = rated if settings.quant is None else _all_rated(replace(case, settings=replace(settings, quant=None)))
    return [plan if plan.fits else replace(plan, fitting_quant=_fitting_quant(plan, others)) for plan in plans]


def _check_context(spec: ModelSpec, settings: Settings) -> None:
    asked, own = settings.context_tokens, spec.context_tokens
    if asked is not None and own is not None and asked > own:
        raise UsageError(
            f"{spec.id} was made for contexts of at most {own:,} tokens, not {asked:,}", hint=f"--ctx {own}"
        )


def _variants(spec: ModelSpec, have: Sequence[Variant] | None) -> tuple[Variant, ...]:
    """Return the spec's variants, those that are here with their paths, each file once; sizes assumed where unknown."""
    absent = spec.variants
    if have is not None:
        absent = tuple(each for each in spec.variants if all(key(each) != key(here) for here in have))
    return tuple(_sized(spec, each) for each in (*(have or ()), *absent))


def _sized(spec: ModelSpec, variant: Variant) -> Variant:
    assumed = assumed_size_bytes(spec, variant) if variant.size_bytes is None else None
    return variant if assumed is None else replace(variant, size_bytes=assumed, size_is_exact=False)


def _all_rated(case: Case) -> list[Rated]:
    """Rate every way, the best first. Errors: those of `ways_here`."""
    ways = ways_here(case.spec, case.hardware, case.settings, case.variants, case.unreadable)
    return sorted((_rated(case, way) for way in ways), key=lambda each: astuple(each.place))


def _rated(case: Case, way: Way) -> Rated:
    """Foretell a way's memory and speed, and give it its place."""
    spec, variant, prefer = case.spec, way.variant, case.settings.prefer
    context = _context(case, way)
    which = (spec.id, variant.quant, *way.route)
    measurement = next((each for each in case.measured if each.key == which), None)
    bits = weight_bits(variant.quant)
    is_raced = measurement is not None and prefer == "speed" and (bits or 0) >= LEAST_BITS
    place = Place(
        obstructed=way.obstacle is not None,
        absent=variant.path is None,
        too_large=not context.fit.fits,
        second_hand=not variant.verified,
        loudness=loudness(prefer, spec, way),
        unraced=prefer == "speed" and not is_raced,
        size_class=0 if is_raced else sizes_in_order(spec, case.variants).index(bits),
        cost=cost(prefer, way, reply_s(spec, way, context.fit, case.hardware, measurement)),
        is_converted=variant.kind == "gguf" and way.backend == "openvino",
        position=case.variants.index(variant),
    )
    return Rated(way=way, fit=context.fit, context_reason=context.reason, measurement=measurement, place=place)


def _context(case: Case, way: Way) -> _Context:
    """Foretell what the context to open takes, and say which bound decided the context."""
    spec, asked = case.spec, case.settings.context_tokens

    def at(context: int) -> Fit:
        return predict(spec, way.variant, context, case.hardware, backend=way.backend, device=way.device.name)

    fixed = FIXED if way.kind == "npu" else ""
    if asked is not None:
        return _Context(fit=at(asked), reason=f"context {asked:,}: as asked{fixed}")
    usual = NPU_CONTEXT_TOKENS if way.kind == "npu" else DEFAULT_CONTEXT_TOKENS
    wanted = min(usual, spec.context_tokens or usual)
    fit = at(wanted)
    largest = fit.largest_context_tokens
    if largest is not None and min(wanted, LEAST_CONTEXT_TOKENS) <= largest < wanted:
        reason = f"context {largest:,}: the longest that fits, with {gigabytes(fit.free_bytes)} free{fixed}"
        return _Context(fit=at(largest), reason=reason)
    bound = "the model's own limit" if wanted == spec.context_tokens else "the default"
    return _Context(fit=fit, reason=f"context {wanted:,}: {bound}{fixed}")


def _shown(case: Case, rated: Iterable[Rated]) -> list[Rated]:
    """Leave out what shows nothing new: of what is not here the quantizations and devices that came before."""
    shown: list[Rated] = []
    for each in rated:
        way = each.way
        is_new_quant = all(other.way.variant.quant != way.variant.quant for other in shown)
        is_new_route = all(other.way.route != way.route for other in shown)
        if way.obstacle is not None:
            is_wanted = is_new_quant and all(other.way.obstacle != way.obstacle for other in shown)
        else:
            is_wanted = is_new_quant or case.settings.quant is not None or way.variant.path is not None
        if is_new_route or is_wanted:
            shown.append(each)
    return shown


def _plan(case: Case, rated: Rated, all_rated: Sequence[Rated]) -> Plan:
    way, fit, is_npu = rated.way, rated.fit, rated.way.kind == "npu"
    threads, threads_reason = _threads(case)
    prompt_tokens = fit.context_tokens // 2
    return Plan(
        spec=case.spec,
        variant=way.variant,
        backend=way.backend,
        device=way.device.name,
        context_tokens=fit.context_tokens,
        threads=threads,
        memory_bytes=fit.total_bytes,
        free_ram_bytes=fit.free_bytes,
        fits=fit.fits,
        expected_decode_tps=rated.decode_tps,
        reasons=tuple(_reasons(case, rated, all_rated, threads_reason)),
        verdict=fit.verdict,
        short_bytes=fit.short_bytes,
        largest_context_tokens=fit.largest_context_tokens,
        runs=way.obstacle is None,
        lost_because=lost_because(case, rated, all_rated[0]) if rated is not all_rated[0] else None,
        prompt_tokens=prompt_tokens if is_npu else None,
        response_tokens=fit.context_tokens - prompt_tokens if is_npu else None,
    )


def _reasons(case: Case, rated: Rated, all_rated: Sequence[Rated], threads_reason: str) -> list[str]:
    way, spec = rated.way, case.spec
    if way.backend == "scripted":
        return ["scripted: plays a file, for tests", rated.context_reason, threads_reason]
    gives_way = way.backend == "llamacpp" and _threads(case)[0] > 1
    return [
        route_reason(case, rated, all_rated),
        variant_reason(spec, way.variant, case.settings, way.backend),
        *([download_reason(way.variant, case.hardware)] if way.variant.path is None else []),
        rated.context_reason,
        *([threads_reason] if way.kind == "cpu" else []),
        *(["fewer threads decode while other programs take cores"] if gives_way else []),
        memory_reason(way.variant, rated.fit),
        speed_reason(spec, rated.fit, way, rated.measurement),
    ]


def _threads(case: Case) -> tuple[int, str]:
    """Return the threads to decode with, and say why so many."""
    cores, asked = case.hardware.physical_cores, case.settings.threads
    if asked is not None:
        threads, why = asked, "as asked"
    elif case.settings.prefer == "quiet" and cores > 1:
        threads, why = cores // 2, "half of the cores, to be quiet"
    else:
        threads, why = cores, f"one for each {'performance' if case.hardware.efficiency_cores else 'physical'} core"
    return threads, f"{threads} {'thread' if threads == 1 else 'threads'}: {why}"


def _fitting_quant(plan: Plan, others: Iterable[Rated]) -> str | None:
    """Return the largest other quantization that would fit where a plan does not, with a context as asked."""
    fitting = [
        each.way.variant
        for each in others
        if each.way.route == (plan.backend, plan.device)
        and each.way.variant.kind == plan.variant.kind
        and each.way.variant.quant != plan.variant.quant
        and not (each.place.obstructed or each.place.too_large or each.place.second_hand)
        and each.fit.total_bytes is not None
    ]
    best = max(fitting, key=lambda each: each.size_bytes or 0, default=None)
    return best.quant if best is not None else None
