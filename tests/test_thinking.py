"""How long to think: what can be written, what no limit becomes for a person, what it costs in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slm_local.forecast.thinking import limit_words, thinking_words
from slm_local.generation import Cut, ReasoningTags, Thinking
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.thinking import cut_words, patient, read_thinking

PLAN = Plan(
    spec=ModelSpec(id="thinker", name="Thinker", tags=ReasoningTags("<think>", "</think>")),
    variant=Variant(kind="gguf", quant="Q8_0"),
    backend="llamacpp",
    device="cpu",
    context_tokens=16384,
    threads=2,
    memory_bytes=None,
    free_ram_bytes=10**9,
    fits=True,
    expected_decode_tps=10.0,
    reasons=(),
)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("off", Thinking(mode="off", word="off")),
        (False, Thinking(mode="off", word="off")),
        ("on", Thinking(mode="on", word="on")),
        (True, Thinking(mode="on", word="on")),
        ("Auto", Thinking(word="auto")),
        ("max", Thinking(word="max")),
        ("low", Thinking(mode="open", max_tokens=512, word="low")),
        ("medium", Thinking(mode="open", max_tokens=2048, word="medium")),
        ("high", Thinking(mode="open", max_tokens=8192, word="high")),
        ("0", Thinking(mode="open", max_tokens=0, word="0")),
        (256, Thinking(mode="open", max_tokens=256, word="256")),
        ("0256", Thinking(mode="open", max_tokens=256, word="256")),
        ("30s", Thinking(mode="open", max_s=30.0, word="30s")),
        ("5m", Thinking(mode="open", max_s=300.0, word="5m")),
        ("1m30s", Thinking(mode="open", max_s=90.0, word="1m30s")),
        ("1.5s", Thinking(mode="open", max_s=1.5, word="1.5s")),
        ("24h", Thinking(mode="open", max_s=86400.0, word="24h")),
    ],
)
def test_a_word_a_number_and_a_time_are_read(value: object, meant: Thinking) -> None:
    assert read_thinking(value) == meant


@pytest.mark.parametrize(
    "value",
    ["", "much", "-1", "1.5", "0s", "0m0s", "25h", "30s5m", "5 m", "s", "٣", "9" * 400, f"{'9' * 400}s", 1.5, None, []],
)
def test_what_is_none_of_them_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="takes off, on, auto, low, medium, high, max, a number of tokens"):
        read_thinking(value)


@pytest.mark.parametrize(
    ("tps", "tokens"), [(10.0, 1800), (10.37, 1800), (5.0, 1024), (0.1, 1024), (5.7, 1024), (6.2, 1100)]
)
def test_a_person_waits_three_minutes_but_for_1024_tokens_at_least(tps: float, tokens: int) -> None:
    limited = patient(Thinking(), 180.0, decode_tps=tps, context_tokens=16384)
    assert limited == Thinking(max_tokens=tokens)


def test_a_limit_that_the_context_never_reaches_is_none() -> None:
    assert patient(Thinking(), 180.0, decode_tps=1000.0, context_tokens=16384) == Thinking()
    assert patient(Thinking(), 180.0, decode_tps=None, context_tokens=512) == Thinking()


def test_without_a_foretold_speed_the_time_is_the_limit() -> None:
    assert patient(Thinking(word="on"), 180.0, decode_tps=None, context_tokens=8192).max_s == 180.0


@pytest.mark.parametrize("word", ["off", "low", "max", "256", "30s"])
def test_what_was_asked_for_is_not_limited_further(word: str) -> None:
    think = read_thinking(word)
    assert patient(think, 180.0, decode_tps=1.0, context_tokens=16384) == think


def test_a_limit_is_said_with_its_time_here() -> None:
    assert limit_words(Thinking(max_tokens=1800), PLAN) == "up to 1,800 tokens, 3 min here"
    assert limit_words(read_thinking("30s"), PLAN) == "up to 30 s"
    assert limit_words(read_thinking("max"), PLAN) == ""
    assert limit_words(read_thinking("low"), replace(PLAN, expected_decode_tps=None)) == "up to 512 tokens"


def test_every_word_is_shown_with_what_it_costs_here() -> None:
    words = thinking_words(PLAN)
    assert "high: up to 8,192 tokens, about 14 min" in words
    assert "max: as far as the context of 16,384 tokens goes, about 27 min" in words
    assert "auto: up to 1,800 tokens, about 3 min; where no person watches, as max" in words
    small = thinking_words(replace(PLAN, context_tokens=512, expected_decode_tps=None))
    assert "low: as far as the context of 512 tokens goes" in small
    for line in words:
        assert all(read_thinking(word) for word in line.partition(":")[0].split(", "))


def test_a_model_without_thinking_has_no_words_for_it() -> None:
    assert thinking_words(replace(PLAN, spec=replace(PLAN.spec, tags=None))) == ("thinker has no thinking of its own",)


@pytest.mark.parametrize("cut", ["budget", "time", "context", "max_tokens", "loop", "user", "converged"])
def test_every_cut_has_its_words(cut: Cut) -> None:
    assert cut_words(cut, Thinking(max_tokens=1800, max_s=5.0)).startswith("ended")
    assert cut_words("none", Thinking(max_tokens=1800)) == ""
