"""Plays a scene in the real app with the pilot; waits for what is to be seen, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from textual.app import App
from textual.pilot import Pilot

from slm_local.tui.app import DeskApp
from slm_local.tui.desk import Desk

PATIENCE_S = 60.0

ROUNDS = 6
"""A message is passed from one to the next so often, at most, until what it brings about is done: a key from the app to
its screen, the entry, its action, back to the screen, and to what shows it."""

NO_MODEL = "no-model-of-this-name"
"""What a desk is opened with where no model is needed: the app says that there is none, and starts no process."""

WORDS = {"text": "word{n} ", "delay": 0.02, "times": 20_000}
"""A script's step that goes on for longer than anybody waits, `WITHOUT_END` given."""

WITHOUT_END: dict[str, Any] = {
    "setup": {"context": 400_000},
    "flags": {"loop_guard": False, "think": "max", "ctx": 400_000},
}
"""What a desk is made with for a reply that nothing but a key ends."""

Scene = Callable[[Pilot[None]], Coroutine[None, None, None]]


class SteadyPilot(Pilot[None]):
    """Goes on when what a key or a pause brought about is done.

    Textual's waits once for every queue, and then for a time in which little is computed: one in which the machine had
    no time for us looks the same.
    """

    async def press(self, *keys: str) -> None:
        await super().press(*keys)
        await self._settle()

    async def pause(self, delay: float | None = None) -> None:
        if delay is None:
            await self._settle()
        await super().pause(delay)

    async def _settle(self) -> None:
        for _ in range(ROUNDS):
            await self._wait_for_screen(PATIENCE_S)


def play(desk: Desk, scene: Scene, size: tuple[int, int] = (80, 24)) -> None:
    """Open the app, play a scene in it, leave."""

    async def whole() -> None:
        app = DeskApp(desk)
        try:
            async with app.run_test(size=size, notifications=True):
                pilot = SteadyPilot(app)
                await until(pilot, lambda: len(app.screen_stack) > 1 and app.screen.is_mounted)
                await scene(pilot)
        finally:
            app.close()

    asyncio.run(whole())


async def until(pilot: Pilot[None], holds: Callable[[], object]) -> None:
    """Let the app run until something holds; fail with what is on the screen when it never does."""
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s, f"never came true; on the screen:\n{shown(pilot.app)}"
        await pilot.pause(0.01)


def shown(app: App[None]) -> str:
    """Return the text on the screen, line by line."""
    return "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips())
