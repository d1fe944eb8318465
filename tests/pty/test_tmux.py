"""A whole conversation in tmux, a terminal that others wrote: typed, thought about, answered, read off the screen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.command import child_environment

TIMEOUT_S = 90
POLL_S = 0.2

TMUX = shutil.which("tmux")

if TMUX is None:
    pytest.skip("tmux is not installed", allow_module_level=True)


class Tmux:
    """A tmux server of its own with one window."""

    def __init__(self) -> None:
        self._socket = f"slm-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def open(self, columns: int, rows: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "slm_local", *arguments]
        size = ["-x", str(columns), "-y", str(rows)]
        done = self._tmux("new-session", "-d", *size, *command, ";", "set", "remain-on-exit", "on")
        assert done.returncode == 0, done.stderr

    def keys(self, *keys: str) -> None:
        assert self._tmux("send-keys", *keys).returncode == 0

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p").stdout

    def until(self, is_so: Callable[[str], object]) -> str:
        """Wait until the screen is so, and return it."""
        until = time.monotonic() + TIMEOUT_S
        while not is_so(screen := self.screen):
            assert time.monotonic() < until, screen
            time.sleep(POLL_S)
        return screen

    def close(self) -> None:
        self._tmux("kill-server")

    def _tmux(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = child_environment({"TERM": "screen-256color"})
        for name in ("TMUX", "COLUMNS", "LINES"):
            environment.pop(name, None)
        return subprocess.run(
            [TMUX or "tmux", "-f", os.devnull, "-L", self._socket, *arguments],
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=TIMEOUT_S,
            env=environment,
        )


@pytest.fixture
def tmux() -> Iterator[Tmux]:
    made = Tmux()
    yield made
    made.close()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 60)])
def test_a_question_is_thought_about_and_answered_in_two_panes(tmux: Tmux, columns: int, rows: int) -> None:
    tmux.open(columns, rows, "chat", "tiny-reasoner", "--pace", "0")
    tmux.until(lambda screen: "idle" in screen)
    tmux.keys("-l", "What is 47 + 38?")
    tmux.keys("Enter")
    tmux.until(lambda screen: "thought" in screen and "idle" in screen)
    tmux.keys("F2")
    screen = tmux.until(lambda screen: "─thinking─" in screen and "─conversation─" in screen)
    thinking, conversation = panes(screen, columns)
    assert "47+38" in thinking.replace(" ", "")
    assert "What is 47 + 38?" in conversation
    assert re.search(r"\b85\b", conversation.split("What is 47 + 38?")[1])
    tmux.keys("C-q")
    tmux.until(lambda screen: "─conversation─" not in screen)


def panes(screen: str, columns: int) -> tuple[str, str]:
    """Return the text of the thinking and of the conversation: beside each other when wide, else below."""
    if columns < 100:
        above, below = screen.split("─conversation─", 1)
        return above, below
    at = screen.splitlines()[0].index("─conversation─")
    lines = screen.splitlines()
    return "\n".join(line[:at] for line in lines), "\n".join(line[at:] for line in lines)
