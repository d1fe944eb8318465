"""A model that is not here: offered in the app, fetched from the stand-in for the Hub, or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from slm_local.measured import remember
from slm_local.paths import paths
from slm_local.registry import load_registry
from slm_local.tui.desk import Desk
from slm_local.tui.entry import Entry
from slm_local.tui.holding import Holder
from slm_local.tui.screens.compare import CompareScreen
from slm_local.tui.screens.confirm import OfferScreen
from tests.conftest import ScriptWriter
from tests.hub.fixtures import TINY_REPO, hub, serve_tiny
from tests.hub.server import HubServer
from tests.tui.screens import play, shown, until

__all__ = ["hub"]

OWN_MODEL = f"""
schema = 1
[models.my-tiny]
name = "My tiny"
parameters = 1771200
context_tokens = 512
sampling = {{ temperature = 0.0 }}
tags = {{ open = "<think>", close = "</think>" }}
think = {{ switch = "enable_thinking" }}
variants = [{{ quant = "Q8_0", repo = "{TINY_REPO}", file = "tiny-reasoner.gguf" }}]
"""


@pytest.fixture
def desk(hub: HubServer, slm_home: Path) -> Desk:
    """Open the app with a model of the user's own that the stand-in serves."""
    serve_tiny(hub)
    remember(paths().cache, read_gb_s=50.0)
    (slm_home / "config").mkdir()
    (slm_home / "config" / "models.toml").write_text(OWN_MODEL, encoding="utf-8")
    return Desk(reference="my-tiny", registry=load_registry(paths().config / "models.toml"), pace=0)


def fetched() -> bool:
    return (paths().models_dir / TINY_REPO / "tiny-reasoner.gguf").exists()


async def offered(pilot: Pilot[None]) -> None:
    await until(pilot, lambda: isinstance(pilot.app.screen, OfferScreen) and "fetch it?" in shown(pilot.app))


def test_a_model_is_offered_fetched_opened_and_answers_what_was_asked_meanwhile(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        chat = pilot.app.screen_stack[1]
        chat.query_one(Entry).put("What is 47 + 38?")
        await offered(pilot)
        assert f"fetching my-tiny Q8_0: 2 MB from {TINY_REPO}" in shown(pilot.app)
        assert not fetched()
        await pilot.press("enter")
        await until(pilot, lambda: fetched() and pilot.app.screen is chat)
        await pilot.press("enter")
        await until(pilot, lambda: "The answer is 85" in shown(pilot.app))
        assert fetched()

    play(desk, scene)


def test_a_model_that_is_declined_is_not_fetched_and_the_app_stays(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        chat = pilot.app.screen_stack[1]
        await offered(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is chat and "F4" in shown(pilot.app))

    play(desk, scene)
    assert not fetched()


def test_a_lane_that_is_declined_leaves_the_other_its_answer(
    desk: Desk, script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    talker = f"scripted:{script({'text': 'About 85.', 'ids': [1, 2, 3], 'end': 'stop'})}"

    async def scene(pilot: Pilot[None]) -> None:
        await offered(pilot)
        await pilot.press("n")
        screen = CompareScreen(Holder(desk), ("my-tiny", talker), "What is 47 + 38?")
        await pilot.app.push_screen(screen)
        await offered(pilot)
        await pilot.press("n")
        await until(pilot, lambda: pilot.app.screen is screen and not screen.is_comparing)
        await until(pilot, lambda: "About 85." in shown(pilot.app) and "nothing was fetched" in shown(pilot.app))

    play(desk, scene, size=(110, 40))
    assert not fetched()
