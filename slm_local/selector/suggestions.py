"""Which models of the registry suit a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slm_local.fit import assumed_size_bytes, predict
from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Variant
from slm_local.selector.ways import SEEING_FAMILIES, is_for_npu

PATIENCE_TPS = 1024 / 180
"""Slowest speed at which a thinking model suits a machine: 1,024 tokens of thinking within three minutes."""

SUGGESTED_CONTEXT_TOKENS = 8_192


def suggest(models: Sequence[ModelSpec], hardware: Hardware, count: int = 3) -> list[ModelSpec]:
    """Return the reasoning models that suit this machine best, at most one a family.

    First those that leave memory for other programs and think fast enough, the largest first (weights are the best
    guess at ability that the registry has), newer before older; then those that merely fit, the smallest first.
    """
    eager: list[tuple[int, str, ModelSpec]] = []
    patient: list[tuple[int, str, ModelSpec]] = []
    for spec in models:
        variant = _usual(spec, hardware)
        if variant is None or variant.size_bytes is None or not spec.thinks or not spec.verified or spec.embedded:
            continue
        backend = "llamacpp" if variant.kind == "gguf" else "openvino"
        context = min(SUGGESTED_CONTEXT_TOKENS, spec.context_tokens or 0)
        fit = predict(spec, variant, context, hardware, backend=backend)
        if fit.verdict == "Fits" and (fit.decode_tps or PATIENCE_TPS) >= PATIENCE_TPS:
            eager.append((variant.size_bytes, spec.released or "", spec))
        elif fit.fits and fit.total_bytes is not None:
            patient.append((-variant.size_bytes, spec.released or "", spec))
    best: dict[str, ModelSpec] = {}
    for ranked in (eager, patient):
        for _, _, spec in sorted(ranked, key=lambda each: each[:2], reverse=True):
            best.setdefault(spec.family or spec.id, spec)
    return list(best.values())[:count]


def _usual(spec: ModelSpec, hardware: Hardware) -> Variant | None:
    """Return the first variant that runs on the processor here: a GGUF file, without llama.cpp an OpenVINO folder."""
    kind = "gguf" if "llamacpp" in hardware.engines else "openvino"
    suited = (each for each in spec.variants if each.kind == kind and each.verified and not is_for_npu(each))
    found = next((each for each in suited if kind == "gguf" or spec.family not in SEEING_FAMILIES), None)
    if found is None or found.size_bytes is not None:
        return found
    return replace(found, size_bytes=assumed_size_bytes(spec, found), size_is_exact=False)
