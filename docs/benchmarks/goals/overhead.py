"""Our own time a token, outside `llama_decode` and the sampler, late in a long reply beside early in it.

By our own clock, in one process: batch, splitter, governor, events and lines for the pipe are counted. The tokens are
generated, not read: whatever grows with a reply's length shows.
"""

from __future__ import annotations

import statistics
import time

from measuring import Figures, Ratio, Report

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.driver import Driver
from slm_local.generation import Control, GenerationRequest, Message, Sampling
from slm_local.worker.wire import to_line

from .setup import STORY, Goal, Setup, unlogged

EARLY, LATE = 200, 8000
HALF_WINDOW = 100
CLOSING_ROOM = 64
"""What ends thinking before the reply's end is injected several tokens a step."""
MOST_ROUNDS = 3
"""A round generates 8,100 tokens."""


def _measure(setup: Setup, report: Report, model: str) -> None:
    late = setup.tokens(LATE)

    def take(_: int) -> Figures:
        spent_s = _spent(setup, model, late + HALF_WINDOW)
        early, last = (statistics.median(spent_s[at - HALF_WINDOW : at + HALF_WINDOW]) for at in (EARLY, late))
        return {"early_s": early, "late_s": last}

    ratio = Ratio(
        name=f"own time a token at token {late:,} ÷ at token {EARLY}",
        of=lambda figures: figures["late_s"] / figures["early_s"],
        target=1.2,
        side="most",
    )
    report.measure("overhead", model, [ratio], take, rounds=min(report.rounds, MOST_ROUNDS))


def _spent(setup: Setup, model: str, tokens: int) -> list[float]:
    """Return the seconds of our own that each step took."""
    backend = LlamaCppBackend()
    driver = Driver(backend)
    longest = tokens + CLOSING_ROOM
    with unlogged():
        driver.load(setup.load(setup.words(model), longest + 256), Control(), lambda fraction: None)
    request = GenerationRequest(
        messages=(Message(role="user", content=STORY),),
        sampling=Sampling(temperature=1.0, top_k=40, seed=1),
        max_tokens=longest,
    )
    spent: list[float] = []
    driver.start(1, request)
    while driver.is_busy:
        native_s = backend.decode_s + backend.sample_s
        begun = time.perf_counter()
        for request_id, event in driver.step():
            to_line({"op": "event", "id": request_id, "event": event})
        spent.append(time.perf_counter() - begun - (backend.decode_s + backend.sample_s - native_s))
    driver.close()
    if len(spent) < tokens:
        raise ValueError(f"{len(spent)} of {tokens} steps: the reply ended early")
    return spent


GOAL = Goal(
    name="overhead",
    about="our own overhead a token at token 8,000 ÷ at token 200",
    seconds={"135m": (2, 120)},
    run=_measure,
    most_rounds=MOST_ROUNDS,
)
