"""What makes samples of one prompt differ: seeds that count upwards, and a temperature above 0."""

from __future__ import annotations

from dataclasses import replace

from slm_local.config import MAX_SEED, SamplingOverrides, draw_seed
from slm_local.errors import UsageError
from slm_local.generation import GenerationRequest

VOTERS = 8
"""So many samples where no number is given: what the engines compute at once."""

MAX_SAMPLES = 64
"""As many as DeepSeek-R1's cons@64 takes; each waits in a thread of its own."""

TEMPERATURE = 0.6
"""For models that are greedy unless asked otherwise: what DeepSeek-R1's samples were drawn at (arXiv 2501.12948)."""


def seeds_from(first: int | None, count: int) -> tuple[int, ...]:
    """Return a seed for each sample, counting upwards from `first`, else from one that is drawn."""
    start = draw_seed() if first is None else first
    return tuple((start + each) % (MAX_SEED + 1) for each in range(count))


def check_variety(count: int, asked: SamplingOverrides) -> None:
    """Raise `UsageError` for a number of samples that can't be had, and where what was asked for makes all the same."""
    if not 1 <= count <= MAX_SAMPLES:
        raise UsageError(f"--samples takes a number from 1 to {MAX_SAMPLES}, not {count}", hint=f"--samples {VOTERS}")
    if count > 1 and asked.temperature == 0.0:
        raise UsageError(f"at temperature 0 all {count} samples are the same", hint=f"--temp {TEMPERATURE}")
    if count > 1 and asked.top_k == 1:
        raise UsageError(f"with top_k 1 all {count} samples are the same", hint="--top-k 0")


def varied(request: GenerationRequest, count: int) -> GenerationRequest:
    """Return a request of which samples differ: one that is greedy by the model's default gets `TEMPERATURE`."""
    if count == 1 or request.sampling.temperature > 0.0:
        return request
    return replace(request, sampling=replace(request.sampling, temperature=TEMPERATURE))


def seeded(request: GenerationRequest, seed: int) -> GenerationRequest:
    """Return a request with a sample's own seed."""
    return replace(request, sampling=replace(request.sampling, seed=seed))
