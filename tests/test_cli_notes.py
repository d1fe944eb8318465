"""What is said beside an answer: why it ended, what the embedded models are, sampling in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slm_local import notes
from slm_local.generation import Cut, Finish, Reply, Sampling, Started, Thinking, Timings, Usage
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.thinking import patient, read_thinking

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
    assert notes.endings(replace(REPLY, finish=finish), Thinking(), 512, None) == []


@pytest.mark.parametrize(
    ("reply", "said", "hint"),
    [
        (replace(REPLY, finish="length"), "the answer was cut at 9 tokens", "--max-tokens 18"),
        (replace(REPLY, finish="length", cut="max_tokens", answer=""), "thinking was cut at 9", "--max-tokens 18"),
        (replace(REPLY, finish="length", cut="max_tokens"), "the reply was cut at 9 tokens", "--max-tokens 18"),
        (replace(REPLY, finish="context"), "the context of 512 tokens is full", "--ctx 1024"),
        (replace(REPLY, finish="context", cut="context"), "the context of 512 tokens is full", "--ctx 1024"),
        (replace(REPLY, cut="context"), "the context keeps room for the answer", "--ctx 1024"),
        (replace(REPLY, cut="max_tokens"), "the limit of tokens keeps room for the answer", "--max-tokens 18"),
        (replace(REPLY, cut="loop"), "thinking was ended, for it repeated itself", "-o repeat_penalty=1.1"),
        (replace(REPLY, finish="loop"), "the answer repeated itself", "-o repeat_penalty=1.1"),
        (replace(REPLY, finish="empty", thinking="hm"), "without an answer", "--no-think"),
        (replace(REPLY, finish="empty"), "without an answer", "--temp 0.6"),
    ],
)
def test_a_reply_that_ended_before_its_time_says_why_and_what_to_type(reply: Reply, said: str, hint: str) -> None:
    (note,) = notes.endings(reply, Thinking(), 512, 9)
    assert said in note.text
    assert note.hint == hint
    assert note.is_warning


@pytest.mark.parametrize("reply", [replace(REPLY, finish="context"), replace(REPLY, cut="context")])
def test_no_larger_context_is_advised_than_the_model_was_made_for(reply: Reply) -> None:
    assert [each.hint for each in notes.endings(reply, Thinking(), 512, 9, 512)] == [None]
    assert [each.hint for each in notes.endings(reply, Thinking(), 512, 9, 800)] == ["--ctx 800"]


@pytest.mark.parametrize(
    ("word", "cut", "said", "hint"),
    [
        ("256", "budget", "thinking was ended at 256 tokens", "--think 512"),
        ("low", "budget", "thinking was ended at 512 tokens", "--think medium"),
        ("high", "budget", "thinking was ended at 8,192 tokens", "--think max"),
        ("30s", "time", "thinking was ended after 30 s", "--think 60s"),
        ("1m30s", "time", "thinking was ended after 90 s", "--think 180s"),
        ("max", "user", "thinking was ended, as you asked", None),
        ("max", "converged", "thinking was ended, for the answer had settled", None),
    ],
)
def test_thinking_that_ended_as_asked_says_how_to_have_more(word: str, cut: Cut, said: str, hint: str | None) -> None:
    (note,) = notes.endings(replace(REPLY, cut=cut), read_thinking(word), 512, 9)
    assert (note.text, note.hint, note.is_warning) == (said, hint, False)
    if hint is not None:
        assert read_thinking(hint.split()[1])
        assert notes.in_chat(hint) == f"/think {hint.split()[1]}"


def test_a_limit_that_nobody_gave_is_taken_off_by_max() -> None:
    limited = patient(Thinking(), 180.0, decode_tps=10.0, context_tokens=16384)
    (note,) = notes.endings(replace(REPLY, cut="budget"), limited, 512, None)
    assert (note.text, note.hint) == ("thinking was ended at 1,800 tokens", "--think max")
    by_time = patient(Thinking(), 180.0, decode_tps=None, context_tokens=16384)
    assert notes.endings(replace(REPLY, cut="time"), by_time, 512, None)[0].hint == "--think max"


def test_no_thinking_at_all_needs_no_word() -> None:
    assert notes.endings(replace(REPLY, cut="budget"), read_thinking("0"), 512, None) == []


def test_thinking_and_answer_that_both_ended_early_say_so_both() -> None:
    both = notes.endings(replace(REPLY, cut="budget", finish="loop"), read_thinking("64"), 512, None)
    assert [note.text for note in both] == [
        "thinking was ended at 64 tokens",
        "the answer repeated itself and was stopped",
    ]


def test_too_little_room_for_thinking_says_so_to_who_gave_the_limit() -> None:
    started = Started(prompt_tokens=400, cached_tokens=0, context_tokens=512, think_state="open", think_tokens=32)
    note = notes.lowered(started, read_thinking("256"), None, 4096)
    assert note is not None
    assert note.text == "there was room for 32 of the 256 tokens of thinking asked for"
    assert note.hint == "--ctx 1024"
    longest = notes.lowered(started, read_thinking("256"), None, 512)
    assert longest is not None
    assert (longest.text.endswith("this model's context is 512 tokens"), longest.hint) == (True, None)
    bounded = notes.lowered(started, read_thinking("256"), 64, 4096)
    assert bounded is not None
    assert bounded.hint == "--max-tokens 320"
    assert notes.lowered(started, read_thinking("32"), None, 4096) is None
    assert notes.lowered(started, patient(Thinking(), 180.0, decode_tps=10.0, context_tokens=16384), None, 4096) is None
    closed = notes.lowered(replace(started, think_state="closed"), read_thinking("256"), None, 4096)
    assert closed is not None
    assert closed.text == "the model's chat template closes thinking: --think 256 changes nothing"


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


def test_tags_and_what_was_put_in_for_the_model_are_counted_apart() -> None:
    usage = Usage(think_tokens=40, answer_tokens=2, tag_tokens=1, injected_tokens=9)
    lines = notes.timing_lines(replace(REPLY, usage=usage))
    assert "eval count:            42 tokens (thinking 40, 1 of them tags, 9 of them injected)" in lines


@pytest.mark.parametrize(("probes", "said"), [(1, "1 probe, 14 tokens"), (3, "3 probes, 14 tokens")])
def test_answers_that_were_tried_are_counted_apart(probes: int, said: str) -> None:
    usage = Usage(think_tokens=40, answer_tokens=2, probes=probes, probe_tokens=14)
    lines = notes.timing_lines(replace(REPLY, usage=usage))
    assert f"answers tried:         {said}" in lines
    assert "eval count:            42 tokens (thinking 40)" in lines
    assert not any("probe" in line for line in notes.timing_lines(REPLY))


def test_what_was_guessed_ahead_is_told_where_anything_was() -> None:
    usage = Usage(think_tokens=400, answer_tokens=2, drafted_tokens=128, accepted_tokens=96)
    assert "speculation:           drafted 128, kept 96" in notes.timing_lines(replace(REPLY, usage=usage))
    assert not [line for line in notes.timing_lines(REPLY) if "drafted" in line]
