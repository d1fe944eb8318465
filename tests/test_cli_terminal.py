"""`slm` on a real pseudo-terminal: every byte that reaches it is recorded."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import THINK_THEN_ANSWER, child_environment
from tests.conftest import ScriptWriter

if os.name == "nt":
    pytest.skip("pexpect needs a POSIX pseudo-terminal", allow_module_level=True)

import pexpect

CSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]")
TIMEOUT_S = 60

Spawn = Callable[..., Any]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start `slm` on a terminal of 24 rows and 80 columns; ended with the test."""
    children: list[Any] = []

    def start(*arguments: str, **variables: str) -> Any:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "slm_local", *arguments],
            env=child_environment({"TERM": "xterm-256color", **variables}),
            dimensions=(24, 80),
            timeout=TIMEOUT_S,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def recording(child: Any) -> bytes:
    """Read to the end, check that the process ended well, return what it wrote."""
    written: bytes = child.read()
    child.close()
    assert child.exitstatus == 0, written.decode()
    return written


def text_of(written: bytes) -> str:
    """Return what was written without this program's own escapes."""
    return CSI.sub(b"", written).decode().replace("\r", "")


def test_thinking_and_answer_are_two_panels(spawn: Spawn, script: ScriptWriter) -> None:
    text = text_of(recording(spawn("run", f"scripted:{script(*THINK_THEN_ANSWER)}", "What is 47 + 38?")))
    thinking, answer = text.split("── answer · ")
    assert re.search(r"── thinking · .* ─+\n.*7 \+ 8 = 15, carry 1\.\n\n$", thinking, re.DOTALL)
    assert re.search(r" ─+ thought \d tokens · \d+\.\d s ──\n.*It is 85\.\n$", answer, re.DOTALL)


def test_nothing_is_cut_at_the_height_of_the_screen(spawn: Spawn, script: ScriptWriter) -> None:
    rows: list[dict[str, Any]] = [{"text": "<think>", "ids": [1]}]
    rows += [{"text": f"thought {number}\n", "ids": [1]} for number in range(80)]
    rows += [{"text": "</think>```\n", "ids": [1]}]
    rows += [{"text": f"line {number}\n", "ids": [1], "delay": 0.002} for number in range(120)]
    written = recording(spawn("run", f"scripted:{script(*rows)}", "x"))
    text = text_of(written)
    assert all(f"thought {number}\n" in text for number in range(80))
    code = text[text.rindex("line 0\n") :]
    assert code == "".join(f"line {number}\n" for number in range(120))


def test_hostile_text_never_reaches_the_terminal_raw(spawn: Spawn, script: ScriptWriter) -> None:
    hostile = "\x1b]52;c;aGk=\x07\x1b]0;title\x07\x1b[2J\x1b[6n\x1bP1$r\x9b31m\u202e\x7f\x08[/][link=x]"
    rows = [{"text": text, "ids": [1]} for text in ("<think>", hostile, "</think>", hostile)]
    written = recording(spawn("run", f"scripted:{script(*rows)}", "x"))
    assert not UNSAFE.search(text_of(written))
    assert b"\x1b[2J" not in written
    assert b"\x1b[6n" not in written
    assert text_of(written).count("[/][link=x]") >= 2


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_there_are_no_escapes_at_all(
    spawn: Spawn, script: ScriptWriter, variables: dict[str, str]
) -> None:
    written = recording(spawn("run", f"scripted:{script(*THINK_THEN_ANSWER)}", "x", **variables))
    assert b"\x1b" not in written
    assert "── thinking" in written.decode()
    assert "It is **85**." in written.decode()


def test_the_embedded_model_is_shown_at_a_pace_and_says_so(spawn: Spawn) -> None:
    text = text_of(recording(spawn("run", "tiny-direct", "What is 2 + 3?", "-n", "4")))
    assert "shown at 60 tokens/s" in text


def test_a_chat_line_by_line_keeps_what_was_typed(spawn: Spawn, script: ScriptWriter, slm_home: Path) -> None:
    child = spawn("chat", f"scripted:{script(*THINK_THEN_ANSWER)}", "--plain")
    child.expect_exact(">>> ")
    child.sendline("What is 47 + 38?")
    child.expect_exact("85")
    child.expect_exact(">>> ")
    child.sendintr()
    child.expect_exact("Ctrl-D or /bye leaves")
    child.expect_exact(">>> ")  # what is typed before the line editor listens may be lost
    child.sendeof()
    recording(child)
    history = slm_home / "data" / "history"
    assert "What is 47 + 38?" in history.read_text(encoding="utf-8").replace("\\040", " ")
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(spawn: Spawn, script: ScriptWriter) -> None:
    rows = [{"text": "begun ", "ids": [1]}, {"text": "never", "ids": [1], "delay": 60}]
    child = spawn("chat", f"scripted:{script(*rows)}", "--plain")
    child.expect_exact(">>> ")
    child.sendline("hi")
    child.expect_exact("begun")
    child.sendintr()
    child.expect_exact("stopped")
    child.expect_exact(">>> ")
    child.sendline("/show")
    child.expect_exact("history:   2 messages")
    child.sendline("/bye")
    recording(child)


def test_a_chat_without_a_model_offers_three_and_the_embedded_one_last(spawn: Spawn) -> None:
    child = spawn("chat", "--plain")
    child.expect_exact("a number, or any model by its name: ")
    offers = [line for line in text_of(child.before).splitlines() if re.match(r"  \d  ", line)]
    assert len(offers) <= 4
    assert "tiny-reasoner" in offers[-1]
    child.sendline("7")
    child.expect_exact("a number, or any model by its name: ")
    child.sendline(str(len(offers)))
    child.expect_exact("tiny-reasoner · ".encode())
    child.expect_exact(">>> ")
    child.sendeof()
    recording(child)


def test_a_storm_of_sizes_loses_nothing(spawn: Spawn, script: ScriptWriter) -> None:
    rows = [{"text": f"word{number} ", "ids": [1], "delay": 0.004} for number in range(300)]
    child = spawn("run", f"scripted:{script(*rows)}", "x", "--no-loop-guard")
    child.expect_exact("word0")
    seen: bytes = child.before + child.after
    for size in ((1, 1), (2, 200), (50, 3), (100, 300), (5, 10), (24, 80)):
        child.setwinsize(*size)
        child.expect(rb"word\d+")
        seen += child.before + child.after
    text = re.sub(r"\s", "", text_of(seen + recording(child)))
    assert all(f"word{number}" in text for number in range(300))
