"""The pictures of the docs: the script still takes them, those in the repository may be shown; every key is told of."""

from __future__ import annotations

import importlib.util
import platform
import re
from pathlib import Path
from types import ModuleType

import pytest
from textual.binding import Binding
from textual.dom import DOMNode

from slm_local.tui.app import DeskApp
from slm_local.tui.screens.chat import ChatScreen
from slm_local.tui.screens.chats import ChatsScreen
from slm_local.tui.screens.compare import CompareScreen

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = sorted(DOCS.glob("*.svg"))
MAX_BYTES = 150_000

KEY_NAMES = {"escape": "Esc", "pageup": "PageUp", "pagedown": "PageDown", "end": "End", "up": "Up", "down": "Down"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "text"), [("desk-code", "gcd"), ("desk-error", "tiny-resoner")])
def test_a_picture_is_taken(
    script: ModuleType, name: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    monkeypatch.chdir(tmp_path)
    picture = script.PICTURES[name]()
    assert picture.startswith("<svg")
    assert text in picture
    assert str(tmp_path) not in picture


def test_every_picture_that_the_script_takes_is_in_the_repository_and_shown(script: ModuleType) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"])
    for name in script.PICTURES:
        assert (DOCS / f"{name}.svg").is_file(), name
        assert f"{name}.svg" in pages, name


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_pictures_are_small_and_tell_nothing_of_the_machine_that_took_them(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")
    assert len(text.encode()) < MAX_BYTES
    assert not re.search(r"/(tmp|home|root|Users|work|var)\b", text)
    assert platform.node() not in re.sub(r"<[^>]*>", "", text)
    assert "@font-face" not in text


@pytest.mark.parametrize("screen", [DeskApp, ChatScreen, CompareScreen, ChatsScreen])
def test_the_page_of_the_desk_names_every_key(screen: type[DOMNode]) -> None:
    page = (DOCS / "desk.md").read_text(encoding="utf-8")
    for binding in Binding.make_bindings(vars(screen)["BINDINGS"]):
        parts = [KEY_NAMES.get(part, part.capitalize()) for part in binding.key.split("+")]
        assert re.search(rf"(?<!\+)\b{re.escape('+'.join(parts))}\b", page), binding
