"""The choice of a plan: which variant, engine, context and threads, in which order, and the reasons given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slm_local.config import Settings
from slm_local.errors import EngineMissing, UsageError
from slm_local.hardware import Hardware
from slm_local.installed import add_line
from slm_local.model import ModelSpec, Shape, Variant
from slm_local.registry import load_registry
from slm_local.selector import does_not_fit, duration, gigabytes, rank, suggest
from slm_local.system import Program

GIB = 2**30

LAPTOP = Hardware(
    os="linux",
    cpu_name="A laptop",
    physical_cores=4,
    logical_cores=8,
    instruction_sets=("avx2",),
    total_ram_bytes=24 * GIB,
    free_ram_bytes=18_200_000_000,
    devices=(),
    engines=frozenset({"llamacpp"}),
)

MODELS = load_registry().models
BY_ID = {spec.id: spec for spec in MODELS}
R1_8B = BY_ID["deepseek-r1-distill-llama-8b"]
QUANTS = ["Q4_K_M", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0"]


def here(spec: ModelSpec, *quants: str) -> list[Variant]:
    """Return the first variant of each quantization as if it lay on this disk."""
    firsts = [next(each for each in spec.variants if each.quant == quant) for quant in quants]
    return [replace(each, path=f"/models/{each.file}") for each in firsts]


def test_without_a_file_the_default_comes_first_and_every_quantization_once() -> None:
    plans = rank(R1_8B, LAPTOP, Settings())
    assert [plan.variant.quant for plan in plans] == QUANTS
    assert plans[0].variant == R1_8B.variants[0]


def test_what_is_here_comes_before_what_is_not() -> None:
    plans = rank(R1_8B, LAPTOP, Settings(), here(R1_8B, "Q6_K", "Q8_0"))
    assert [plan.variant.quant for plan in plans] == ["Q6_K", "Q8_0", "Q4_K_M", "Q4_0", "Q5_K_M"]
    assert plans[0].variant.path is not None
    spec = replace(R1_8B, variants=(*here(R1_8B, "Q8_0"), *R1_8B.variants))
    assert rank(spec, LAPTOP, Settings())[0].variant.quant == "Q8_0"


def test_what_fits_comes_before_what_does_not() -> None:
    tight = replace(LAPTOP, free_ram_bytes=5_450_000_000)
    plans = rank(R1_8B, tight, Settings())
    assert (plans[0].variant.quant, plans[0].fits) == ("Q4_0", True)
    assert not plans[-1].fits


def test_the_quantization_asked_for_is_the_only_one() -> None:
    plans = rank(R1_8B, LAPTOP, Settings(quant="q8_0"), here(R1_8B, "Q4_K_M"))
    assert [plan.variant.quant for plan in plans] == ["Q8_0"]
    assert "Q8_0: as asked, not here yet" in plans[0].reasons


def test_an_unknown_quantization_names_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        rank(R1_8B, LAPTOP, Settings(quant="Q3_K_S"))
    assert caught.value.message == f"deepseek-r1-distill-llama-8b has no Q3_K_S; there is {', '.join(QUANTS)}"
    assert caught.value.hint == "--quant Q4_K_M"


def test_the_reasons_can_be_read_by_a_person() -> None:
    plan = rank(R1_8B, LAPTOP, Settings(), here(R1_8B, "Q4_0"))[0]
    assert plan.reasons == (
        "llama.cpp on the CPU: the only engine installed here",
        "Q4_0: it is here; llama.cpp repacks it for this processor",
        "context 16,384: the default",
        "4 threads: one for each physical core",
        "fewer threads decode while other programs take cores",
        "needs 7.1 GB of 18.2 GB free (weights 4.7 GB, KV cache 2.1 GB, buffers 230 MB): Fits",
        "about 6.4 tok/s (4.4 GB read a token at an assumed 40 GB/s, of which llama.cpp gets an assumed 70%), "
        "so 1,000 tokens of thinking take about 2 min 36 s",
    )
    assert (plan.backend, plan.device, plan.threads, plan.context_tokens) == ("llamacpp", "cpu", 4, 16_384)
    assert plan.memory_bytes is not None
    assert gigabytes(plan.memory_bytes) == "7.1 GB"
    assert plan.expected_decode_tps == pytest.approx(6.4, rel=0.01)
    assert (plan.verdict, plan.short_bytes, plan.fitting_quant) == ("Fits", None, None)


def test_what_was_measured_is_said_to_be_measured() -> None:
    plan = rank(R1_8B, replace(LAPTOP, read_gb_s=86.0, engine_shares={"llamacpp": 0.81}), Settings())[0]
    assert plan.reasons[-1] == (
        "about 15 tok/s (4.6 GB read a token at 86 GB/s measured here, of which llama.cpp last got 81%), "
        "so 1,000 tokens of thinking take about 1 min 6 s"
    )


def test_a_model_that_does_not_think_is_promised_no_thought() -> None:
    plan = rank(BY_ID["llama-3.1-8b-instruct"], LAPTOP, Settings())[0]
    assert "so 1,000 tokens take about" in plan.reasons[-1]


def test_what_is_not_here_says_its_size_and_time_to_fetch() -> None:
    exact, rounded = rank(R1_8B, LAPTOP, Settings(quant="Q4_0"))[0], rank(R1_8B, LAPTOP, Settings())[0]
    assert "4.7 GB to fetch" in exact.reasons
    assert "about 4.9 GB to fetch" in rounded.reasons
    seen = replace(LAPTOP, download_bytes_s=7_100_000.0)
    assert (
        "4.7 GB to fetch, about 11 min at 7 MB/s as last seen" in rank(R1_8B, seen, Settings(quant="Q4_0"))[0].reasons
    )
    here_already = rank(R1_8B, seen, Settings(), here(R1_8B, "Q4_0"))[0]
    assert not any("to fetch" in reason for reason in here_already.reasons)
    unsized = replace(R1_8B, variants=(replace(R1_8B.variants[0], size_bytes=None),))
    assert "to be fetched first; its size is not known" in rank(unsized, seen, Settings())[0].reasons


def test_a_missing_fact_is_a_reason_too() -> None:
    spec = ModelSpec(id="x", name="x", variants=(Variant(kind="gguf", quant="Q4_0"),))
    plan = rank(spec, LAPTOP, Settings())[0]
    assert plan.reasons[-2:] == (
        "memory can't be foretold: the size of Q4_0 is not known",
        "speed can't be foretold: the file's size is not known",
    )
    assert (plan.memory_bytes, plan.expected_decode_tps, plan.fits) == (None, None, True)
    small = replace(spec, variants=(Variant(kind="gguf", quant="Q4_0", size_bytes=90_000_000),))
    assert rank(small, LAPTOP, Settings())[0].reasons[-2:] == (
        "needs 90 MB of 18.2 GB free for its weights, KV cache not known",
        "speed is not foretold: a model this small is not bound by memory",
    )


# ---- context


@pytest.mark.parametrize(
    ("name", "context", "reason"),
    [
        ("deepseek-r1-distill-llama-8b", 16_384, "context 16,384: the default"),
        ("smollm2-1.7b-instruct", 8_192, "context 8,192: the model's own limit"),
        ("tiny-reasoner", 512, "context 512: the model's own limit"),
        ("lfm2.5-8b-a1b", 16_384, "context 16,384: the default"),
    ],
)
def test_the_context_is_the_default_or_the_models_own(name: str, context: int, reason: str) -> None:
    plan = rank(BY_ID[name], LAPTOP, Settings())[0]
    assert plan.context_tokens == context
    assert reason in plan.reasons


def test_where_memory_is_short_the_context_shrinks_to_what_fits() -> None:
    tight = replace(LAPTOP, free_ram_bytes=6_000_000_000)
    plan = rank(R1_8B, tight, Settings(quant="Q4_0"))[0]
    assert 512 <= plan.context_tokens < 16_384
    assert plan.fits
    assert f"context {plan.context_tokens:,}: the longest that fits, with 6.0 GB free" in plan.reasons


def test_a_model_that_does_not_fit_at_all_says_so_in_its_plan() -> None:
    tight = replace(LAPTOP, free_ram_bytes=4_000_000_000)
    plan = rank(R1_8B, tight, Settings(quant="Q4_0"))[0]
    assert (plan.fits, plan.verdict, plan.fitting_quant) == (False, "Too large", None)
    assert plan.context_tokens == 16_384
    assert plan.reasons[-2].endswith(": Too large, 3.3 GB short")
    error = does_not_fit(plan)
    assert error.message == (
        "deepseek-r1-distill-llama-8b Q4_0 with a context of 16,384 tokens needs 7.1 GB; "
        "3.8 GB of the 4.0 GB free can be used: 3.3 GB short"
    )
    assert error.hint == "close other programs, or choose a smaller one: slm ls --all"
    assert error.exit_code == 5


def test_the_quantization_that_would_fit_is_named() -> None:
    middling = replace(LAPTOP, free_ram_bytes=7_000_000_000)
    plan = rank(R1_8B, middling, Settings(quant="Q8_0"))[0]
    assert (plan.fits, plan.fitting_quant) == (False, "Q5_K_M")
    error = does_not_fit(plan)
    assert error.message.endswith("GB short; Q5_K_M would fit")
    assert error.hint == "--quant Q5_K_M"
    longer = rank(R1_8B, middling, Settings(quant="Q5_K_M", context_tokens=12_000))[0]
    assert longer.fitting_quant == "Q4_0"
    assert does_not_fit(longer).hint == f"--ctx {longer.largest_context_tokens}   or: --quant Q4_0"


def test_the_program_that_holds_most_is_named_where_ending_it_would_help() -> None:
    plan = rank(R1_8B, replace(LAPTOP, free_ram_bytes=4_000_000_000), Settings(quant="Q4_0"))[0]
    error = does_not_fit(plan, Program(name="firefox", held_bytes=2_900_000_000))
    assert error.message.endswith(": 3.3 GB short; firefox holds 2.9 GB")
    assert "clock" not in does_not_fit(plan, Program(name="clock", held_bytes=90_000_000)).message


def test_an_asked_context_is_opened_as_asked() -> None:
    plan = rank(R1_8B, LAPTOP, Settings(context_tokens=40_000))[0]
    assert plan.context_tokens == 40_000
    assert "context 40,000: as asked" in plan.reasons


def test_an_asked_context_beyond_the_models_own_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        rank(BY_ID["smollm2-135m-instruct"], LAPTOP, Settings(context_tokens=8193))
    assert "at most 8,192 tokens, not 8,193" in caught.value.message
    assert caught.value.hint == "--ctx 8192"


def test_for_an_asked_context_that_does_not_fit_the_largest_that_does_is_named() -> None:
    plan = rank(R1_8B, LAPTOP, Settings(context_tokens=131_072, quant="Q4_0"))[0]
    assert not plan.fits
    error = does_not_fit(plan)
    assert "Q4_0 with a context of 131,072 tokens needs 22.2 GB; 17.3 GB of the 18.2 GB free" in error.message
    assert error.hint is not None
    largest = int(error.hint.removeprefix("--ctx "))
    assert f"the longest context that fits is {largest:,}" in error.message
    assert rank(R1_8B, LAPTOP, Settings(context_tokens=largest, quant="Q4_0"))[0].fits


def test_where_not_even_the_weights_fit_no_other_context_is_named() -> None:
    plan = rank(R1_8B, replace(LAPTOP, free_ram_bytes=10**9), Settings(context_tokens=4096))[0]
    error = does_not_fit(plan)
    assert "longest" not in error.message
    assert error.hint is not None
    assert "slm ls --all" in error.hint


# ---- engine and threads


def test_asked_threads_and_engine_are_taken_and_said() -> None:
    plan = rank(R1_8B, LAPTOP, Settings(threads=1, backend="llamacpp"))[0]
    assert plan.threads == 1
    assert "1 thread: as asked" in plan.reasons
    assert plan.reasons[0] == "llama.cpp on the CPU: the one you asked for"


def test_without_the_engine_the_line_that_installs_it_is_named() -> None:
    with pytest.raises(EngineMissing) as caught:
        rank(R1_8B, replace(LAPTOP, engines=frozenset()), Settings())
    assert caught.value.hint == add_line("llamacpp")
    assert caught.value.exit_code == 4


def test_a_model_known_as_a_folder_only_has_no_engine_yet() -> None:
    with pytest.raises(EngineMissing, match="OpenVINO folder only"):
        rank(BY_ID["qwen3-14b"], LAPTOP, Settings())


def test_a_folder_is_no_plan_beside_files() -> None:
    spec = BY_ID["deepseek-r1-distill-qwen-7b"]
    assert any(each.kind == "openvino" for each in spec.variants)
    assert all(plan.variant.kind == "gguf" for plan in rank(spec, LAPTOP, Settings()))


def test_a_script_is_played_by_the_scripted_backend_without_any_engine() -> None:
    spec = ModelSpec(
        id="scripted:a", name="a", family="scripted", variants=(Variant(kind="gguf", quant="none", path="a.jsonl"),)
    )
    plan = rank(spec, replace(LAPTOP, engines=frozenset()), Settings())[0]
    assert (plan.backend, plan.variant.path) == ("scripted", "a.jsonl")
    assert plan.reasons[0] == "scripted: plays a file, for tests"


def test_a_file_known_second_hand_comes_last_and_says_so() -> None:
    plans = rank(BY_ID["phi-4-reasoning"], LAPTOP, Settings())
    assert "known second-hand only" in plans[0].reasons[1]
    mixed = replace(R1_8B, variants=(replace(R1_8B.variants[0], verified=False), R1_8B.variants[1]))
    assert [plan.variant.quant for plan in rank(mixed, LAPTOP, Settings())] == ["Q4_0", "Q4_K_M"]


# ---- suggestions


def test_suggestions_are_reasoning_models_that_fit_one_a_family() -> None:
    found = suggest(MODELS, LAPTOP, 3)
    assert len(found) == 3
    assert len({spec.family for spec in found}) == 3
    for spec in found:
        assert spec.thinks
        assert spec.verified
        assert not spec.embedded
        assert rank(spec, LAPTOP, Settings(context_tokens=8192))[0].fits


def test_suggestions_for_a_small_machine_are_small() -> None:
    small = replace(LAPTOP, free_ram_bytes=2 * GIB, read_gb_s=10.0)
    for spec in suggest(MODELS, small, 3):
        size = spec.variants[0].size_bytes
        assert size is not None
        assert size < 2 * GIB
    assert suggest(MODELS, replace(small, free_ram_bytes=GIB // 8), 3) == []


def test_a_model_too_slow_to_think_here_is_suggested_only_after_the_fast() -> None:
    shape = Shape(layers=1, hidden=64, kv_heads=1, head_dim=64, vocabulary=256)
    tags = R1_8B.tags

    def spec_of(name: str, size_bytes: int) -> ModelSpec:
        variant = Variant(kind="gguf", quant="Q8_0", repo="a/b", file=f"{name}.gguf", size_bytes=size_bytes)
        return ModelSpec(id=name, name=name, tags=tags, shape=shape, context_tokens=8192, variants=(variant,))

    slow, fast, faster = spec_of("slow", 9 * 10**9), spec_of("fast", 4 * 10**9), spec_of("faster", 10**9)
    assert suggest([faster, slow, fast], LAPTOP, 3) == [fast, faster, slow]


@pytest.mark.parametrize(
    ("size", "written"), [(5, "0 kB"), (3_000_000, "3 MB"), (999_000_000, "999 MB"), (5e9, "5.0 GB")]
)
def test_sizes_are_written_as_people_read_them(size: float, written: str) -> None:
    assert gigabytes(int(size)) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.4, "0 s"), (41, "41 s"), (59.6, "1 min"), (110, "1 min 50 s"), (725, "12 min"), (12_000, "3 h 20 min")],
)
def test_times_are_written_as_people_read_them(seconds: float, written: str) -> None:
    assert duration(seconds) == written
