"""Builds llama.cpp's sampler chain for one sequence: everything runs in C, no logits reach Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from slm_local.generation import Sampling

TRUNCATE_BELOW = 1e-13
"""Tokens with less than this share of the likeliest one's probability are dropped before top_p sorts, when top_k is
off: the sort of a whole vocabulary (152,000 entries: 15 ms) is spared. All of them together hold less than
152,000 * 1e-13 = 1.5e-8, a quarter of float32's own rounding (6e-8), in which llama.cpp adds up the probabilities:
what top_p keeps does not change (tests/test_llamacpp_sampling.py)."""


def sampler_chain(library: Any, sampling: Sampling, vocabulary_size: int, prompt: Sequence[int] = ()) -> Any:
    """Return a new sampler chain; the caller frees it with `llama_sampler_free`.

    Order: penalties, temperature, top_k, top_p, min_p, draw; temperature first, as transformers, vLLM and OpenVINO
    GenAI have it. Temperature 0 is greedy. The prompt's last tokens count for the penalties, as in llama.cpp.
    """
    lib = library
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:
        lib.llama_sampler_chain_add(chain, sampler)

    if has_penalties(sampling):
        penalties = lib.llama_sampler_init_penalties(
            vocabulary_size,
            sampling.repeat_last_n,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
        for token in prompt[-sampling.repeat_last_n :] if sampling.repeat_last_n else ():
            lib.llama_sampler_accept(penalties, token)
        add(penalties)
    if sampling.temperature <= 0.0:
        add(lib.llama_sampler_init_greedy())
        return chain
    if sampling.temperature != 1.0:
        add(lib.llama_sampler_init_temp(sampling.temperature))
    if sampling.top_k > 0:
        add(lib.llama_sampler_init_top_k(sampling.top_k))
    elif sampling.top_p < 1.0:
        add(lib.llama_sampler_init_min_p(TRUNCATE_BELOW, 1))
    if sampling.top_p < 1.0:
        add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    seed = int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed % 2**32
    add(lib.llama_sampler_init_dist(seed))
    return chain


def has_penalties(sampling: Sampling) -> bool:
    """Return whether any repetition penalty is on."""
    return sampling.repeat_penalty != 1.0 or sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0
