"""Memory of all our processes beside llama-server's, each after the same prompt of 2,000 tokens, same context.

Proportional set size (smaps_rollup of each process): memory that several processes share is divided among them. One
side runs at a time. Ours is taken twice: the line REPL, and the app on a terminal; engine process included. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
from desk import app, first_turn, newest_chat
from measuring import Figures, Ratio, Report

from slm_local.generation import Message

from .server import Server
from .setup import SENTENCE, SENTENCE_TOKENS, Goal, Setup

TOKENS = 2000
MOST_MORE_MB = 60.0
ROUNDS = 2
"""Memory hardly varies."""
REPLY = 8
WAIT_S = 600.0


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process and all below it."""
    root = psutil.Process(pid)
    return sum(_pss(each.pid) for each in (root, *root.children(recursive=True)))


def _pss(pid: int) -> int:
    for row in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if row.startswith("Pss:"):
            return int(row.split()[1]) * 1024
    raise ValueError(f"no proportional set size of process {pid}")


def _measure(setup: Setup, report: Report, model: str) -> None:
    file = setup.words(model)
    prompt = "Go on: " + SENTENCE * (setup.tokens(TOKENS) // SENTENCE_TOKENS)

    def take(_: int) -> Figures:
        with Server(setup, file) as server:
            server.first_token([Message(role="user", content=prompt)])
            theirs = pss_bytes(server.pid)
        return {
            "server_bytes": theirs,
            "slm_plain_bytes": _plain(setup, file, prompt),
            "slm_app_bytes": _app(setup, file, prompt),
        }

    ratios = [
        Ratio(
            name=f"memory of {words} less llama-server's",
            of=lambda figures, key=key: (figures[key] - figures["server_bytes"]) / 1e6,  # type: ignore[misc]
            target=MOST_MORE_MB,
            side="most",
            unit="MB",
        )
        for key, words in (("slm_plain_bytes", "slm chat --plain"), ("slm_app_bytes", "the app"))
    ]
    report.measure("memory", model, ratios, take, rounds=min(report.rounds, ROUNDS))


def _plain(setup: Setup, file: Path, prompt: str) -> int:
    command = [sys.executable, "-m", "slm_local", "chat", str(file), "--plain", "-n", str(REPLY), *setup.run_flags()]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, bufsize=0
    )
    with process:
        assert process.stdin is not None
        known = newest_chat()
        process.stdin.write(prompt.encode() + b"\n")
        first_turn(known, WAIT_S)
        found = pss_bytes(process.pid)
        process.stdin.close()
    return found


def _app(setup: Setup, file: Path, prompt: str) -> int:
    with app(str(file), "-n", str(REPLY), *setup.run_flags()) as shown:
        known = newest_chat()
        shown.type(prompt + "\r")
        first_turn(known, WAIT_S)
        return pss_bytes(shown.pid)


GOAL = Goal(
    name="memory",
    about="memory of all our processes less llama-server's",
    seconds={"135m": (0, 40), "1.5b": (0, 90), "8b": (0, 330)},
    run=_measure,
    most_rounds=ROUNDS,
)
