"""The keys below a screen: on as many rows as they need, and where there is no room, the one that lists all."""

from __future__ import annotations

import pytest
from textual.binding import Binding
from textual.pilot import Pilot

from slm_local.registry import load_registry
from slm_local.tui.desk import Desk
from slm_local.tui.footer import Key, rows
from slm_local.tui.screens.chat import ChatScreen
from slm_local.tui.screens.help import HelpScreen
from tests.tui.screens import NO_MODEL, play, shown, until

KEYS = [*(Key(f"f{at}", f"f{at}", f"Does {at}", f"do({at})") for at in range(2, 9)), Key("f1", "f1", "Help", "help")]


@pytest.fixture
def desk() -> Desk:
    """Return a desk without a model."""
    return Desk(reference=NO_MODEL, registry=load_registry())


def words(columns: int, most: int) -> list[str]:
    return ["  ".join(f"{key.name} {key.does}" for key in row) for row in rows(KEYS, columns, most)]


def test_keys_that_fit_are_on_one_row() -> None:
    assert rows(KEYS, 200, 1) == [KEYS]


def test_keys_take_as_many_rows_as_they_need() -> None:
    found = words(40, 3)
    assert len(found) == 3
    assert all(len(row) <= 40 for row in found)
    assert "  ".join(found) == "  ".join(f"{key.name} {key.does}" for key in KEYS)


def test_where_there_is_no_room_the_key_that_lists_all_stays() -> None:
    found = words(34, 1)
    assert found == ["f2 Does 2  f3 Does 3  f1 All keys"]


def test_a_key_that_is_wider_than_the_terminal_has_a_row_of_its_own() -> None:
    assert len(rows(KEYS, 3, 99)) == len(KEYS)


def test_at_80_columns_all_keys_of_the_chat_are_in_view(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen) and "no model" in shown(pilot.app))
        text = shown(pilot.app)
        for key in Binding.make_bindings(ChatScreen.BINDINGS):
            assert not key.show or key.description in text
        assert "f1 Help" in text

    play(desk, scene)


def test_a_click_on_a_key_is_the_key(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen) and "f1 Help" in shown(pilot.app))
        lines = shown(pilot.app).split("\n")
        row = next(at for at, line in enumerate(lines) if "f1 Help" in line)
        await pilot.click(offset=(lines[row].index("f1 Help") + 1, row))
        await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen))

    play(desk, scene)
