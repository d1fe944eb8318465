"""What the engine decided while it ran, from the backend to whoever looks: pipe, stderr, JSON lines, status bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.backends.llamacpp.threads import ThreadControl
from slm_local.backends.scripted import ScriptedBackend
from slm_local.driver import Driver
from slm_local.generation import Control, GenerationRequest, Message, Note, Prompt, Sampling, ThinkDelta, Update
from slm_local.metrics import Collector
from slm_local.system.load import CpuReading, FreeCores, free_cores, read_cpu
from slm_local.tui.meter import NOTE_S, ReplyMeter
from slm_local.tui.status import StatusFacts, StatusLine
from slm_local.worker.wire import from_line, to_line
from tests.command import Result, slm
from tests.conftest import ScriptWriter
from tests.loading import THINK_TAGS, load_settings_for

__all__ = ["slm"]

TEXT = "another program takes a core: 1 thread in place of 2"
ROWS = ({"text": "<think>hm"}, {"note": TEXT}, {"text": "</think>42", "end": "stop"})


class Deciding(ThreadControl):
    """Goes down to one thread after the first step that decodes."""

    def record(self, *, rows: int, cells: int, seconds: float, now_s: float, free_cores: float | None = None) -> str:
        if rows > 2 or self._steady == 1:
            return ""
        self._steady = 1
        return TEXT


@pytest.fixture
def backend(tiny_reasoner: Path) -> Iterator[LlamaCppBackend]:
    made = LlamaCppBackend()
    made.load(load_settings_for("llamacpp", tiny_reasoner, context=1024), Control(), lambda fraction: None)
    made._vocabulary.is_end = lambda token: False  # type: ignore[method-assign]
    made._threads = Deciding(2)
    yield made
    made.close()


def test_llamacpp_decodes_with_what_was_decided_and_tells_every_live_sequence(backend: LlamaCppBackend) -> None:
    handles = [backend.add(Prompt(ids=(5, 6, first)), Sampling()) for first in (7, 8)]
    updates: list[Update] = []
    while not any(isinstance(each, Note) for each in updates):
        updates += backend.step(Control())
    assert [each for each in updates if isinstance(each, Note)] == [Note(handle=each, text=TEXT) for each in handles]
    assert backend._lib.llama_n_threads(backend._context) == 2
    backend.step(Control())
    assert backend._lib.llama_n_threads(backend._context) == 1
    backend.add(Prompt(ids=tuple(range(5, 105))), Sampling())
    backend.step(Control())
    assert backend._lib.llama_n_threads_batch(backend._context) == 2  # prompts are read with all
    backend.step(Control())
    assert backend._lib.llama_n_threads_batch(backend._context) == 1


def test_the_driver_passes_a_note_on_without_its_handle_and_the_pipe_carries_it(script: ScriptWriter) -> None:
    driver = Driver(ScriptedBackend())
    driver.load(load_settings_for("scripted", script(*ROWS), tags=THINK_TAGS), Control(), lambda fraction: None)
    events = list(driver.run(GenerationRequest(messages=(Message(role="user", content="x"),))))
    noted = [event for event in events if isinstance(event, Note)]
    assert noted == [Note(text=TEXT)]
    assert isinstance(events[events.index(noted[0]) - 1], ThinkDelta)
    line = to_line({"op": "event", "id": 1, "event": noted[0]})
    assert from_line(line)["event"] == noted[0]
    collector = Collector()
    for event in events:
        collector.feed(event)
    assert (collector.reply().thinking, collector.reply().answer) == ("hm", "42")


def test_json_lines_hold_a_note_where_it_came(slm: Callable[..., Result], script: ScriptWriter) -> None:
    done = slm("run", f"scripted:{script(*ROWS)}", "x", "--jsonl")
    values = [json.loads(line) for line in done.out.splitlines()]
    assert [value["event"] for value in values] == ["started", "think", "note", "answer", "done"]
    assert values[2] == {"event": "note", "text": TEXT}


def test_verbose_says_on_stderr_what_was_decided_and_without_it_nothing_does(
    slm: Callable[..., Result], script: ScriptWriter
) -> None:
    model = f"scripted:{script(*ROWS)}"
    told = slm("run", model, "x", "-v")
    assert told.out == "42\n"
    (line,) = [line for line in told.err.splitlines() if TEXT in line]
    assert line.startswith("after ")
    assert TEXT not in slm("run", model, "x").err


def test_the_status_bar_shows_a_note_for_some_seconds() -> None:
    meter = ReplyMeter(100.0)
    assert meter.note(100.0) == ""
    meter.feed(Note(text=TEXT), 103.0)
    assert meter.note(103.0) == TEXT
    assert meter.note(103.0 + NOTE_S) == ""


@pytest.mark.parametrize("columns", [200, 110, 80, 60, 40, 20])
def test_a_note_takes_the_place_of_what_is_known_anyway(columns: int) -> None:
    facts = StatusFacts(model="m" * 20, engine="llamacpp cpu", tokens_per_s=12.0, state="answering", note=TEXT)
    line = StatusLine()
    line.tell(facts)
    shown = line.line(columns)
    assert len(shown) <= columns
    assert "answering" in shown
    assert (TEXT in shown) == (columns >= len(f"answering · {TEXT}"))


def test_cores_are_free_that_nobody_uses_and_that_this_process_uses() -> None:
    before = CpuReading(at_s=10.0, left_s=100.0, own_s=5.0)
    assert free_cores(before, CpuReading(at_s=12.0, left_s=101.0, own_s=7.0)) == 1.5


def test_this_machine_tells_its_free_cores() -> None:
    first = read_cpu()
    assert first is not None
    assert first.left_s > 0.0
    assert first.own_s > 0.0
    assert FreeCores().now() is None  # too soon to tell


def test_a_system_that_keeps_its_counts_to_itself_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(percpu: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert read_cpu() is None
    assert FreeCores().now() is None
