"""The picker of models, in the real app: what it lists, what typing leaves of it, what it is dismissed with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from slm_local.paths import paths
from slm_local.registry import load_registry
from slm_local.tui.desk import Desk
from slm_local.tui.screens.models import ModelsScreen
from tests.tui.screens import NO_MODEL, play, shown, until


class Visit:
    """A person who opens the picker, waits for the list, presses keys, and what the picker was dismissed with."""

    def __init__(self, desk: Desk, *keys: str, size: tuple[int, int] = (80, 24), typed: str = "") -> None:
        self.seen = ""
        self.taken: list[str | None] = []
        self._desk, self._keys, self._typed = desk, keys, typed
        play(desk, self._scene, size)

    async def _scene(self, pilot: Pilot[None]) -> None:
        picker = ModelsScreen(self._desk.registry)
        await pilot.app.push_screen(picker, self.taken.append)
        await until(pilot, lambda: picker.query_one(OptionList).option_count > 0)
        picker.query_one(Input).value = self._typed
        await pilot.pause()
        await pilot.pause()
        self.seen = shown(pilot.app)
        await pilot.press(*self._keys)
        await pilot.pause()


@pytest.fixture
def desk() -> Desk:
    return Desk(reference=NO_MODEL, registry=load_registry())


def test_models_that_are_here_come_first_with_size_fit_and_place(desk: Desk) -> None:
    visit = Visit(desk, "enter")
    lines = visit.seen.splitlines()
    starts = [line.split()[0] for line in lines if line.strip()]
    assert starts.index("here") < starts.index("tiny-reasoner") < starts.index("tiny-direct") < starts.index("fits")
    assert any("2 MB · inside slm · Fits · thinks" in line for line in lines)
    assert visit.taken == ["tiny-reasoner"]


def test_the_arrows_move_while_the_line_keeps_the_focus(desk: Desk) -> None:
    assert Visit(desk, "down", "enter").taken == ["tiny-direct"]
    assert Visit(desk, "down", "up", "enter").taken == ["tiny-reasoner"]


def test_typing_finds_models_by_parts_of_names_aliases_and_facts(desk: Desk) -> None:
    visit = Visit(desk, "enter", typed="R1-8b distill")
    assert "fits this machine" in visit.seen or "too large for this machine" in visit.seen
    assert "4.9 GB" in visit.seen
    assert "MIT" in visit.seen
    assert "to fetch" in visit.seen
    assert visit.taken == ["deepseek-r1-distill-llama-8b"]


def test_what_is_typed_may_be_any_reference(desk: Desk) -> None:
    assert Visit(desk, "enter", typed="tiny-reasoner@no-think").taken == ["tiny-reasoner@no-think"]


def test_escape_takes_none(desk: Desk) -> None:
    assert Visit(desk, "escape").taken == [None]


def test_a_file_that_lies_in_the_models_folder_is_offered_by_its_path(desk: Desk, tiny_reasoner: Path) -> None:
    folder = paths().models_dir / "someone" / "else"
    folder.mkdir(parents=True)
    shutil.copy(tiny_reasoner, folder / "mine.gguf")
    visit = Visit(desk, "enter", typed="mine.gguf")
    assert visit.taken == [str(folder / "mine.gguf")]


def test_a_broken_file_is_shown_and_can_not_be_taken(desk: Desk) -> None:
    folder = paths().models_dir / "someone" / "else"
    folder.mkdir(parents=True)
    (folder / "broken.gguf").write_bytes(b"GGUF and no more")
    visit = Visit(desk, "enter", typed="broken")
    assert "broken: " in visit.seen
    assert visit.taken == ["broken"]


def test_escapes_and_markup_of_a_name_are_shown_as_text(desk: Desk, tiny_reasoner: Path) -> None:
    folder = paths().models_dir / "someone" / "else"
    folder.mkdir(parents=True)
    (folder / "[red]x\x1b[2J.gguf").write_bytes(b"GGUF and no more")
    assert "[red]x␛[2J" in Visit(desk, "escape", typed="[red]").seen


@pytest.mark.parametrize("size", [(40, 12), (250, 70)])
def test_it_can_be_used_at_any_size(desk: Desk, size: tuple[int, int]) -> None:
    visit = Visit(desk, "enter", size=size)
    assert "tiny-reasoner" in visit.seen
    assert visit.taken == ["tiny-reasoner"]
