"""How a request's own sampling lies over the model's, and where it ends its reply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slm_local.generation import Sampling
from slm_local.server.asked import ChatBody, SamplingFields
from slm_local.server.faults import refusal

PLAIN = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
"""Fields that are called as ours are and mean the same."""


def sampling_of(base: Sampling, body: SamplingFields) -> Sampling:
    """Return the sampling that applies. Errors: `Refused` for two penalties that differ."""
    changes: dict[str, Any] = {name: getattr(body, name) for name in PLAIN if getattr(body, name) is not None}
    if body.top_k is not None:
        changes["top_k"] = max(0, body.top_k)  # vLLM writes off as -1
    if body.seed is not None:
        changes["seed"] = None if body.seed == -1 else body.seed
    penalties = {each for each in (body.repeat_penalty, body.repetition_penalty) if each is not None}
    if len(penalties) > 1:
        raise refusal("repeat_penalty", "repeat_penalty and repetition_penalty contradict each other")
    if penalties:
        changes["repeat_penalty"] = penalties.pop()
    return replace(base, **changes)


def stops_of(body: SamplingFields, base: tuple[str, ...]) -> tuple[str, ...]:
    """Return the strings that end the answer: the request's, else those set for the model."""
    if body.stop is None:
        return base
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)


def limit_of(body: ChatBody) -> int | None:
    """Return the most tokens of thinking and answer together. Errors: `Refused` for two limits that differ."""
    limits = {each for each in (body.max_tokens, body.max_completion_tokens) if each is not None}
    if len(limits) > 1:
        raise refusal("max_tokens", "max_tokens and max_completion_tokens contradict each other")
    return limits.pop() if limits else None
