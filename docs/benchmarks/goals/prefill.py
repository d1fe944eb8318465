"""Prefill of 512 random tokens as a share of llama-bench's, from nothing and at a depth.

Ours is measured through the whole path: prompt tokens not found in the KV cache, over the time from the child's word
that it has the prompt to the first token written. The context has room for one prompt, as llama-bench's has: cells
that other sequences hold are looked at, too, and cost time.
"""

from __future__ import annotations

from measuring import Figures, Ratio, Report

from slm_local.engine import Engine

from .setup import GREEDY, Goal, Setup, random_ids, read_only
from .tools import bench_tps, flags

TOKENS = 512
SPARE_TOKENS = 16
DEPTHS = {"135m": (0, 4096), "1.5b": (0, 4096), "8b": (0,)}


def _measure(setup: Setup, report: Report, model: str) -> None:
    tokens = setup.tokens(TOKENS)
    file = setup.plain(model)
    for depth in DEPTHS[model]:
        deep = setup.tokens(depth) if depth else 0
        with setup.open(file, GREEDY, deep + tokens + SPARE_TOKENS) as engine:
            for seed in range(4):  # the chunk that suits this machine is found on the first prompts
                engine.reply(read_only(random_ids(tokens, seed)))

            def take(number: int, engine: Engine = engine, deep: int = deep) -> Figures:
                bench = ("-p", tokens, "-n", 0, "-d", deep, "-r", 1, *flags(setup.threads), "-o", "json")
                theirs = bench_tps(setup.tools.run("llama-bench", "-m", file, *bench))
                return {"llama_bench_tps": theirs, "slm_tps": _ours(engine, tokens, deep, 100 + number)}

            ratio = Ratio(
                name=f"prefill of {tokens} tokens{f' behind {deep:,}' if deep else ''} ÷ llama-bench",
                of=lambda figures: figures["slm_tps"] / figures["llama_bench_tps"],
                target=0.98,
            )
            report.measure("prefill", model, [ratio], take)


def _ours(engine: Engine, tokens: int, depth: int, seed: int) -> float:
    ids = random_ids(depth + tokens, seed)
    if depth:
        engine.reply(read_only(ids[:depth]))
    reply = engine.reply(read_only(ids))
    if (reply.usage.cached_tokens or 0) < depth - 1:
        raise ValueError(f"{reply.usage.cached_tokens} of {depth} tokens were in the KV cache")
    return reply.timings.prefill_tps


GOAL = Goal(
    name="prefill",
    about="prefill of 512 tokens ÷ llama-bench, also behind 4,096 tokens",
    seconds={"135m": (10, 45), "1.5b": (25, 90), "8b": (90, 60)},
    run=_measure,
)
