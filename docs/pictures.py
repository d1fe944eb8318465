"""Take the pictures of docs/ from the program itself: python docs/pictures.py [NAME...]

The desk is driven by Textual's pilot, in a home folder of its own: with the embedded models, and for what those can't
write (code) with a script that the scripted backend plays. The picture of `slm compare` is what the command writes to a
terminal. Times in the pictures are those of the machine that took them.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text
from textual.app import App
from textual.pilot import Pilot

from slm_local.registry import load_registry
from slm_local.tui.app import DeskApp
from slm_local.tui.desk import Desk
from slm_local.tui.entry import Entry
from slm_local.tui.screens.compare import CompareScreen

DOCS = Path(__file__).parent
RIDDLE = "Which weighs more: a pound of water, two pounds of bricks, a pound of feathers, or three pounds of air?"
PATIENCE_S = 60.0

CODE = """\
Yes: Euclid's algorithm, which replaces the larger number by the remainder until none is left.

```python
def gcd(a: int, b: int) -> int:
    \"\"\"Return the greatest common divisor.\"\"\"
    while b:
        a, b = b, a % b
    return a
```

`gcd(84, 36)` is **12**.
"""

FONTS = re.compile(r"\s*@font-face \{[^}]*\}")
"""Whoever looks at a picture shall load nothing from elsewhere; any font of equal widths does."""

FAINT = re.compile(r"(\x1b\[(?:\d+;)*)(?:2)((?:;\d+)*m)")
"""Pyte knows no faint text: it is shown as grey."""

MAX_ROWS = 200

Scene = Callable[[Pilot[None]], Awaitable[None]]


async def thinking(pilot: Pilot[None]) -> None:
    """Show a chat while the model thinks."""
    await ask(pilot, RIDDLE)
    await until(pilot, "B: two pounds of bricks: 2, 2>1")


async def code(pilot: Pilot[None]) -> None:
    """Show an answer with a block of code."""
    await ask(pilot, "Is there a short way to the greatest common divisor in Python?")
    await until(pilot, "is 12.")
    await until(pilot, "idle")


async def comparison(pilot: Pilot[None]) -> None:
    """Show the riddle's comparison, with what it took."""
    await pilot.app.push_screen(CompareScreen(pilot.app.holder, ("tiny-reasoner", "tiny-direct"), RIDDLE))
    await until(pilot, "peak memory")
    await pilot.press("f2")
    await pilot.pause()


async def error(pilot: Pilot[None]) -> None:
    """Show what a model that can't be opened leaves."""
    await until(pilot, "no model is named")


async def ask(pilot: Pilot[None], prompt: str) -> None:
    """Write a prompt and send it, once the model is open."""
    await until(pilot, "idle")
    pilot.app.screen.query_one(Entry).put(prompt)
    await pilot.press("enter")


async def until(pilot: Pilot[None], text: str) -> None:
    """Wait until a text is on the screen."""
    end_s = time.monotonic() + PATIENCE_S
    while text not in shown(pilot.app):
        if time.monotonic() > end_s:
            raise SystemExit(f"{text!r} never came; on the screen:\n{shown(pilot.app)}")
        await pilot.pause(0.02)


def shown(app: App[None]) -> str:
    """Return the text on the screen."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def desk(reference: str, scene: Scene, size: tuple[int, int]) -> str:
    """Open the desk with a model, play a scene, return the screen as SVG."""

    async def whole() -> str:
        app = DeskApp(Desk(reference=reference, registry=load_registry()))
        try:
            async with app.run_test(size=size) as pilot:
                await scene(pilot)
                return app.export_screenshot(title="slm")
        finally:
            app.close()

    return asyncio.run(whole())


def terminal(*arguments: str, columns: int) -> str:
    """Run a command of `slm` in a terminal and return what it left there as SVG."""
    shell = " ".join(f'"{each}"' if " " in each else each for each in arguments)
    screen = pyte.Screen(columns, MAX_ROWS)
    size = (MAX_ROWS, columns)
    child = pexpect.spawn(sys.executable, ["-m", "slm_local", *arguments], dimensions=size, encoding="utf-8")
    child.expect(pexpect.EOF, timeout=PATIENCE_S)
    pyte.Stream(screen).feed(FAINT.sub(r"\g<1>90\2", child.before or ""))
    paper = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    paper.print(Text(f"$ slm {shell}", style="bold"))
    for row in range(screen.cursor.y):
        runs = groupby((screen.buffer[row][at] for at in range(columns)), key=_style)
        paper.print(Text.assemble(*(("".join(char.data for char in same), style) for style, same in runs)))
    return paper.export_svg(title="slm")


def _style(char: pyte.screens.Char) -> Style:
    color = {"default": None, "brown": "yellow", "brightblack": "bright_black"}.get(char.fg, char.fg)
    return Style(color=color, bold=char.bold, italic=char.italics, underline=char.underscore)


def script() -> str:
    """Write the script of the answer with code and return its reference, relative to the folder that we are in."""
    thought = "They want a short function. Euclid: gcd(a, b) = gcd(b, a mod b), until b is 0. 84, 36: 12, so 12."
    rows = [{"text": "<think>", "ids": [1]}]
    rows += [{"text": word + " ", "ids": [2], "delay": 0.03} for word in thought.split()]
    rows += [{"text": "</think>", "ids": [3]}]
    rows += [{"text": line, "ids": [4] * 4, "delay": 0.1} for line in CODE.splitlines(keepends=True)]
    rows[-1]["end"] = "stop"
    Path("example.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "scripted:example.jsonl"


PICTURES: dict[str, Callable[[], str]] = {
    "desk-thinking": lambda: desk("tiny-reasoner", thinking, (110, 26)),
    "desk-code": lambda: desk(script(), code, (110, 26)),
    "desk-compare": lambda: desk("tiny-reasoner", comparison, (110, 36)),
    "desk-narrow": lambda: desk("tiny-reasoner", thinking, (44, 22)),
    "desk-error": lambda: desk("tiny-resoner", error, (80, 16)),
    "compare": lambda: terminal("compare", "tiny-reasoner", "tiny-direct", "-p", RIDDLE, columns=108),
}


def main() -> None:
    """Take the pictures that are named, or all."""
    names = sys.argv[1:] or list(PICTURES)
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(SLM_HOME=home, SLM_SCRIPTED="1", PYTHONPATH=str(DOCS.parent))
        os.chdir(home)
        for name in names:
            file = DOCS / f"{name}.svg"
            file.write_text(FONTS.sub("", PICTURES[name]()), encoding="utf-8")
            print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
