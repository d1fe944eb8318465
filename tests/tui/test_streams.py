"""What a reply may be of: very long, very fast, hostile to the display; while the window changes its size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from textual.pilot import Pilot

from slm_local.registry import load_registry
from slm_local.tui.desk import Desk
from tests.command import child_environment
from tests.conftest import ScriptWriter
from tests.tui.screens import WITHOUT_END, WORDS, play, shown, until
from tests.tui.test_chat_screen import asked, finished, opened

SIZES = [(250, 70), (40, 12), (1, 1), (99, 30), (100, 30), (3, 40), (140, 2), (80, 24)]

PIECE_TOKENS = 8
LONG_TOKENS = 32_000

MEMORY = """
import asyncio, json, sys
import psutil
from slm_local.registry import load_registry
from slm_local.tui.app import DeskApp
from slm_local.tui.desk import Desk

async def main():
    app, rss = DeskApp(Desk(reference=sys.argv[1], registry=load_registry())), {}
    async with app.run_test(size=(120, 40)) as pilot:
        screen = app.screen
        while getattr(screen, "status", None) is None or screen.status.facts.state != "idle":
            await pilot.pause(0.02)
            screen = app.screen
        me = psutil.Process()
        rss[0] = me.memory_info().rss
        screen.entry.put("think long")
        await pilot.press("enter")
        while screen.turns.last is None or screen.is_generating:
            await pilot.pause(0.01)
            showing = screen.turns.showing
            if len(rss) == 1 and showing is not None and showing.meter.think_tokens >= 16_000:
                rss[16] = me.memory_info().rss
                open(sys.argv[2], "w").close()  # the rest may come
        rss[32] = me.memory_info().rss
        thinking = screen.session.turns[0][1].thinking
        same = screen.thinking.text.split() == thinking.split()
        print(json.dumps({"rss": rss, "same": same, "chars": len(thinking)}))
    app.close()

asyncio.run(main())
"""


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, script: ScriptWriter) -> Callable[..., Desk]:
    monkeypatch.setenv("SLM_SCRIPTED", "1")

    def make(*rows: dict[str, Any], setup: dict[str, Any] | None = None, **more: Any) -> Desk:
        return Desk(reference=f"scripted:{script(*rows, setup=setup)}", registry=load_registry(), **more)

    return make


def test_sizes_change_while_a_reply_streams_and_no_text_is_lost(desk: Callable[..., Desk], tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    thought = [f"thought {at} 中文 👩‍👩‍👧 " for at in range(60)]
    words = [f"- item **{at}** of a list\n" for at in range(60)]
    rows = [{"text": "<think>"}, *({"text": each, "delay": 0.01} for each in thought), {"text": "</think>"}]
    rows += [*({"text": each, "delay": 0.01} for each in words), {"until": str(ends), "end": "stop"}]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put("go")
        await pilot.press("enter")
        await until(pilot, lambda: screen.is_generating)
        while screen.is_generating:
            for size in SIZES:
                await pilot.resize_terminal(*size)
            ends.touch()
        await finished(pilot, screen)
        await pilot.resize_terminal(200, 60)
        await pilot.press("f2")
        await pilot.pause()
        assert " ".join(screen.thinking.text.split()) == " ".join("".join(thought).split())
        assert screen.conversation.text.count("of a list") == 60
        assert "item 59 of a list" in shown(pilot.app)

    play(desk(*rows), scene)


def test_a_line_of_100_000_characters_is_shown_whole(desk: Callable[..., Desk]) -> None:
    line = "".join(f"{at:05d}" for at in range(20_000))
    rows = [{"text": "<think>"}, *({"text": line[at : at + 5000]} for at in range(0, len(line), 5000))]
    rows += [{"text": "</think>"}, *({"text": line[at : at + 5000]} for at in range(0, len(line), 5000))]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen)
        assert screen.thinking.text.replace("\n", "") == line
        assert line in screen.conversation.text.replace("\n", "")
        assert screen.conversation.text.split("\n")[-1] in shown(pilot.app)

    play(desk(*rows, {"end": "stop"}, setup={"context": 400_000}, flags={"ctx": 400_000}), scene)


def test_the_reader_stays_where_he_is_while_an_answer_grows(desk: Callable[..., Desk], tmp_path: Path) -> None:
    goes_on = tmp_path / "goes on"
    rows: list[dict[str, Any]] = [{"text": f"line {at}\n\n", "delay": 0.01} for at in range(200)]
    rows[100]["until"] = str(goes_on)

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        pane = screen.conversation
        screen.entry.put("go")
        await pilot.press("enter")
        await until(pilot, lambda: "line 99" in pane.text)
        await until(pilot, lambda: pane.is_at_end)
        await pilot.press("pageup")
        row, top = pane.row_count, pane.scroll_offset.y
        goes_on.touch()
        await until(pilot, lambda: pane.row_count > row + 30)
        assert pane.scroll_offset.y == top
        await pilot.press("ctrl+end")
        await finished(pilot, screen)
        assert pane.is_at_end

    play(desk(*rows, {"end": "stop"}), scene)


def test_a_pane_that_follows_its_end_still_does_when_the_terminal_is_made_smaller_and_larger(
    desk: Callable[..., Desk],
) -> None:
    rows = [{"text": "<think>"}, {"text": "thought {n} of many\n", "delay": 0.01, "times": 20_000}]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        pane = screen.thinking
        screen.entry.put("go")
        await pilot.press("enter")
        await until(pilot, lambda: pane.row_count > 40)
        for size in ((40, 12), (80, 24), (120, 30), (80, 24)):
            await pilot.resize_terminal(*size)
            row = pane.row_count
            await until(pilot, lambda row=row: pane.row_count > row + 2)  # type: ignore[misc]
            await until(pilot, lambda: pane.is_at_end)

    play(desk(*rows, {"text": "</think>"}, {"end": "stop"}, **WITHOUT_END), scene)


def test_a_reader_in_the_middle_stays_about_there_when_the_width_changes(desk: Callable[..., Desk]) -> None:
    rows = [{"text": "<think>"}, {"text": "".join(f"thought {at} of many, " for at in range(2000))}]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen)
        await pilot.press("f2")
        pane = screen.thinking
        await until(pilot, lambda: pane.row_count > 500)
        pane.scroll_to(y=pane.row_count // 2, animate=False, immediate=True)
        await pilot.resize_terminal(60, 24)
        await until(pilot, lambda: pane.row_count > 700)
        await pilot.pause()
        assert 0.45 < pane.scroll_offset.y / pane.row_count < 0.55

    play(desk(*rows, {"text": "</think>"}, {"text": "Done.", "end": "stop"}), scene)


def test_a_prompt_that_wraps_anew_when_the_thinking_unfolds_is_shown_whole(desk: Callable[..., Desk]) -> None:
    prompt = "Which weighs more: a pound of water, two pounds of bricks, a pound of feathers, or three of air?"
    rows: list[dict[str, Any]] = [{"text": "<think>"}, {"text": "let me see"}, {"text": "never", "delay": 600.0}]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put(prompt)
        await pilot.press("enter")
        await until(pilot, lambda: "let me see" in shown(pilot.app))
        await until(pilot, lambda: "three of air?" in shown(pilot.app))

    play(desk(*rows), scene, (110, 26))


def test_a_broken_character_is_shown_once_and_breaks_nothing(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen)
        assert "a\ufffdb" in shown(pilot.app)
        await pilot.press("ctrl+y")
        assert pilot.app.clipboard == "a\ufffdb"

    play(desk({"text": "a\ufffd"}, {"text": "b", "end": "stop"}), scene)


def test_32_000_tokens_of_thinking_are_kept_whole_in_little_memory(tmp_path: Path) -> None:
    pieces = [
        f"Consider case {at}: it may hold, or not, as seen before.\n" for at in range(LONG_TOKENS // PIECE_TOKENS)
    ]
    rows: list[dict[str, Any]] = [{"setup": {"context": 40_000}}, {"text": "<think>", "ids": [1]}]
    rows += [{"text": piece, "ids": list(range(PIECE_TOKENS)), "delay": 0.001} for piece in pieces]
    rows[len(rows) * 3 // 4]["until"] = str(tmp_path / "half")
    rows += [{"text": "</think>"}, {"text": "Done.", "end": "stop"}]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, f"scripted:{file}@ctx=40000,think=max,loop_guard=false", str(tmp_path / "half")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    first, half, whole = seen["rss"]["0"], seen["rss"]["16"], seen["rss"]["32"]
    assert seen["same"]
    assert seen["chars"] == sum(map(len, pieces))
    assert whole - first <= 64 * 2**20
    assert whole - half <= max(half - first, 8 * 2**20)


@pytest.mark.parametrize("setup", [{"load_fault": "slow"}, {"load_fault": "hang"}])
def test_leaving_while_a_model_loads_leaves_no_process(desk: Callable[..., Desk], setup: dict[str, Any]) -> None:
    before = set(psutil.Process().children(recursive=True))

    async def scene(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: set(psutil.Process().children(recursive=True)) - before)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: pilot.app._exit)

    play(desk(setup=setup), scene)
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=60)
    assert not alive


def test_leaving_while_a_reply_streams_leaves_no_process(desk: Callable[..., Desk]) -> None:
    before = set(psutil.Process().children(recursive=True))

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put("go")
        await pilot.press("enter")
        await until(pilot, lambda: "word3" in screen.conversation.text)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: pilot.app._exit)

    play(desk(WORDS, **WITHOUT_END), scene)
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=60)
    assert not alive


def test_escape_stops_the_loading_of_a_model(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "opening" in shown(pilot.app) or "starting" in shown(pilot.app))
        await pilot.press("escape")
        await until(pilot, lambda: "the model was not opened" in shown(pilot.app))
        assert "F4 chooses one" in shown(pilot.app)

    play(desk(setup={"load_fault": "slow"}), scene)
