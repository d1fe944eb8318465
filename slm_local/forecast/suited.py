"""Which models suit this machine: those that are here and fit first, thinking and new ones before others."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from slm_local.config import Settings
from slm_local.download.found import found_models, found_spec
from slm_local.errors import EngineMissing, ModelBroken, UsageError
from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.paths import paths
from slm_local.registry import Registry, find_local, scan
from slm_local.selector import rank, suggest

OFFERS = 3


def offers(registry: Registry, hardware: Hardware, here: Mapping[str, Sequence[Variant]]) -> list[Plan]:
    """Return the best plans of three models: those that are here and fit, thinking and new ones first; then others.

    `here` are the variants on this disk by their model's id; a model that no engine here runs is left out.
    """
    known = [spec for spec in registry.models if spec.id in here and not spec.embedded]
    present = [plan for plan in _best(known, hardware, here) if plan.fits]
    present.sort(key=lambda plan: (plan.spec.thinks, plan.spec.released or ""), reverse=True)
    suited = [spec for spec in suggest(registry.models, hardware, len(registry.models)) if spec.id not in here]
    absent = _best(suited[: max(0, OFFERS - len(present))], hardware, here)
    return [*present, *absent][:OFFERS]


def _best(specs: Sequence[ModelSpec], hardware: Hardware, here: Mapping[str, Sequence[Variant]]) -> list[Plan]:
    """Return the best plan of each model that an engine here runs."""
    plans = []
    for spec in specs:
        with contextlib.suppress(EngineMissing, UsageError):
            plans.append(rank(spec, hardware, Settings(), tuple(here.get(spec.id, ())))[0])
    return plans


def models_here(registry: Registry) -> dict[str, list[Variant]]:
    """Return the GGUF files on this disk by their model's id: ours, and those that other programs keep."""
    folders = paths()
    files = scan(folders.models_dir)
    here = {spec.id: [each for each in find_local(spec, files) if each.kind == "gguf"] for spec in registry.models}
    for each in found_models():
        if each.kind == "gguf":
            with contextlib.suppress(ModelBroken):  # `slm ls` says what is wrong with it
                spec = found_spec(each, registry.models, folders.cache)
                if spec.id in here:
                    here[spec.id] += spec.variants
    return {model: variants for model, variants in here.items() if variants}
