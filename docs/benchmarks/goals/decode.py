"""Decode speed through the whole path (worker, splitter, events) as a share of llama-bench's, and the sampler's part.

Tokens after the first over the time since it; llama-bench decodes as many at the same depth, and neither samples nor
makes text.
"""

from __future__ import annotations

import sys

from measuring import Figures, Ratio, Report

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.driver import Driver
from slm_local.engine import Engine
from slm_local.generation import Control, GenerationRequest, Sampling, Thinking

from .setup import GREEDY, STORY, Goal, Setup, made_tokens, unlogged
from .tools import bench_tps, flags

TOKENS = {"135m": 256, "1.5b": 192, "8b": 96}
TARGETS = {"135m": 0.90, "1.5b": 0.97, "8b": 0.97}
SAMPLED = Sampling(temperature=0.6, top_p=0.95, seed=1)
"""As R1's distills are sampled."""


def _measure(setup: Setup, report: Report, model: str) -> None:
    tokens = setup.tokens(TOKENS[model])
    file = setup.plain(model)
    with setup.open(file, GREEDY) as engine:
        depth = engine.reply(engine.request(STORY, max_tokens=8)).usage.prompt_tokens or 0

        def take(_: int) -> Figures:
            bench = ("-p", 0, "-n", tokens, "-d", depth, "-r", 1, *flags(setup.threads), "-o", "json")
            theirs = bench_tps(setup.tools.run("llama-bench", "-m", file, *bench))
            return {"llama_bench_tps": theirs, "slm_tps": ours(engine, tokens)}

        ratio = Ratio(
            name="decode, greedy ÷ llama-bench",
            of=lambda figures: figures["slm_tps"] / figures["llama_bench_tps"],
            target=TARGETS[model],
        )
        report.measure("decode", model, [ratio], take)
    if model == "135m":
        _sampler(setup, report, model, tokens)


def ours(engine: Engine, tokens: int) -> float:
    """Return our tokens per second over the whole path.

    Nothing is thought, where the model could: what would end the thinking is read, several tokens a step, not decoded.
    """
    think = Thinking(mode="off") if engine.spec.thinks else None
    reply = engine.reply(engine.request(STORY, think=think, max_tokens=tokens))
    if made_tokens(reply) != tokens:
        sys.exit(f"the model stopped after {made_tokens(reply)} of {tokens} tokens: choose another prompt")
    return reply.timings.decode_tps


def _sampler(setup: Setup, report: Report, model: str, tokens: int) -> None:
    """State what sampling takes of a token on real weights, greedy and as R1's distills are sampled."""

    def take(_: int) -> Figures:
        figures: dict[str, float] = {}
        for name, sampling in (("greedy", Sampling()), ("sampled", SAMPLED)):
            backend = LlamaCppBackend()
            driver = Driver(backend)
            with unlogged():
                driver.load(setup.load(setup.plain(model)), Control(), lambda fraction: None)
            for _event in driver.run(GenerationRequest(prompt_ids=(1,), sampling=sampling, max_tokens=tokens)):
                pass
            figures |= {f"{name}_sampler_s": backend.sample_s, f"{name}_decode_s": backend.decode_s}
            driver.close()
        return figures

    report.measure(
        "decode", model, [_share("greedy", "greedy"), _share("sampled", "temperature 0.6, top_p 0.95")], take
    )


def _share(name: str, words: str) -> Ratio:
    return Ratio(
        name=f"sampler's share of a token, {words}",
        of=lambda figures: figures[f"{name}_sampler_s"] / (figures[f"{name}_sampler_s"] + figures[f"{name}_decode_s"]),
        target=None,
    )


GOAL = Goal(
    name="decode",
    about="decode greedy, whole path ÷ llama-bench; the sampler's share",
    seconds={"135m": (10, 12), "1.5b": (10, 18), "8b": (30, 50)},
    run=_measure,
)
