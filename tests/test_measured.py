"""What was measured is kept for this machine and this engine, and for no other; what is measured can be believed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_local import measured, system
from slm_local.generation import Reply, Timings, Usage
from slm_local.measured import (
    CACHED_BYTES,
    FILE,
    KEPT_RATES,
    LEAST_TOKENS,
    Measured,
    Measurement,
    NotMeasured,
    load_measured,
    load_measurements,
    measure_read_gb_s,
    remember,
    remember_asked_to_measure,
    remember_measurement,
    remember_reply,
    was_asked_to_measure,
    worth_remembering,
)

pytestmark = pytest.mark.first_run

GB = 10**9
NOTHING = Measured()


def reply(tokens: int = 200, tps: float = 10.0, *, prompt: int | None = 100, **more: int) -> Reply:
    return Reply(
        thinking="",
        answer="",
        finish="stop",
        cut="none",
        usage=Usage(prompt_tokens=prompt, think_tokens=tokens // 2, answer_tokens=tokens - tokens // 2, **more),
        timings=Timings(decode_tps=tps),
    )


def change(cache: Path, **values: Any) -> None:
    """Put other values into the file."""
    kept = json.loads((cache / FILE).read_text())
    (cache / FILE).write_text(json.dumps({**kept, **values}))


# ---- what is kept


def test_nothing_is_measured_at_first(tmp_path: Path) -> None:
    assert load_measured(tmp_path) == NOTHING


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    remember(cache, read_gb_s=50.0)
    remember(cache, download_bytes_s=2e6)
    remember(cache, engine_gb_s=("llamacpp", 30.0))
    assert load_measured(cache) == Measured(read_gb_s=50.0, engine_shares={"llamacpp": 0.6}, download_bytes_s=2e6)
    assert [each.name for each in cache.iterdir()] == [FILE]


def test_the_last_download_counts(tmp_path: Path) -> None:
    for speed in (1e6, 3e6):
        remember(tmp_path, download_bytes_s=speed)
    assert load_measured(tmp_path).download_bytes_s == 3e6


def test_an_engines_share_is_the_median_of_its_last_replies(tmp_path: Path) -> None:
    remember(tmp_path, read_gb_s=50.0)
    for gb_s in (1.0, 1.0, 40.0, 40.0, 2.0, 40.0, 35.0):
        remember(tmp_path, engine_gb_s=("llamacpp", gb_s))
    assert load_measured(tmp_path).engine_shares == {"llamacpp": 0.8}
    assert len(json.loads((tmp_path / FILE).read_text())["engines"]["llamacpp"]["gb_s"]) == KEPT_RATES


def test_an_engine_that_read_faster_than_the_probe_corrects_it(tmp_path: Path) -> None:
    remember(tmp_path, read_gb_s=20.0)
    remember(tmp_path, engine_gb_s=("llamacpp", 40.0))
    remember(tmp_path, engine_gb_s=("openvino", 10.0))
    found = load_measured(tmp_path)
    assert found.read_gb_s == 40.0
    assert found.engine_shares == {"llamacpp": 1.0, "openvino": 0.25}


def test_an_engine_says_nothing_of_a_bandwidth_that_was_never_probed(tmp_path: Path) -> None:
    remember(tmp_path, engine_gb_s=("llamacpp", 40.0))
    assert load_measured(tmp_path) == NOTHING
    remember(tmp_path, read_gb_s=50.0)
    assert load_measured(tmp_path).engine_shares == {"llamacpp": 0.8}


def test_another_version_of_an_engine_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(tmp_path, read_gb_s=50.0, engine_gb_s=("llamacpp", 30.0))
    monkeypatch.setattr(measured, "engine_version", lambda engine: "another")
    assert load_measured(tmp_path) == Measured(read_gb_s=50.0)
    remember(tmp_path, engine_gb_s=("llamacpp", 20.0))
    assert load_measured(tmp_path).engine_shares == {"llamacpp": 0.4}


@pytest.mark.parametrize(
    ("name", "value"), [("cpu_name", "Another"), ("physical_cores", 77), ("total_memory_bytes", 2**50)]
)
def test_another_machine_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    remember(tmp_path, read_gb_s=50.0, download_bytes_s=1e6)
    monkeypatch.setattr(system, name, lambda: value)
    assert load_measured(tmp_path) == NOTHING
    remember(tmp_path, download_bytes_s=2e6)
    assert load_measured(tmp_path) == Measured(download_bytes_s=2e6)


def test_a_kernel_that_keeps_a_little_more_memory_makes_no_other_machine() -> None:
    assert measured.machine_name("x", 8, 16_600_000_000) == measured.machine_name("x", 8, 16_640_000_000)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"machine": 3}', "[" * 100_000, "\x00\xff"])
def test_a_damaged_file_is_nothing_measured_and_is_mended(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content, encoding="latin-1")
    assert load_measured(tmp_path) == NOTHING
    remember(tmp_path, read_gb_s=50.0)
    assert load_measured(tmp_path) == Measured(read_gb_s=50.0)


@pytest.mark.parametrize("figure", [0, -3.0, 1e300, float("nan"), float("inf"), "fast", None, True, [1.0], {"a": 1}])
def test_a_figure_that_can_not_be_is_none(tmp_path: Path, figure: object) -> None:
    remember(tmp_path, read_gb_s=50.0, engine_gb_s=("llamacpp", 30.0), download_bytes_s=1e6)
    version = measured.engine_version("llamacpp")
    change(tmp_path, engines={"llamacpp": {"version": version, "gb_s": [figure]}, "openvino": figure})
    assert load_measured(tmp_path) == Measured(read_gb_s=50.0, download_bytes_s=1e6)
    change(tmp_path, engines=figure, download_bytes_s=figure)
    assert load_measured(tmp_path) == Measured(read_gb_s=50.0)
    change(tmp_path, read_gb_s=[figure])
    assert load_measured(tmp_path) == NOTHING


def test_the_highest_of_the_last_three_probes_counts(tmp_path: Path) -> None:
    for figure in (50.0, 20.0, 30.0):
        remember(tmp_path, read_gb_s=figure)
    assert (load_measured(tmp_path).read_gb_s, load_measured(tmp_path).probes) == (50.0, 3)
    remember(tmp_path, read_gb_s=10.0)
    assert load_measured(tmp_path).read_gb_s == 30.0


def test_a_figure_that_can_not_be_replaces_none(tmp_path: Path) -> None:
    remember(tmp_path, read_gb_s=50.0, engine_gb_s=("llamacpp", 30.0), download_bytes_s=1e6)
    before = load_measured(tmp_path)
    remember(tmp_path, read_gb_s=0.0, engine_gb_s=("llamacpp", float("nan")), download_bytes_s=0.0)
    assert load_measured(tmp_path) == before


def test_a_folder_that_can_not_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remember(tmp_path / "file", read_gb_s=50.0)
    assert load_measured(tmp_path / "file") == NOTHING


def test_versions_are_those_that_are_installed_and_loading_them_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import version

    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    assert measured.engine_version("llamacpp") == version("llama_cpp_python")
    assert "llama_cpp" not in sys.modules
    assert measured.engine_version("scripted") == ""


# ---- how fast plans were


def fast(
    quant: str = "Q4_K_M", *, device: str = "cpu", decode_tps: float = 12.0, backend: str = "llamacpp"
) -> Measurement:
    return Measurement(
        model="r1-8b",
        quant=quant,
        backend=backend,
        device=device,
        prefill_tps=90.0,
        decode_tps=decode_tps,
        first_token_s=0.4,
        measured_at="2026-11-22T10:00:00+00:00",
    )


def test_a_plans_speed_is_found_again_and_a_newer_one_takes_its_place(tmp_path: Path) -> None:
    assert load_measurements(tmp_path) == ()
    for each in (fast(), fast("Q8_0"), fast(decode_tps=14.0)):
        remember_measurement(tmp_path, each)
    assert load_measurements(tmp_path) == (fast("Q8_0"), fast(decode_tps=14.0))


def test_other_figures_leave_the_plans_speeds_alone_and_the_other_way_round(tmp_path: Path) -> None:
    remember(tmp_path, read_gb_s=50.0, engine_gb_s=("llamacpp", 30.0))
    remember_measurement(tmp_path, fast())
    remember_asked_to_measure(tmp_path)
    remember(tmp_path, download_bytes_s=1e6)
    assert load_measurements(tmp_path) == (fast(),)
    assert load_measured(tmp_path) == Measured(read_gb_s=50.0, engine_shares={"llamacpp": 0.6}, download_bytes_s=1e6)
    assert was_asked_to_measure(tmp_path)


def test_another_version_of_its_engine_makes_a_plans_speed_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_measurement(tmp_path, fast())
    remember_measurement(tmp_path, fast(backend="openvino"))
    real = measured.engine_version
    monkeypatch.setattr(measured, "engine_version", lambda engine: "0.0" if engine == "openvino" else real(engine))
    assert load_measurements(tmp_path) == (fast(),)


@pytest.mark.parametrize("name", ["driver_marks", "accelerators"])
def test_another_driver_makes_a_devices_speed_unknown_and_not_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    remember_measurement(tmp_path, fast())
    remember_measurement(tmp_path, fast(device="gpu"))
    assert len(load_measurements(tmp_path)) == 2
    card = system.Accelerator(kind="gpu", vendor="intel", device_id="0x7d55", driver="xe")
    monkeypatch.setattr(system, name, lambda: ("another",) if name == "driver_marks" else (card,))
    assert load_measurements(tmp_path) == (fast(),)


def test_another_machine_has_no_plans_speeds_and_was_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember_measurement(tmp_path, fast())
    remember_asked_to_measure(tmp_path)
    monkeypatch.setattr(system, "cpu_name", lambda: "Another")
    assert load_measurements(tmp_path) == ()
    assert not was_asked_to_measure(tmp_path)


@pytest.mark.parametrize(
    "values", [{"decode_tps": 0.0}, {"prefill_tps": "fast"}, {"model": 3}, {"first_token_s": -1.0}, {"device": None}]
)
def test_a_damaged_row_is_passed_over(tmp_path: Path, values: dict[str, Any]) -> None:
    remember_measurement(tmp_path, fast())
    remember_measurement(tmp_path, fast("Q8_0"))
    rows = json.loads((tmp_path / FILE).read_text())["plans"]
    change(tmp_path, plans=[{**rows[0], **values}, rows[1], 3, None])
    assert load_measurements(tmp_path) == (fast("Q8_0"),)
    change(tmp_path, plans="none")
    assert load_measurements(tmp_path) == ()


def test_a_speed_that_can_not_be_is_not_kept(tmp_path: Path) -> None:
    remember_measurement(tmp_path, fast(decode_tps=float("nan")))
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_speeds_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "KEPT_MEASUREMENTS", 2)
    for quant in ("A", "B", "C"):
        remember_measurement(tmp_path, fast(quant))
    assert [each.quant for each in load_measurements(tmp_path)] == ["B", "C"]


def test_the_time_of_a_reply_is_prefill_and_decode() -> None:
    assert fast().seconds(900, 240) == pytest.approx(10.0 + 20.0)


# ---- which replies count


def test_a_reply_tells_the_share_by_all_it_read(tmp_path: Path) -> None:
    remember(tmp_path, read_gb_s=60.0)
    remember_reply(tmp_path, "llamacpp", reply(200, 10.0), weights_bytes=4 * GB, kv_bytes_per_token=10**6)
    # a token at 10 a second read the weights and the cache of 100 tokens of prompt and, on average, 100 of its own
    assert load_measured(tmp_path).engine_shares["llamacpp"] == pytest.approx(10 * (4.0 + 0.2) / 60)


def test_a_cache_of_unknown_size_and_a_prompt_of_unknown_length_count_as_none(tmp_path: Path) -> None:
    remember(tmp_path, read_gb_s=60.0)
    said = reply(200, 10.0, prompt=None)
    remember_reply(tmp_path, "llamacpp", said, weights_bytes=3 * GB, kv_bytes_per_token=None)
    assert load_measured(tmp_path).engine_shares["llamacpp"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("engine", "said", "weights_bytes"),
    [
        ("llamacpp", reply(LEAST_TOKENS - 1), 4 * GB),
        ("llamacpp", reply(injected_tokens=16), 4 * GB),
        ("llamacpp", reply(probes=1, probe_tokens=24), 4 * GB),
        ("llamacpp", reply(tps=0.0), 4 * GB),
        ("llamacpp", reply(), CACHED_BYTES - 1),
        ("llamacpp", reply(), None),
        ("scripted", reply(), 4 * GB),
    ],
    ids=[
        "short",
        "not all decoded",
        "probes beside it",
        "no rate",
        "in the caches",
        "size not known",
        "reads no memory",
    ],
)
def test_a_reply_that_says_nothing_of_the_memory_is_not_kept(
    tmp_path: Path, engine: str, said: Reply, weights_bytes: int | None
) -> None:
    assert not worth_remembering(engine, said, weights_bytes)
    remember_reply(tmp_path, engine, said, weights_bytes=weights_bytes, kv_bytes_per_token=1000)
    assert list(tmp_path.iterdir()) == []


def test_a_reply_much_of_which_was_guessed_ahead_is_not_kept() -> None:
    said = reply(200)
    few, many = (replace(said, usage=replace(said.usage, drafted_tokens=drafted)) for drafted in (10, 11))
    assert worth_remembering("llamacpp", few, CACHED_BYTES)
    assert not worth_remembering("llamacpp", many, CACHED_BYTES)


def test_the_shortest_reply_and_the_smallest_model_that_count() -> None:
    assert worth_remembering("llamacpp", reply(LEAST_TOKENS), CACHED_BYTES)


# ---- the probe


def test_the_probe_finds_a_bandwidth_that_a_machine_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "PROBE_S", 0.0)
    low, high = measured.PLAUSIBLE_GB_S
    assert low < measure_read_gb_s(2, 64 * GB) < high


def test_every_round_reads_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "PROBE_S", 0.0)
    assert len(measured._rounds_gb_s(3, 80)) == measured.LEAST_ROUNDS


def test_the_probe_reads_more_than_the_caches_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def rounds(cores: int, size: int) -> list[float]:
        sizes.append((cores, size))
        return [10.0, 30.0, 20.0]

    monkeypatch.setattr(measured, "_rounds_gb_s", rounds)
    for cache in (32 * 2**20, 128 * 2**20, None, 2**20):
        monkeypatch.setattr(system, "cache_bytes", lambda cache=cache: cache)
        assert measure_read_gb_s(4, 64 * GB) == 20.0
    assert [cores * size // 2**20 for cores, size in sizes] == [128, 512, 512, 4]


def test_short_memory_is_left_alone() -> None:
    with pytest.raises(NotMeasured, match=r"beside 0\.4 GB of free memory"):
        measure_read_gb_s(2, 400_000_000)


def test_without_numpy_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "find_spec", lambda name: None)
    with pytest.raises(NotMeasured, match="numpy is not installed"):
        measure_read_gb_s(2, 64 * GB)


def test_an_array_that_can_not_be_had_ends_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "ones", refuse)
    with pytest.raises(NotMeasured, match="memory ran short"):
        measure_read_gb_s(3, 64 * GB)


def test_threads_that_can_not_be_had_end_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    submit = ThreadPoolExecutor.submit
    given: list[Any] = []

    def submit_one(pool: ThreadPoolExecutor, *arguments: Any) -> Any:
        if given:
            raise RuntimeError("can't start new thread")
        given.append(submit(pool, *arguments))
        return given[0]

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_one)
    with pytest.raises(NotMeasured, match="can't start new thread"):
        measured._rounds_gb_s(2, 80)


def test_a_figure_of_no_machine_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_rounds_gb_s", lambda cores, size: [1e6])
    with pytest.raises(NotMeasured, match="no machine's"):
        measure_read_gb_s(2, 64 * GB)
