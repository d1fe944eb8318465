"""Panes of text that grows: what is drawn anew, and the scroll bar."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import Color
from rich.segment import Segment
from textual.app import App, ComposeResult
from textual.geometry import Region
from textual.pilot import Pilot
from textual.scrollbar import ScrollBarRender

from slm_local.registry import load_registry
from slm_local.tui.bar import Bar, Extent
from slm_local.tui.desk import Desk
from slm_local.tui.screens.chat import ChatScreen
from slm_local.tui.thinking import ThinkingPane
from tests.tui.screens import NO_MODEL, SteadyPilot, play, shown, until

RED, BLUE = Color.parse("#ff0000"), Color.parse("#0000ff")


class OnePane(App[None]):
    """Nothing but a pane."""

    def compose(self) -> ComposeResult:
        yield ThinkingPane()


def drawn(cells: list[Segment]) -> list[tuple[str, bool]]:
    """Return the cells without the colours that a blank does not show."""
    return [(cell.text, bool(cell.style is not None and cell.style.reverse)) for cell in cells]


@given(height=st.integers(1, 70), more=st.integers(0, 3000), at=st.floats(0, 1))
def test_the_scroll_bar_looks_as_textuals_does(height: int, more: int, at: float) -> None:
    rows, top = height + more, int(at * more)
    cells = Bar(RED, BLUE, lambda cell: cell).cells(Extent(rows=rows, top=top, height=height))
    theirs = ScrollBarRender.render_bar(
        size=height, virtual_size=rows, window_size=height if more else 0, position=top, back_color=BLUE, bar_color=RED
    )
    assert drawn(cells) == drawn(list(theirs.segments))


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[Region]:
    """Return the list of what panes ask to be drawn anew."""
    asked: list[Region] = []
    usual = ThinkingPane.refresh

    def refresh(pane: ThinkingPane, *regions: Region, **more: bool) -> ThinkingPane:
        asked.extend(regions or [pane.size.region])
        return usual(pane, *regions, **more)

    monkeypatch.setattr(ThinkingPane, "refresh", refresh)
    return asked


def test_only_the_rows_that_changed_are_drawn_anew(regions: list[Region]) -> None:
    asyncio.run(growing(regions))


async def growing(regions: list[Region]) -> None:
    app = OnePane()
    async with app.run_test(size=(40, 20)):
        pilot = SteadyPilot(app)
        pane = app.query_one(ThinkingPane)
        pane.begin()
        pane.feed("first\nsecond")
        pane.draw()
        await pilot.pause()
        regions.clear()
        pane.feed(" and more of it")
        pane.draw()
        assert regions == [Region(0, 1, 40, 1)]
        await pilot.pause()
        assert "second and more of it" in shown(pilot.app)
        regions.clear()
        pane.draw()
        assert not regions


def test_the_mouse_scrolls_by_the_bar() -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen) and "no model" in shown(pilot.app))
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        pane = screen.conversation
        pane.begin("\n".join(f"line {at}" for at in range(200)))
        await pilot.pause()
        bar, end, page = pane.size.width - 1, pane.scroll_offset.y, pane.size.height - 1
        assert end == pane.max_scroll_y
        await pilot.mouse_down(pane, offset=(bar, 1))
        await pilot.mouse_up(pane, offset=(bar, 1))
        await until(pilot, lambda: pane.scroll_offset.y == end - page)
        await pilot.mouse_down(pane, offset=(bar, pane.size.height - 2))
        await pilot.hover(pane, offset=(bar, 1))
        await until(pilot, lambda: pane.scroll_offset.y < 30)
        await pilot.mouse_up(pane, offset=(bar, 1))
        at = pane.scroll_offset.y
        await pilot.hover(pane, offset=(bar, pane.size.height))
        await pilot.pause()
        assert pane.scroll_offset.y == at, "let go, it stays"

    play(Desk(reference=NO_MODEL, registry=load_registry()), scene)
