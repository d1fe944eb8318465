"""`slm bench` and the question at the first load: what is shown, what is kept, when nobody is asked."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import click
import pytest

from slm_local import measured
from slm_local.bench import append_run
from slm_local.bench import speeds as speeds_module
from slm_local.bench.history import FILE as FILE_OF_RUNS
from slm_local.cli import calibration
from slm_local.cli.calibration import may_ask, offer_calibration
from slm_local.cli.curves import BAR_COLUMNS, bars
from slm_local.cli.render import Terminal
from slm_local.cli.runs import calm_remark, this_machine
from slm_local.config import Settings
from slm_local.engine import Choice, choose
from slm_local.hardware import Device, Hardware, probe
from slm_local.measured import FILE, load_measurements, was_asked_to_measure
from slm_local.paths import paths
from slm_local.registry import Registry, load_registry
from tests.command import Result, slm
from tests.conftest import ScriptWriter

__all__ = ["slm"]

Slm = Callable[..., Result]

PAGE = re.sub(r"\s+", " ", (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    monkeypatch.setattr(speeds_module, "BUSY_PROBE_S", 0.01)
    monkeypatch.setattr(speeds_module, "measure_read_gb_s", lambda cores, free_bytes: 50.0)


@pytest.fixture
def reference(script: ScriptWriter) -> str:
    return f"scripted:{script(*[{'text': 'on '}] * 10_000)}"


# ---- slm bench


def test_bench_shows_every_figure_with_its_spread_and_the_limit(slm: Slm, reference: str) -> None:
    result = slm("bench", reference, "--rounds", "2")
    assert result.code == 0
    for label in ("load", "first token, cold", "first token, warm", "prefill", "decode"):
        assert re.search(rf"^{label}  +[\d,.]+ (s|tok/s)  +[\d,.]+  +[\d,.]+  ", result.out, re.MULTILINE), label
    assert "median" in result.out
    assert "of 2 rounds" in result.out
    assert "limit: not known; " in result.out
    assert "read at 50 GB/s" in result.out
    assert "round 2 of 2 · decoding 128 tokens" in result.err


def test_bench_as_json_has_what_the_docs_list(slm: Slm, reference: str) -> None:
    value = json.loads(slm("bench", reference, "--rounds", "2", "--json").out)
    assert ", ".join(f'"{name}"' for name in value) in PAGE
    assert (value["rounds"], value["backend"], value["read_gb_s"], value["share"]) == (2, "scripted", 50.0, None)
    spread = value["decode_tps"]
    assert 0.0 < spread["low"] <= spread["median"] <= spread["high"]


def test_bench_shows_depths_widths_a_later_turn_and_memory(slm: Slm, script: ScriptWriter) -> None:
    slower = script(*[{"text": "on ", "delay": 0.001}] * 10_000)
    result = slm("bench", f"scripted:{slower}", "--rounds", "1")
    for depth in ("0", "256", "1,024"):
        assert re.search(rf"^{depth}  +[\d,.]+ tok/s  +\d+%$", result.out, re.MULTILINE), depth
    for width in (1, 2, 4):
        assert re.search(rf"^{width}  +[\d,.]+ tok/s  +[\d.]+ ms$", result.out, re.MULTILINE), width
    assert re.search(r"first token of turn 3 \([\d,]+ tokens\): [\d.]+ s asked at once, [\d.]+ s after", result.out)
    assert re.search(r"memory of all our processes: \d+ MB", result.out)
    assert "energy: " in result.out


def test_a_run_is_kept_listed_and_compared(slm: Slm, reference: str) -> None:
    first = json.loads(slm("bench", reference, "--rounds", "1", "--json").out)
    again = slm("bench", reference, "--rounds", "1", "--depth", "0", "--compare", "last", "--json")
    second = json.loads(again.out)
    assert (first["run"], first["compared"], second["run"], second["compared"]["run"]) == (1, None, 2, 1)
    ratios = {each["name"]: each for each in second["compared"]["ratios"]}
    decode = ratios["decode_tps"]
    assert (decode["then"], decode["now"]) == (first["decode_tps"]["median"], second["decode_tps"]["median"])
    assert decode["ratio"] == pytest.approx(decode["now"] / decode["then"])
    assert "decode_tps at depth 0" in ratios
    assert "decode_tps at depth 256" not in ratios  # the second run did not go there
    listed = json.loads(slm("bench", "--runs", "--json").out)
    assert [each["run"] for each in listed] == [1, 2]
    assert listed[0]["figures"] == {name: each for name, each in first.items() if name not in ("run", "compared")}
    assert ", ".join(f'"{name}"' for name in listed[0]) in PAGE
    assert re.search(r"^2  +2\d{3}-\d\d-\d\d \d\d:\d\d  ", slm("bench", "--runs").out, re.MULTILINE)


def test_a_comparison_is_shown_with_what_else_differs(slm: Slm, reference: str) -> None:
    slm("bench", reference, "--rounds", "1", "--depth", "0", "--threads", "1")
    result = slm("bench", reference, "--rounds", "1", "--depth", "0", "--threads", "2", "--compare", "1")
    assert re.search(r"^decode_tps  +[\d,.]+  +[\d,.]+  +\d+\.\d\d$", result.out, re.MULTILINE)
    assert "threads: 1 then, 2 now" in result.err


def test_a_run_that_is_not_there_is_refused_before_anything_is_measured(slm: Slm, reference: str) -> None:
    for asked in ("last", "7"):
        result = slm("bench", reference, "--compare", asked)
        assert result.code == 2
        assert "hint: slm bench --runs" in result.err
        assert "measuring" not in result.err


def test_what_bench_can_not_do_is_refused_with_what_it_can(slm: Slm, reference: str) -> None:
    assert "hint: slm bench tiny-reasoner" in slm("bench").err
    assert "--calibrate" in slm("bench", reference, "--calibrate", "--compare", "1").err
    deep = slm("bench", reference, "--depth", "99999999")
    assert deep.code == 2
    assert "has room for a depth of" in deep.err


def test_where_nothing_can_be_kept_the_figures_are_shown_all_the_same(slm: Slm, reference: str, slm_home: Path) -> None:
    (slm_home / "data" / FILE_OF_RUNS).mkdir(parents=True)
    result = slm("bench", reference, "--rounds", "1", "--depth", "0")
    assert result.code == 0
    assert "decode" in result.out
    assert "can't be kept" in result.err


def test_busy_rounds_stand_beside_the_calm_ones_of_an_earlier_run(slm_home: Path) -> None:
    settings = {"model": "m", "decode_tps": {"median": 30.0}}
    calm = {**settings, "busy": {"busy_rounds": 0, "calm_decode_tps": 40.0}}
    append_run(paths().data, at="2026-01-01T00:00:00", slm="1", machine=this_machine(), figures=calm)
    busy = {**settings, "busy": {"busy_rounds": 3, "calm_decode_tps": None}}
    assert calm_remark(busy) == ["calm rounds of run 1 decoded 40.0 tok/s: being busy cost 25%"]
    assert calm_remark(calm) == []
    assert calm_remark({**busy, "threads": 9}) == []


def test_on_a_terminal_a_curve_has_bars() -> None:
    screen = Screen()
    terminal = Terminal(screen, screen, {"TERM": "xterm", "COLUMNS": "100"})
    longest, half = bars(terminal, [10.0, 5.0])
    assert longest == "█" * BAR_COLUMNS
    assert half == "█" * (BAR_COLUMNS // 2)


def test_calibrate_shows_the_race_and_keeps_it(slm: Slm, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "PLAUSIBLE_TPS", (0.0, inf))  # a script's prompt is read in no time
    result = slm("bench", reference, "--calibrate")
    assert result.code == 0
    assert re.search(r"^\S+ · scripted on cpu  +[\d,.]+ tok/s  +[\d,.]+ tok/s  ", result.out, re.MULTILINE)
    assert "chosen from now on: " in result.out
    assert "there is no other way" in result.err
    assert [each.backend for each in load_measurements(paths().cache)] == ["scripted"]


def test_calibrate_as_json_has_what_the_docs_list(slm: Slm, reference: str) -> None:
    value = json.loads(slm("bench", reference, "--calibrate", "--json").out)
    assert ", ".join(f'"{name}"' for name in value) in PAGE
    assert ", ".join(f'"{name}"' for name in value["plans"][0]) in PAGE
    assert value["plans"][0]["failure"] is None
    assert value["chosen"]["backend"] == "scripted"


def test_calibrate_does_not_keep_what_holds_for_a_wish_only(slm: Slm, reference: str) -> None:
    result = slm("bench", reference, "--calibrate", "--threads", "1")
    assert result.code == 2
    assert "--threads" in result.err
    assert load_measurements(paths().cache) == ()


def test_what_is_not_here_is_not_fetched_to_be_measured(slm: Slm) -> None:
    for flags in ((), ("--calibrate",)):
        result = slm("bench", "qwen3-0.6b", *flags)
        assert result.code == 3
        assert "hint: slm pull qwen3-0.6b" in result.err


def test_a_crash_ends_the_measurement_with_its_error(slm: Slm, script: ScriptWriter) -> None:
    result = slm("bench", f"scripted:{script({'text': 'a', 'fault': 'exit'})}")
    assert result.code == 8
    assert result.out == ""


# ---- the question at the first load


class Screen(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True


class Person:
    """Someone at a terminal who presses one key."""

    def __init__(self, patch: pytest.MonkeyPatch, key: str) -> None:
        self.screen = Screen()
        self.terminal = Terminal(Screen(), self.screen, {"TERM": "dumb"})
        self.asked = 0
        self._key = key
        patch.setattr(sys, "stdin", Screen())
        patch.setattr(click, "getchar", self._press)

    def _press(self) -> str:
        self.asked += 1
        return self._key


def ended() -> str:
    raise EOFError


def interrupted() -> str:
    raise KeyboardInterrupt


def two_devices(**_: bool) -> Hardware:
    gpu = Device(name="gpu", kind="gpu", description="a card", engine="openvino", integrated=True)
    return replace(probe(), devices=(*probe().devices, gpu))


def with_a_choice(reference: str, **_: object) -> Choice:
    """Choose among a plan for the processor and one that is said to be for the GPU."""
    choice = choose(reference)
    return replace(choice, plans=(*choice.plans, replace(choice.plans[0], device="gpu")))


@pytest.fixture
def registry() -> Registry:
    return load_registry()


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "probe", two_devices)
    monkeypatch.setattr(calibration, "choose", with_a_choice)


def offer(person: Person, reference: str, registry: Registry, *, is_quiet: bool = False) -> None:
    offer_calibration(person.terminal, reference, settings=Settings(), registry=registry, is_quiet=is_quiet)


def test_a_person_who_agrees_has_the_plans_raced(
    several: None, monkeypatch: pytest.MonkeyPatch, reference: str, registry: Registry
) -> None:
    monkeypatch.setattr(measured, "PLAUSIBLE_TPS", (0.0, inf))  # a script's prompt is read in no time
    person = Person(monkeypatch, "\r")
    offer(person, reference, registry)
    assert [each.device for each in load_measurements(paths().cache)] == ["cpu", "gpu"]
    assert re.search(r"measure now\? \d+ s ", person.screen.getvalue())


def test_a_person_is_asked_once(
    several: None, monkeypatch: pytest.MonkeyPatch, reference: str, registry: Registry
) -> None:
    person = Person(monkeypatch, "n")
    for _ in range(2):
        offer(person, reference, registry)
    assert person.asked == 1
    assert load_measurements(paths().cache) == ()
    assert "slm bench scripted:" in person.screen.getvalue()


def test_the_end_of_input_at_the_question_is_a_no(
    several: None, monkeypatch: pytest.MonkeyPatch, reference: str, registry: Registry
) -> None:
    person = Person(monkeypatch, "\r")
    monkeypatch.setattr(click, "getchar", ended)
    offer(person, reference, registry)
    assert "not measured; whenever you like: slm bench scripted:" in person.screen.getvalue()
    assert load_measurements(paths().cache) == ()


def test_ctrl_c_at_the_question_is_no_answer(
    several: None, monkeypatch: pytest.MonkeyPatch, reference: str, registry: Registry
) -> None:
    person = Person(monkeypatch, "\r")
    monkeypatch.setattr(click, "getchar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        offer(person, reference, registry)
    assert person.screen.getvalue().endswith("\n")


def test_a_race_in_which_all_fail_does_not_keep_the_model_from_being_opened(
    several: None, monkeypatch: pytest.MonkeyPatch, script: ScriptWriter, registry: Registry
) -> None:
    person = Person(monkeypatch, "y")
    offer(person, f"scripted:{script(setup={'load_fault': 'exit'})}", registry)
    assert "nothing was measured" in person.screen.getvalue()


def test_nobody_is_asked_where_quiet_is_wanted_or_nobody_is_there(
    several: None, monkeypatch: pytest.MonkeyPatch, reference: str, registry: Registry
) -> None:
    person = Person(monkeypatch, "y")
    offer(person, reference, registry, is_quiet=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    offer(person, reference, registry)
    assert person.asked == 0
    assert person.screen.getvalue() == ""
    assert not was_asked_to_measure(paths().cache)


@pytest.mark.first_run
def test_nobody_is_asked_about_a_machine_with_one_device(
    monkeypatch: pytest.MonkeyPatch, reference: str, registry: Registry, slm_home: Path
) -> None:
    person = Person(monkeypatch, "y")
    monkeypatch.setattr(calibration, "probe", lambda **_: probe())
    assert not may_ask(person.terminal)
    offer(person, reference, registry)
    assert person.asked == 0
    assert not (slm_home / "cache" / FILE).exists()


def test_nobody_is_asked_where_the_model_leaves_no_choice(
    monkeypatch: pytest.MonkeyPatch, reference: str, registry: Registry
) -> None:
    person = Person(monkeypatch, "y")
    monkeypatch.setattr(calibration, "probe", two_devices)
    offer(person, reference, registry)
    assert person.asked == 0
    assert may_ask(person.terminal)  # another model may leave one
