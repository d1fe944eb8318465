"""Memory and speed foretold from facts: the arithmetic, what a missing fact does, where the borders lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_local.fit import ASSUMED_READ_GB_S, buffer_bytes, predict, read_bytes_per_token
from slm_local.gguf_header import read_header
from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Shape, Variant
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
    assert fit.buffer_bytes == buffer_bytes(R1_8B, 16_384)
    assert fit.total_bytes == fit.weights_bytes + fit.kv_bytes + fit.buffer_bytes
    assert (fit.verdict, fit.fits) == ("Good", True)


def test_a_context_is_rounded_up_as_the_engine_does() -> None:
    assert predict(R1_8B, Q4_0, 16_129, LAPTOP).kv_bytes == predict(R1_8B, Q4_0, 16_384, LAPTOP).kv_bytes


def test_an_untied_embedding_is_not_read_for_a_token() -> None:
    """PERFORMANCE figures: 4.66 GB of file, 4.37 GB of them read, 9.2 tokens/s at 40 GB/s, 25.2 at 110."""
    fit = predict(R1_8B, Q4_0, 4096, LAPTOP)
    assert fit.read_bytes_per_token == pytest.approx(4.37e9, rel=0.005)
    assert fit.decode_tps == pytest.approx(9.2, rel=0.01)
    assert (fit.read_gb_s, fit.is_measured) == (ASSUMED_READ_GB_S, False)
    measured = predict(R1_8B, Q4_0, 4096, replace(LAPTOP, read_gb_s=110.0))
    assert measured.decode_tps == pytest.approx(25.2, rel=0.01)
    assert measured.is_measured


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
    ("free_gib", "verdict"), [(40, "Perfect"), (14, "Perfect"), (10, "Good"), (7.5, "Marginal"), (6.7, "Too large")]
)
def test_a_word_for_how_much_of_the_free_memory_it_takes(free_gib: float, verdict: str) -> None:
    fit = predict(R1_8B, Q4_0, 16_384, replace(LAPTOP, free_ram_bytes=int(free_gib * GIB)))
    assert fit.total_bytes is not None
    assert 6.6 < fit.total_bytes / GIB < 6.8
    assert (fit.verdict, fit.fits) == (verdict, verdict != "Too large")


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


def test_what_a_real_model_took_is_foretold_and_not_by_half_too_much(smollm2: Path) -> None:
    """A bare process held 318 MiB with this file and 8,192 tokens of cache, 138 MiB of it before the cache."""
    spec, _ = spec_for_file(read_header(smollm2), ())
    fit = predict(spec, spec.variants[0], 8192, LAPTOP)
    assert fit.kv_bytes == 180 * MIB
    assert fit.total_bytes is not None
    assert 318 * MIB <= fit.total_bytes <= 1.5 * 318 * MIB
