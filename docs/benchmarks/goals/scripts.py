"""Goals with a script of their own, which is run as it would be by hand; the JSON of its last line is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from measuring import NotHere, Ratio, Report, Round, moment, noise

from . import decode
from .setup import Goal, Setup

Target = tuple[float, Literal["least", "most"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A file of docs/benchmarks and what its result says."""

    goal: str
    file: str
    arguments: Callable[[Setup, Report, str], list[str]]
    figures: Callable[[Mapping[str, Any]], dict[str, float]]
    targets: Callable[[str], Mapping[str, Target]]
    """For a model, by the figures' names; others are stated."""

    def run(self, setup: Setup, report: Report, model: str) -> None:
        """Run it with a model; print what it prints."""
        path = Path(__file__).parent.parent / self.file
        if not path.exists():
            raise NotHere(f"this version has no docs/benchmarks/{self.file}")
        before = moment()
        last = _last_line([sys.executable, str(path), *self.arguments(setup, report, model)], setup)
        result = json.loads(last)
        report.record("script", goal=self.goal, model=model, result=result)
        figures, targets = self.figures(result), self.targets(model)
        measured = Round(figures=figures, noise=noise(before, moment()))
        for name in figures:
            report.conclude(self.goal, model, _ratio(name, targets.get(name)), [measured])


def _ratio(name: str, target: Target | None) -> Ratio:
    if target is None:
        return Ratio(name=name, of=lambda found: found[name], target=None)
    return Ratio(name=name, of=lambda found: found[name], target=target[0], side=target[1])


def _last_line(command: list[str], setup: Setup) -> str:
    print("  +", " ".join(command), flush=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": setup.tools.environment["LD_LIBRARY_PATH"]}
    last = ""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        for row in process.stdout:
            print(f"  {row}", end="", flush=True)
            last = row.strip() or last
        if process.wait():
            log.seek(0)
            raise RuntimeError(f"{Path(command[1]).name} ended with {process.returncode}: {log.read()[-1000:]}")
    return last


def _ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Return what is named as one figure over another."""
    return {name: float(value) for name, value in result.items() if "/" in name}


# ---- warm history against a fresh prefill

SAME, LOGITS = "share of chats with the same text", "largest logit difference ÷ that of two fresh prefills"


def _warm(setup: Setup, report: Report, model: str) -> list[str]:
    chats = 10 if setup.is_quick else 100
    return ["--model", str(setup.plain(model)), "--threads", str(setup.threads), "--chats", str(chats)]


def _warm_figures(result: Mapping[str, Any]) -> dict[str, float]:
    warm, fresh = result["logits_warm"], result["logits_fresh"]
    return {SAME: result["same"] / result["chats"], LOGITS: warm / fresh if warm else 0.0}


WARM = Script(
    goal="warm",
    file="warm.py",
    arguments=_warm,
    figures=_warm_figures,
    targets=lambda model: {SAME: (0.99, "least"), LOGITS: (1.0, "most")},
)


# ---- speculation

ROWS = (4, 8, 12, 16)
"""Widths that count: multiples of four."""
OFF = "acceptance 0, switched off by itself ÷ plain"
SPECULATED_TOKENS = {"135m": 192, "1.5b": 192, "8b": 64}


def _speculation(setup: Setup, report: Report, model: str) -> list[str]:
    sizes = ["--rounds", str(report.rounds), "--tokens", str(setup.tokens(SPECULATED_TOKENS[model]))]
    return ["gain", str(setup.words(model)), "--threads", str(setup.threads), *sizes]


def _speculation_figures(result: Mapping[str, Any]) -> dict[str, float]:
    (found,) = result["models"].values()
    gains = {
        f"measured ÷ predicted gain, acceptance {acceptance}, {rows} rows": found[f"{fate}{rows}"]
        for acceptance, fate in ((1, "right"), (0, "wrong"))
        for rows in ROWS
    }
    return {**gains, OFF: found["own_wrong"], "acceptance 1, left to itself ÷ plain": found["own_right"]}


def _speculation_targets(model: str) -> Mapping[str, Target]:
    gains = (f"measured ÷ predicted gain, acceptance {each}, {rows} rows" for each in (1, 0) for rows in ROWS)
    return {**dict.fromkeys(gains, (0.9, "least")), OFF: (0.97, "least")}


SPECULATION = Script(
    goal="speculation",
    file="speculation.py",
    arguments=_speculation,
    figures=_speculation_figures,
    targets=_speculation_targets,
)


# ---- a core taken by another program


def _busy(setup: Setup, report: Report, model: str) -> list[str]:
    bench = setup.tools.command("llama-bench")[0]
    sizes = ["--threads", str(setup.threads), "--pairs", str(report.rounds), "--tokens", str(setup.tokens(256))]
    return ["--llama-bench", bench, "--model", str(setup.plain(model)), *sizes]


def _busy_targets(model: str) -> Mapping[str, Target]:
    return {
        "slm_busy/bench_busy": (2.5 if model == "135m" else 1.5, "least"),
        "slm_busy/slm_one": (0.9, "least"),
        "slm_quiet/bench_quiet": (decode.TARGETS[model], "least"),
    }


BUSY = Script(goal="busy", file="busy.py", arguments=_busy, figures=_ratios, targets=_busy_targets)

GOALS = (
    Goal(
        name="warm",
        about="warm history against a fresh prefill, 100 chats (warm.py)",
        seconds={"135m": (600, 0)},
        run=WARM.run,
    ),
    Goal(
        name="speculation",
        about="measured ÷ predicted gain at acceptance 1 and 0, and switched off (speculation.py)",
        seconds={"135m": (30, 25), "1.5b": (110, 95), "8b": (170, 135)},
        run=SPECULATION.run,
    ),
    Goal(
        name="busy",
        about="decode with one core taken by another program (busy.py)",
        seconds={"135m": (10, 30), "1.5b": (20, 70)},
        run=BUSY.run,
    ),
)
