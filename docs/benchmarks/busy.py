"""Measure decoding beside a program that takes a core: python docs/benchmarks/busy.py --help

llama-bench must be built from the same llama.cpp sources as the installed llama-cpp-python (peers.py builds one); it
runs with its defaults and our thread count. Both sides decode as many tokens at the same depth, one by one; ours over
the whole path (worker process, splitter, events), greedy. Run it on a machine that is quiet otherwise. Each round:

1. quiet: llama-bench, slm, and slm with one thread
2. busy: a program that only computes is started; slm at once (`arrival`: it has to notice), llama-bench, slm again
   (`busy`); the program is ended, slm at once (`departure`: it has to notice), and a pause in which it may

Printed: every figure, what slm said, and the ratios' medians with quartiles; --json FILE keeps every raw figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psutil
from goals.setup import STORY, made_tokens
from goals.tools import bench_tps
from measuring import Figures, Ratio, Report, table

from slm_local.config import SamplingOverrides, Settings
from slm_local.engine import Engine, open_model
from slm_local.generation import Note, Thinking
from slm_local.metrics import Collector
from slm_local.system import physical_cores

SPINS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables that change how llama-bench waits: its defaults are without them."""

RECOVERY_REPLIES = 8
"""Replies after which slm should have all its threads again; it is ended sooner where it says so."""


def _ratio(mine: str, other: str, target: float | None = None) -> Ratio:
    return Ratio(
        name=f"{mine} ÷ {other}", of=lambda figures: figures[f"{mine}_tps"] / figures[f"{other}_tps"], target=target
    )


RATIOS = (
    _ratio("slm_busy", "bench_busy"),  # wanted: 2.5 for SmolLM2-135M, 1.5 for a model of 1.5B
    _ratio("slm_busy", "slm_one", 0.9),
    _ratio("slm_quiet", "bench_quiet"),  # what it is without all this
    _ratio("slm_arrival", "bench_busy"),
    _ratio("slm_departure", "slm_quiet"),
)


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
    return bench_tps(done.stdout)


def ours(engine: Engine, tokens: int, said: list[str]) -> float:
    """Return our decode speed over the whole path; what the engine said meanwhile goes to `said`.

    Nothing is thought, where the model could: what would end the thinking is read, several tokens a step, not decoded.
    """
    collector = Collector()
    think = Thinking(mode="off") if engine.spec.thinks else None
    for event in engine.stream(engine.request(STORY, think=think, max_tokens=tokens)):
        collector.feed(event)
        if isinstance(event, Note):
            said.append(event.text)
    reply = collector.reply()
    if made_tokens(reply) != tokens:
        sys.exit(f"the model stopped before {tokens} tokens: --tokens with fewer, or another --model")
    return reply.timings.decode_tps


def measured(quiet: Engine, single: Engine, bench: Callable[[], float], tokens: int, core: int | None) -> Figures:
    """Measure one pair; print what slm said."""
    said: list[str] = []
    found = {"bench_quiet_tps": bench(), "slm_quiet_tps": ours(quiet, tokens, said)}
    found["slm_one_tps"] = ours(single, tokens, said)
    with hog(core):
        found["slm_arrival_tps"] = ours(quiet, tokens, said)
        found["bench_busy_tps"] = bench()
        found["slm_busy_tps"] = ours(quiet, tokens, said)
    until = len(said)
    found["slm_departure_tps"] = ours(quiet, tokens, said)
    for _ in range(RECOVERY_REPLIES):
        if any("free again" in text for text in said[until:]):
            break
        ours(quiet, tokens, said)
    for text in said:
        print(f"    slm: {text}")
    return found


def opened(model: str, threads: int) -> Engine:
    """Open a model as `slm run` would, greedy, a token a decode; no loop guard: synthetic models repeat themselves."""
    settings = Settings(
        backend="llamacpp",
        device="cpu",
        sampling=SamplingOverrides(temperature=0.0),
        threads=threads,
        context_tokens=4096,
        loop_guard=False,
        speculation=False,
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="append raw figures here, an object a line")
    given = parser.parse_args()

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.2f}")
    print(f"llama-cpp-python {version('llama-cpp-python')}, {' '.join(sys.argv[1:])}")
    os.environ.setdefault("SLM_HOME", tempfile.mkdtemp(prefix="slm-busy-"))
    with opened(given.model, given.threads) as quiet, opened(given.model, 1) as single:
        for engine in (quiet, single):
            ours(engine, 32, [])
        depth = quiet.reply(quiet.request(STORY, max_tokens=1)).usage.prompt_tokens or 0

        def bench() -> float:
            return llama_bench(given.llama_bench, given.model, given.threads, given.tokens, depth)

        report = Report(given.json, given.pairs)
        report.measure(
            "busy",
            Path(given.model).name,
            RATIOS,
            lambda number: measured(quiet, single, bench, given.tokens, given.pin),
        )
    print(f"\n{table(report.records)}")
    ratios = {each["name"]: each["median"] for each in report.records if each["record"] == "ratio"}
    print(json.dumps({name.replace(" ÷ ", "/"): median for name, median in ratios.items()}))


if __name__ == "__main__":
    main()
