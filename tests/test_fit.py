"""Memory and speed foretold from facts: the arithmetic, what a missing fact does, where the borders lie."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_local.buffers import compute_bytes, output_bytes
from slm_local.config import Settings
from slm_local.engine import open_model
from slm_local.fit import ASSUMED_READ_GB_S, ASSUMED_SHARE, predict, read_bytes_per_token
from slm_local.gguf_header import read_header
from slm_local.hardware import Device, Hardware
from slm_local.model import ModelSpec, Shape, Variant
from slm_local.paths import paths
from slm_local.registry import load_registry, spec_for_file

GIB, MIB = 2**30, 2**20

LAPTOP = Hardware(
    os="linux",
    cpu_name="A laptop",
    physical_cores=4,
    logical_cores=8,
    instruction_sets=("avx2",),
    total_ram_bytes=16 * GIB,
    free_ram_bytes=12 * GIB,
    devices=(),
    engines=frozenset({"llamacpp"}),
)

R1_8B = next(spec for spec in load_registry().models if spec.id == "deepseek-r1-distill-llama-8b")
Q4_0 = next(each for each in R1_8B.variants if each.quant == "Q4_0" and each.size_is_exact)


def test_memory_is_weights_and_cache_and_buffers() -> None:
    fit = predict(R1_8B, Q4_0, 16_384, LAPTOP)
    assert fit.weights_bytes == 4_675_894_112
    assert fit.kv_bytes == 16_384 * 128 * 1024 == 2 * GIB
    assert fit.compute_bytes == compute_bytes(R1_8B, 16_384)
    assert fit.output_bytes == output_bytes(R1_8B) == 8 * 4 * 128_256
    assert fit.buffer_bytes == fit.compute_bytes + fit.output_bytes + fit.runtime_bytes
    assert fit.total_bytes == fit.weights_bytes + fit.kv_bytes + fit.buffer_bytes
    assert (fit.verdict, fit.fits, fit.short_bytes) == ("Fits", True, None)


def test_a_context_is_rounded_up_as_the_engine_does() -> None:
    assert predict(R1_8B, Q4_0, 16_129, LAPTOP).kv_bytes == predict(R1_8B, Q4_0, 16_384, LAPTOP).kv_bytes


def test_an_untied_embedding_is_not_read_for_a_token() -> None:
    """Known ceilings: 4.66 GB of file, 4.37 GB of them read, 9.2 tokens/s at 40 GB/s, 25.2 at 110."""
    whole = {"llamacpp": 1.0}
    fit = predict(R1_8B, Q4_0, 4096, replace(LAPTOP, engine_shares=whole))
    assert fit.read_bytes_per_token == pytest.approx(4.37e9, rel=0.005)
    assert fit.decode_tps == pytest.approx(9.2, rel=0.01)
    assert (fit.read_gb_s, fit.is_measured) == (ASSUMED_READ_GB_S, False)
    measured = predict(R1_8B, Q4_0, 4096, replace(LAPTOP, read_gb_s=110.0, engine_shares=whole))
    assert measured.decode_tps == pytest.approx(25.2, rel=0.01)
    assert measured.is_measured


def test_speed_is_the_share_of_the_bandwidth_that_the_engine_last_reached() -> None:
    machine = replace(LAPTOP, read_gb_s=100.0, engine_shares={"llamacpp": 0.5, "openvino": 0.9})
    ours = predict(R1_8B, Q4_0, 4096, machine)
    other = predict(R1_8B, Q4_0, 4096, machine, backend="openvino")
    assert ours.read_bytes_per_token is not None
    assert ours.decode_tps == pytest.approx(50e9 / ours.read_bytes_per_token)
    assert other.decode_tps == pytest.approx(90e9 / ours.read_bytes_per_token)
    assert (ours.engine_share, ours.is_share_measured) == (0.5, True)
    unknown = predict(R1_8B, Q4_0, 4096, machine, backend="another")
    assert (unknown.engine_share, unknown.is_share_measured) == (ASSUMED_SHARE, False)
    assert unknown.decode_tps == pytest.approx(100e9 * ASSUMED_SHARE / ours.read_bytes_per_token)


def test_a_device_with_memory_of_its_own_is_measured_by_that() -> None:
    card = Device(name="gpu", kind="gpu", description="A card", free_bytes=3 * GIB)
    shared = Device(name="npu", kind="npu", description="Shares the machine's")
    machine = replace(LAPTOP, devices=(card, shared))
    assert predict(R1_8B, Q4_0, 4096, machine, device="gpu").free_bytes == 3 * GIB
    assert predict(R1_8B, Q4_0, 4096, machine, device="gpu").verdict == "Too large"
    assert predict(R1_8B, Q4_0, 4096, machine, device="npu").free_bytes == LAPTOP.free_ram_bytes


def test_a_tied_embedding_is_read_as_the_head() -> None:
    spec = replace(R1_8B, shape=replace(R1_8B.shape, tied=True))
    assert read_bytes_per_token(spec, Q4_0) == Q4_0.size_bytes


def test_a_mixture_of_experts_reads_what_is_active() -> None:
    spec = ModelSpec(
        id="m", name="m", parameters=16_000, active_parameters=4_000, shape=Shape(vocabulary=10, hidden=20)
    )
    variant = Variant(kind="gguf", quant="Q8_0", size_bytes=32_000)
    assert read_bytes_per_token(spec, variant) == 8_000
    assert read_bytes_per_token(replace(spec, shape=replace(spec.shape, tied=False)), variant) == 7_600


def test_the_tensor_table_of_the_file_goes_before_the_estimate() -> None:
    assert read_bytes_per_token(R1_8B, replace(Q4_0, decode_bytes=5)) == 5


def test_a_mixture_of_unknown_size_foretells_no_speed() -> None:
    spec = ModelSpec(id="m", name="m", architecture="lfm2moe")
    fit = predict(spec, Variant(kind="gguf", quant="Q4_0", size_bytes=5 * GIB), 4096, LAPTOP)
    assert (fit.read_bytes_per_token, fit.decode_tps) == (None, None)


def test_what_lives_in_caches_foretells_no_speed() -> None:
    fit = predict(replace(R1_8B, parameters=None), replace(Q4_0, size_bytes=100 * MIB), 4096, LAPTOP)
    assert fit.read_bytes_per_token == 100 * MIB
    assert fit.decode_tps is None


@pytest.mark.parametrize(
    ("free_gib", "verdict"), [(40, "Fits"), (9, "Fits"), (7.5, "Tight"), (7.0, "Tight"), (6.7, "Too large")]
)
def test_a_word_for_how_much_of_the_free_memory_it_takes(free_gib: float, verdict: str) -> None:
    fit = predict(R1_8B, Q4_0, 16_384, replace(LAPTOP, free_ram_bytes=int(free_gib * GIB)))
    assert fit.total_bytes is not None
    assert 6.55 < fit.total_bytes / GIB < 6.65
    assert (fit.verdict, fit.fits) == (verdict, verdict != "Too large")


def test_what_is_short_is_counted_from_the_memory_that_may_be_used() -> None:
    fit = predict(R1_8B, Q4_0, 16_384, replace(LAPTOP, free_ram_bytes=4 * GIB))
    assert fit.total_bytes is not None
    assert fit.short_bytes == fit.total_bytes - int(0.95 * 4 * GIB)
    assert predict(R1_8B, Q4_0, 16_384, replace(LAPTOP, free_ram_bytes=7 * GIB)).short_bytes is None


def test_recurrent_states_are_kept_for_every_sequence() -> None:
    hybrid = replace(R1_8B, shape=replace(R1_8B.shape, state_bytes=50 * MIB, kv_layers=8))
    assert predict(hybrid, Q4_0, 4096, LAPTOP).kv_bytes == 4096 * 32 * 1024 + 8 * 50 * MIB


def test_a_missing_fact_is_said_to_be_missing() -> None:
    sizeless = predict(R1_8B, replace(Q4_0, size_bytes=None), 4096, LAPTOP)
    assert (sizeless.verdict, sizeless.total_bytes, sizeless.decode_tps) == ("Unknown", None, None)
    assert sizeless.largest_context_tokens is None
    shapeless = replace(R1_8B, shape=Shape())
    assert predict(shapeless, Q4_0, 4096, LAPTOP).verdict == "Unknown"
    assert predict(shapeless, replace(Q4_0, size_bytes=13 * GIB), 4096, LAPTOP).verdict == "Too large"


@given(free_mib=st.integers(100, 64_000), layers=st.integers(1, 80), size_mib=st.integers(1, 40_000))
def test_the_largest_context_fits_and_one_step_more_does_not(free_mib: int, layers: int, size_mib: int) -> None:
    spec = replace(R1_8B, shape=replace(R1_8B.shape, layers=layers))
    variant = replace(Q4_0, size_bytes=size_mib * MIB)
    here = replace(LAPTOP, free_ram_bytes=free_mib * MIB)
    largest = predict(spec, variant, 256, here).largest_context_tokens
    assert largest is not None
    if largest:
        assert predict(spec, variant, largest, here).fits
    assert not predict(spec, variant, largest + 256, here).fits


@pytest.mark.parametrize(
    ("name", "context"),
    [("tiny_reasoner", 256), ("tiny_reasoner", 500), ("smollm2", 300), ("smollm2", 2048), ("smollm2", 8192)],
)
def test_every_part_is_what_the_runtime_says_of_its_own_buffer(
    name: str, context: int, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra: llamacpp)")
    path: Path = request.getfixturevalue(name)
    open_model(str(path), settings=Settings(context_tokens=context, threads=1)).close()
    (log,) = paths().logs.iterdir()
    said = dict(re.findall(r"CPU\w* +(\w+) buffer size = +([\d.]+) MiB", log.read_text(encoding="utf-8")))
    spec, _ = spec_for_file(read_header(path), ())
    fit = predict(spec, spec.variants[0], context, LAPTOP)
    foretold = {
        "model": fit.weights_bytes,
        "KV": fit.kv_bytes,
        "compute": fit.compute_bytes,
        "output": fit.output_bytes,
    }
    assert said.keys() == foretold.keys()
    for part, size in foretold.items():
        assert size == pytest.approx(float(said[part]) * MIB, rel=0.05, abs=0.005 * MIB), part


def test_what_a_real_model_took_is_foretold(smollm2: Path) -> None:
    """Its child held 215 MB at most with 2,048 tokens of context and 357 MB with 8,192 (docs/benchmarks/memory.py)."""
    spec, _ = spec_for_file(read_header(smollm2), ())
    for context, held in ((2048, 215e6), (8192, 357e6)):
        assert predict(spec, spec.variants[0], context, LAPTOP).total_bytes == pytest.approx(held, rel=0.05)
