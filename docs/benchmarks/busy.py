"""Measure decoding beside a program that takes a core: python docs/benchmarks/busy.py --help

llama-bench must be built from the same llama.cpp sources as the installed llama-cpp-python (docs/benchmarks.md says
how); it runs with its defaults and our thread count. Both sides decode as many tokens at the same depth; ours over the
whole path (worker process, splitter, events), greedy. Run it on a machine that is quiet otherwise. Each of the pairs:

1. quiet: llama-bench, slm, and slm with one thread
2. busy: a program that only computes is started; slm at once (`arrival`: it has to notice), llama-bench, slm again
   (`busy`); the program is ended, slm at once (`departure`: it has to notice), and a pause in which it may

Printed: every figure, what slm said, the medians of the pairs' ratios, and one line of JSON.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psutil

from slm_local.config import SamplingOverrides, Settings
from slm_local.engine import Engine, open_model
from slm_local.generation import Note
from slm_local.metrics import Collector
from slm_local.system import physical_cores

STORY = "Write a long story about a lighthouse keeper who finds a message in a bottle. Do not stop early."

SPINS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables that change how llama-bench waits: its defaults are without them."""

RECOVERY_REPLIES = 8
"""Replies after which slm should have all its threads again; it is ended sooner where it says so."""

RATIOS = (
    ("slm_busy", "bench_busy"),
    ("slm_busy", "slm_one"),
    ("slm_quiet", "bench_quiet"),
    ("slm_arrival", "bench_busy"),
    ("slm_departure", "slm_quiet"),
)
"""What is stated. Wanted of the first 2.5 for SmolLM2-135M and 1.5 for a model of 1.5B, of the second 0.9, of the
third what it is without all this."""

Pair = dict[str, float]
"""Tokens a second by what was measured."""


@contextmanager
def hog(core: int | None) -> Iterator[None]:
    """Have a program take a core, that one or any."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            if core is not None:
                psutil.Process(process.pid).cpu_affinity([core])
            yield
        finally:
            process.kill()


def llama_bench(binary: str, model: str, threads: int, tokens: int, depth: int) -> float:
    """Return llama-bench's decode speed in tokens per second."""
    command = [binary, "-m", model, "-p", "0", "-n", str(tokens), "-d", str(depth), "-t", str(threads), "-r", "1"]
    environment = {name: value for name, value in os.environ.items() if name not in SPINS}
    done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=True, env=environment)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def ours(engine: Engine, tokens: int, said: list[str]) -> float:
    """Return our decode speed over the whole path; what the engine said meanwhile goes to `said`."""
    collector = Collector()
    for event in engine.stream(engine.request(STORY, max_tokens=tokens)):
        collector.feed(event)
        if isinstance(event, Note):
            said.append(event.text)
    reply = collector.reply()
    if (reply.usage.think_tokens or 0) + (reply.usage.answer_tokens or 0) != tokens:
        sys.exit(f"the model stopped before {tokens} tokens: --tokens with fewer, or another --model")
    return reply.timings.decode_tps


def measured(quiet: Engine, single: Engine, bench: Callable[[], float], tokens: int, core: int | None) -> Pair:
    """Measure one pair; print what slm said."""
    said: list[str] = []
    pair = {"bench_quiet": bench(), "slm_quiet": ours(quiet, tokens, said), "slm_one": ours(single, tokens, said)}
    with hog(core):
        pair["slm_arrival"] = ours(quiet, tokens, said)
        pair["bench_busy"] = bench()
        pair["slm_busy"] = ours(quiet, tokens, said)
    until = len(said)
    pair["slm_departure"] = ours(quiet, tokens, said)
    for _ in range(RECOVERY_REPLIES):
        if any("free again" in text for text in said[until:]):
            break
        ours(quiet, tokens, said)
    print("  " + "  ".join(f"{name} {tps:.1f}" for name, tps in pair.items()) + f"  load {psutil.getloadavg()[0]:.2f}")
    for text in said:
        print(f"    slm: {text}")
    return pair


def ratios(pairs: list[Pair]) -> dict[str, float]:
    """Return the medians of the pairs' ratios."""
    return {f"{mine}/{other}": statistics.median(pair[mine] / pair[other] for pair in pairs) for mine, other in RATIOS}


def opened(model: str, threads: int) -> Engine:
    """Open a model as `slm run` would, greedy; the loop guard is off, for synthetic models repeat themselves."""
    settings = Settings(
        backend="llamacpp",
        device="cpu",
        sampling=SamplingOverrides(temperature=0.0),
        threads=threads,
        context_tokens=4096,
        loop_guard=False,
        offline=True,
    )
    return open_model(model, settings=settings)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True, help="path of the llama-bench binary")
    parser.add_argument("--model", required=True, help="path of a GGUF file with a chat template")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--pin", type=int, metavar="CORE", help="keep the other program on this core; else it may move")
    given = parser.parse_args()

    load = psutil.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {load:.2f}")
    print(f"llama-cpp-python {version('llama-cpp-python')}, {' '.join(sys.argv[1:])}")
    os.environ.setdefault("SLM_HOME", tempfile.mkdtemp(prefix="slm-busy-"))
    with opened(given.model, given.threads) as quiet, opened(given.model, 1) as single:
        for engine in (quiet, single):
            ours(engine, 32, [])
        depth = quiet.reply(quiet.request(STORY, max_tokens=1)).usage.prompt_tokens or 0

        def bench() -> float:
            return llama_bench(given.llama_bench, given.model, given.threads, given.tokens, depth)

        pairs = [measured(quiet, single, bench, given.tokens, given.pin) for _ in range(given.pairs)]
    result = ratios(pairs)
    for name, value in result.items():
        print(f"{name:32} {value:8.3f}")
    print(json.dumps({"model": Path(given.model).name, "threads": given.threads, "load": load, **result}))


if __name__ == "__main__":
    main()
