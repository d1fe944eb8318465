"""The compute buffer foretold from a shape, beside what llama.cpp said of such models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slm_local.backends.llamacpp.loading import FORKS, FORKS_WITH_STATE, PLACES, PLACES_WITH_STATE
from slm_local.backends.llamacpp.speculation import MOST_ROWS
from slm_local.buffers import STATES, compute_bytes, output_bytes
from slm_local.model import ModelSpec, Shape
from slm_local.registry import load_registry

MIB = 2**20

BY_ID = {spec.id: spec for spec in load_registry().models}


def spec_of(architecture: str, shape: Shape) -> ModelSpec:
    return ModelSpec(id="x", name="x", architecture=architecture, shape=shape)


@pytest.mark.parametrize(
    ("name", "context", "said_mib"),
    [
        ("deepseek-r1-distill-llama-8b", 4096, 120.01),
        ("deepseek-r1-distill-qwen-1.5b", 4096, 68.51),
        ("deepseek-r1-distill-qwen-1.5b", 16_384, 80.51),
        ("deepseek-r1-distill-qwen-7b", 4096, 143.01),
        ("qwen3-0.6b", 4096, 30.01),
        ("qwen3-4b", 8192, 88.01),
        ("qwen3-8b", 1024, 105.01),
        ("minicpm5-1b", 2048, 42.01),
        ("smollm3-3b", 2048, 82.51),
        ("smollm2-135m-instruct", 8192, 21.51),
        ("smollm2-360m-instruct", 512, 23.01),
        ("tiny-reasoner", 256, 1.82),
        ("tiny-reasoner", 512, 3.89),
    ],
)
def test_models_of_the_registry_take_what_llama_cpp_said(name: str, context: int, said_mib: float) -> None:
    """Read from the log of llama.cpp 0c1e57098, with the models themselves or empty ones of their shape."""
    assert compute_bytes(BY_ID[name], context) / MIB == pytest.approx(said_mib, abs=0.01)


@pytest.mark.parametrize(
    ("layers", "hidden", "ffn", "heads", "kv_heads", "context", "said_mib"),
    [
        (2, 1024, 3072, 16, 8, 4096, 26.01),  # nothing has settled after two layers
        (6, 1536, 1600, 4, 2, 1024, 19.39),  # narrow feed-forward part, few queries
        (6, 768, 4224, 16, 16, 512, 33.76),
        (4, 1536, 5376, 8, 4, 1024, 43.51),
    ],
)
def test_the_holes_that_other_shapes_leave_are_counted(
    layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, context: int, said_mib: float
) -> None:
    shape = Shape(layers=layers, hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads, head_dim=128)
    assert compute_bytes(spec_of("llama", shape), context) / MIB == pytest.approx(said_mib, abs=0.01)


def test_a_sliding_window_brings_a_second_mask() -> None:
    """Gemma 3 4B's shape: 87.02 MiB with 4,096 tokens, 143.02 with 32,768."""
    shape = Shape(layers=6, hidden=2560, ffn=10_240, heads=8, kv_heads=4, head_dim=256)
    gemma = spec_of("gemma3", shape)
    assert compute_bytes(gemma, 4096) / MIB == pytest.approx(87.02, rel=0.01)
    assert (compute_bytes(gemma, 32_768) - compute_bytes(gemma, 4096)) / MIB == 56
    assert compute_bytes(spec_of("llama", shape), 4096) == compute_bytes(gemma, 4096) - 4 * MIB


def test_a_missing_width_is_not_taken_for_a_small_one() -> None:
    known = BY_ID["deepseek-r1-distill-llama-8b"]
    unknown = replace(known, shape=replace(known.shape, ffn=None))
    assert compute_bytes(unknown, 4096) > compute_bytes(known, 4096)
    assert compute_bytes(spec_of("llama", Shape()), 4096) > compute_bytes(unknown, 4096)


def test_logits_of_every_sequence_are_kept() -> None:
    assert output_bytes(BY_ID["deepseek-r1-distill-qwen-1.5b"]) == max(PLACES + FORKS, MOST_ROWS) * 4 * 151_936
    assert output_bytes(spec_of("llama", Shape())) == 0
    assert PLACES_WITH_STATE + FORKS_WITH_STATE == STATES
