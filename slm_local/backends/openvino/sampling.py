"""Says in OpenVINO GenAI's words how the next token is chosen; what it can't do is refused, not dropped."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from slm_local.backends.openvino.library import refuse_sampling
from slm_local.errors import UsageError
from slm_local.generation import Sampling

WHOLE = -1
"""`repeat_last_n` for everything, prompt included: the only window that OpenVINO's repetition penalty has."""

DEFAULT_WINDOW = Sampling().repeat_last_n


def drawn_seed(sampling: Sampling) -> int:
    """Return the seed asked for, or a fresh one."""
    return secrets.randbits(32) if sampling.seed is None else sampling.seed % 2**32


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Return the fields of a `GenerationConfig` that say the same, seed and limits not among them.

    OpenVINO GenAI applies penalties, top_k, temperature, min_p, top_p in this order. All truncations look at
    probabilities after the temperature (top_k keeps the same tokens before it as after), so the order is the house's:
    temperature first. Errors: `UsageError` for a window of the penalties.
    """
    fields: dict[str, Any] = _penalties(sampling)
    if sampling.temperature <= 0.0:
        return {**fields, "do_sample": False}
    fields |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.top_k > 0:
        fields["top_k"] = sampling.top_k
    if sampling.min_p > 0.0:
        fields["min_p"] = sampling.min_p
    return fields


def _penalties(sampling: Sampling) -> dict[str, float]:
    found = {
        "repetition_penalty": (sampling.repeat_penalty, 1.0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
    }
    asked = {name: value for name, (value, off) in found.items() if value != off}
    if sampling.repeat_last_n == 0:
        return {}
    if asked and sampling.repeat_last_n not in (DEFAULT_WINDOW, WHOLE):
        raise UsageError(
            f"OpenVINO's penalties look at the whole text, not at its last {sampling.repeat_last_n} tokens",
            hint="leave repeat_last_n out, or: --backend llamacpp",
        )
    return asked


def generation_config(
    genai: Any, fields: dict[str, Any], *, seed: int, most_tokens: int, end_id: int, end_ids: Collection[int]
) -> Any:
    """Return a `GenerationConfig`; `end_id` is one of `end_ids`. Errors: `UsageError` for values out of range."""
    limits = {"rng_seed": seed, "max_new_tokens": most_tokens, "eos_token_id": end_id, "stop_token_ids": set(end_ids)}
    try:
        config = genai.GenerationConfig(**fields, **limits)
        config.validate()
    except (RuntimeError, TypeError, ValueError) as error:
        refuse_sampling(error)
    return config
