"""What a model reference means on this machine: the model, its files that are here, every way to run it, best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import assert_never

from slm_local.config import Settings, load_settings
from slm_local.gguf_header import GgufHeader, checked_header
from slm_local.hardware import probe
from slm_local.measured import load_measurements
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.paths import paths
from slm_local.registry import Registry, Resolved, find_local, load_registry, spec_for_file, spec_for_folder
from slm_local.sanitize import shell_word
from slm_local.selector import rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """The model that a reference names, its variants that are on this disk, and remarks."""

    reference: str
    """As it was typed, but a path in full."""
    spec: ModelSpec
    settings: Settings
    here: tuple[Variant, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Meaning):
    """A meaning with every plan, best first."""

    plans: tuple[Plan, ...]


def mean(reference: str, *, settings: Settings | None = None, registry: Registry | None = None) -> Meaning:
    """Resolve a model reference; a Hub reference that is not here asks the Hub.

    Errors: `UnknownModel`, `UsageError`, `ModelBroken`, `DownloadFailed`.
    """
    registry = registry or load_registry(paths().config / "models.toml")
    resolved = registry.resolve(reference)
    settings = settings or load_settings({}, reference_settings=resolved.settings)
    spec, here, notes = _spec_here(resolved, settings, registry)
    return Meaning(reference=resolved.lasting, spec=spec, settings=settings, here=here, notes=notes)


def choose(reference: str, *, settings: Settings | None = None, registry: Registry | None = None) -> Choice:
    """Resolve a model reference and rank the ways to run it here. Errors: those of `mean` and of `selector.rank`."""
    return ranked(mean(reference, settings=settings, registry=registry))


def ranked(meaning: Meaning, *, held_bytes: int = 0) -> Choice:
    """Rank the ways to run what was meant. Errors: those of `selector.rank`, `ModelBroken`.

    `held_bytes` are promised to models that are open, though the system counts them among what is free.
    """
    known = {each.name: getattr(meaning, each.name) for each in fields(Meaning)}
    if any(each.kind == "remote" for each in meaning.here):
        from slm_local.engine.elsewhere import plan_elsewhere

        return Choice(**known, plans=(plan_elsewhere(meaning.spec, meaning.here[0], meaning.settings),))
    hardware = probe(devices=_needs_devices(meaning))
    hardware = replace(hardware, free_ram_bytes=max(0, hardware.free_ram_bytes - held_bytes))
    measured = load_measurements(paths().cache)
    unreadable: dict[str, str] = {}
    while True:
        plans = rank(meaning.spec, hardware, meaning.settings, meaning.here, measured, unreadable)
        path = _unproved(plans[0], unreadable)
        reason = _unreadable(path) if path is not None else None
        if path is None or reason is None:
            return Choice(**known, plans=tuple(plans))
        unreadable[path] = reason


def _unproved(plan: Plan, unreadable: Mapping[str, str]) -> str | None:
    """Return the GGUF file that OpenVINO would have to read, where that is the plan and not known to fail."""
    path = plan.variant.path
    is_gguf = plan.backend == "openvino" and plan.variant.kind == "gguf"
    return path if is_gguf and path is not None and path not in unreadable else None


def _unreadable(path: str) -> str | None:
    """Return why OpenVINO can't read a GGUF file: only its own tensors tell for sure."""
    from slm_local.backends.openvino.support import unreadable_file  # its package costs more than a plain start

    return unreadable_file(checked_header(Path(path), paths().cache))


def _needs_devices(meaning: Meaning) -> bool:
    """Tell whether anything but the processor comes into question: asking the runtimes may take seconds, once."""
    if meaning.settings.device in ("gpu", "npu"):
        return True
    return not meaning.spec.embedded and meaning.spec.family != "scripted" and meaning.settings.device != "cpu"


def with_shape(spec: ModelSpec, header: GgufHeader) -> ModelSpec:
    """Return a spec that states no shape with that of a file's header."""
    return replace(
        spec,
        shape=header.shape,
        architecture=header.architecture,
        parameters=spec.parameters or header.parameters,
        active_parameters=spec.active_parameters or header.active_parameters,
        context_tokens=spec.context_tokens or header.context_tokens,
    )


def _spec_here(
    resolved: Resolved, settings: Settings, registry: Registry
) -> tuple[ModelSpec, tuple[Variant, ...], tuple[str, ...]]:
    match resolved.kind:
        case "registry":
            assert resolved.spec is not None
            here = _here(resolved.spec, settings, registry)
            return _shaped(resolved.spec, here), here, resolved.notes
        case "scripted":
            assert resolved.spec is not None
            return resolved.spec, resolved.spec.variants, resolved.notes
        case "path":
            assert resolved.path is not None
            header = checked_header(Path(resolved.path), paths().cache)
            spec, line = spec_for_file(header, registry.models)
            return spec, spec.variants, (*resolved.notes, line)
        case "hf":
            from slm_local.download.hub import Hub
            from slm_local.download.remote import fill

            hub = Hub(offline=settings.offline, again=f"slm pull {shell_word(resolved.reference)}")
            folders = paths()
            spec, notes = fill(resolved, hub, probe(), settings, registry.models, folders.cache, folders.models_dir)
            return spec, find_local(spec, folders.models_dir), (*resolved.notes, *notes)
        case "openvino":
            assert resolved.path is not None
            spec, line = spec_for_folder(Path(resolved.path), registry.models)
            return spec, spec.variants, (*resolved.notes, line)
        case "url":
            from slm_local.engine.elsewhere import served  # imports what speaks HTTP

            return served(resolved, settings)
        case _:
            assert_never(resolved.kind)


def _shaped(spec: ModelSpec, here: tuple[Variant, ...]) -> ModelSpec:
    """Return the spec with a shape, where only a file that is here states one."""
    file = next((each.path for each in here if each.kind == "gguf" and each.path is not None), None)
    if file is None or spec.shape.kv_bytes_per_token() is not None:
        return spec
    return with_shape(spec, checked_header(Path(file), paths().cache))


def _here(spec: ModelSpec, settings: Settings, registry: Registry) -> tuple[Variant, ...]:
    """Return the model's files on this disk: ours, and those of other programs where ours don't serve."""
    own = find_local(spec, paths().models_dir)
    if any(settings.quant is None or each.quant.casefold() == settings.quant.casefold() for each in own):
        return own
    from slm_local.download.found import found_models, found_variants  # not for a model that is ours

    return (*own, *found_variants(spec, registry.models, found_models(), paths().cache))
