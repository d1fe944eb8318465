"""The sampler chain: what truncating before top_p keeps, and what each field does."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest

from slm_local.backends.llamacpp.library import bindings
from slm_local.backends.llamacpp.sampling import TRUNCATE_BELOW, has_penalties, sampler_chain
from slm_local.generation import Sampling

VOCABULARY = 20_000


def kept(samplers: list[Any], logits: list[float]) -> list[int]:
    """Apply samplers to logits in turn; return the ids that are left, likeliest first."""
    lib = bindings()
    rows = (lib.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        rows[token].id, rows[token].logit, rows[token].p = token, logit, 0.0
    array = lib.llama_token_data_array(data=rows, size=len(logits), selected=-1, sorted=False)
    for sampler in samplers:
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        lib.llama_sampler_free(sampler)
    left = sorted(((array.data[i].logit, array.data[i].id) for i in range(array.size)), reverse=True)
    return [token for _, token in left]


def shapes() -> list[tuple[str, list[float]]]:
    """Return logits as models give them: peaked, flat, heavy-tailed, shifted, with banned tokens."""
    draw = random.Random(5)
    normal = [draw.gauss(0.0, 2.5) for _ in range(VOCABULARY)]
    peaked = list(normal)
    for i in range(30):
        peaked[draw.randrange(VOCABULARY)] = 12.0 + i / 3
    return [
        ("normal", normal),
        ("peaked", peaked),
        ("flat", [draw.random() * 1e-3 for _ in range(VOCABULARY)]),
        ("heavy tail", [draw.paretovariate(1.5) for _ in range(VOCABULARY)]),
        ("shifted up", [value + 40.0 for value in peaked]),
        ("shifted down", [value - 40.0 for value in peaked]),
        ("temperature 0.3", [value / 0.3 for value in peaked]),
        ("mostly banned", [value if i % 50 == 0 else -1e9 for i, value in enumerate(normal)]),
    ]


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(("name", "logits"), shapes(), ids=[name for name, _ in shapes()])
def test_truncating_first_does_not_change_what_top_p_keeps(name: str, logits: list[float], top_p: float) -> None:
    lib = bindings()
    plain = kept([lib.llama_sampler_init_top_p(top_p, 1)], logits)
    truncated = kept([lib.llama_sampler_init_min_p(TRUNCATE_BELOW, 1), lib.llama_sampler_init_top_p(top_p, 1)], logits)
    assert truncated == plain
    assert plain


def test_truncating_leaves_little_to_sort_where_a_model_is_sure() -> None:
    lib = bindings()
    logits = dict(shapes())["temperature 0.3"]
    assert len(kept([lib.llama_sampler_init_min_p(TRUNCATE_BELOW, 1)], logits)) < VOCABULARY / 10


@pytest.mark.parametrize(
    ("sampling", "names"),
    [
        (Sampling(), ["greedy"]),
        (Sampling(temperature=0.6, top_p=0.95, seed=1), ["temp", "min-p", "top-p", "dist"]),
        (Sampling(temperature=0.6, top_p=0.95, top_k=20, seed=1), ["temp", "top-k", "top-p", "dist"]),
        (Sampling(temperature=1.0, min_p=0.05, seed=1), ["min-p", "dist"]),
        (Sampling(repeat_penalty=1.1), ["penalties", "greedy"]),
    ],
)
def test_a_chain_holds_what_was_asked_for_and_nothing_else(sampling: Sampling, names: list[str]) -> None:
    lib = bindings()
    chain = sampler_chain(lib, sampling, VOCABULARY, [1, 2, 3])
    count = lib.llama_sampler_chain_n(chain)
    found = [lib.llama_sampler_name(lib.llama_sampler_chain_get(chain, i)).decode() for i in range(count)]
    lib.llama_sampler_free(chain)
    assert found == names


def test_penalties_see_the_prompt() -> None:
    lib = bindings()
    assert not has_penalties(Sampling(temperature=1.0))
    chain = sampler_chain(lib, Sampling(repeat_penalty=2.0), 4, [3])
    rows = (lib.llama_token_data * 4)()
    for token, logit in enumerate((1.0, 1.0, 1.5, 2.0)):
        rows[token].id, rows[token].logit = token, logit
    array = lib.llama_token_data_array(data=rows, size=4, selected=-1, sorted=False)
    lib.llama_sampler_apply(chain, ctypes.byref(array))
    lib.llama_sampler_free(chain)
    assert array.data[array.selected].id == 2
