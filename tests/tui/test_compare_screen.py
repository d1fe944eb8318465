"""Models beside each other, in the real app with scripted and embedded models."""

from __future__ import annotations

from contextlib import suppress

import psutil
import pytest
from textual.pilot import Pilot

from slm_local.registry import load_registry
from slm_local.tui.desk import Desk
from slm_local.tui.entry import Entry
from slm_local.tui.holding import Holder
from slm_local.tui.reply import ReplyView
from slm_local.tui.screens.compare import CompareScreen
from slm_local.tui.screens.models import ModelsScreen
from tests.command import THINK_THEN_ANSWER
from tests.conftest import ScriptWriter
from tests.test_worker import wait_until
from tests.tui.screens import NO_MODEL, WITHOUT_END, WORDS, play, shown, until

WIDE = (120, 40)


@pytest.fixture
def thinker(script: ScriptWriter) -> str:
    return f"scripted:{script(*THINK_THEN_ANSWER, name='thinker')}"


@pytest.fixture
def talker(script: ScriptWriter) -> str:
    return f"scripted:{script({'text': 'About 85.', 'ids': [1, 2, 3], 'end': 'stop'}, name='talker')}"


@pytest.fixture
def endless(script: ScriptWriter) -> str:
    return f"scripted:{script(WORDS, name='endless', setup=WITHOUT_END['setup'])}@loop-guard=false,ctx=400000"


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    return Desk(reference=NO_MODEL, registry=load_registry())


def row(text: str, name: str) -> str:
    """Return the table's row of a measure; empty where there is none yet."""
    return next((line for line in text.splitlines() if line.strip().startswith(name)), "")


def workers() -> list[str]:
    """Return the command lines of the children that run a model."""
    lines: list[str] = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie, too, is gone
            lines.append(" ".join(each.cmdline()))
    return [line for line in lines if "slm_local.worker" in line]


def screen_text(screen: CompareScreen) -> str:
    """Return all that the answers say, in view or not."""
    return " ".join(view.answer.text for view in screen.query(ReplyView))


async def compared(pilot: Pilot[None], screen: CompareScreen) -> str:
    """Wait for the end of a comparison and return what is on the screen."""
    await pilot.app.push_screen(screen)
    await until(pilot, lambda: screen._results)
    return await measured(pilot)


async def measured(pilot: Pilot[None]) -> str:
    """Wait for the table of a comparison that is over and return what is on the screen."""
    await until(pilot, lambda: row(shown(pilot.app), "first token"))
    await pilot.pause()
    return shown(pilot.app)


async def grown(pilot: Pilot[None], screen: CompareScreen, characters: int) -> None:
    await until(pilot, lambda: len(screen_text(screen)) > characters)


def test_each_lane_shows_its_own_answer_and_the_table_what_it_took(desk: Desk, thinker: str, talker: str) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        text = await compared(pilot, CompareScreen(Holder(desk), (thinker, talker), "What is 47 + 38?"))
        assert "What is 47 + 38?" in text
        assert "It is 85." in text
        assert "About 85." in text
        assert "7 tokens" in row(text, "thinking")
        assert row(text, "thinking").split()[-1] == "-"
        assert row(text, "finish").split() == ["finish", "stop", "stop"]

    play(desk, scene, WIDE)


def test_a_lane_that_fails_says_why_and_the_other_goes_on(desk: Desk, talker: str) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = CompareScreen(Holder(desk), ("no-such-model", talker), "Hello?")
        await pilot.app.push_screen(screen)
        await until(pilot, lambda: "no model is named 'no-such-model'" in shown(pilot.app))

    play(desk, scene, WIDE)


def test_on_a_small_terminal_each_answer_and_the_table_can_be_seen(desk: Desk, thinker: str, talker: str) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        text = await compared(pilot, CompareScreen(Holder(desk), (thinker, talker), "What is 47 + 38?"))
        assert "It is 85." in text
        assert "About 85." not in text
        assert "first token" in text
        await pilot.press("pagedown", "pagedown")
        await until(pilot, lambda: "About 85." in shown(pilot.app))

    play(desk, scene, size=(40, 12))


def test_escape_stops_the_lanes_and_then_goes_back(desk: Desk, endless: str, talker: str) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        below = pilot.app.screen
        screen = CompareScreen(Holder(desk), (endless, talker), "Hello?")
        await pilot.app.push_screen(screen)
        await until(pilot, lambda: "word" in shown(pilot.app))
        await pilot.press("escape")
        await until(pilot, lambda: not screen.is_comparing)
        await until(pilot, lambda: "cancelled" in row(shown(pilot.app), "finish"))
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is below)

    play(desk, scene, WIDE)


@pytest.mark.real_child
def test_leaving_while_it_answers_leaves_no_process_behind(desk: Desk, endless: str, talker: str) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(CompareScreen(Holder(desk), (endless, talker), "Hello?"))
        await until(pilot, lambda: "word" in shown(pilot.app))
        assert workers()
        await pilot.press("ctrl+q")

    play(desk, scene, WIDE)
    wait_until(lambda: workers() == [])


def test_a_second_prompt_goes_to_the_same_lanes(desk: Desk, thinker: str, talker: str) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = CompareScreen(Holder(desk), (thinker, talker), "First?")
        await compared(pilot, screen)
        first = screen._results
        screen.query_one(Entry).put("Second?")
        await pilot.press("enter")
        await until(pilot, lambda: screen._results and screen._results is not first)
        await measured(pilot)
        assert "Second?" in shown(pilot.app)
        assert "First?" not in shown(pilot.app)

    play(desk, scene, WIDE)


def test_another_model_is_chosen_where_there_is_only_one(desk: Desk, thinker: str) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = CompareScreen(Holder(desk), (thinker,), "What is 47 + 38?")
        await pilot.app.push_screen(screen)
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen))
        await until(pilot, lambda: "tiny-reasoner" in shown(pilot.app))
        await pilot.press("enter")
        await until(pilot, lambda: screen._results)
        text = await measured(pilot)
        assert "tiny-reasoner" in row(text, "finish") or "tiny-reasoner" in text
        assert row(text, "finish").split().count("stop") == 2

    play(desk, scene, WIDE)


def test_markup_and_escapes_of_the_models_are_shown_as_text(desk: Desk, talker: str, script: ScriptWriter) -> None:
    text = "a [red]b[/red] \x1b[2J c"
    odd = f"scripted:{script({'text': text, 'ids': [1], 'end': 'stop'}, name='odd')}"

    async def scene(pilot: Pilot[None]) -> None:
        text = await compared(pilot, CompareScreen(Holder(desk), (odd, talker), "[b]bold[/b]?"))
        assert "a [red]b[/red] ␛[2J c" in text
        assert "[b]bold[/b]?" in text

    play(desk, scene, WIDE)


def test_sizes_may_change_while_it_answers(desk: Desk, endless: str, talker: str) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = CompareScreen(Holder(desk), (talker, endless), "Hello?")
        await pilot.app.push_screen(screen)
        for size in ((40, 12), (250, 70), (80, 24)):
            before = len(screen_text(screen))
            await pilot.resize_terminal(*size)
            await grown(pilot, screen, before + 50)
            await until(pilot, lambda: "About 85." in screen_text(screen))
        await pilot.press("escape")
        await until(pilot, lambda: not screen.is_comparing)

    play(desk, scene, WIDE)
