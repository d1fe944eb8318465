"""Several samples of one prompt: how they are counted, when the rest is stopped, and what is said and kept of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from slm_local import Vote, open_model, vote
from slm_local.config import MAX_SEED, SamplingOverrides, load_settings
from slm_local.engine import Engine
from slm_local.errors import PromptTooLong, UsageError, WorkerCrashed
from slm_local.generation import Control, Finish, GenerationRequest, Reply, Sampling, ThinkDelta, Timings, Usage
from slm_local.paths import paths
from slm_local.samples import Sample, SampleEvent, check_variety, draw, seeds_from, varied
from slm_local.samples.sentences import outcome, standing
from slm_local.samples.tally import Tally, vote_of
from slm_local.session import ChatSession
from slm_local.store import Store, open_store
from tests.conftest import ScriptWriter

Opened = Callable[..., Engine]

ENDLESS: dict[str, Any] = {"text": "word {n} ", "ids": [1], "delay": 0.01, "times": 4000}
"""What a sample writes that does not end by itself while a test runs."""

NO_MORE = [ENDLESS, {"end": "stop"}] * 6
"""Replies of which none ends by itself: a script is played on with the next one where one was cancelled."""


def says(answer: str) -> dict[str, Any]:
    return {"text": f"The answer is **{answer}**.", "ids": [1, 2], "end": "stop"}


@pytest.fixture
def opened(script: ScriptWriter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Open a script, which all samples play together: each step of a sample takes its next row."""
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    engines: list[Engine] = []

    def start(*rows: dict[str, Any], setup: dict[str, Any] | None = None, **values: object) -> Engine:
        settings = load_settings({"loop_guard": False, **values})
        engines.append(open_model(f"scripted:{script(*rows, setup=setup)}", settings=settings))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(paths().data) as opened:
        yield opened


def sample(
    number: int, vote: str | None, *, thinking: str = "", finish: Finish = "stop", tokens: int = 0, answer: str = ""
) -> Sample:
    usage = Usage(think_tokens=tokens)
    reply = Reply(thinking=thinking, answer=answer, finish=finish, cut="none", usage=usage, timings=Timings())
    return Sample(number=number, seed=number, reply=reply, vote=vote)


def counted(asked: int, *samples: Sample) -> Vote:
    tally = Tally(asked)
    for each in samples:
        tally.add(each)
        tally.decide()
    return tally.vote()


# ---- counting


def test_answers_that_are_equal_by_value_are_one() -> None:
    drawn = counted(4, sample(0, "85"), sample(1, "84"), sample(2, "85.0"), sample(3, "85 apples"))
    assert [(each.count, each.samples) for each in drawn.ballots] == [(3, (0, 2, 3)), (1, (1,))]
    assert (drawn.winner and drawn.winner.number, drawn.is_tied, drawn.ending) == (0, False, "all")


def test_the_one_that_thought_least_speaks_for_its_answer_and_at_a_tie_wins() -> None:
    drawn = counted(
        5,
        sample(0, "84", thinking="long enough"),
        sample(1, "85", thinking="longest of all"),
        sample(2, "84", thinking="longer than that"),
        sample(3, "85", thinking="short"),
        sample(4, None, finish="length"),
    )
    assert drawn.is_tied
    assert drawn.winner is not None
    assert (drawn.winner.number, drawn.votes) == (3, 4)
    assert [each.answer for each in drawn.ballots] == ["85", "84"]
    assert outcome(drawn) == "a tie: 2 of 5 say 85, 2 say 84; the answer of the one that thought least is shown"
    assert standing(drawn) == "85 ×2 · 84 ×2 · 1 without an answer"


@pytest.mark.parametrize(("finish", "vote"), [("stop", "85"), ("length", None), ("context", None), ("cancelled", None)])
def test_an_answer_that_was_cut_off_is_no_vote(finish: Finish, vote: str | None) -> None:
    assert vote_of(sample(0, None, finish=finish, answer="It is 85").reply) == vote


def test_what_a_stop_saved_is_told_in_samples_and_tokens() -> None:
    four = [sample(number, "85", tokens=100) for number in range(4)]
    drawn = counted(8, *four, *(sample(4 + n, None, finish="cancelled", tokens=40 * n) for n in range(4)))
    assert (drawn.ending, drawn.probability, drawn.saved_tokens) == ("likely", 31 / 32, 100 + 60 + 20)
    assert outcome(drawn) == "4 of 8 say 85; stopped after 4: decided at 0.97, 4 samples saved, about 180 tokens"


def test_what_ended_by_itself_before_it_could_be_stopped_is_no_early_stop() -> None:
    drawn = counted(5, *(sample(number, "85") for number in range(5)))
    assert (drawn.ending, drawn.probability, outcome(drawn)) == ("all", None, "5 of 5 say 85")


def test_answers_that_all_differ_and_none_at_all_are_said_to_be_so() -> None:
    assert outcome(counted(2, sample(0, "blue"), sample(1, "green"))).startswith("no two of 2 samples")
    nothing = counted(2, sample(0, None, finish="loop"), sample(1, None, finish="empty"))
    assert nothing.winner is None
    assert outcome(nothing) == "none of 2 samples came to an answer"


# ---- what makes them differ


def test_seeds_count_upwards_and_begin_anew_behind_the_last() -> None:
    assert seeds_from(MAX_SEED, 3) == (MAX_SEED, 0, 1)
    first, second = seeds_from(None, 2)
    assert second == (first + 1) % (MAX_SEED + 1)


def test_a_greedy_model_is_sampled_and_greed_that_was_asked_for_is_refused() -> None:
    greedy, warm = GenerationRequest(), GenerationRequest(sampling=Sampling(temperature=1.1))
    assert [varied(each, 8).sampling.temperature for each in (greedy, warm)] == [0.6, 1.1]
    assert varied(greedy, 1) == greedy
    check_variety(1, SamplingOverrides(temperature=0.0))
    for asked in (SamplingOverrides(temperature=0.0), SamplingOverrides(top_k=1)):
        with pytest.raises(UsageError, match="are the same"):
            check_variety(2, asked)
    for count in (0, -1, 65):
        with pytest.raises(UsageError, match="1 to 64"):
            check_variety(count, SamplingOverrides())


# ---- drawing


def test_all_samples_end_and_the_last_message_is_the_vote(opened: Opened) -> None:
    engine = opened(*(says(answer) for answer in ("85", "84", "85", "85", "85", "84")))
    messages = list(draw(engine, engine.request("x"), seeds=range(6)))
    ended = [each for each in messages if isinstance(each, Sample)]
    last = messages[-1]
    assert isinstance(last, Vote)
    assert sorted(each.number for each in ended) == list(range(6))
    assert [(each.answer, each.count) for each in last.ballots] == [("85", 4), ("84", 2)]
    assert (last.ending, last.samples) == ("all", tuple(sorted(ended, key=lambda each: each.number)))
    begun = {each.sample: at for at, each in enumerate(messages) if isinstance(each, SampleEvent)}
    assert all(begun[each.number] < messages.index(each) for each in ended)
    assert [each.seed for each in last.samples] == list(range(6))
    assert sum(each.reply.timings.load_s > 0.0 for each in last.samples) == 1


def test_a_decided_vote_stops_the_rest_also_those_that_wait_for_a_place(opened: Opened) -> None:
    drawn = vote(opened(*([says("85")] * 4), *NO_MORE), "x", samples=10)
    assert (drawn.ending, drawn.votes, len(drawn.cancelled)) == ("likely", 4, 6)
    assert drawn.winner is not None
    assert drawn.winner.reply.answer == "The answer is **85**."


def test_a_vote_that_cannot_change_any_more_is_stopped_at_less_than_the_threshold(opened: Opened) -> None:
    drawn = vote(opened(*([says("85")] * 3), *NO_MORE), "x", samples=5)
    assert (drawn.ending, drawn.probability, drawn.votes, len(drawn.cancelled)) == ("certain", 1.0, 3, 2)


def test_a_cancel_ends_all_and_decides_nothing(opened: Opened) -> None:
    engine, control = opened(*([says("85")] * 3), *NO_MORE), Control()
    votes: list[Vote] = []
    for message in draw(engine, engine.request("x"), seeds=range(8), stops_early=True, control=control):
        if isinstance(message, Vote):
            votes.append(message)
            if message.votes == 3:
                control.cancel()
    assert (votes[-1].ending, votes[-1].votes, len(votes[-1].cancelled)) == ("stopped", 3, 5)
    assert outcome(votes[-1]) == "3 of 8 say 85; stopped when 3 of 8 had ended"


def test_answer_now_ends_the_thinking_of_all(opened: Opened) -> None:
    closing = {"text": "</think>", "ids": [2]}
    rows = (ENDLESS, closing, ENDLESS, closing, *[says("85")] * 4)  # one is told before the other, and plays on with it
    engine, control = opened(*rows, setup={"template": "{{ messages[0].content }}<think>"}), Control()
    for message in draw(engine, engine.request("x"), seeds=range(2), control=control):
        if isinstance(message, SampleEvent) and isinstance(message.event, ThinkDelta) and "word" in message.event.text:
            control.end_thinking()
    assert isinstance(message, Vote)
    assert {each.reply.cut for each in message.samples} == {"user"}


def test_a_child_that_dies_ends_all_with_its_error(opened: Opened) -> None:
    engine = opened(says("85"), {"text": "half"}, {"fault": "exit"})
    messages = draw(engine, engine.request("x"), seeds=range(4))
    votes: list[Vote] = []
    with pytest.raises(WorkerCrashed):
        votes += (each for each in messages if isinstance(each, Vote))
    assert engine.reply("again").answer == "The answer is **85**."


def test_a_prompt_that_is_too_long_is_one_error(opened: Opened) -> None:
    with pytest.raises(PromptTooLong):
        vote(opened(says("85"), ctx=64), "x" * 100, samples=3)


def test_whoever_leaves_early_leaves_no_sample_running(opened: Opened) -> None:
    engine = opened(says("85"), ENDLESS)
    messages = draw(engine, engine.request("x"), seeds=range(4))
    assert any(isinstance(each, Sample) for each in messages)
    messages.close()  # type: ignore[attr-defined]
    assert engine.remembers_speed
    assert not [each for each in threading.enumerate() if each.name == "slm-sample"]


class Hesitant:
    """Numbers for requests; whoever takes the first one is slow, and another request begins meanwhile."""

    def __init__(self, begin_another: Callable[[], None], is_sent: threading.Event) -> None:
        self._begin_another, self._is_sent = begin_another, is_sent
        self._last = 0

    def __next__(self) -> int:
        self._last += 1
        number = self._last
        if number == 1:
            threading.Thread(target=self._begin_another, daemon=True).start()
            self._is_sent.wait(0.3)
        return number


def test_requests_of_several_threads_reach_the_child_in_the_order_of_their_numbers(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(says("85"))
    worker = engine._worker
    assert worker is not None
    send, sent, is_sent, is_over = worker._send, [], threading.Event(), threading.Event()

    def note(message: dict[str, Any]) -> None:
        if message["op"] == "start":
            sent.append(message["id"])
            is_sent.set()
        send(message)

    def begin_another() -> None:
        engine.reply("second")
        is_over.set()

    monkeypatch.setattr(worker, "_send", note)
    monkeypatch.setattr(worker, "_ids", Hesitant(begin_another, is_sent))
    list(worker.stream(engine.request("first"), Control()))
    assert is_over.wait(60)
    assert sent == [1, 2]


# ---- a real model


def test_the_embedded_model_votes(tiny_reasoner: object) -> None:
    with open_model("tiny-reasoner") as engine:
        drawn = vote(engine, "What is 47 + 38?", samples=3)
        assert drawn.ballots[0].answer == "85"
        assert {each.reply.finish for each in drawn.samples} <= {"stop", "cancelled"}
        assert all(each.reply.thinking.startswith("Line up") for each in drawn.samples if each.vote)


@contextmanager
def crowded() -> Iterator[tuple[Engine, str]]:
    """Open the embedded model with a cache that holds three of its riddles' thoughts at once."""
    riddle = "Which weighs more: a pound of water, two pounds of bricks, a pound of feathers, or three pounds of air?"
    with open_model("tiny-reasoner", settings=load_settings({"backend": "llamacpp"})) as engine:
        yield engine, riddle


def test_samples_for_which_the_cache_has_no_room_wait_and_come_to_their_end() -> None:
    with crowded() as (engine, riddle):
        drawn = vote(engine, riddle, samples=7, stops_early=False)
        assert {each.reply.finish for each in drawn.samples} == {"stop"}
        assert sum(each.tokens for each in drawn.samples) > engine.plan.context_tokens
        assert drawn.ballots[0].answer == "three pounds of air"


# ---- keeping


def test_the_winner_goes_on_and_every_other_sample_is_kept_aside(opened: Opened, store: Store) -> None:
    engine = opened(*(says(answer) for answer in ("84", "85", "85")))
    session = ChatSession(engine, store=store, kind="run")
    for _ in session.sample("x", (7, 8, 9)):
        pass
    assert session.chat is not None
    chat = store.chat(session.chat)
    assert sorted(turn.state for turn in chat.turns) == ["done", "sample", "sample"]
    (kept,) = (turn for turn in chat.turns if turn.is_shown_to_the_model)
    assert (kept.answer, kept.facts.samples, chat.turn_count) == ("The answer is **85**.", 3, 1)
    assert sorted(turn.facts.sampling.seed or 0 for turn in chat.turns) == [7, 8, 9]
    assert [message.content for message in session.messages] == ["x", "The answer is **85**."]
    again = ChatSession(engine, store=store, chat=session.chat)
    assert again.messages == session.messages


def test_without_any_answer_the_first_sample_is_what_is_shown(opened: Opened, store: Store) -> None:
    session = ChatSession(opened({"end": "stop"}), store=store, kind="run")
    for _ in session.sample("x", (1, 2)):
        pass
    assert session.chat is not None
    states = [(turn.state, turn.facts.sampling.seed) for turn in store.chat(session.chat).turns]
    assert sorted(states) == [("done", 1), ("sample", 2)]
    assert session.messages == ()
