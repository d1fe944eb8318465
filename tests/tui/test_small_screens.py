"""Questions, downloads and help, in the real app."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from textual.app import App
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import ProgressBar

from slm_local.download.values import FetchProgress, Order, OrderedFile, RemoteFile
from slm_local.engine.supply import Offer
from slm_local.errors import Interrupted
from slm_local.generation import Control
from slm_local.registry import load_registry
from slm_local.tui.desk import Desk
from slm_local.tui.screens.confirm import ConfirmScreen, Fetching, FetchScreen, OfferScreen
from slm_local.tui.screens.help import HelpScreen
from slm_local.tui.screens.models import ModelsScreen
from tests.tui.screens import NO_MODEL, play, shown, until


@pytest.fixture
def desk() -> Desk:
    return Desk(reference=NO_MODEL, registry=load_registry())


def offer() -> Offer:
    spec = load_registry().get("r1-8b")
    assert spec is not None
    file = OrderedFile(
        remote=RemoteFile(path="r1.gguf", size_bytes=4_920_000_000), place=Path("r1.gguf"), here_bytes=1_000_000_000
    )
    order = Order(repo="someone/[b]R1", commit="0" * 40, files=(file,), target=Path("r1.gguf"))
    return Offer(reference="r1-8b", spec=spec, variant=spec.variants[0], order=order, expected_s=492.0)


def test_an_offer_says_size_source_and_time_and_one_key_answers(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        for key in ("y", "enter", "n", "escape"):
            await pilot.app.push_screen(OfferScreen(offer()), answers.append)
            await pilot.pause()
            text = shown(pilot.app)
            for fact in ("4.9 GB from someone/[b]R1", "MIT", "1.0 GB of it came earlier", "about 8 min", "fetch it?"):
                assert fact in text, fact
            await pilot.press(key)
            await until(pilot, lambda: not isinstance(pilot.app.screen, OfferScreen))

    answers: list[bool | None] = []
    play(desk, scene)
    assert answers == [True, True, False, False]


def test_on_a_small_terminal_the_question_and_its_keys_are_in_view(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(OfferScreen(offer()))
        await until(pilot, lambda: "No" in shown(pilot.app).splitlines()[-1])
        assert "fetching" in shown(pilot.app)
        assert "fetch it?" in shown(pilot.app)
        await pilot.app.push_screen(HelpScreen())
        await until(pilot, lambda: "Back" in shown(pilot.app).splitlines()[-1])

    play(desk, scene, size=(40, 12))


def test_enter_does_not_agree_to_what_can_not_be_undone(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(ConfirmScreen("remove it?"), answers.append)
        await pilot.press("enter")
        await pilot.pause()
        assert "remove it?" in shown(pilot.app)
        assert answers == []
        await pilot.press("y")
        await until(pilot, lambda: answers)

    answers: list[bool | None] = []
    play(desk, scene)
    assert answers == [True]


class Fetcher:
    """Does in a thread what `open_model` does of a download: asks, tells, goes on until it is stopped or `finish`ed."""

    def __init__(self, pilot: Pilot[None], *steps: FetchProgress) -> None:
        self.control = Control()
        self.error: Interrupted | None = None
        self._last = Event()
        self.control.on_cancel(self._last.set)
        self.thread = Thread(target=self._run, args=(pilot.app, steps), daemon=True)
        self.thread.start()

    def finish(self) -> None:
        """Let the download come to its end."""
        self._last.set()

    def _run(self, app: App[None], steps: tuple[FetchProgress, ...]) -> None:
        with Fetching(app, self.control) as fetching:
            try:
                fetching.confirm(offer())
                for step in steps:
                    fetching.on_fetch(step)
                self._last.wait()
            except Interrupted as error:
                self.error = error


STEP = FetchProgress(
    stage="downloading",
    file="r1.gguf",
    done_bytes=2_000_000_000,
    total_bytes=4_000_000_000,
    bytes_per_s=7e6,
    remaining_s=280.0,
)


def test_a_download_is_asked_about_shown_and_leaves_the_screen_when_it_is_over(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        below = pilot.app.screen
        fetcher = Fetcher(pilot, STEP, replace(STEP, done_bytes=3_000_000_000, message="the connection is slow [b]"))
        await until(pilot, lambda: isinstance(pilot.app.screen, OfferScreen))
        await pilot.press("y")
        await until(pilot, lambda: isinstance(pilot.app.screen, FetchScreen) and "3.0 GB of" in shown(pilot.app))
        text = shown(pilot.app)
        for fact in ("fetching deepseek-r1-distill-llama-8b", "7 MB/s · 4 min 40 s left", "the connection is slow [b]"):
            assert fact in text, fact
        assert pilot.app.screen.query_one(ProgressBar).percentage == 0.75
        fetcher.finish()
        await until(pilot, lambda: pilot.app.screen is below and not fetcher.thread.is_alive())

    play(desk, scene)


def test_escape_stops_a_download(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        below = pilot.app.screen
        fetcher = Fetcher(pilot, STEP)
        await until(pilot, lambda: isinstance(pilot.app.screen, OfferScreen))
        await pilot.press("y")
        await until(pilot, lambda: isinstance(pilot.app.screen, FetchScreen))
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is below and not fetcher.thread.is_alive())
        assert fetcher.control.cancelled

    play(desk, scene)


def test_a_declined_download_says_that_nothing_was_fetched(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        fetcher = Fetcher(pilot, STEP)
        await until(pilot, lambda: isinstance(pilot.app.screen, OfferScreen))
        await pilot.press("n")
        await until(pilot, lambda: not fetcher.thread.is_alive())
        assert fetcher.error is not None
        assert fetcher.error.message == "nothing was fetched"
        assert fetcher.error.hint == "slm plan r1-8b"

    play(desk, scene)


def test_a_question_goes_when_what_it_was_about_is_cancelled(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        below = pilot.app.screen
        fetcher = Fetcher(pilot, STEP)
        await until(pilot, lambda: isinstance(pilot.app.screen, OfferScreen))
        fetcher.control.cancel()
        await until(pilot, lambda: pilot.app.screen is below and not fetcher.thread.is_alive())
        assert fetcher.error is not None

    play(desk, scene)


def test_a_download_that_ends_under_the_help_takes_its_screen_with_it(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        below = pilot.app.screen
        fetcher = Fetcher(pilot, STEP)
        await until(pilot, lambda: isinstance(pilot.app.screen, OfferScreen))
        await pilot.press("y")
        await until(pilot, lambda: isinstance(pilot.app.screen, FetchScreen))
        await pilot.app.push_screen(HelpScreen())
        fetcher.finish()
        await until(pilot, lambda: pilot.app.screen is below and not fetcher.thread.is_alive())

    play(desk, scene)


def test_help_lists_every_key_that_our_screen_and_the_app_declare(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        below = pilot.app.screen
        await pilot.app.push_screen(HelpScreen())
        await pilot.pause()
        text = shown(pilot.app)
        ours = [binding for kind in (type(below), type(pilot.app)) for binding in vars(kind).get("BINDINGS", [])]
        for does in ("palette", *(each.description for each in Binding.make_bindings(ours))):
            assert does in text, does
        await pilot.press("f1")
        await until(pilot, lambda: pilot.app.screen is below)

    play(desk, scene, size=(100, 50))


def test_help_over_the_picker_lists_its_keys(desk: Desk) -> None:
    async def scene(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(ModelsScreen(desk.registry))
        await pilot.app.push_screen(HelpScreen())
        await pilot.pause()
        lines = shown(pilot.app).splitlines()
        assert any("esc" in line and "Back" in line for line in lines)
        assert any("⏎" in line and "Open" in line for line in lines)

    play(desk, scene)
