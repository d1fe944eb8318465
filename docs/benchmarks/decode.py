"""Measure slm beside llama.cpp's own llama-bench, pair by pair in one run: python docs/benchmarks/decode.py --help

llama-bench must be built from the same llama.cpp sources as the installed llama-cpp-python (docs/benchmarks.md says
how). What is measured, all on one GGUF file with the same threads:

1. decode: tokens per second through the whole path (worker, splitter, events) as a share of llama-bench's `tg`,
   greedy, A B A B, the median of the pairs' ratios. llama-bench neither samples nor makes text.
2. the same with the model's own sampling, and the sampler's milliseconds a token apart.
3. our own overhead: time a token spent outside `llama_decode` and the sampler, median of 200 tokens around token 200
   and around token 8,000 (`--overhead-at`).
4. cancel: from the cancel in the middle of a long prefill to the last event, and whether the next turn works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.config import SamplingOverrides, Settings
from slm_local.driver import Driver
from slm_local.engine import Engine, open_model
from slm_local.generation import (
    Control,
    Done,
    GenerationRequest,
    LoadSettings,
    Message,
    PromptProgress,
    Sampling,
)
from slm_local.worker.wire import to_line

PROMPT = "Write a long story about a lighthouse keeper who finds a message in a bottle. Do not stop early."


def llama_bench(binary: str, model: str, threads: int, tokens: int, depth: int) -> float:
    """Return llama-bench's decode speed in tokens per second."""
    command = [binary, "-m", model, "-p", "0", "-n", str(tokens), "-d", str(depth), "-t", str(threads), "-r", "1"]
    done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def ours(engine: Engine, tokens: int) -> float:
    """Return our decode speed over the whole path, tokens after the first over the time since it."""
    reply = engine.reply(engine.request(PROMPT, max_tokens=tokens))
    made = (reply.usage.think_tokens or 0) + (reply.usage.answer_tokens or 0)
    if made != tokens:
        sys.exit(f"the model stopped after {made} of {tokens} tokens: choose another prompt")
    return reply.timings.decode_tps


def pairs(label: str, peer: Callable[[], float], mine: Callable[[], float], count: int) -> float:
    """Run A B A B, print every pair, return the median ratio."""
    ratios = []
    for number in range(count):
        theirs, own = peer(), mine()
        ratios.append(own / theirs)
        print(f"  {label} pair {number + 1}: llama-bench {theirs:7.1f}  slm {own:7.1f}  ratio {ratios[-1]:.3f}")
    return statistics.median(ratios)


def sampler_ms(model: str, threads: int, sampling: Sampling, tokens: int) -> float:
    """Return the milliseconds a token that the sampler takes, in this process."""
    backend = LlamaCppBackend()
    driver = Driver(backend)
    driver.load(_load(model, threads, 1024), Control(), lambda fraction: None)
    for _ in driver.run(GenerationRequest(prompt_ids=(1,), sampling=sampling, max_tokens=tokens)):
        pass
    driver.close()
    return 1000 * backend.sample_s / tokens


def overhead_us(model: str, threads: int, marks: tuple[int, ...]) -> dict[int, float]:
    """Return our own microseconds a token, median of the 200 tokens around each mark.

    Counted: batch, splitter, events, lines for the pipe; not counted: `llama_decode` and the sampler. The end token
    is switched off, so that the model writes as long as is asked.
    """
    backend = LlamaCppBackend()
    driver = Driver(backend)
    driver.load(_load(model, threads, max(marks) + 512), Control(), lambda fraction: None)
    backend._vocabulary.is_end = lambda token: False  # type: ignore[method-assign]
    driver.start(1, GenerationRequest(messages=(Message(role="user", content=PROMPT),), max_tokens=max(marks) + 100))
    spent: list[float] = []
    while driver.is_busy:
        native = backend.decode_s + backend.sample_s
        begun = time.perf_counter()
        for request_id, event in driver.step():
            to_line({"op": "event", "id": request_id, "event": event})
        spent.append(time.perf_counter() - begun - (backend.decode_s + backend.sample_s - native))
    driver.close()
    return {mark: 1e6 * statistics.median(spent[mark - 100 : mark + 100]) for mark in marks}


def cancel_ms(engine: Engine, prompt_tokens: int) -> float:
    """Cancel in mid-prefill; return the milliseconds until the last event."""
    control = Control()
    cancelled_at = 0.0
    text = "The quick brown fox jumps over the lazy dog. " * (prompt_tokens // 10)

    def cancel() -> None:
        nonlocal cancelled_at
        cancelled_at = time.perf_counter()
        control.cancel()

    for event in engine.stream(engine.request(text, max_tokens=8), control):
        if isinstance(event, PromptProgress) and not cancelled_at:
            threading.Timer(0.05, cancel).start()
        if isinstance(event, Done):
            if event.reply.finish != "cancelled":
                sys.exit("the prefill was over before the cancel: take a longer prompt")
            return 1000 * (time.perf_counter() - cancelled_at)
    raise AssertionError("no last event")


def _load(model: str, threads: int, context: int) -> LoadSettings:
    return LoadSettings(backend="llamacpp", model_path=model, context_tokens=context, threads=threads)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True, help="path of the llama-bench binary")
    parser.add_argument("--model", required=True, help="path of a GGUF file with a chat template")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--temp", type=float, default=0.2)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--overhead-at", type=int, nargs=2, default=(200, 8000))
    given = parser.parse_args()

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
    os.environ.setdefault("SLM_HOME", tempfile.mkdtemp(prefix="slm-bench-"))
    result: dict[str, float] = {}
    sampled = SamplingOverrides(temperature=given.temp, top_p=given.top_p, seed=1)
    for name, overrides in (("greedy", SamplingOverrides(temperature=0.0)), ("sampled", sampled)):
        settings = Settings(sampling=overrides, threads=given.threads, context_tokens=4096)
        with open_model(given.model, settings=settings) as engine:
            ours(engine, 32)
            depth = engine.reply(engine.request(PROMPT, max_tokens=1)).usage.prompt_tokens or 0
            result[f"decode_ratio_{name}"] = pairs(
                name,
                lambda depth=depth: llama_bench(  # type: ignore[misc]
                    given.llama_bench, given.model, given.threads, given.tokens, depth
                ),
                lambda engine=engine: ours(engine, given.tokens),  # type: ignore[misc]
                given.pairs,
            )
            if name == "greedy":
                times = [cancel_ms(engine, 3000) for _ in range(5)]
                result["cancel_in_prefill_ms_worst"] = max(times)
                answer = engine.reply(engine.request("What is the capital of France?", max_tokens=16)).answer
                print(f"  after the cancels: {answer!r}")
    result["sampler_ms_greedy"] = sampler_ms(given.model, given.threads, Sampling(), given.tokens)
    result["sampler_ms_sampled"] = sampler_ms(
        given.model, given.threads, Sampling(temperature=given.temp, top_p=given.top_p, seed=1), given.tokens
    )
    for mark, value in overhead_us(given.model, given.threads, tuple(given.overhead_at)).items():
        result[f"overhead_us_at_{mark}"] = value
    for key, value in result.items():
        print(f"{key:32} {value:10.3f}")
    print(json.dumps({"model": Path(given.model).name, "threads": given.threads, **result}))


if __name__ == "__main__":
    main()
