"""Which engine runs which variant on which device of this machine, and what stands in the way of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from slm_local.config import Settings
from slm_local.errors import EngineMissing, SlmError, UsageError
from slm_local.hardware import Device, Hardware
from slm_local.installed import add_line
from slm_local.model import ModelSpec, Variant

Kind = Literal["cpu", "gpu", "card", "npu"]
"""A device's kind; a graphics card with memory of its own is another than a GPU inside the processor."""

ENGINE_NAMES = {"llamacpp": "llama.cpp", "openvino": "OpenVINO"}

ENGINE_EXTRAS = {"llamacpp": ("llamacpp",), "openvino": ()}
"""The extras of slm that bring each engine; OpenVINO comes with slm itself."""

SEEING_FAMILIES = frozenset({"qwen3.5", "qwen3.6"})
"""Their OpenVINO folders need the pipeline for models that also see. Source: OpenVINO GenAI's supported models."""

NPU_QUANTS = ("-cw", "-gq", "nf4")
"""What the weights of folders made for an NPU are called by: symmetric, a scale a channel or a group; or NF4."""

NO_LAYERS_ON_GPU = "slm runs llama.cpp on the processor only, so this GPU stays idle"
NEEDS_VOCABULARY = (
    "OpenVINO runs a GGUF file only beside llama.cpp, which tokenizes for it: slm doctor says how to add it"
)
NEEDS_SEEING = "its OpenVINO folder needs a pipeline for models that also see, which slm does not have"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A variant, the engine that would run it, and where."""

    variant: Variant
    backend: str
    device: Device
    obstacle: str | None = None
    """Why it can't be gone here; None where it can."""

    @property
    def kind(self) -> Kind:
        """Return the kind of its device."""
        return "card" if self.device.kind == "gpu" and self.device.integrated is False else self.device.kind

    @property
    def route(self) -> tuple[str, str]:
        """Return engine and device."""
        return self.backend, self.device.name


def ways_here(
    spec: ModelSpec,
    hardware: Hardware,
    settings: Settings,
    variants: Sequence[Variant],
    unreadable: Mapping[str, str],
) -> list[Way]:
    """Return every way to run a model as the settings allow it, at least one of them without an obstacle.

    `unreadable` says of GGUF files here, by path, why OpenVINO can't read them. Errors: `EngineMissing`; `UsageError`
    for a quantization, engine or device with which it can't be run here.
    """
    if spec.family == "scripted":
        return [Way(variant=each, backend="scripted", device=_processor(hardware)) for each in variants]
    chosen = _of_quant(spec, [each for each in variants if each.kind != "checkpoint"], settings.quant)
    _check_engine(spec, hardware, settings, chosen)
    found = [way for variant in _once_each(chosen) for way in _ways(spec, variant, hardware, unreadable)]
    allowed = [way for way in found if _is_allowed(way, settings)]
    if all(way.obstacle is not None for way in allowed):
        _refuse(spec, hardware, settings, allowed, chosen)
    return allowed


def is_for_npu(variant: Variant) -> bool:
    """Tell whether a variant was made for an NPU."""
    return variant.kind == "openvino" and (variant.device == "npu" or variant.quant.lower().endswith(NPU_QUANTS))


def _processor(hardware: Hardware) -> Device:
    listed = next((each for each in hardware.devices if each.kind == "cpu"), None)
    return listed or Device(name="cpu", kind="cpu", description=hardware.cpu_name)


def _of_quant(spec: ModelSpec, variants: Sequence[Variant], quant: str | None) -> list[Variant]:
    if not variants:
        hint = f"slm convert {spec.id}" if spec.original_repo else "slm ls --all"
        raise UsageError(f"no file of {spec.id} is known that an engine runs", hint=hint)
    if quant is None:
        return list(variants)
    chosen = [each for each in variants if each.quant.casefold() == quant.casefold()]
    if not chosen:
        known = list(dict.fromkeys(each.quant for each in variants))
        raise UsageError(f"{spec.id} has no {quant}; there is {', '.join(known)}", hint=f"--quant {known[0]}")
    return chosen


def _once_each(variants: Sequence[Variant]) -> Iterator[Variant]:
    """Give one variant a quantization (that which is here, else the first), and all that are here."""
    seen: set[tuple[str, str]] = set()
    for variant in sorted(variants, key=lambda each: each.path is None):
        if variant.path is not None or (variant.kind, variant.quant) not in seen:
            yield variant
        seen.add((variant.kind, variant.quant))


def _check_engine(spec: ModelSpec, hardware: Hardware, settings: Settings, variants: Sequence[Variant]) -> None:
    """Refuse where the engine that was asked for, or the only one for all variants, is missing."""
    has_file = any(each.kind == "gguf" for each in variants)
    needed: str = settings.backend
    before = ""
    if needed == "auto" and not has_file:
        what = spec.id if settings.quant is None else f"{spec.id} {settings.quant}"
        needed, before = "openvino", f"{what} is known as an OpenVINO folder only, and "
    elif needed == "auto":
        needed = next(iter(hardware.engines), "llamacpp")
    if needed not in hardware.engines:
        raise _missing(before, needed, hardware)


def _missing(before: str, engine: str, hardware: Hardware) -> EngineMissing:
    name = ENGINE_NAMES.get(engine, engine)
    if any(each.engine == engine for each in hardware.listings):
        return EngineMissing(f"{before}{name} does not run on this machine", hint="slm doctor")
    return EngineMissing(f"{before}{name} is not installed", hint=add_line(*ENGINE_EXTRAS.get(engine, ())))


def _ways(spec: ModelSpec, variant: Variant, hardware: Hardware, unreadable: Mapping[str, str]) -> Iterator[Way]:
    """Give the ways that come into question for a variant, also those with an obstacle."""
    others = [each for each in hardware.devices if each.kind != "cpu"]
    if variant.kind == "gguf" and "llamacpp" in hardware.engines:
        yield Way(variant=variant, backend="llamacpp", device=_processor(hardware))
        for device in (each for each in others if each.engine == "llamacpp"):
            yield Way(variant=variant, backend="llamacpp", device=device, obstacle=NO_LAYERS_ON_GPU)
    if "openvino" not in hardware.engines:
        return
    obstacle = unreadable.get(variant.path or "") or _openvino_obstacle(spec, variant, hardware)
    for device in (_processor(hardware), *(each for each in others if each.engine == "openvino")):
        if device.kind == "npu" and not is_for_npu(variant):
            made = f" (slm convert {spec.id} --npu makes one)" if spec.original_repo else ""
            other = f"an NPU runs only OpenVINO folders made for it{made}"
            yield Way(variant=variant, backend="openvino", device=device, obstacle=other)
        elif device.kind == "npu" or not is_for_npu(variant) or _runs_elsewhere(variant):
            yield Way(variant=variant, backend="openvino", device=device, obstacle=obstacle)
    for device in _broken(hardware):
        broke = f"OpenVINO broke when it was asked for the {device.name.upper()}: slm doctor says why"
        yield Way(variant=variant, backend="openvino", device=device, obstacle=broke)


def _openvino_obstacle(spec: ModelSpec, variant: Variant, hardware: Hardware) -> str | None:
    from slm_local.backends.openvino.support import unreadable_kind  # its package takes a while: not for `slm ls`

    if variant.kind == "openvino":
        return NEEDS_SEEING if spec.family in SEEING_FAMILIES else None
    unreadable = unreadable_kind(spec.architecture, variant.quant)
    if unreadable is None and "llamacpp" not in hardware.engines and not spec.embedded:
        return NEEDS_VOCABULARY
    return unreadable


def _runs_elsewhere(variant: Variant) -> bool:
    """Tell whether a folder made for an NPU is worth running elsewhere: where it is here, and not in NF4."""
    return variant.path is not None and "nf4" not in variant.quant.lower()


def _broken(hardware: Hardware) -> Iterator[Device]:
    for listing in hardware.listings:
        for kind in listing.broken_kinds if listing.engine == "openvino" else ():
            yield Device(name=kind, kind=kind, description=kind.upper(), engine="openvino")


def _is_allowed(way: Way, settings: Settings) -> bool:
    return settings.backend in ("auto", way.backend) and settings.device in ("auto", way.device.kind)


def _refuse(
    spec: ModelSpec, hardware: Hardware, settings: Settings, allowed: Sequence[Way], variants: Sequence[Variant]
) -> NoReturn:
    """Raise what keeps the model from running as it was asked for."""
    what = spec.id if settings.quant is None else f"{spec.id} {settings.quant}"
    obstacles = [way.obstacle for way in allowed if way.obstacle is not None]
    if NEEDS_VOCABULARY in obstacles:
        raise _missing(f"{what} is a GGUF file, which OpenVINO runs only beside llama.cpp, and ", "llamacpp", hardware)
    if obstacles:
        is_asked = settings.backend != "auto" or settings.device != "auto"
        hint = "--backend auto --device auto" if is_asked else "slm ls --all"
        if settings.device == "npu" and spec.original_repo and not any(is_for_npu(each) for each in variants):
            hint = f"slm convert {spec.id} --npu"
        raise UsageError(f"{what} can't run so: {obstacles[0]}", hint=hint)
    if settings.device != "auto":
        raise _no_device(hardware, settings)
    if settings.backend == "llamacpp":
        raise UsageError(f"llama.cpp runs GGUF files, and {what} is none", hint="--backend openvino")
    raise UsageError(f"{what} is made for an NPU, and none can be used here", hint="slm doctor")


def _no_device(hardware: Hardware, settings: Settings) -> SlmError:
    """Make the error for a device that is not there, or that nothing which was asked for runs on."""
    engines = [settings.backend] if settings.backend != "auto" else sorted(hardware.engines)
    others = [each for each in hardware.devices if each.kind != "cpu" and each.engine in engines]
    name = settings.device.upper()
    if any(each.kind == settings.device for each in (_processor(hardware), *others)):
        return UsageError(f"nothing that was asked for runs on the {name}", hint="--device auto")
    there = [f"{each.name} ({each.description})" for each in (_processor(hardware), *others)]
    return UsageError(f"no {name} can be used here; there is {', '.join(there)}", hint="slm doctor")
