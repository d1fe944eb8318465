"""A conversation in the real app with scripted models: what is on the screen, what the keys do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from slm_local.config import load_settings
from slm_local.registry import load_registry
from slm_local.server.link import Link
from slm_local.server.pool import Pool
from slm_local.session import ChatSession
from slm_local.tui import keep_chat
from slm_local.tui.app import DeskApp
from slm_local.tui.desk import Desk
from slm_local.tui.screens.chat import ChatScreen
from tests.command import THINK_THEN_ANSWER
from tests.conftest import ScriptWriter
from tests.test_worker import wait_until
from tests.tui.screens import WITHOUT_END, WORDS, play, shown, until

WIDE = (140, 40)

AGAIN = ({"text": "<think>"}, {"text": "again"}, {"text": "</think>"}, {"text": "Still 85.", "end": "stop"})


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, script: ScriptWriter) -> Callable[..., Desk]:
    """Return a desk whose model plays rows."""
    monkeypatch.setenv("SLM_SCRIPTED", "1")

    def make(*rows: dict[str, Any], setup: dict[str, Any] | None = None, **more: Any) -> Desk:
        reference = f"scripted:{script(*(rows or THINK_THEN_ANSWER), setup=setup)}"
        return Desk(reference=reference, registry=load_registry(), **more)

    return make


def slow(text: str, delay_s: float) -> list[dict[str, Any]]:
    """Return rows that write a text word by word."""
    return [{"text": f"{word} ", "delay": delay_s} for word in text.split()]


async def opened(pilot: Pilot[None]) -> ChatScreen:
    """Wait for an open model; return the screen."""
    await until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen))
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    await until(pilot, lambda: screen.status.facts.state == "idle")
    return screen


async def asked(pilot: Pilot[None], screen: ChatScreen, prompt: str = "What is 47 + 38?") -> None:
    """Type a prompt and wait for the whole reply."""
    screen.entry.put(prompt)
    await answered(pilot, screen, "enter")


async def answered(pilot: Pilot[None], screen: ChatScreen, key: str) -> None:
    """Press a key that asks, and wait for the whole reply."""
    before = screen.turns.last
    await pilot.press(key)
    await until(pilot, lambda: screen.turns.last is not before)
    await finished(pilot, screen)


async def finished(pilot: Pilot[None], screen: ChatScreen) -> None:
    await until(pilot, lambda: not screen.is_generating)
    await pilot.pause()


def test_thinking_and_answer_come_into_panes_of_their_own(desk: Callable[..., Desk], tmp_path: Path) -> None:
    answers, ends = tmp_path / "answers", tmp_path / "ends"
    rows: list[dict[str, Any]] = [{"text": "<think>"}, *slow("one two three four five six seven eight", 0.0)]
    rows += [{"text": "</think>", "until": str(answers)}, *slow("and this is the answer", 0.0)]
    rows += [{"text": "!", "until": str(ends), "end": "stop"}]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put("count")
        await pilot.press("enter")
        await until(pilot, lambda: "one two three" in shown(pilot.app) and "Enter: answer now" in shown(pilot.app))
        assert screen.thinking.region.y == screen.conversation.region.y, "side by side when wide"
        assert "one two" not in screen.conversation.text
        answers.touch()
        await until(pilot, lambda: "and this is" in shown(pilot.app) and not screen.thinking.display)
        ends.touch()
        await finished(pilot, screen)
        assert "and this is the answer !" in screen.conversation.text
        assert "thought 10 tokens" in screen.conversation.text
        assert "this is" not in screen.thinking.text

    play(desk(*rows), scene, WIDE)


def test_the_thinking_unfolds_and_folds_with_a_key(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen)
        assert "carry 1" not in shown(pilot.app)
        await pilot.press("f2")
        await until(pilot, lambda: "7 + 8 = 15, carry 1." in shown(pilot.app))
        await pilot.press("f2")
        await until(pilot, lambda: "carry 1" not in shown(pilot.app))

    play(desk(), scene)


def test_escape_stops_a_reply_and_keeps_what_came(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put("go on for ever")
        await pilot.press("enter")
        await until(pilot, lambda: "word3" in screen.conversation.text)
        await pilot.press("escape")
        await finished(pilot, screen)
        assert "word3" in screen.conversation.text
        assert "stopped" in screen.conversation.text
        assert screen.session.turns[0][1].finish == "cancelled"

    play(desk(WORDS, **WITHOUT_END), scene)


def test_ctrl_c_stops_what_runs_and_leaves_at_the_second_press(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_local.tui.screens.chat.LEAVE_S", 600.0)

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put("go on for ever")
        await pilot.press("enter")
        await until(pilot, lambda: "word3" in screen.conversation.text)
        await pilot.press("ctrl+c")
        await finished(pilot, screen)
        assert pilot.app.is_running
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "Ctrl+C again leaves" in shown(pilot.app))
        await pilot.press("ctrl+c")
        await until(pilot, lambda: pilot.app._exit)

    play(desk(WORDS, **WITHOUT_END), scene)


def test_enter_on_the_empty_entry_ends_the_thinking(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put("think")
        await pilot.press("enter")
        await until(pilot, lambda: "word3" in screen.thinking.text)
        await pilot.press("enter")
        await until(pilot, lambda: "thought" in screen.conversation.text)
        await pilot.press("escape")
        await finished(pilot, screen)
        reply = screen.session.last_reply
        assert reply is not None
        assert reply.cut == "user"

    play(desk({"text": "<think>"}, WORDS, **WITHOUT_END), scene)


def test_an_answer_is_written_anew_in_the_place_of_the_old_one(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen)
        assert "It is 85." in screen.conversation.text
        await answered(pilot, screen, "ctrl+r")
        assert "Still 85." in screen.conversation.text
        assert "It is 85." not in screen.conversation.text
        assert len(screen.session.turns) == 1

    play(desk(*THINK_THEN_ANSWER, *AGAIN), scene)


def test_undo_takes_the_turn_back_and_its_prompt_can_be_edited(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen, "first")
        await asked(pilot, screen, "second")
        await pilot.press("ctrl+z")
        assert screen.entry.text == "second"
        assert "second" not in screen.conversation.text
        assert "first" in screen.conversation.text
        assert [prompt for prompt, _ in screen.session.turns] == ["first"]
        assert screen.thinking.text == "7 + 8 = 15, carry 1."

    play(desk(), scene)


def test_thinking_is_switched_off_and_on_with_a_key(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await pilot.press("ctrl+t")
        modes = [screen.session.think.mode]
        await until(pilot, lambda: "think off" in shown(pilot.app))
        await asked(pilot, screen)
        assert screen.session.turns[0][1].thinking == ""
        await pilot.press("ctrl+t")
        assert [*modes, screen.session.think.mode] == ["off", "auto"]

    play(desk({"text": "It is 85.", "end": "stop"}), scene)


def test_a_crash_of_the_worker_leaves_the_text_and_says_what_to_do(desk: Callable[..., Desk], tmp_path: Path) -> None:
    dies = tmp_path / "dies"
    rows = [{"text": "<think>"}, {"text": "let me see"}, {"text": "</think>"}, *slow("part of an", 0.02)]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put("What is 47 + 38?")
        await pilot.press("enter")
        await until(pilot, lambda: "part of an" in screen.conversation.text)
        first = screen.session.engine.pid
        dies.touch()
        await finished(pilot, screen)
        assert "part of an" in screen.conversation.text
        assert "Ctrl+R asks again" in screen.conversation.text
        assert screen.thinking.text == "let me see"
        dies.unlink()
        await pilot.press("ctrl+r")
        await until(pilot, lambda: screen.session.engine.pid not in (None, first))
        dies.touch()
        await finished(pilot, screen)
        await asked(pilot, screen, "and then?")
        assert "and then?" in screen.conversation.text

    play(desk(*rows, {"until": str(dies), "fault": "segv"}), scene)


def test_what_is_copied_is_exactly_what_the_model_wrote(desk: Callable[..., Desk]) -> None:
    answer = "# Title\n\n**bold** [/b] \x1b[31mred\x1b[0m\ttab \u202eevil\n"

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen)
        await pilot.press("ctrl+y")
        assert pilot.app.clipboard == answer
        await pilot.press("f3")
        assert answer.rstrip() in pilot.app.clipboard
        assert "What is 47 + 38?" in pilot.app.clipboard

    play(desk({"text": answer, "end": "stop"}), scene)


HOSTILE = (
    "\x1b]52;c;aGk=\x07 \x1b[2J \x1bP1\x1b\\ \x1b[6n \x9b31m [/] [bold [/some/path] [link=http://x] [1, 2] "
    "\u202egnp.exe\u202c zero\u200bwidth 中文宽 👩‍👩‍👧 e\u0301 \ufeff \U000e0041"
)


def test_hostile_text_is_shown_as_text(desk: Callable[..., Desk]) -> None:
    rows = [{"text": "<think>"}, {"text": HOSTILE}, {"text": "</think>"}, {"text": HOSTILE, "end": "stop"}]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen, HOSTILE)
        await pilot.press("f2")
        await pilot.pause()
        for text in (screen.thinking.text, screen.conversation.text, shown(pilot.app)):
            assert not set(text) & set("\x1b\x07\x9b\u202e\u200b\ufeff")
            assert "␛]52;c;aGk=" in text
            assert "[/some/path]" in text
            assert "⟨U+202E⟩gnp.exe" in text
            assert "中文宽" in text

    play(desk(*rows), scene, WIDE)


def test_errors_are_told_in_the_words_of_the_app(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen, "much too long " * 20)
        assert "/drop removes the oldest turn, Ctrl+N begins anew" in screen.conversation.text
        await pilot.press("ctrl+y")
        await until(pilot, lambda: "there is nothing to copy yet" in shown(pilot.app))

    play(desk(setup={"context": 128}), scene, WIDE)


def test_a_model_that_can_not_be_opened_leaves_the_app_usable(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "no model" in shown(pilot.app))
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        assert "names an unknown fault" in screen.conversation.text
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "no model is open yet" in shown(pilot.app))

    play(desk(setup={"load_fault": "no such"}), scene)


def test_a_prompt_sent_while_the_model_loads_is_answered_when_it_is_open(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen))
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        await pilot.press(*"sum?", "enter")
        await until(pilot, lambda: "It is 85." in screen.conversation.text)

    play(desk(), scene)


def test_the_words_of_the_plain_chat_work_too(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        for line in ("/think off", "/set temperature 0.5", "/system Be brief.", "/stats", "/thnk"):
            screen.entry.put(line)
            await pilot.press("enter")
            await pilot.pause()
        assert screen.session.think.mode == "off"
        assert "think off" in screen.conversation.text
        assert screen.session.engine.settings.sampling.temperature == 0.5
        assert screen.session.system == "Be brief."
        assert "there is no reply yet" in screen.conversation.text
        assert "there is no command /thnk" in screen.conversation.text
        screen.entry.put("/bye")
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app._exit)

    play(desk(), scene)


def test_the_palette_has_what_the_keys_do(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        offered = {each.title for each in pilot.app.get_system_commands(screen)}
        assert {"Stop", "Think", "Thoughts", "Again", "Undo", "Copy", "Model", "Compare", "Chats", "Help"} <= offered
        think = next(each for each in pilot.app.get_system_commands(screen) if each.title == "Think: low")
        assert "512" in think.help or "context" in think.help
        think.callback()
        assert screen.session.think.word == "low"

    play(desk(), scene)


def test_what_was_set_holds_for_the_next_model(desk: Callable[..., Desk], script: ScriptWriter) -> None:
    other = script({"text": "Hello.", "end": "stop"})

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        first = screen.session.engine
        screen.set_live("temp", "0.5")
        await pilot.press("ctrl+t")
        screen.open(f"scripted:{other}")
        await until(pilot, lambda: screen.session.engine is not first and not screen.is_busy)
        assert screen.session.engine.settings.sampling.temperature == 0.5
        assert screen.session.think.mode == "off"

    play(desk(), scene)


def test_the_line_says_how_much_of_its_limit_was_thought_and_which_key_ends_it(desk: Callable[..., Desk]) -> None:
    rows = [{"text": "<think>"}, {"text": "let me see", "ids": [1, 2, 3]}, {"text": "never", "delay": 600.0}]

    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        screen.entry.put("sum?")
        await pilot.press("enter")
        await until(pilot, lambda: " of 200 tokens · " in shown(pilot.app))
        assert "Enter: answer now" in shown(pilot.app)
        assert "thinking · up to 200 tokens" in str(screen.thinking.border_title)

    play(desk(*rows, flags={"think": "200"}), scene)


def test_the_status_says_that_the_next_prompt_is_being_prepared(desk: Callable[..., Desk]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen)
        await until(pilot, lambda: re.search(r"warming \d+ %", shown(pilot.app)))
        await pilot.press("ctrl+n")
        await until(pilot, lambda: screen.status.facts.state == "idle")

    setup = {"prefill": 20, "prefill_delay": 0.2}
    play(desk({"text": "A long answer. " * 200}, {"end": "stop"}, setup=setup), scene)


class Leaving(ChatSession):
    """A conversation whose state takes its time to be saved; it notes whether its engine was there then."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self.pids: list[int | None] = []

    def keep(self, on_wait: Callable[[float], None]) -> str:
        on_wait(0.5)
        on_wait(1.5)
        on_wait(2.5)
        self.pids.append(self._session.engine.pid)
        return ""


def test_a_chat_is_kept_before_its_engine_goes(desk: Callable[..., Desk], capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        screen, app = await opened(pilot), pilot.app
        assert isinstance(app, DeskApp)
        leaving = Leaving(screen.session)
        app.holder.session = leaving
        screen.open(screen.reference)
        await until(pilot, lambda: app.holder.session is screen.session)
        assert [pid is not None for pid in leaving.pids] == [True]
        app.holder.session = leaving
        await pilot.press("ctrl+q")
        keep_chat(app)
        assert [pid is not None for pid in leaving.pids] == [True, True]

    play(desk(), scene)
    assert capsys.readouterr().err == "keeping the chat warm… · Ctrl-C skips it\n"


def test_a_model_that_the_server_has_open_answers_in_the_app(desk: Callable[..., Desk]) -> None:
    pool = Pool(load_registry, lambda own: load_settings({}, reference_settings=own))
    link = Link(pool)
    link.start()

    async def talk(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await asked(pilot, screen)
        assert "It is 85." in shown(pilot.app)
        assert screen.session is not None
        assert "open in the server" in screen.session.engine.service
        assert pool.running()[0].attached == 1

    play(desk(), talk)
    wait_until(lambda: [each.attached for each in pool.running()] == [0])
    link.close()
    pool.close()
