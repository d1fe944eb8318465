"""From the start of the command to the first token it shows: `slm run` beside llama-cli, files in the page cache."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring import Figures, Ratio, Report

from .setup import Goal, Setup
from .tools import flags

PROMPT = "Tell me about the sea"
TOKENS = 8


def _measure(setup: Setup, report: Report, model: str) -> None:
    file = setup.words(model)

    def take(_: int) -> Figures:
        return {"llama_cli_s": _theirs(setup, file), "slm_s": _ours(setup, file)}

    take(0)  # the first start of each reads files and probes the machine
    late = Ratio(
        name="cold start to first token, slm less llama-cli",
        of=lambda figures: figures["slm_s"] - figures["llama_cli_s"],
        target=0.3,
        side="most",
        unit="s",
    )
    report.measure("start", model, [late], take)


def _theirs(setup: Setup, file: Path) -> float:
    sampling = ("--temp", 1, "--top-k", 40, "--seed", 1)
    talk = ("-st", "--simple-io", "--no-display-prompt", "-p", PROMPT, "-n", TOKENS)
    command = setup.tools.command(
        "llama-cli", "-m", file, "-c", setup.context_tokens, *flags(setup.threads), *sampling, *talk
    )
    shown = f"> {PROMPT}\n".encode()

    def is_first(seen: bytes) -> bool:
        return bool(seen.partition(shown)[2].strip())

    return _first_s(command, is_first, setup.tools.environment)


def _ours(setup: Setup, file: Path) -> float:
    command = [sys.executable, "-m", "slm_local", "run", str(file), PROMPT, "--jsonl", "--no-log", "-n", str(TOKENS)]

    def is_first(seen: bytes) -> bool:
        whole = seen.split(b"\n")[:-1]
        return any(json.loads(row)["event"] in ("think", "answer") for row in whole)

    return _first_s([*command, *setup.run_flags()], is_first, None)


def _first_s(command: Sequence[str], is_first: Callable[[bytes], bool], environment: dict[str, str] | None) -> float:
    """Return the seconds until what a command has printed holds its first token."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, bufsize=0
    )
    assert process.stdout is not None
    seen = b""
    with process:
        while part := process.stdout.read(65536):
            seen += part
            if is_first(seen):
                taken_s = time.perf_counter() - begun
                while process.stdout.read(65536):
                    pass
                return taken_s
    sys.exit(f"{command[0]} showed no token; it printed {seen[-1000:]!r}")


GOAL = Goal(
    name="start",
    about="cold start to first token, less llama-cli's",
    seconds={"135m": (10, 8), "1.5b": (20, 14), "8b": (60, 55)},
    run=_measure,
)
