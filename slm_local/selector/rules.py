"""How long a reply takes on each way to run a model, as measured here or by rules of thumb, and what that costs.

The rules, for what nobody measured here: on a processor llama.cpp decodes fastest; a GPU inside an Intel processor
reads prompts far faster than the cores and decodes models of more than a billion parameters faster; an NPU is quieter
and takes less power, but is not faster; AMX reads prompts fast; models that live in the processor's caches stay there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slm_local.config import PreferChoice
from slm_local.fit import Fit, assumed_share, is_slow_gpu, is_small_for_gpu, read_bytes_per_token, weight_bits
from slm_local.hardware import Hardware
from slm_local.measured import CACHED_BYTES, Measurement
from slm_local.model import ModelSpec, Variant
from slm_local.selector.ways import Kind, Way

THINK_HEAVY, READ_HEAVY = (200, 2000), (2000, 200)
"""Tokens of the prompt and of the reply that ways are compared by: of a model that thinks, and of one that does not."""

READS_PER_DECODE: Mapping[Kind, float] = {"cpu": 5.0, "gpu": 20.0, "card": 20.0, "npu": 20.0}
"""Tokens of a prompt read in the time that decoding one takes. Seen on processors: 4 to 23; reported of GPUs inside: 15
on a Core Ultra 7 155H, 100 and more on newer ones."""

READS_WITH_AMX = 25.0
"""The same for OpenVINO on a processor with AMX."""

CACHED_SHARE = 0.1
"""Of its speed, what is left of a device other than the processor for a model that lives in the processor's caches."""

WATTS: Mapping[Kind, float] = {"npu": 6.0, "gpu": 20.0, "cpu": 28.0, "card": 120.0}
"""What a device takes while it decodes: assumed, from what such parts of laptops may draw at most."""

LOUDNESS: Mapping[Kind, int] = {"npu": 0, "gpu": 1, "cpu": 2, "card": 3}
"""How much each makes the fan run, in order."""

LEAST_BITS = 4
"""Weights of fewer bits answer worse: no speed makes up for that."""

UNKNOWN_READ_BYTES = 10**9
"""Of a model of unknown size: the same for all its ways."""


def load_of(spec: ModelSpec) -> tuple[int, int]:
    """Return the tokens read and decoded in the reply by which ways to run a model are compared."""
    return THINK_HEAVY if spec.thinks else READ_HEAVY


def reply_s(spec: ModelSpec, way: Way, fit: Fit, hardware: Hardware, measurement: Measurement | None) -> float:
    """Return the seconds of such a reply: from what was measured of this way, else by rule of thumb.

    By rule, quantizations of as many bits count as equally large, so that the better one of them may be chosen.
    """
    prompt, decoded = load_of(spec)
    if measurement is not None:
        return measurement.seconds(prompt, decoded)
    share = _share(spec, way, fit, hardware)
    reads = READS_WITH_AMX if has_amx(hardware) and way.route == ("openvino", "cpu") else READS_PER_DECODE[way.kind]
    bits = weight_bits(way.variant.quant)
    size = spec.parameters * bits / 8 if spec.parameters and bits else UNKNOWN_READ_BYTES
    return size / (fit.read_gb_s * 1e9 * share) * (prompt / reads + decoded)


def _share(spec: ModelSpec, way: Way, fit: Fit, hardware: Hardware) -> float:
    """Return the share of the bandwidth to compare by; on the processor those measured, if every engine has one."""
    if way.kind != "cpu":
        return fit.engine_share * (CACHED_SHARE if is_cached(spec, way.variant) else 1.0)
    is_fair = all(engine in hardware.engine_shares for engine in hardware.engines)
    return fit.engine_share if is_fair else assumed_share(spec, way.backend, way.device)


def cost(prefer: PreferChoice, way: Way, seconds: float) -> float:
    """Return what a reply costs: its time, or with `battery` the energy that its device takes (assumed watts)."""
    return seconds * WATTS[way.kind] if prefer == "battery" else seconds


def loudness(prefer: PreferChoice, spec: ModelSpec, way: Way) -> int:
    """Return the place of a device where quiet is preferred, 0 elsewhere and for models that run anywhere unheard."""
    return LOUDNESS[way.kind] if prefer == "quiet" and not is_cached(spec, way.variant) else 0


def sizes_in_order(spec: ModelSpec, variants: Sequence[Variant]) -> list[int | None]:
    """Return the bits of the model's quantizations, those of the registry's first choice first."""
    return list(dict.fromkeys(weight_bits(each.quant) for each in (*spec.variants, *variants)))


def is_cached(spec: ModelSpec, variant: Variant) -> bool:
    """Tell whether a model is so small that it lives in the processor's caches."""
    read = read_bytes_per_token(spec, variant)
    return spec.embedded or (read is not None and read < CACHED_BYTES)


def has_amx(hardware: Hardware) -> bool:
    """Tell whether the processor multiplies matrices by itself."""
    return "amx_int8" in (hardware.instruction_sets or ())


def character(spec: ModelSpec, way: Way, hardware: Hardware) -> str:
    """Say what a way is like by rule of thumb."""
    if is_cached(spec, way.variant):
        return "so small a model lives in its caches" if way.kind == "cpu" else "no use for so small a model"
    match way.kind:
        case "npu":
            return "quieter and takes less power, but is not faster"
        case "card":
            return "has fast memory of its own, and takes much power"
        case "gpu" if is_slow_gpu(way.device):
            return "of a generation that is slower than the processor"
        case "gpu" if is_small_for_gpu(spec):
            return "reads prompts faster than the processor, but decodes so small a model slower"
        case "gpu":
            return "reads prompts many times as fast as the processor, and decodes faster"
        case "cpu" if way.backend == "llamacpp":
            return "decodes fastest on a processor"
        case _:
            return "reads prompts fast with AMX" if has_amx(hardware) else "decodes a little slower on a processor"
