"""Eight samples at once beside eight in turn, as a share of what llama-batched-bench shows to be possible here.

Possible: one prompt read once and eight sequences decoded together, against the same one after another. Ours goes
through `Engine.stream`, eight requests at a time in threads, as `slm run --samples 8` does; in turn the prompt is found
in the KV cache from the second one on.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from measuring import Figures, Ratio, Report

from slm_local.engine import Engine
from slm_local.generation import GenerationRequest, Reply, Sampling

from .setup import WORDS, Goal, Setup, made_tokens, random_ids
from .tools import batches, flags, possible_gain

SAMPLES = 8
PROMPT = 128
TOKENS = {"135m": 128, "1.5b": 96, "8b": 32}


def _measure(setup: Setup, report: Report, model: str) -> None:
    tokens, file = setup.tokens(TOKENS[model]), setup.words(model)
    with setup.open(file, WORDS) as engine, ThreadPoolExecutor(SAMPLES) as threads:

        def take(number: int) -> Figures:
            sizes = ("-c", setup.context_tokens, "-npp", PROMPT, "-ntg", tokens, "-npl", f"1,{SAMPLES}", "-pps")
            printed = setup.tools.run(
                "llama-batched-bench", "-m", file, *sizes, *flags(setup.threads), "--output-format", "jsonl"
            )
            begun = time.perf_counter()
            for request in _requests(tokens, 2 * number):
                _whole(engine, request, tokens)
            turned = time.perf_counter()
            replies = list(threads.map(lambda each: _whole(engine, each, tokens), _requests(tokens, 2 * number + 1)))
            done = time.perf_counter()
            read = sum((each.usage.prompt_tokens or 0) - (each.usage.cached_tokens or 0) for each in replies)
            return {
                "possible_gain": possible_gain(batches(printed), SAMPLES),
                "in_turn_s": turned - begun,
                "at_once_s": done - turned,
                "at_once_read_tokens": read,
            }

        gain = Ratio(name="8 at once ÷ 8 in turn, samples a second", of=_gain, target=None)
        share = Ratio(
            name="the same ÷ what llama-batched-bench shows to be possible",
            of=lambda figures: _gain(figures) / figures["possible_gain"],
            target=0.8,
        )
        report.measure("samples", model, [gain, share], take)


def _gain(figures: Figures) -> float:
    return figures["in_turn_s"] / figures["at_once_s"]


def _requests(tokens: int, seed: int) -> list[GenerationRequest]:
    """Return eight requests for the same prompt, which no other round has."""
    sampling = Sampling(temperature=1.0, top_k=40)
    one = GenerationRequest(prompt_ids=random_ids(PROMPT, 1000 + seed), max_tokens=tokens, sampling=sampling)
    return [replace(one, sampling=replace(sampling, seed=number)) for number in range(SAMPLES)]


def _whole(engine: Engine, request: GenerationRequest, tokens: int) -> Reply:
    reply = engine.reply(request)
    if made_tokens(reply) != tokens:
        raise ValueError(f"a sample ended after {made_tokens(reply)} of {tokens} tokens ({reply.finish})")
    return reply


GOAL = Goal(
    name="samples",
    about="8 samples at once ÷ 8 in turn, beside what llama-batched-bench shows to be possible",
    seconds={"135m": (5, 30), "1.5b": (10, 75), "8b": (30, 120)},
    run=_measure,
)
