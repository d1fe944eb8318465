"""Stand-ins for the runtimes: a real, tiny child that answers, dies, hangs or talks nonsense as a test wants it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from slm_local.hardware import runtimes

NAME = "fake_listing"

CHILD = """
import json, os, signal, sys, threading
engine, *only = sys.argv[1:]
with open({log!r}, "a") as log:
    print(engine, *only, "secret" if "HF_TOKEN" in os.environ else "", file=log)
answer = json.loads({answers!r}).get(" ".join([engine, *only]))
if isinstance(answer, str) and answer.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, answer))
if answer == "hang":
    threading.Event().wait()
print(answer if isinstance(answer, str) else json.dumps(answer))
"""

CPU = {"kind": "cpu", "description": "A processor"}


class FakeRuntimes:
    """What the children answer, by engine (`openvino`) or engine and device (`openvino CPU`); notes who was asked.

    An answer is the child's JSON, or `SIGILL` and the like, `hang`, or any other text as it is.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        patch.setattr(runtimes, "LISTING", NAME)
        patch.setenv("PYTHONPATH", str(folder))

    def answer(self, answers: Mapping[str, Any]) -> None:
        text = CHILD.format(log=str(self._log), answers=json.dumps(answers))
        (self._folder / f"{NAME}.py").write_text(text, encoding="utf-8")

    @property
    def asked(self) -> list[str]:
        """Return who was asked, in the order of starting up; with the word secret where the child saw one."""
        return self._log.read_text(encoding="utf-8").split("\n")[:-1] if self._log.exists() else []

    @property
    def _log(self) -> Path:
        return self._folder / "log"


@pytest.fixture
def fake_runtimes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeRuntimes:
    return FakeRuntimes(tmp_path_factory.mktemp("runtimes"), monkeypatch)
