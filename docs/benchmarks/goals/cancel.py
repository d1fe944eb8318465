"""From a cancel at a random moment of a long prompt, or of the reply behind it, to the last event.

On the large model the time is compared with one graph node: llama.cpp looks at the flag between nodes, and the largest
of a prefill is a feed-forward matrix times a chunk of the prompt. How long that takes is worked out from the time of a
chunk and the matrix's part of all weights that a chunk passes. The last event does not wait for the node under way;
when the engine has stopped, so that it can begin something else, is stated besides.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from itertools import pairwise

from measuring import Figures, Ratio, Report, percentile
from synthetic import MODELS, tensors

from slm_local.engine import Engine
from slm_local.generation import Control, Done, GenerationRequest, PromptProgress

from .setup import GREEDY, Goal, Setup, made_tokens, random_ids

CANCELS = 50
PROMPT = 4000
READ = 2000
"""Tokens of the prompt on which the size of a chunk is found."""
LAST_CHUNKS = 5
WITHIN_S = {"135m": 12.0, "8b": 5.0}
"""Cancels come at a random moment of so many seconds: the first takes in a reply's beginning."""


def _measure(setup: Setup, report: Report, model: str) -> None:
    with setup.open(setup.words(model), GREEDY) as engine:
        chunk_s = _chunk_s(engine, setup)
        draw = random.Random(1)

        def take(_: int) -> Figures:
            both = [
                _late_s(engine, number, draw.uniform(0.0, WITHIN_S[model] / (10 if setup.is_quick else 1)))
                for number in range(setup.tokens(CANCELS))
            ]
            late_s, free_s = [late for late, _ in both], [free for _, free in both]
            figures = {"p95_s": percentile(late_s, 95), "median_s": statistics.median(late_s), "worst_s": max(late_s)}
            return figures | {"free_p95_s": percentile(free_s, 95), "free_worst_s": max(free_s), "chunk_s": chunk_s}

        report.measure("cancel", model, [_ratio(model), FREE], take, rounds=1)
        if not made_tokens(engine.reply(engine.request("What now?", max_tokens=16))):
            raise ValueError("no answer after the cancels")


FREE = Ratio(
    name="cancel, 95th percentile until the engine has stopped",
    of=lambda figures: 1e3 * figures["free_p95_s"],
    target=None,
    side="most",
    unit="ms",
)


def _ratio(model: str) -> Ratio:
    if model == "135m":
        return Ratio(
            name="cancel, 95th percentile",
            of=lambda figures: 1e3 * figures["p95_s"],
            target=20.0,
            side="most",
            unit="ms",
        )
    part = node_part(model)
    return Ratio(
        name="cancel, 95th percentile ÷ one graph node",
        of=lambda figures: figures["p95_s"] / (part * figures["chunk_s"]),
        target=1.0,
        side="most",
    )


def node_part(model: str) -> float:
    """Return the largest matrix's part of all weights that every token of a chunk passes."""
    sizes = [each.shape for each in tensors(MODELS[model], "Q4_0", 1) if each.name.startswith("blk.")]
    weights = [shape[0] * shape[1] for shape in sizes if len(shape) == 2]
    return max(weights) / sum(weights)


def _chunk_s(engine: Engine, setup: Setup) -> float:
    """Return how long the chunks take into which prompts are divided here, after it was found how large they are."""
    request = GenerationRequest(prompt_ids=random_ids(READ, 1), max_tokens=1)
    times = [time.perf_counter() for event in engine.stream(request) if isinstance(event, PromptProgress)]
    return statistics.median([later - earlier for earlier, later in pairwise(times)][-LAST_CHUNKS:])


def _late_s(engine: Engine, number: int, after_s: float) -> tuple[float, float]:
    """Cancel so long after a request began; return the seconds until its last event, and until the engine stopped."""
    control = Control()
    cancelled_s = 0.0

    def cancel() -> None:
        nonlocal cancelled_s
        cancelled_s = time.perf_counter()
        control.cancel()

    request = GenerationRequest(prompt_ids=random_ids(PROMPT, 2000 + number))
    timer = threading.Timer(after_s, cancel)
    timer.start()
    for event in engine.stream(request, control):
        if isinstance(event, Done):
            if event.reply.finish != "cancelled":
                raise ValueError(f"the reply ended before the cancel ({event.reply.finish})")
            late_s = time.perf_counter() - cancelled_s
            while engine._worker is not None and engine._worker._stopping:
                time.sleep(0.0005)
            return late_s, time.perf_counter() - cancelled_s
    raise AssertionError("no last event")


GOAL = Goal(
    name="cancel",
    about="cancel, 95th percentile over 50 random moments",
    seconds={"135m": (25, 310), "8b": (90, 140)},
    run=_measure,
    most_rounds=1,
)
