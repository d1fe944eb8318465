"""What is said beside an answer: why it ended, what the embedded models are, sampling in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slm_local.cli import notes
from slm_local.generation import Finish, Reply, Sampling, Timings, Usage
from slm_local.model import ModelSpec, Plan, Variant

SPEC = ModelSpec(id="tiny", name="Tiny", parameters=2_800_000, embedded=True, refusal="I am a tiny model:")
PLAN = Plan(
    spec=SPEC,
    variant=Variant(kind="gguf", quant="Q8_0"),
    backend="llamacpp",
    device="cpu",
    context_tokens=512,
    threads=2,
    memory_bytes=None,
    free_ram_bytes=10**9,
    fits=True,
    expected_decode_tps=None,
    reasons=(),
)
REPLY = Reply(thinking="", answer="It is 85.", finish="stop", cut="none", usage=Usage(), timings=Timings())


@pytest.mark.parametrize("finish", ["stop", "cancelled", "error"])
def test_a_reply_that_is_whole_or_was_stopped_needs_no_word(finish: Finish) -> None:
    assert notes.ending(replace(REPLY, finish=finish), 512, None) is None


@pytest.mark.parametrize(
    ("reply", "said", "hint"),
    [
        (replace(REPLY, finish="length"), "the answer was cut at 9 tokens", "--max-tokens 18"),
        (replace(REPLY, finish="length", cut="max_tokens"), "thinking was cut at 9 tokens", "--max-tokens 18"),
        (replace(REPLY, finish="context"), "the context of 512 tokens is full", "--ctx 1024"),
        (replace(REPLY, finish="loop"), "repeated itself", "-o repeat_penalty=1.1"),
        (replace(REPLY, finish="empty", thinking="hm"), "without an answer", "--no-think"),
        (replace(REPLY, finish="empty"), "without an answer", "--temp 0.6"),
    ],
)
def test_a_reply_that_ended_before_its_time_says_why_and_what_to_type(reply: Reply, said: str, hint: str) -> None:
    ending = notes.ending(reply, 512, 9)
    assert ending is not None
    assert said in ending[0]
    assert ending[1] == hint


@pytest.mark.parametrize(
    "reply",
    [
        replace(REPLY, answer="I am a tiny model: I know sums."),
        replace(REPLY, finish="empty", answer=""),
        replace(REPLY, finish="context"),
        replace(REPLY, finish="loop"),
    ],
)
def test_an_embedded_model_out_of_its_depth_says_what_it_is(reply: Reply) -> None:
    assert "2.8 million parameters" in (notes.outgrown(PLAN, reply) or "")
    other = replace(PLAN, spec=replace(SPEC, embedded=False))
    assert notes.outgrown(other, reply) is None


@pytest.mark.parametrize("reply", [REPLY, replace(REPLY, finish="length"), replace(REPLY, finish="cancelled")])
def test_an_embedded_model_that_answers_or_was_cut_by_the_person_says_nothing(reply: Reply) -> None:
    assert notes.outgrown(PLAN, reply) is None


def test_a_long_prompt_is_not_repeated_in_the_line_to_type() -> None:
    assert notes.better_line(SPEC, "it's", is_here=True) == """slm run tiny 'it'"'"'s'"""
    assert notes.better_line(SPEC, "x" * 200, is_here=True) == "slm run tiny ..."
    assert notes.better_line(SPEC, "it's", is_here=False) == "slm plan tiny"


def test_sampling_in_words_names_what_does_something() -> None:
    assert notes.sampling_words(Sampling()) == "greedy (temperature 0)"
    assert notes.sampling_words(Sampling(repeat_penalty=1.1)) == "greedy (temperature 0), repeat_penalty 1.1"
    assert notes.sampling_words(Sampling(temperature=0.6, top_p=0.95, seed=7)) == "temperature 0.6, top_p 0.95, seed 7"


def test_counts_that_a_runtime_does_not_tell_are_not_invented() -> None:
    lines = notes.timing_lines(replace(REPLY, usage=Usage(prompt_tokens=None, think_tokens=None, answer_tokens=None)))
    assert "prompt eval count:     unknown" in lines
    assert "eval count:            unknown (thinking unknown)" in lines
