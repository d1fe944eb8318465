"""Measuring a model and racing its plans: what is counted, what is kept, what happens when a plan fails."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from math import inf

import pytest

from slm_local import measured
from slm_local.bench import bench, calibrate, expected_s, race, raceable, spread
from slm_local.bench import speeds as speeds_module
from slm_local.bench.passes import MOST_REPLIES, decode, random_prompt, read_prompt
from slm_local.bench.speeds import DECODED_TOKENS, PROMPT_TOKENS, Bandwidth, Limit, busy_remarks, limit_of
from slm_local.config import Settings
from slm_local.engine import Choice, Engine, choose
from slm_local.errors import DoesNotFit, DownloadFailed, Interrupted, UsageError, WorkerCrashed
from slm_local.generation import Control
from slm_local.hardware import Device, Hardware, probe
from slm_local.measured import CACHED_BYTES, NotMeasured, load_measured, load_measurements
from slm_local.model import ModelSpec, Plan, Shape, Variant
from slm_local.paths import paths
from tests.conftest import ScriptWriter

pytestmark = pytest.mark.first_run

GB = 10**9


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Allow scripts, and give bandwidths in place of measuring them."""
    bandwidths = [50.0]
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    monkeypatch.setattr(speeds_module, "BUSY_PROBE_S", 0.01)
    monkeypatch.setattr(
        speeds_module,
        "measure_read_gb_s",
        lambda cores, free_bytes: bandwidths.pop(0) if len(bandwidths) > 1 else bandwidths[0],
    )
    return bandwidths


@pytest.fixture
def endless(script: ScriptWriter) -> Choice:
    """Return the choice for a model that never ends by itself."""
    return choose(f"scripted:{script(*[{'text': 'on '}] * 10_000)}")


def variants_of(choice: Choice, *quants: str) -> Choice:
    """Return a choice with a plan for each name."""
    plan = choice.plans[0]
    return replace(choice, plans=tuple(replace(plan, variant=replace(plan.variant, quant=name)) for name in quants))


# ---- one generation


def test_a_prompt_is_read_and_one_token_made(endless: Choice) -> None:
    with Engine(endless) as engine:
        engine.start(Control())
        done = read_prompt(engine, random_prompt(engine, 300, 1), Control())
    assert (done.prompt_tokens, done.decoded_tokens) == (300, 0)
    assert 0.0 < done.prefill_s <= done.first_token_s
    assert done.prefill_tps == pytest.approx(300 / done.prefill_s)


def test_prompts_are_of_the_vocabulary_and_the_same_for_the_same_seed(endless: Choice) -> None:
    with Engine(endless) as engine:
        engine.start(Control())
        prompts = [random_prompt(engine, 64, seed) for seed in (1, 1, 2)]
    assert prompts[0] == prompts[1] != prompts[2]
    assert all(0 <= token < 256 for token in prompts[0])


def test_decoding_counts_the_tokens_after_the_first(endless: Choice) -> None:
    with Engine(endless) as engine:
        engine.start(Control())
        done = decode(engine, 40, 1, Control())
    assert done.decoded_tokens == 40
    assert done.decode_tps == pytest.approx(40 / done.decode_s)


def test_replies_that_end_early_are_added_up(script: ScriptWriter) -> None:
    path = script({"text": "a"}, {"text": "b"}, {"text": "c", "end": "stop"})
    with Engine(choose(f"scripted:{path}")) as engine:
        engine.start(Control())
        assert decode(engine, 10, 1, Control()).decoded_tokens == 10


def test_what_could_be_decoded_counts_where_the_model_ends_every_reply_early(script: ScriptWriter) -> None:
    path = script({"text": "a"}, {"text": "b", "end": "stop"})
    with Engine(choose(f"scripted:{path}")) as engine:
        engine.start(Control())
        assert decode(engine, 10_000, 1, Control()).decoded_tokens == MOST_REPLIES


def test_a_model_that_makes_no_second_token_is_refused(script: ScriptWriter) -> None:
    with Engine(choose(f"scripted:{script({'text': 'a', 'end': 'stop'})}")) as engine:
        engine.start(Control())
        with pytest.raises(UsageError, match="decode speed can't be measured"):
            decode(engine, 10, 1, Control())


def test_tokens_without_text_are_timed_like_others(script: ScriptWriter) -> None:
    with Engine(choose(f"scripted:{script(*[{'text': ''}] * 100)}")) as engine:
        engine.start(Control())
        done = decode(engine, 50, 1, Control())
    assert done.decoded_tokens == 50
    assert done.first_token_s > 0.0
    assert done.decode_s > 0.0


def test_a_cancelled_measurement_is_none(endless: Choice) -> None:
    control = Control()
    with Engine(endless) as engine:
        engine.start(Control())
        control.cancel()
        with pytest.raises(Interrupted):
            decode(engine, 10, 1, control)


# ---- bench


def test_bench_measures_everything_in_every_round_and_leaves_no_model_open(endless: Choice) -> None:
    told: list[str] = []
    engine = Engine(endless)
    done = bench(engine, probe(), rounds=2, tell=told.append)
    assert len(done.rounds) == 2
    assert (done.prompt_tokens, done.decoded_tokens) == (PROMPT_TOKENS, DECODED_TOKENS)
    for each in done.rounds:
        assert min(each.load_s, each.warm_s, each.prefill_tps, each.decode_tps) > 0.0
        assert each.cold_s > each.load_s
    assert [text for text in told if text.endswith("loading")] == [f"round {n} of 2 · loading" for n in (1, 2)]
    assert engine.pid is None


def test_bench_stays_within_a_short_context(script: ScriptWriter) -> None:
    chosen = choose(f"scripted:{script(*[{'text': 'on '}] * 10_000)}@ctx=64")
    done = bench(Engine(chosen), probe(), rounds=1)
    assert (done.prompt_tokens, done.decoded_tokens) == (32, 32)


def test_sequences_at_once_that_were_not_measured_are_told_of(
    script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds_module, "measure_batches", lambda engine, control: ())
    chosen = choose(f"scripted:{script(*[{'text': 'on '}] * 10_000)}@ctx=64")
    done = bench(Engine(chosen), probe(), rounds=1)
    assert any("several sequences at once were not measured" in remark for remark in done.remarks)


def test_bench_refreshes_the_bandwidth_that_is_kept(endless: Choice, quick: list[float]) -> None:
    quick[:] = [40.0, 60.0]
    done = bench(Engine(endless), probe(), rounds=1)
    assert load_measured(paths().cache).read_gb_s == 60.0
    assert done.limit.read_gb_s == 60.0
    assert any("40 GB/s before and 60 GB/s after" in remark for remark in done.remarks)


def test_steady_bandwidth_needs_no_remark(quick: list[float]) -> None:
    quick[:] = [50.0, 52.0]
    bandwidth = Bandwidth(probe())
    bandwidth.measure()
    bandwidth.measure()
    assert bandwidth.remarks() == []
    assert bandwidth.read_gb_s == 52.0


def test_bandwidth_that_can_not_be_measured_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cores: int, free_bytes: int) -> float:
        raise NotMeasured("numpy is not installed")

    monkeypatch.setattr(speeds_module, "measure_read_gb_s", refuse)
    bandwidth = Bandwidth(probe())
    bandwidth.measure()
    assert bandwidth.read_gb_s is None
    assert bandwidth.remarks() == ["memory bandwidth was not measured: numpy is not installed"]


def test_the_embedded_model_is_measured_with_a_real_engine() -> None:
    done = bench(Engine(choose("tiny-reasoner", settings=Settings(threads=1))), probe(), rounds=1)
    assert done.spread("decode_tps").median > 0.0
    assert done.limit.share is None
    assert "small" in (done.limit.remark or "")


def test_a_spread_has_the_median_and_the_extremes() -> None:
    found = spread([3.0, 1.0, 10.0])
    assert (found.low, found.median, found.high) == (1.0, 3.0, 10.0)


def test_a_busy_machine_is_told_of_and_an_idle_one_is_not() -> None:
    assert busy_remarks(0.02) == []
    assert "45%" in busy_remarks(0.45)[0]


# ---- the limit


def plan_on(device: str, *, size: int | None = 4 * GB, backend: str = "openvino") -> Plan:
    shape = Shape(layers=10, kv_heads=10, head_dim=50)
    return Plan(
        spec=ModelSpec(id="m", name="M", shape=shape),
        variant=Variant(kind="gguf", quant="Q4_0", decode_bytes=size),
        backend=backend,
        device=device,
        context_tokens=4096,
        threads=4,
        memory_bytes=None,
        free_ram_bytes=16 * GB,
        fits=True,
        expected_decode_tps=None,
        reasons=(),
    )


def machine(*devices: Device) -> Hardware:
    return replace(probe(), devices=(Device(name="cpu", kind="cpu", description="x"), *devices))


def gpu(*, integrated: bool | None) -> Device:
    return Device(name="gpu", kind="gpu", description="y", engine="openvino", integrated=integrated)


def test_the_limit_is_the_bandwidth_over_weights_and_cache() -> None:
    limit = limit_of(plan_on("cpu"), machine(), 50.0, 6.0, 128)
    read = 4 * GB + (16 + 64) * 2 * 10 * 10 * 50 * 2
    assert limit.bytes_per_token == read
    assert limit.decode_tps == pytest.approx(50 * GB / read)
    assert limit.share == pytest.approx(6.0 * read / (50 * GB))
    assert limit.remark is None


@pytest.mark.parametrize(
    ("plan", "devices", "read_gb_s", "says"),
    [
        (plan_on("cpu", size=CACHED_BYTES - 1), (), 50.0, "small"),
        (plan_on("cpu"), (), None, "could not be measured"),
        (plan_on("cpu", size=None), (), 50.0, "not known"),
        (plan_on("gpu"), (gpu(integrated=False),), 50.0, "memory of its own"),
    ],
    ids=["in the caches", "no bandwidth", "size not known", "a card"],
)
def test_where_memory_is_not_the_limit_none_is_stated(
    plan: Plan, devices: tuple[Device, ...], read_gb_s: float | None, says: str
) -> None:
    limit = limit_of(plan, machine(*devices), read_gb_s, 6.0, 128)
    assert (limit.decode_tps, limit.share) == (None, None)
    assert says in (limit.remark or "")


@pytest.mark.parametrize(
    ("device", "others"), [("gpu", (gpu(integrated=True),)), ("gpu", (gpu(integrated=None),)), ("npu", ())]
)
def test_devices_that_share_the_memory_have_its_limit(device: str, others: tuple[Device, ...]) -> None:
    limit: Limit = limit_of(plan_on(device), machine(*others), 50.0, 6.0, 128)
    assert limit.share is not None


# ---- the race


def test_plans_take_turns(endless: Choice) -> None:
    told: list[str] = []
    done = race(variants_of(endless, "A", "B"), probe(), rounds=2, turn_s=0.001, tell=told.append)
    assert [(text.partition(" · ")[0], text.split(" · ")[1]) for text in told] == [
        ("warming up", "A"),
        ("warming up", "B"),
        ("round 1 of 2", "A"),
        ("round 1 of 2", "B"),
        ("round 2 of 2", "A"),
        ("round 2 of 2", "B"),
    ]
    assert [len(racer.laps) for racer in done.racers] == [2, 2]
    assert all(lap.reading.prompt_tokens == done.prompt_tokens for racer in done.racers for lap in racer.laps)
    assert all(lap.thinking.decoded_tokens == done.decoded_tokens for racer in done.racers for lap in racer.laps)


@pytest.mark.parametrize(("free", "loads"), [(10 * GB, 2), (0, 6)], ids=["all at once", "one at a time"])
def test_plans_stay_loaded_where_memory_has_room_for_all(
    endless: Choice, monkeypatch: pytest.MonkeyPatch, free: int, loads: int
) -> None:
    plans = tuple(replace(plan, memory_bytes=GB) for plan in variants_of(endless, "A", "B").plans)
    started: list[str] = []
    start = Engine.start

    def noted(engine: Engine, control: Control) -> None:
        was = engine.pid
        start(engine, control)
        started.extend([] if engine.pid == was else [engine.plan.variant.quant])

    monkeypatch.setattr(Engine, "start", noted)
    race(replace(endless, plans=plans), replace(probe(), free_ram_bytes=free), rounds=2, turn_s=0.001)
    assert len(started) == loads


def test_a_plan_that_fails_drops_out_and_the_others_go_on(
    endless: Choice, script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "PLAUSIBLE_TPS", (0.0, inf))  # a script's prompt is read in no time
    broken = choose(f"scripted:{script(setup={'load_fault': 'exit'}, name='broken')}").plans[0]
    done = calibrate(replace(endless, plans=(broken, *endless.plans)), probe())
    first, second = done.racers
    assert isinstance(first.failure, WorkerCrashed)
    assert (first.measurement, second.failure) == (None, None)
    assert [each.model for each in load_measurements(paths().cache)] == [second.plan.spec.id]


def test_the_first_failure_is_raised_where_all_fail(script: ScriptWriter) -> None:
    broken = choose(f"scripted:{script(setup={'load_fault': 'exit'})}")
    with pytest.raises(WorkerCrashed):
        race(broken, probe())


def test_what_is_not_here_can_not_race_and_is_to_be_pulled(endless: Choice) -> None:
    plan = endless.plans[0]
    absent = replace(endless, reference="far", plans=(replace(plan, variant=replace(plan.variant, path=None)),))
    assert raceable(absent) == raceable(replace(endless, plans=(replace(plan, runs=False),))) == ()
    with pytest.raises(DownloadFailed) as caught:
        race(absent, probe())
    assert caught.value.hint == "slm pull far"


def test_what_is_too_large_can_not_race(endless: Choice) -> None:
    with pytest.raises(DoesNotFit):
        race(replace(endless, plans=(replace(endless.plans[0], fits=False, memory_bytes=GB),)), probe())


@pytest.mark.real_child
def test_a_race_that_is_stopped_leaves_no_child_and_keeps_nothing(endless: Choice) -> None:
    import psutil

    control = Control()

    def stop(text: str) -> None:
        if text.startswith("round 1"):
            control.cancel()

    def is_left(child: psutil.Process) -> bool:
        try:
            return child.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:  # gone since it was listed
            return False

    before = set(psutil.Process().children())
    with pytest.raises(Interrupted):
        calibrate(endless, probe(), control=control, tell=stop)
    assert not [child for child in set(psutil.Process().children()) - before if is_left(child)]
    assert load_measurements(paths().cache) == ()


def test_a_calibration_keeps_the_medians(endless: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "PLAUSIBLE_TPS", (0.0, inf))  # a script's prompt is read in no time
    done = calibrate(variants_of(endless, "A", "B"), probe())
    kept = load_measurements(paths().cache)
    assert kept == tuple(racer.measurement for racer in done.racers)
    assert [each.quant for each in kept] == ["A", "B"]
    laps = sorted(lap.thinking.decode_tps for lap in done.racers[0].laps)
    assert kept[0].decode_tps == laps[1]
    assert load_measured(paths().cache).read_gb_s == 50.0


def test_the_time_of_a_race_grows_with_plans_and_their_size(endless: Choice) -> None:
    plan = endless.plans[0]
    large = replace(plan, variant=replace(plan.variant, size_bytes=5 * GB))
    assert expected_s([plan]) < expected_s([large]) < expected_s([plan, large]) == pytest.approx(21.0, abs=0.1)


@pytest.mark.skipif(find_spec("openvino_genai") is None or find_spec("llama_cpp") is None, reason="needs both engines")
def test_both_engines_race_on_the_same_file() -> None:
    chosen = choose("tiny-reasoner", settings=Settings(threads=1))
    plan = next(plan for plan in chosen.plans if plan.device == "cpu" and plan.variant.kind == "gguf")
    plans = tuple(replace(plan, backend=backend) for backend in ("llamacpp", "openvino"))
    done = race(replace(chosen, plans=plans), probe(), rounds=1, turn_s=0.01)
    assert [racer.failure for racer in done.racers] == [None, None]
    assert all(racer.measurement is not None for racer in done.racers)
