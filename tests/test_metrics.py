"""Usage and timings from events, by a clock that the test moves."""

from __future__ import annotations

import pytest

from slm_local.generation import AnswerDelta, Done, PromptProgress, Reply, Started, ThinkDelta, Timings, Usage
from slm_local.metrics import Collector, prefill_tps, telling_tps


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fed(clock: Clock, *, finished: bool) -> Collector:
    """Feed one reply: 50 prompt tokens of which 10 cached, 4 of thought, 7 of answer, at known times."""
    collector = Collector(load_s=1.5, clock=clock)
    for at, event in (
        (100.5, Started(prompt_tokens=50, cached_tokens=10, context_tokens=512, think_state="open")),
        (101.0, PromptProgress(done_tokens=50, total_tokens=50)),
        (102.5, ThinkDelta(text="a", tokens=1)),
        (103.0, ThinkDelta(text="b", tokens=3)),
        (104.0, AnswerDelta(text="c", tokens=6)),
    ):
        clock.now = at
        collector.feed(event)
    if finished:
        clock.now = 104.5
        usage = Usage(prompt_tokens=50, cached_tokens=10, think_tokens=4, answer_tokens=7, tag_tokens=1)
        timings = Timings(peak_rss_bytes=99, decode_tps=12345.0)
        reply = Reply(thinking="ab", answer="c", finish="stop", cut="none", usage=usage, timings=timings)
        collector.feed(Done(reply=reply))
    return collector


def test_times_run_from_the_request_by_the_listeners_clock() -> None:
    timings = fed(Clock(), finished=True).reply().timings
    assert timings.load_s == 1.5
    assert timings.first_token_s == 2.5
    assert timings.first_answer_s == 4.0
    assert timings.prefill_s == 2.0
    assert timings.prefill_tps == 40 / 2.0
    assert timings.decode_s == 2.0
    assert timings.decode_tps == (4 + 7 - 1) / 2.0
    assert timings.peak_rss_bytes == 99


def test_a_reply_cut_off_holds_what_came_and_why() -> None:
    reply = fed(Clock(), finished=False).reply("cancelled", "none")
    assert (reply.thinking, reply.answer, reply.finish) == ("ab", "c", "cancelled")
    assert (reply.usage.think_tokens, reply.usage.answer_tokens, reply.usage.prompt_tokens) == (4, 6, 50)
    assert reply.timings.decode_s == 1.5


def test_nothing_yet_is_zero_and_no_division() -> None:
    timings = Collector().reply().timings
    assert (timings.first_token_s, timings.decode_tps, timings.prefill_tps) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("cached", "expected"), [(0, 25.0), (50, 0.0)])
def test_the_prefill_rate_leaves_cached_tokens_out(cached: int, expected: float) -> None:
    assert prefill_tps(Usage(prompt_tokens=50, cached_tokens=cached), 2.0) == expected
    assert prefill_tps(Usage(prompt_tokens=50), 0.0) == 0.0


def test_tokens_that_came_at_once_tell_no_speed_and_a_longer_reply_tells_the_more() -> None:
    assert telling_tps([Timings(decode_s=0.04, decode_tps=900.0)]) == 0.0
    assert telling_tps([Timings(decode_s=1.0, decode_tps=10.0), Timings(decode_s=3.0, decode_tps=30.0)]) == 25.0
