"""The pure parts of docs/benchmarks: which rounds count, when a goal is met, what llama.cpp's tools print."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"

BENCH = """[
  {"build_commit": "0c1e570", "n_threads": 2, "n_prompt": 512, "n_gen": 0, "avg_ns": 8828210508, "avg_ts": 57.995898}
]
"""

BATCHED = """main: n_kv_max = 4096
{"n_kv_max": 4096, "pp": 64, "tg": 32, "pl": 1, "t_pp": 1.0, "speed_pp": 64.0, "t_tg": 8.0, "speed_tg": 4.0, "t": 9.0}
{"n_kv_max": 4096, "pp": 64, "tg": 32, "pl": 8, "t_pp": 1.5, "speed_pp": 42.0, "t_tg": 20.0, "t": 21.5}
"""


def load(file: str) -> ModuleType:
    """Load one file of docs/benchmarks, which is no package of this project."""
    name = f"docs_benchmarks_{Path(file).stem}"
    spec = importlib.util.spec_from_file_location(name, FOLDER / file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


measuring: Any = load("measuring.py")
tools: Any = load("goals/tools.py")


def at(second: float, *, busy: float, own: float, clock: float = 1.0) -> Any:
    return measuring.Moment(at_s=second, busy_s=busy, own_s=own, load=0.5, clock_s=clock)


def a_round(value: float, foreign: float) -> Any:
    noise = measuring.Noise(foreign_share=foreign, clock_drift=0.0, load_before=0.0, load_after=0.0)
    return measuring.Round(figures={"value": value}, noise=noise)


def ratio(target: float | None = 1.0, side: str = "least") -> Any:
    return measuring.Ratio(name="value", of=lambda figures: figures["value"], target=target, side=side)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Return what says how much of a core other programs take in each round."""

    def set_shares(shares: list[float]) -> None:
        moments = [each for share in shares for each in (at(0, busy=0, own=0), at(10, busy=5 + 10 * share, own=5))]
        monkeypatch.setattr(measuring, "moment", iter(moments).__next__)

    return set_shares


def test_quartiles_of_five_pairs_are_the_second_and_fourth() -> None:
    found = measuring.spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.first, found.median, found.third) == (2.0, 3.0, 4.0)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(50, 0, -1)]
    assert measuring.percentile(values, 95) == 48.0
    assert measuring.percentile([7.0], 95) == 7.0


def test_a_goal_is_met_only_where_both_quartiles_are_on_its_side() -> None:
    assert ratio(0.9).met(0.91, 0.99) is True
    assert ratio(0.9).met(0.89, 0.99) is False
    assert ratio(1.2, "most").met(1.0, 1.21) is False
    assert ratio(None).met(0.0, 9.0) is None


def test_what_this_program_and_its_children_took_is_no_noise() -> None:
    noise = measuring.noise(at(0, busy=100, own=40), at(10, busy=118.4, own=58, clock=1.06))
    assert noise.foreign_share == pytest.approx(0.04)
    assert noise.clock_drift == pytest.approx(0.06)
    assert noise.is_quiet
    assert not measuring.noise(at(0, busy=100, own=40), at(10, busy=118.6, own=58)).is_quiet


def test_a_noisy_round_is_measured_again_but_not_for_ever(machine: Callable[[list[float]], None]) -> None:
    report = measuring.Report(None, 2)
    machine([0.9, 0.0, 0.0])
    report.measure("goal", "135m", [ratio()], lambda number: {"value": [9.0, 2.0, 3.0][number]})
    assert report.records[-1]["median"] == 2.5
    assert report.records[-1]["marked"] == 0
    machine([0.9, 0.3, 0.2, 0.8])
    report.measure("goal", "135m", [ratio()], lambda number: {"value": float(number)})
    assert report.records[-1]["median"] == 1.5, "of rounds that were all noisy, the two least noisy count"
    assert report.records[-1]["marked"] == 2


def test_quiet_rounds_come_before_noisy_ones() -> None:
    rounds = [a_round(1, 0.5), a_round(2, 0.01), a_round(3, 0.06)]
    assert [each.figures["value"] for each in measuring.chosen(rounds, 2)] == [2, 3]


def test_a_run_that_was_stopped_keeps_its_records(tmp_path: Path, machine: Callable[[list[float]], None]) -> None:
    file = tmp_path / "raw.jsonl"
    machine([0.0])
    report = measuring.Report(file, 1)
    report.measure("decode", "8b", [ratio()], lambda number: {"value": 1.25})
    with file.open("a", encoding="utf-8") as out:
        out.write('{"record": "round", "goal": "pre')
    records = measuring.read_records(file)
    assert records == report.records
    assert "| decode | 8b | value | 1.250 | 1.250 to 1.250 | ≥ 1 | yes |" in measuring.table(records)


def test_the_table_shows_the_newest_figure_and_what_was_not_measured(machine: Callable[[list[float]], None]) -> None:
    report = measuring.Report(None, 1)
    machine([0.0, 0.0])
    for value in (0.5, 2.0):
        report.measure("decode", "8b", [ratio()], lambda number, value=value: {"value": value})
    report.without("resume", "8b", "this version keeps no state")
    shown = measuring.table(report.records).splitlines()[2:]
    assert shown == [
        "| decode | 8b | value | 2.000 | 2.000 to 2.000 | ≥ 1 | yes |",
        "| resume | 8b | not measured: this version keeps no state | | | | |",
    ]


def test_llama_bench_and_batched_bench_are_read() -> None:
    assert tools.bench_tps(BENCH) == pytest.approx(57.995898)
    with pytest.raises(ValueError, match="2 tests"):
        tools.bench_tps(json.dumps([{"avg_ts": 1.0}, {"avg_ts": 2.0}]))
    found = tools.batches(BATCHED)
    assert (found[8].prefill_s, found[8].decode_s) == (1.5, 20.0)


def test_what_is_possible_reads_the_shared_prompt_once_either_way() -> None:
    assert tools.possible_gain(tools.batches(BATCHED), 8) == pytest.approx((1.0 + 8 * 8.0) / (1.5 + 20.0))
