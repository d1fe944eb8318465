"""Which way of running a model wins on which machine, and in which words: a table of machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from slm_local.config import Settings
from slm_local.errors import EngineMissing, SlmError, UsageError
from slm_local.hardware import Device, DeviceKind, Hardware, Listing
from slm_local.installed import add_line
from slm_local.measured import Measurement
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.registry import load_registry
from slm_local.selector import rank, suggest

GB = 10**9

MODELS = load_registry().models
BY_ID = {spec.id: spec for spec in MODELS}
R1_7B, R1_8B = BY_ID["deepseek-r1-distill-qwen-7b"], BY_ID["deepseek-r1-distill-llama-8b"]

BOTH = frozenset({"llamacpp", "openvino"})
LLAMACPP, OPENVINO = frozenset({"llamacpp"}), frozenset({"openvino"})


def device(name: str, description: str, *, engine: str = "openvino", own_gb: int | None = None) -> Device:
    """Return a GPU or NPU, one with memory of its own where that is given."""
    kind: DeviceKind = "npu" if name == "npu" else "gpu"
    memory = None if own_gb is None else own_gb * GB
    return Device(
        name=name,
        kind=kind,
        description=description,
        engine=engine,
        integrated=own_gb is None,
        memory_bytes=memory,
        free_bytes=memory,
    )


NPU = device("npu", "Intel(R) AI Boost")
METEOR_GPU = device("gpu", "Intel(R) Arc(TM) Graphics (iGPU)")
LUNAR_GPU = device("gpu", "Intel(R) Arc(TM) 140V GPU (16GB) (iGPU)")
OLD_GPU = device("gpu", "Intel(R) UHD Graphics 620 (iGPU)")


def machine(
    name: str,
    *devices: Device,
    vendor: str = "intel",
    engines: frozenset[str] = BOTH,
    cores: int = 6,
    flags: Sequence[str] = ("avx", "avx2", "fma"),
    free_gb: float = 24,
    read_gb_s: float | None = 60.0,
    listings: tuple[Listing, ...] = (),
) -> Hardware:
    return Hardware(
        os="linux",
        cpu_name=name,
        vendor=vendor,
        physical_cores=cores,
        logical_cores=2 * cores,
        instruction_sets=tuple(flags),
        total_ram_bytes=32 * GB,
        free_ram_bytes=int(free_gb * GB),
        devices=(Device(name="cpu", kind="cpu", description=name), *devices),
        engines=engines,
        read_gb_s=read_gb_s,
        listings=listings,
    )


METEOR = machine("Core Ultra 7 155H", METEOR_GPU, NPU)
LUNAR = machine("Core Ultra 7 258V", LUNAR_GPU, NPU, cores=4, read_gb_s=80.0)
ARROW = machine("Core Ultra 9 285H", METEOR_GPU, NPU, cores=6, read_gb_s=75.0)
XEON = machine("Xeon Platinum 8480+", cores=56, flags=("avx2", "avx512f", "amx_int8", "amx_bf16"), free_gb=200)
PLAIN = machine("Core i5-10400")
RYZEN = machine("AMD Ryzen 7 5800U", vendor="amd")
ARC = machine("AMD Ryzen 5 5600X", device("gpu", "Intel(R) Arc(TM) A770 Graphics (dGPU)", own_gb=16), vendor="amd")
TWO_GPUS = machine("Core Ultra 7 265", METEOR_GPU, device("gpu.1", "Intel(R) Arc(TM) B580 Graphics (dGPU)", own_gb=12))
CUDA = machine(
    "AMD Ryzen 9 7950X", device("gpu", "NVIDIA GeForce RTX 4070", engine="llamacpp", own_gb=12), vendor="amd"
)
VULKAN = machine("AMD Ryzen 7 7840U", device("gpu", "AMD Radeon 780M", engine="llamacpp"), vendor="amd")
APPLE = machine(
    "Apple M3", device("gpu", "Apple M3", engine="llamacpp"), vendor="apple", engines=LLAMACPP, flags=("asimd",)
)
BROKEN_NPU = machine(
    "Core Ultra 7 155H",
    METEOR_GPU,
    listings=(Listing(engine="openvino", failure="it died", broken_kinds=("npu",), devices=(METEOR_GPU,)),),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A machine and a wish, what wins, and words of its reasons."""

    hardware: Hardware
    wins: str
    """Quantization, engine and device."""
    says: str
    """Part of the first plan's reasons."""
    model: str = "deepseek-r1-distill-qwen-7b"
    settings: Settings = field(default_factory=Settings)
    here: tuple[str, ...] = ()
    """Quantizations that lie on the disk."""
    loser: str = ""
    """Part of why another lost, behind its device: `npu: slower`."""


QUIET, BATTERY = Settings(prefer="quiet"), Settings(prefer="battery")

TABLE: dict[str, Row] = {
    "generic Intel": Row(hardware=PLAIN, wins="Q4_K_M llamacpp cpu", says="decodes fastest on a processor"),
    "generic AMD": Row(
        hardware=RYZEN,
        wins="Q4_K_M llamacpp cpu",
        says="by rule of thumb, not measured here",
        loser="cpu: decodes about",
    ),
    "AMD, quiet": Row(hardware=RYZEN, settings=QUIET, wins="Q4_K_M llamacpp cpu", says="3 threads: half of the cores"),
    "AMD, battery": Row(hardware=RYZEN, settings=BATTERY, wins="Q4_K_M llamacpp cpu", says="takes the least energy"),
    "an ARM laptop": Row(
        hardware=machine("Snapdragon X", vendor="arm", engines=LLAMACPP, flags=("asimd",)),
        wins="Q4_K_M llamacpp cpu",
        says="the only engine installed here",
    ),
    "Meteor Lake": Row(
        hardware=METEOR,
        wins="int4 openvino gpu",
        says="reads prompts many times as fast as the processor",
        loser="npu: decodes about 5.8 tok/s against 14",
    ),
    "Meteor Lake, quiet": Row(
        hardware=METEOR,
        settings=QUIET,
        wins="int4-cw openvino npu",
        says="quieter than all else",
        loser="gpu: louder than",
    ),
    "Meteor Lake, battery": Row(
        hardware=METEOR,
        settings=BATTERY,
        wins="int4-cw openvino npu",
        says="least energy",
        loser="gpu: takes more energy",
    ),
    "Meteor Lake, one file here": Row(
        hardware=METEOR,
        here=("Q4_K_M",),
        wins="Q4_K_M openvino gpu",
        says="it is here",
        loser="npu: not here yet, and what is here comes first",
    ),
    "Meteor Lake, no form for an NPU": Row(
        hardware=METEOR,
        model="deepseek-r1-distill-llama-8b",
        settings=QUIET,
        wins="Q4_K_M openvino gpu",
        says="quieter than all else here",
        loser="npu: slm convert deepseek-r1-distill-llama-8b --npu makes one",
    ),
    "Meteor Lake, asked for the NPU": Row(
        hardware=METEOR, settings=Settings(device="npu"), wins="int4-cw openvino npu", says="the one you asked for"
    ),
    "Meteor Lake, asked for llama.cpp": Row(
        hardware=METEOR, settings=Settings(backend="llamacpp"), wins="Q4_K_M llamacpp cpu", says="the one you asked for"
    ),
    "Meteor Lake, a small model": Row(
        hardware=METEOR,
        model="qwen3-0.6b",
        wins="Q4_K_M llamacpp cpu",
        says="decodes fastest on a processor",
        loser="gpu: decodes about",
    ),
    "Meteor Lake, a tiny model": Row(
        hardware=METEOR,
        model="tiny-reasoner",
        here=("Q8_0",),
        settings=QUIET,
        wins="Q8_0 llamacpp cpu",
        says="half of the cores",
        loser="gpu: slower (by rule of thumb",
    ),
    "Meteor Lake, Q5_K_M asked for": Row(
        hardware=METEOR,
        model="deepseek-r1-distill-llama-8b",
        settings=Settings(quant="Q5_K_M"),
        wins="Q5_K_M llamacpp cpu",
        says="the only one here that runs it",
        loser="gpu: and this is Q5_K_M",
    ),
    "Meteor Lake, an architecture that OpenVINO's reader lacks": Row(
        hardware=METEOR,
        model="smollm3-3b",
        wins="Q4_K_M llamacpp cpu",
        says="the only one here that runs it",
        loser="gpu: and this is smollm3",
    ),
    "Lunar Lake": Row(
        hardware=LUNAR, wins="int4 openvino gpu", says="and decodes faster", loser="cpu: decodes about 13"
    ),
    "Lunar Lake without llama.cpp": Row(
        hardware=replace(LUNAR, engines=OPENVINO), wins="int4 openvino gpu", says="reads prompts many times as fast"
    ),
    "Lunar Lake without OpenVINO": Row(
        hardware=replace(LUNAR, engines=LLAMACPP, devices=LUNAR.devices[:1]),
        wins="Q4_K_M llamacpp cpu",
        says="the only engine installed here",
    ),
    "Arrow Lake": Row(hardware=ARROW, wins="int4 openvino gpu", says="not measured here", loser="npu: decodes about"),
    "Arrow Lake, quiet": Row(hardware=ARROW, settings=QUIET, wins="int4-cw openvino npu", says="context 8,192"),
    "broken NPU driver": Row(
        hardware=BROKEN_NPU,
        settings=QUIET,
        wins="int4 openvino gpu",
        says="quieter than all else here",
        loser="npu: OpenVINO broke when it was asked for the NPU",
    ),
    "Xeon with AMX, thinking": Row(
        hardware=XEON, wins="Q4_K_M llamacpp cpu", says="decodes fastest on a processor", loser="cpu: decodes about"
    ),
    "Xeon with AMX, reading": Row(
        hardware=XEON,
        model="llama-3.1-8b-instruct",
        wins="Q4_K_M openvino cpu",
        says="reads prompts fast with AMX, and this model thinks little",
        loser="cpu: slower (by rule of thumb",
    ),
    "an Arc card": Row(hardware=ARC, wins="int4 openvino gpu", says="has fast memory of its own"),
    "an Arc card, battery": Row(
        hardware=ARC, settings=BATTERY, wins="Q4_K_M llamacpp cpu", says="least energy", loser="gpu: takes more energy"
    ),
    "a card and a GPU inside": Row(
        hardware=TWO_GPUS, wins="int4 openvino gpu.1", says="on the GPU Intel(R) Arc(TM) B580"
    ),
    "a card and a GPU inside, quiet": Row(
        hardware=TWO_GPUS, settings=QUIET, wins="int4 openvino gpu", says="quieter than all else", loser="gpu.1: louder"
    ),
    "a card too small for the model": Row(
        hardware=machine("Core i7", device("gpu", "Intel(R) Arc(TM) A310 Graphics (dGPU)", own_gb=4)),
        wins="Q4_K_M llamacpp cpu",
        says="Fits",
        loser="gpu: does not fit the memory",
    ),
    "an old Intel GPU": Row(
        hardware=machine("Core i5-8250U", OLD_GPU, cores=4, read_gb_s=25.0),
        wins="Q4_K_M llamacpp cpu",
        says="decodes fastest on a processor",
        loser="gpu: decodes about",
    ),
    "without AVX2, llama.cpp built for it": Row(
        hardware=machine("Core i7-2600", flags=("avx",), cores=4, read_gb_s=15.0),
        wins="Q4_K_M llamacpp cpu",
        says="decodes fastest",
    ),
    "without AVX2, a llama.cpp that needs it": Row(
        hardware=machine(
            "Core i7-2600", flags=("avx",), cores=4, engines=OPENVINO, listings=(Listing(engine="llamacpp"),)
        ),
        wins="int4 openvino cpu",
        says="the only engine installed here",
        loser="",
    ),
    "NVIDIA with CUDA": Row(
        hardware=CUDA, wins="Q4_K_M llamacpp cpu", says="decodes fastest", loser="gpu: this GPU stays idle"
    ),
    "AMD with Vulkan": Row(
        hardware=VULKAN, wins="Q4_K_M llamacpp cpu", says="decodes fastest", loser="gpu: stays idle"
    ),
    "Apple silicon": Row(
        hardware=APPLE, wins="Q4_K_M llamacpp cpu", says="the only engine installed here", loser="gpu: stays idle"
    ),
    "little memory": Row(
        hardware=machine("Celeron", cores=2, free_gb=5.45, read_gb_s=12.0),
        model="deepseek-r1-distill-llama-8b",
        wins="Q4_0 llamacpp cpu",
        says="the longest that fits",
        loser="cpu: does not fit the memory",
    ),
    "base package alone, the embedded model": Row(
        hardware=replace(PLAIN, engines=OPENVINO),
        model="tiny-reasoner",
        here=("Q8_0",),
        wins="Q8_0 openvino cpu",
        says="OpenVINO on the CPU: the only engine installed here",
    ),
    "base package alone, a registry model": Row(
        hardware=replace(PLAIN, engines=OPENVINO),
        wins="int4 openvino cpu",
        says="OpenVINO's own form, not here yet",
    ),
}


def plans_of(row: Row, measured: Sequence[Measurement] = ()) -> list[Plan]:
    spec = BY_ID[row.model]
    return rank(spec, row.hardware, row.settings, here(spec, *row.here), measured)


def here(spec: ModelSpec, *quants: str) -> list[Variant]:
    """Return variants as if they lay on this disk."""
    firsts = [next(each for each in spec.variants if each.quant == quant) for quant in quants]
    size = 2_000_000 if spec.embedded else 4_400_000_000
    return [replace(each, path=f"/m/{each.quant}", size_bytes=each.size_bytes or size) for each in firsts]


def named(plan: Plan) -> str:
    return f"{plan.variant.quant} {plan.backend} {plan.device}"


@pytest.mark.parametrize("name", TABLE)
def test_the_best_way_on_a_machine_says_why(name: str) -> None:
    row = TABLE[name]
    plans = plans_of(row)
    assert named(plans[0]) == row.wins
    assert row.says in " | ".join(plans[0].reasons)
    assert (plans[0].runs, plans[0].fits, plans[0].lost_because) == (True, True, None)


@pytest.mark.parametrize("name", TABLE)
def test_every_other_way_says_why_it_lost(name: str) -> None:
    row = TABLE[name]
    others = plans_of(row)[1:]
    assert all(plan.lost_because for plan in others)
    assert all(plan.reasons for plan in others)
    where, _, words = row.loser.partition(": ")
    said = [plan.lost_because or "" for plan in others if plan.device == where]
    assert not words or any(words in each for each in said), said


@pytest.mark.parametrize("name", TABLE)
def test_what_does_not_run_comes_last_and_what_runs_is_foretold(name: str) -> None:
    plans = plans_of(TABLE[name])
    assert [plan.runs for plan in plans] == sorted((plan.runs for plan in plans), reverse=True)
    assert not any(plan.backend == "llamacpp" and plan.device != "cpu" and plan.runs for plan in plans)
    is_npu = [plan.device == "npu" for plan in plans]
    assert [plan.prompt_tokens is not None for plan in plans] == is_npu


def test_the_table_has_the_machines_that_it_should() -> None:
    assert (
        len({row.hardware.cpu_name + repr(row.hardware.devices) + repr(row.hardware.engines) for row in TABLE.values()})
        >= 18
    )
    assert len(TABLE) >= 25


# ---- what was measured


def speed(quant: str, backend: str, where: str, prefill: float, decode: float, model: str = R1_7B.id) -> Measurement:
    return Measurement(
        model=model,
        quant=quant,
        backend=backend,
        device=where,
        prefill_tps=prefill,
        decode_tps=decode,
        first_token_s=0.1,
        measured_at="2026-11-22T00:00:00+00:00",
    )


def test_what_was_measured_goes_before_the_rules() -> None:
    row = replace(TABLE["Meteor Lake"], here=("Q4_0",))
    assert named(plans_of(row)[0]) == "Q4_0 openvino gpu"
    measured = [speed("Q4_0", "openvino", "gpu", 300, 7.5), speed("Q4_0", "llamacpp", "cpu", 80, 11.2)]
    best, *others = plans_of(row, measured)
    assert (named(best), best.expected_decode_tps) == ("Q4_0 llamacpp cpu", 11.2)
    assert best.reasons[0] == "llama.cpp on the CPU: the fastest as measured here"
    assert (
        best.reasons[-1] == "reads 80 tok/s and decodes 11, measured here, so 1,000 tokens of thinking take 1 min 29 s"
    )
    gpu = next(plan for plan in others if plan.device == "gpu")
    assert gpu.lost_because == "reads 300 tok/s against 80 and decodes 7.5 against 11, measured here"


def test_the_fastest_in_a_race_wins_whatever_its_quantization() -> None:
    row = replace(TABLE["generic AMD"], here=("Q8_0", "Q4_0"))
    measured = [speed("Q4_0", "llamacpp", "cpu", 50, 5.0), speed("Q8_0", "openvino", "cpu", 90, 6.0)]
    assert named(plans_of(row)[0]) == "Q4_0 llamacpp cpu"
    assert named(plans_of(row, measured)[0]) == "Q8_0 openvino cpu"


@pytest.mark.parametrize("model", ["deepseek-r1-distill-qwen-7b", "llama-3.1-8b-instruct"])
@pytest.mark.parametrize("gpu", [(900, 8.0), (200, 12.0), (90, 13.0), (4000, 5.0)])
def test_the_chosen_way_is_the_fastest_of_an_exhaustive_race(model: str, gpu: tuple[float, float]) -> None:
    measured = [
        speed("Q4_K_M", "llamacpp", "cpu", 80, 11.0, model),
        speed("Q4_K_M", "openvino", "cpu", 200, 9.0, model),
        speed("Q4_K_M", "openvino", "gpu", *gpu, model),
    ]
    load = (200, 2000) if BY_ID[model].thinks else (2000, 200)
    plans = plans_of(replace(TABLE["Meteor Lake"], model=model, here=("Q4_K_M",)), measured)
    fastest = min(measured, key=lambda each: each.seconds(*load))
    assert (plans[0].backend, plans[0].device) == (fastest.backend, fastest.device)


def test_measurements_of_other_models_and_devices_count_for_nothing() -> None:
    row = replace(TABLE["Meteor Lake"], here=("Q4_0",))
    measured = [speed("Q4_0", "llamacpp", "cpu", 900, 90.0, "another"), speed("Q8_0", "llamacpp", "cpu", 900, 90.0)]
    assert plans_of(row, measured)[0].reasons == plans_of(row)[0].reasons


def test_on_battery_a_measured_gpu_beats_an_npu_that_takes_too_long() -> None:
    row = replace(TABLE["Meteor Lake, battery"], here=("int4", "int4-cw"))
    assert plans_of(row)[0].device == "npu"
    measured = [speed("int4", "openvino", "gpu", 300, 14.0), speed("int4-cw", "openvino", "npu", 200, 3.5)]
    assert plans_of(row, measured)[0].device == "gpu"


def test_one_engines_measured_share_does_not_put_it_behind_one_that_is_only_assumed() -> None:
    slow = replace(RYZEN, engine_shares={"llamacpp": 0.4})
    assert named(rank(R1_8B, slow, Settings())[0]) == "Q4_K_M llamacpp cpu"
    both = replace(RYZEN, engine_shares={"llamacpp": 0.4, "openvino": 0.6})
    assert named(rank(R1_8B, both, Settings())[0]) == "Q4_K_M openvino cpu"


# ---- what is asked for and can't be had


@pytest.mark.parametrize(
    ("model", "hardware", "settings", "message", "hint"),
    [
        (R1_7B, PLAIN, Settings(device="gpu"), "no GPU can be used here; there is cpu (Core i5-10400)", "slm doctor"),
        (
            R1_7B,
            METEOR,
            Settings(device="npu", backend="llamacpp"),
            "no NPU can be used here; there is cpu",
            "slm doctor",
        ),
        (
            R1_8B,
            METEOR,
            Settings(device="npu"),
            "only OpenVINO folders",
            "slm convert deepseek-r1-distill-llama-8b --npu",
        ),
        (R1_7B, CUDA, Settings(device="gpu"), "this GPU stays idle", "--backend auto --device auto"),
        (
            R1_8B,
            METEOR,
            Settings(backend="openvino", quant="Q5_K_M"),
            "Q5_K_M can't run so",
            "--backend auto --device auto",
        ),
        (BY_ID["phi-3-mini-4k-instruct"], PLAIN, Settings(), "is made for an NPU, and none can be used", "slm doctor"),
        (BY_ID["qwen3-14b"], PLAIN, Settings(backend="llamacpp"), "llama.cpp runs GGUF files", "--backend openvino"),
        (BY_ID["qwen3.6-27b"], PLAIN, Settings(), "models that also see", "slm ls --all"),
        (replace(R1_8B, variants=()), PLAIN, Settings(), "no file of", "slm convert deepseek-r1-distill-llama-8b"),
    ],
)
def test_what_can_not_be_had_is_refused_with_a_line_to_type(
    model: ModelSpec, hardware: Hardware, settings: Settings, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        rank(model, hardware, settings)
    assert message in caught.value.message
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("model", "engines", "settings", "message", "extras"),
    [
        (R1_8B, OPENVINO, Settings(), "runs only beside llama.cpp, and llama.cpp is not installed", ["llamacpp"]),
        (R1_8B, OPENVINO, Settings(backend="llamacpp"), "llama.cpp is not installed", ["llamacpp"]),
        (R1_8B, LLAMACPP, Settings(backend="openvino"), "OpenVINO is not installed", []),
        (R1_7B, LLAMACPP, Settings(quant="int4"), "int4 is known as an OpenVINO folder only", []),
    ],
)
def test_a_missing_engine_is_named_with_the_line_that_adds_it(
    model: ModelSpec, engines: frozenset[str], settings: Settings, message: str, extras: list[str]
) -> None:
    with pytest.raises(EngineMissing) as caught:
        rank(model, replace(PLAIN, engines=engines), settings)
    assert message in caught.value.message
    assert caught.value.hint == add_line(*extras)


def test_an_engine_that_is_there_and_broken_sends_to_the_doctor() -> None:
    broken = replace(PLAIN, engines=OPENVINO, listings=(Listing(engine="llamacpp", failure="it died"),))
    with pytest.raises(SlmError) as caught:
        rank(R1_8B, broken, Settings())
    assert "llama.cpp does not run on this machine" in caught.value.message
    assert caught.value.hint == "slm doctor"


# ---- details of plans


def test_without_llamacpp_a_gguf_file_is_no_plan_and_that_is_said_once() -> None:
    plans = rank(R1_7B, replace(PLAIN, engines=OPENVINO), Settings(), here(R1_7B, "Q4_K_M"))
    assert named(plans[0]) == "int4 openvino cpu"
    assert all(plan.variant.kind == "openvino" for plan in plans if plan.runs)
    (idle,) = [plan for plan in plans if not plan.runs]
    assert idle.variant.path is not None
    assert idle.lost_because == (
        "OpenVINO runs a GGUF file only beside llama.cpp, which tokenizes for it: slm doctor says how to add it"
    )


def test_a_file_whose_tensors_openvino_can_not_read_is_no_plan_for_it() -> None:
    files = here(R1_7B, "Q4_K_M")
    why = "OpenVINO's GGUF reader does not know tensors in Q5_0"
    plans = rank(R1_7B, LUNAR, Settings(), files, unreadable={files[0].path or "": why})
    assert named(plans[0]) == "Q4_K_M llamacpp cpu"
    assert not any(plan.runs for plan in plans if plan.variant.path is not None and plan.backend == "openvino")
    with pytest.raises(UsageError, match="tensors in Q5_0"):
        rank(R1_7B, LUNAR, Settings(device="gpu", quant="Q4_K_M"), files, unreadable={files[0].path or "": why})


def test_what_was_not_measured_comes_after_what_was() -> None:
    row = replace(TABLE["generic AMD"], here=("Q4_0", "Q4_K_M"))
    plans = plans_of(row, [speed("Q4_0", "openvino", "cpu", 50, 5.0)])
    assert named(plans[0]) == "Q4_0 openvino cpu"
    assert plans[1].lost_because == "not measured yet, as Q4_0 is: slm bench deepseek-r1-distill-qwen-7b --calibrate"


def test_an_npu_is_compiled_for_half_prompt_and_half_response() -> None:
    plan = rank(R1_7B, METEOR, Settings(device="npu"))[0]
    assert (plan.context_tokens, plan.prompt_tokens, plan.response_tokens) == (8192, 4096, 4096)
    odd = rank(R1_7B, METEOR, Settings(device="npu", context_tokens=3001))[0]
    assert (odd.prompt_tokens, odd.response_tokens) == (1500, 1501)
    assert "half for the prompt, thoughts read again included" in " ".join(odd.reasons)
    assert "KV cache 470 MB" in " ".join(plan.reasons)


def test_a_folder_of_unknown_size_is_weighed_by_its_parameters() -> None:
    plan = rank(R1_7B, METEOR, Settings(quant="int4-cw"))[0]
    assert not plan.variant.size_is_exact
    assert plan.variant.size_bytes == pytest.approx(0.59 * (R1_7B.parameters or 0), rel=0.01)
    assert "about 4.5 GB to fetch" in plan.reasons
    assert rank(BY_ID["qwen3-14b"], PLAIN, Settings())[0].variant.size_bytes is None


def test_a_folder_made_for_an_npu_that_is_here_runs_on_the_processor_too() -> None:
    cw = replace(next(each for each in R1_7B.variants if each.quant == "int4-cw"), path="/m/cw", size_bytes=4 * GB)
    nf4 = replace(cw, quant="nf4")
    assert named(rank(replace(R1_7B, variants=(cw,)), PLAIN, Settings())[0]) == "int4-cw openvino cpu"
    with pytest.raises(UsageError, match="made for an NPU"):
        rank(replace(R1_7B, variants=(nf4,)), PLAIN, Settings())


def test_a_gguf_file_takes_more_memory_in_openvino_than_the_file_has() -> None:
    in_llamacpp, in_openvino = (
        next(plan for plan in rank(R1_8B, RYZEN, Settings(quant="Q4_0")) if plan.backend == backend)
        for backend in ("llamacpp", "openvino")
    )
    assert in_llamacpp.memory_bytes is not None
    assert in_openvino.memory_bytes is not None
    assert in_openvino.memory_bytes > in_llamacpp.memory_bytes + 2 * GB


def test_of_what_is_not_here_every_quantization_and_every_device_is_shown_once() -> None:
    plans = rank(R1_7B, LUNAR, Settings())
    seen: set[object] = set()
    for plan in plans:
        route = (plan.backend, plan.device)
        assert plan.variant.quant not in seen or route not in seen
        seen |= {plan.variant.quant, route}
    assert {"llamacpp cpu", "openvino cpu", "openvino gpu", "openvino npu"} <= {
        f"{p.backend} {p.device}" for p in plans
    }
    assert {"int4", "Q4_K_M", "Q4_0", "Q8_0", "int4-cw", "nf4", "fp16"} == {plan.variant.quant for plan in plans}


def test_all_ways_to_run_what_is_here_are_shown() -> None:
    plans = rank(R1_7B, LUNAR, Settings(), here(R1_7B, "Q4_0", "Q4_K_M"))
    runs = [named(plan) for plan in plans if plan.variant.path is not None and plan.runs]
    assert sorted(runs) == sorted(
        f"{quant} {route}" for quant in ("Q4_0", "Q4_K_M") for route in ("llamacpp cpu", "openvino cpu", "openvino gpu")
    )


def test_a_gpu_inside_can_address_only_part_of_the_memory() -> None:
    cramped = replace(METEOR, devices=(METEOR.devices[0], replace(METEOR_GPU, memory_bytes=5 * GB), NPU))
    plan = rank(R1_7B, cramped, Settings(device="gpu", quant="Q4_0"))[0]
    assert (plan.free_ram_bytes, plan.fits) == (5 * GB, False)


def test_with_openvino_alone_models_are_suggested_that_it_can_run() -> None:
    for spec in suggest(MODELS, replace(PLAIN, engines=OPENVINO), 3):
        assert rank(spec, replace(PLAIN, engines=OPENVINO), Settings())[0].backend == "openvino"
    assert suggest(MODELS, replace(PLAIN, engines=OPENVINO), 3)
