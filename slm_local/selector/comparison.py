"""Why the best way to run a model is the best, and why each other one comes after it, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slm_local.config import Settings
from slm_local.fit import Fit, weight_bits
from slm_local.hardware import Hardware
from slm_local.measured import Measurement
from slm_local.model import ModelSpec, Variant
from slm_local.selector.rules import character, has_amx
from slm_local.selector.sentences import rate
from slm_local.selector.ways import ENGINE_NAMES, Way

BY_RULE = "by rule of thumb, not measured here"

NOTABLE = 0.99
"""Speeds whose ratio is nearer to 1 are told as the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is to be decided: a model, a machine, what is wished, the files and measurements there are."""

    spec: ModelSpec
    hardware: Hardware
    settings: Settings
    variants: tuple[Variant, ...]
    measured: tuple[Measurement, ...]
    unreadable: Mapping[str, str]
    """Why OpenVINO can't read GGUF files that are here, by their paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a way comes among all: field by field the lower one is better, the first difference decides."""

    obstructed: bool
    absent: bool
    too_large: bool
    second_hand: bool
    loudness: int
    unraced: bool
    """Whether it has no measured speed, where speed decides: what failed in a race has none either."""
    size_class: int
    cost: float
    is_converted: bool
    """Whether OpenVINO has to make its own form of a GGUF file first."""
    position: int
    """Among the variants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A way with what it takes, what it gives and where it comes."""

    way: Way
    fit: Fit
    context_reason: str
    measurement: Measurement | None
    place: Place

    @property
    def decode_tps(self) -> float | None:
        """Return tokens decoded per second, as measured here, else as foretold."""
        return self.measurement.decode_tps if self.measurement is not None else self.fit.decode_tps


def way_name(case: Case, way: Way) -> str:
    """Name engine and device; a GPU by its own name where there are several."""
    device = {"cpu": "CPU", "npu": "NPU"}.get(way.device.kind, "GPU")
    gpus = [each for each in case.hardware.devices if each.kind == "gpu" and each.engine == way.backend]
    which = f" {way.device.description}" if way.device.kind == "gpu" and len(gpus) > 1 else ""
    return f"{ENGINE_NAMES.get(way.backend, way.backend)} on the {device}{which}"


def route_reason(case: Case, rated: Rated, all_rated: Sequence[Rated]) -> str:
    """Say why this engine on this device, of the best; what it is like, of others."""
    way, settings = rated.way, case.settings
    name = way_name(case, way)
    if settings.backend != "auto" or settings.device != "auto":
        return f"{name}: the one you asked for"
    routes = {each.way.route for each in all_rated if each.way.obstacle is None}
    if routes == {way.route}:
        only = "engine installed here" if len(case.hardware.engines) == 1 else "one here that runs it"
        return f"{name}: the only {only}"
    if rated is not all_rated[0]:
        return f"{name}: {character(case.spec, way, case.hardware)}"
    if settings.prefer == "quiet" and way.kind in ("npu", "gpu"):
        return f"{name}: quieter than all else here, as you prefer"
    if settings.prefer == "battery":
        return f"{name}: takes the least energy for a reply ({BY_RULE})"
    if rated.measurement is not None:
        return f"{name}: the fastest as measured here"
    return f"{name}: {_merit(case, rated)} ({BY_RULE})"


def _merit(case: Case, best: Rated) -> str:
    """Say by which rule the best is the best."""
    if best.way.kind == "cpu" and best.way.backend == "openvino" and has_amx(case.hardware) and not case.spec.thinks:
        return "reads prompts fast with AMX, and this model thinks little"
    return character(case.spec, best.way, case.hardware)


def lost_because(case: Case, rated: Rated, best: Rated) -> str:
    """Say what puts a way behind the best one."""
    way, mine, first = rated.way, rated.place, best.place
    if way.obstacle is not None:
        return way.obstacle
    if mine.absent != first.absent:
        return "not here yet, and what is here comes first"
    if mine.too_large != first.too_large:
        return "does not fit the memory"
    if mine.second_hand != first.second_hand:
        return "known second-hand only"
    if mine.loudness != first.loudness:
        return f"louder than {way_name(case, best.way)}"
    if mine.unraced != first.unraced:
        return f"not measured yet, as {best.way.variant.quant} is: slm bench {case.spec.id} --calibrate"
    if mine.size_class != first.size_class:
        return _of_other_size(way.variant, best.way.variant)
    if mine.cost > first.cost:
        return _of_higher_cost(case, rated, best)
    if mine.is_converted != first.is_converted:
        return f"OpenVINO has to convert it first, and takes more memory for it than for {best.way.variant.quant}"
    return f"{best.way.variant.quant} comes first among those of its size"


def _of_other_size(variant: Variant, best: Variant) -> str:
    mine, first = weight_bits(variant.quant) or 0, weight_bits(best.quant) or 0
    if mine > first:
        return f"more bits a weight than {best.quant}: slower, and takes more memory"
    return f"fewer bits a weight than {best.quant}: answers worse"


def _of_higher_cost(case: Case, rated: Rated, best: Rated) -> str:
    known = rated.measurement is not None and best.measurement is not None
    how = "as measured here" if known else BY_RULE
    if case.settings.prefer == "battery":
        return f"takes more energy for a reply ({how})" if not known else "takes more energy for a reply"
    if rated.measurement is not None and best.measurement is not None:
        mine, first = rated.measurement, best.measurement
        reads = f"reads {rate(mine.prefill_tps)} tok/s against {rate(first.prefill_tps)}"
        return f"{reads} and decodes {rate(mine.decode_tps)} against {rate(first.decode_tps)}, measured here"
    tps, best_tps = rated.decode_tps, best.decode_tps
    if tps is not None and best_tps is not None and tps < NOTABLE * best_tps:
        return f"decodes about {rate(tps)} tok/s against {rate(best_tps)}"
    return f"slower ({how})"
