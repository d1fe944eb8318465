"""One prompt answered several times by one open model, and what the answers agree on.

The samples run at once over the engine's shared prompt, each with its own seed; where they are more than the engine has
places, the rest wait. A vote takes the answer that most of them give (self-consistency, Wang et al., arXiv
2203.11171; DeepSeek-R1's cons@64) and may stop as soon as it is decided. It shows nothing: it yields what happens.
"""

from __future__ import annotations

from slm_local.engine import Engine
from slm_local.errors import SlmError
from slm_local.generation import Control, GenerationRequest
from slm_local.samples.drawing import draw
from slm_local.samples.values import Ballot, Ending, Sample, SampleEvent, SampleMessage, Vote
from slm_local.samples.variety import MAX_SAMPLES, TEMPERATURE, VOTERS, check_variety, seeded, seeds_from, varied

__all__ = [
    "MAX_SAMPLES",
    "TEMPERATURE",
    "VOTERS",
    "Ballot",
    "Ending",
    "Sample",
    "SampleEvent",
    "SampleMessage",
    "Vote",
    "check_variety",
    "draw",
    "seeded",
    "seeds_from",
    "varied",
    "vote",
]


def vote(
    engine: Engine,
    prompt: GenerationRequest | str,
    *,
    samples: int = VOTERS,
    stops_early: bool = True,
    control: Control | None = None,
) -> Vote:
    """Have a model answer so many times and return what came of it; blocks.

    The seeds count upwards from the request's, else from a drawn one. With `stops_early` what can't matter any more is
    cancelled. Errors: `UsageError` for a number below 1 or above `MAX_SAMPLES` and for greedy sampling that was asked
    for, else as `Engine.stream`; the first sample that fails ends all.
    """
    check_variety(samples, engine.settings.sampling)
    request = varied(engine.request(prompt) if isinstance(prompt, str) else prompt, samples)
    seeds = seeds_from(request.sampling.seed, samples)
    last: Vote | None = None
    for message in draw(engine, request, seeds=seeds, stops_early=stops_early, control=control):
        if isinstance(message, Vote):
            last = message
    if last is None:
        raise SlmError("the samples ended without a vote")
    return last
