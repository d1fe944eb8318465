"""The chats that are kept, in the real app with a real history."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from slm_local.generation import Reply, Timings, Usage
from slm_local.paths import paths
from slm_local.registry import load_registry
from slm_local.store import PlanFacts, Store, open_store
from slm_local.tui.desk import Desk
from slm_local.tui.screens.chats import ChatsScreen
from slm_local.tui.screens.confirm import ConfirmScreen
from tests.tui.screens import NO_MODEL, play, shown, until

FACTS = PlanFacts(model="m", backend="scripted", device="cpu", quant="", context_tokens=512, threads=1)


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(paths().data) as store:
        for prompt, thinking, answer in (
            ("How many legs has a spider?", "Spiders are arachnids.", "Eight."),
            ("What is 47 + 38?", "7 + 8 = 15, carry 1.", "It is **85**."),
            ("[b]bold\x1b[2J?", "", "No."),
        ):
            turn = store.begin_turn(store.begin_chat(model="tiny-reasoner", kind="chat"), prompt, FACTS)
            reply = Reply(thinking=thinking, answer=answer, finish="stop", cut="none", usage=Usage(), timings=Timings())
            store.end_turn(turn, reply)
        yield store


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(reference=NO_MODEL, registry=load_registry(), store=store)


class Visit:
    """A person who opens the list of chats, types, waits for some text, presses keys."""

    def __init__(
        self,
        store: Store,
        desk: Desk,
        *keys: str,
        typed: str = "",
        waits_for: str = "3 chats",
        size: tuple[int, int] = (120, 30),
        current: int | None = None,
    ) -> None:
        self.seen = ""
        self.taken: list[int | None] = []
        self._store, self._keys, self._typed = store, keys, typed
        self._waits_for, self._current = waits_for, current
        play(desk, self._scene, size)

    async def _scene(self, pilot: Pilot[None]) -> None:
        screen = ChatsScreen(self._store, current=self._current)
        await pilot.app.push_screen(screen, self.taken.append)
        await until(pilot, lambda: "3 chats" in shown(pilot.app))
        screen.query_one(Input).value = self._typed
        await until(pilot, lambda: self._waits_for in shown(pilot.app))
        await pilot.press(*self._keys)
        await pilot.pause()
        self.seen = shown(pilot.app)


def test_chats_are_listed_newest_first_and_enter_goes_on_with_one(store: Store, desk: Desk) -> None:
    visit = Visit(store, desk, waits_for="tiny-reasoner · ")
    titles = [line for line in visit.seen.splitlines() if "?" in line]
    assert "[b]bold␛[2J?" in titles[0]
    assert Visit(store, desk, "enter").taken == [3]
    assert Visit(store, desk, "down", "down", "enter").taken == [1]
    assert Visit(store, desk, "escape").taken == [None]


@pytest.mark.parametrize(("word", "place"), [("spider", "prompt"), ("arachnids", "thinking"), ("eight", "answer")])
def test_typing_finds_words_of_prompts_thinking_and_answers(store: Store, desk: Desk, word: str, place: str) -> None:
    visit = Visit(store, desk, "enter", typed=word, waits_for=f"#1 · {place}: ")
    assert visit.taken == [1]


def test_what_is_pointed_at_is_shown_whole(store: Store, desk: Desk) -> None:
    visit = Visit(store, desk, typed="carry", waits_for="It is **85**.")
    assert "› What is 47 + 38?" in visit.seen
    assert "7 + 8 = 15, carry 1." in visit.seen


def test_words_that_are_nowhere_leave_an_empty_list_and_nothing_to_open(store: Store, desk: Desk) -> None:
    visit = Visit(store, desk, "enter", typed="zebra", waits_for="0 chats with zebra")
    assert visit.taken == []
    assert "Eight" not in visit.seen


def test_a_chat_is_removed_when_the_person_is_sure(store: Store, desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(ChatsScreen(store))
        await until(pilot, lambda: "3 chats" in shown(pilot.app))
        await pilot.press("down", "f8")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen))
        assert "remove chat 2 for good?" in shown(pilot.app)
        await pilot.press("n")
        assert store.count() == 3
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: "2 chats" in shown(pilot.app))

    play(desk, scene)
    assert [row.id for row in store.chats()] == [3, 1]


def test_the_chat_that_is_open_can_not_be_removed(store: Store, desk: Desk) -> None:
    visit = Visit(store, desk, "f8", current=3)
    assert "for good?" not in visit.seen
    assert store.count() == 3


def test_a_history_that_can_not_be_read_is_said_to_be(store: Store, desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        store.close()
        await pilot.app.push_screen(ChatsScreen(store))
        await until(pilot, lambda: "the history was closed" in shown(pilot.app))

    play(desk, scene)


@pytest.mark.parametrize("size", [(40, 12), (250, 70)])
def test_it_can_be_used_at_any_size(store: Store, desk: Desk, size: tuple[int, int]) -> None:
    visit = Visit(store, desk, "enter", typed="spider", waits_for="#1 · prompt", size=size)
    assert visit.taken == [1]
