"""Runs the real command line: in this process for what needs no terminal of its own, else as a child."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'click", DeprecationWarning)  # typer 0.25 imports names that click 8.5 retires
    from slm_local.cli.app import COMMANDS, main

__all__ = ["COMMANDS", "THINK_THEN_ANSWER", "Command", "Result", "child_environment", "main", "slm", "slm_process"]

PACKAGE_ROOT = Path(__file__).resolve().parents[1]

THINK_THEN_ANSWER: tuple[dict[str, Any], ...] = (
    {"text": "<think>", "ids": [1]},
    {"text": "7 + 8 = 15, ", "ids": [2, 3, 4]},
    {"text": "carry 1.", "ids": [5, 6]},
    {"text": "</think>", "ids": [7]},
    {"text": "It is", "ids": [8]},
    {"text": " **85**.", "ids": [9, 10], "end": "stop"},
)
"""A script whose thinking is "7 + 8 = 15, carry 1." and whose answer is "It is **85**."."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command line left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Command:
    """`slm` inside the test's process, with a stdin of bytes that is no terminal."""

    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result:
        self.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main(arguments)
        captured = self.capture.readouterr()
        return Result(code=code, out=captured.out, err=captured.err)


@pytest.fixture
def slm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    return Command(capsys, monkeypatch)


def slm_process(
    *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run `slm` as a child on pipes."""
    return subprocess.run(
        [sys.executable, "-m", "slm_local", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=120,
        env=child_environment(variables),
    )


def child_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child that finds this package and may play scripts."""
    paths = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "SLM_SCRIPTED": "1", **(variables or {})}
