"""Depths, widths, later turns, busy rounds and the history of runs: what is measured, told and kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm_local.bench import append_run, load_runs, run_asked
from slm_local.bench.busy import CALM_CORES, busy_cost, cost_remarks
from slm_local.bench.curves import ROOM_TOKENS, depths_of, measure_batches, measure_depths
from slm_local.bench.history import FILE
from slm_local.bench.turns import TURNS, measure_later_turn
from slm_local.config import Settings
from slm_local.engine import Engine, choose
from slm_local.errors import Interrupted, UsageError
from slm_local.generation import Control
from slm_local.system import OtherPrograms, family_memory_bytes
from slm_local.system.load import CpuReading
from tests.conftest import ScriptWriter


@pytest.fixture
def reference(script: ScriptWriter, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a model that never ends by itself."""
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    return f"scripted:{script(*[{'text': 'on '}] * 10_000)}"


@pytest.fixture
def slower(script: ScriptWriter, reference: str) -> str:
    """Name one whose replies take long enough to come at once."""
    return f"scripted:{script(*[{'text': 'on ', 'delay': 0.002}] * 10_000, name='slower')}"


def opened(reference: str) -> Engine:
    engine = Engine(choose(reference, settings=Settings(threads=1)))
    engine.start(Control())
    return engine


# ---- depths and widths


def test_depths_are_those_that_the_context_holds() -> None:
    assert depths_of(4096, None) == [0, 256, 1024]
    assert depths_of(4096 + ROOM_TOKENS, None) == [0, 256, 1024, 4096]
    assert depths_of(8192, 2000) == [0, 256, 1024, 2000]
    assert depths_of(8192, 0) == [0]
    assert depths_of(ROOM_TOKENS - 1, None) == []


def test_a_depth_that_takes_long_to_read_is_left_out_unless_it_is_asked_for(reference: str) -> None:
    with opened(reference) as engine:
        some, remarks = measure_depths(engine, None, 10.0, Control())
        every, none = measure_depths(engine, 1024, 10.0, Control())
    assert [each.depth_tokens for each in some] == [0, 256]
    assert "--depth 1024" in remarks[0]
    assert [each.depth_tokens for each in every] == [0, 256, 1024]
    assert none == []
    assert all(each.decode_tps > 0.0 for each in every)


def test_as_many_sequences_are_measured_as_the_engine_runs_at_once(slower: str) -> None:
    with opened(slower) as engine:
        done = measure_batches(engine, Control())
        assert engine.remembers_speed
    assert [each.sequences for each in done][:3] == [1, 2, 4]
    assert all(each.tps == pytest.approx(each.sequences / each.step_s) for each in done)


def test_a_batch_that_does_not_fit_the_context_is_left_out(reference: str, script: ScriptWriter) -> None:
    rows = [{"text": "on ", "delay": 0.002}] * 1000
    with opened(f"scripted:{script(*rows, setup={'context': 128}, name='short')}") as engine:
        assert [each.sequences for each in measure_batches(engine, Control())] == [1, 2]


def test_a_real_engine_decodes_several_sequences_of_replies_that_end_early() -> None:
    with opened("tiny-reasoner") as engine:
        done = measure_batches(engine, Control(), (1, 4))
    assert [each.sequences for each in done] == [1, 4]


def test_a_cancelled_batch_is_none(reference: str) -> None:
    control = Control()
    control.cancel()
    with opened(reference) as engine, pytest.raises(Interrupted):
        measure_batches(engine, control)


# ---- a later turn


def test_a_later_turn_is_measured_at_once_and_after_reading(reference: str) -> None:
    with opened(reference) as engine:
        turn = measure_later_turn(engine, Control())
    assert turn.turn == TURNS
    assert turn.first_token_s > 0.0
    assert turn.read_first_token_s is not None
    assert turn.read_cached_tokens is not None
    assert turn.prompt_tokens // 2 < turn.read_cached_tokens < turn.prompt_tokens


def test_where_nothing_is_read_in_advance_only_the_turn_at_once_is_measured(reference: str) -> None:
    with Engine(choose(reference, settings=Settings(warm=False))) as engine:
        turn = measure_later_turn(engine, Control())
    assert turn.first_token_s > 0.0
    assert (turn.read_first_token_s, turn.read_cached_tokens) == (None, None)


# ---- busy rounds


def test_busy_rounds_are_compared_with_calm_ones() -> None:
    cost = busy_cost([(0.0, 40.0), (1.2, 20.0), (0.01, 44.0), (CALM_CORES, 22.0)])
    assert (cost.busy_rounds, cost.calm_decode_tps, cost.busy_decode_tps) == (2, 42.0, 21.0)
    assert cost.lost_share == pytest.approx(0.5)
    said = cost_remarks(cost)[0]
    assert "up to 1.2 cores" in said
    assert said.endswith("21.0 tok/s in busy rounds, 42.0 in calm ones, that cost 50%")


def test_a_calm_machine_needs_no_remark_and_an_untold_one_has_none() -> None:
    assert cost_remarks(busy_cost([(0.0, 40.0), (0.05, 41.0)])) == []
    assert cost_remarks(busy_cost([(None, 40.0)])) == []


def test_where_all_rounds_were_busy_no_cost_is_made_up() -> None:
    cost = busy_cost([(1.0, 20.0)])
    assert cost.lost_share is None
    assert "in every round" in cost_remarks(cost)[0]


def test_what_others_take_is_what_neither_we_nor_nobody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = [
        CpuReading(at_s=0.0, left_s=100.0, own_s=5.0, cores=4),
        CpuReading(at_s=10.0, left_s=115.0, own_s=6.0, cores=4),
    ]
    children = [50.0, 59.0]
    monkeypatch.setattr("slm_local.system.load.read_cpu", lambda: readings.pop(0))
    monkeypatch.setattr("slm_local.system.load._children_s", lambda: children.pop(0))
    others = OtherPrograms()
    assert others.cores() == pytest.approx(4 - 1.5 - 0.1 - 0.9)


def test_where_the_system_does_not_tell_nobody_is_said_to_take_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_local.system.load.read_cpu", lambda: None)
    assert OtherPrograms().cores() is None


def test_memory_counts_what_the_child_holds(reference: str) -> None:
    before = family_memory_bytes()
    with opened(reference):
        during = family_memory_bytes()
    assert before is not None
    assert during is not None
    assert during > before + 2**20


# ---- the history


def keep(folder: Path, model: str = "m", machine: str = "here") -> int:
    return append_run(folder, at="2026-01-01T00:00:00+00:00", slm="1", machine=machine, figures={"model": model})


def test_runs_are_numbered_and_found_again(tmp_path: Path) -> None:
    assert [keep(tmp_path, "a"), keep(tmp_path, "b"), keep(tmp_path, "a"), keep(tmp_path, "a", "there")] == [1, 2, 3, 4]
    kept = load_runs(tmp_path)
    assert run_asked(kept, "last", machine="here", model="a").number == 3
    assert run_asked(kept, "2", machine="there", model="a").figures == {"model": "b"}
    for asked in ("5", "0", "x", ""):
        with pytest.raises(UsageError, match="there is no run"):
            run_asked(kept, asked, machine="here", model="a")
    with pytest.raises(UsageError, match="not measured on this machine"):
        run_asked(kept, "last", machine="here", model="c")


@pytest.mark.parametrize("damage", [b"{", b"[]\n", b'{"schema": 2, "run": 2}\n', b"\xff\x00", b"null"])
def test_a_damaged_line_costs_itself_only(tmp_path: Path, damage: bytes) -> None:
    keep(tmp_path)
    with (tmp_path / FILE).open("ab") as file:
        file.write(damage)
    assert keep(tmp_path) == 3
    kept = load_runs(tmp_path)
    assert ([run.number for run in kept.runs], kept.unread) == ([1, 3], 1)


def test_no_file_is_no_runs(tmp_path: Path) -> None:
    assert load_runs(tmp_path / "nowhere").runs == ()
