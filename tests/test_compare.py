"""Comparisons: who runs when, what is shared, what a result says, and what is left when something goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from slm_local.compare import (
    CompareEvent,
    LaneEvent,
    LaneResult,
    LaneStatus,
    Question,
    compare,
    conductor,
    lanes,
    paired_difference,
    take,
    verdicts,
)
from slm_local.config import Settings, load_settings
from slm_local.engine import Choice, choose
from slm_local.engine.supply import Offer
from slm_local.errors import DoesNotFit, Interrupted, UnknownModel, UsageError, WorkerCrashed
from slm_local.generation import AnswerDelta, Control, Reply, Started, ThinkDelta, Timings, Usage
from slm_local.metrics import EnergyMeter
from slm_local.paths import paths
from slm_local.registry import load_registry
from slm_local.server.link import Link
from slm_local.server.pool import Pool
from slm_local.system import EnergyCounter, EnergyReading
from tests.conftest import ScriptWriter

THINKER: tuple[dict[str, Any], ...] = (
    {"text": "<think>", "ids": [1]},
    {"text": "7 + 8 = 15", "ids": [2, 3, 4, 5]},
    {"text": "</think>", "ids": [6]},
    {"text": "The answer is **85**.", "ids": [7, 8], "end": "stop"},
)
GUESSER: tuple[dict[str, Any], ...] = ({"text": "The answer is **412**.", "ids": [1, 2], "end": "stop"},)
SLOW = ({"text": "one", "ids": [1]}, {"text": " two", "ids": [2], "delay": 30.0, "end": "stop"})

SUM = Question(prompt="What is 47 + 38?", expected="85")

Run = Callable[..., Iterator[CompareEvent]]


@pytest.fixture
def refer(script: ScriptWriter) -> Callable[..., str]:
    def write(*rows: dict[str, Any], name: str, setup: dict[str, Any] | None = None) -> str:
        return f"scripted:{script(*rows, name=name, setup=setup)}"

    return write


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Compare with the settings of the command line: what hangs on the reference, nothing else."""
    monkeypatch.setenv("SLM_SCRIPTED", "1")

    def start(references: Sequence[str], prompts: Sequence[Question] = (SUM,), **wishes: Any) -> Iterator[CompareEvent]:
        registry = load_registry(paths().config / "models.toml")

        def settings_for(reference: str) -> Settings:
            return load_settings({}, reference_settings=registry.resolve(reference).settings)

        return compare(references, prompts, settings_for=settings_for, registry=registry, **wishes)

    return start


def results(events: Iterator[CompareEvent]) -> list[LaneResult]:
    return [each for each in events if isinstance(each, LaneResult)]


def statuses(events: Sequence[CompareEvent]) -> list[tuple[int, str]]:
    return [(each.lane, each.text) for each in events if isinstance(each, LaneStatus)]


# ---- who runs when


def test_each_lane_answers_with_its_own_thinking_one_after_the_other(run: Run, refer: Callable[..., str]) -> None:
    events = list(run([refer(*THINKER, name="a"), refer(*GUESSER, name="b")]))
    first, second = results(iter(events))
    assert (first.reply.thinking, first.reply.answer, first.correct) == ("7 + 8 = 15", "The answer is **85**.", True)
    assert (second.reply.thinking, second.reply.answer, second.correct) == ("", "The answer is **412**.", False)
    assert not first.is_parallel
    assert first.total_s >= first.reply.timings.first_answer_s >= first.reply.timings.first_token_s > 0.0
    begun = [each.lane for each in events if isinstance(each, LaneEvent) and isinstance(each.event, Started)]
    ended = events.index(first)
    assert begun == [0, 1]
    assert all(each.lane == 0 for each in events[:ended] if isinstance(each, LaneEvent))


def test_all_lanes_have_the_same_seed_but_those_with_one_of_their_own(run: Run, refer: Callable[..., str]) -> None:
    script = refer(*GUESSER, name="a")
    drawn = results(run([script, script, f"{script}@seed=7"]))
    assert drawn[0].seed == drawn[1].seed
    assert drawn[0].seed is not None
    assert drawn[2].seed == 7
    assert [each.seed for each in results(run([script, script], seed=11))] == [11, 11]


def test_lanes_of_one_model_share_an_engine_and_each_keeps_its_settings(run: Run, refer: Callable[..., str]) -> None:
    script = refer(*THINKER, name="a")
    events = list(run([script, f"{script}@no-think", f"{script}@ctx=512"]))
    assert [lane for lane, text in statuses(events) if text == "loading"] == [0, 2]
    began = [each.event for each in events if isinstance(each, LaneEvent) and isinstance(each.event, Started)]
    assert [each.think_state for each in began] == ["unopened", "closed", "unopened"]
    assert began[2].context_tokens == 512
    shared = results(iter(events))
    assert shared[0].reply.timings.load_s > 0.0
    assert shared[1].reply.timings.load_s == 0.0


def test_a_prompt_that_another_lane_read_is_remarked(run: Run, refer: Callable[..., str]) -> None:
    script = refer(*THINKER, name="a")
    first, second = results(run([script, f"{script}@no-think"]))
    assert first.remarks == ()
    assert "read by another lane" in second.remarks[0]


def test_over_many_prompts_each_model_is_opened_once_and_results_come_by_prompt(
    run: Run, refer: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor, "needed_together", lambda groups: (10, 100))
    prompts = [SUM, Question(prompt="And 3 + 4?", expected="7"), Question(prompt="Why?")]
    events = list(run([refer(*THINKER, name="a"), refer(*GUESSER, name="b")], prompts))
    assert [(each.prompt, each.lane, each.correct) for each in results(iter(events))] == [
        *((0, 0, True), (0, 1, False), (1, 0, False), (1, 1, False), (2, 0, None), (2, 1, None))
    ]
    assert [text for _, text in statuses(events)].count("loading") == 2


def test_what_does_not_fit_together_is_unloaded_first_and_that_is_said(
    run: Run, refer: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor, "needed_together", lambda groups: (11 * 10**9, 9 * 10**9))
    a, b = refer(*THINKER, name="a"), refer(*GUESSER, name="b")
    events = list(run([a, b, f"{a}@no-think"], [SUM, SUM]))
    order = [(each.lane, each.prompt) for each in results(iter(events))]
    assert order == [(0, 0), (2, 0), (0, 1), (2, 1), (1, 0), (1, 1)]
    told = f"{a} was unloaded before {b} is loaded: both need 11.0 GB, 9.0 GB can be used"
    said = [each for each in statuses(events) if each in ((1, told), (0, "loading"), (1, "loading"))]
    assert said == [(0, "loading"), (1, told), (1, "loading")]
    assert [each.text for each in events if isinstance(each, LaneStatus) and each.is_remark] == [told]


def test_at_once_is_marked_and_tells_no_energy(run: Run, refer: Callable[..., str]) -> None:
    minute = {"text": "on {n} ", "ids": [1], "delay": 0.02, "times": 3000}
    control = Control()
    events: list[CompareEvent] = []
    begun: set[int] = set()
    lanes_of_a_minute = [f"{refer(minute, name=name)}@loop-guard=false" for name in "ab"]
    for event in run(lanes_of_a_minute, parallel=True, control=control):
        events.append(event)
        if isinstance(event, LaneEvent) and begins(event):
            begun.add(event.lane)
            if begun == {0, 1}:
                control.cancel()
    both = results(iter(events))
    assert [each.is_parallel for each in both] == [True, True]
    assert {each.no_joules for each in both} == {"lanes that run at once can't be told apart"}
    last_begun = max(at for at, each in enumerate(events) if isinstance(each, LaneEvent) and begins(each))
    assert last_begun < min(events.index(each) for each in both)


def begins(each: LaneEvent) -> bool:
    return isinstance(each.event, Started)


def test_at_once_what_needs_more_than_there_is_is_refused_before_it_is_loaded(
    run: Run, refer: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "needed_together", lambda groups: (11 * 10**9, 9 * 10**9))
    events = run([refer(*THINKER, name="a"), refer(*GUESSER, name="b")], parallel=True)
    told: list[CompareEvent] = []
    with pytest.raises(DoesNotFit, match=r"at once they need 11\.0 GB, and 9\.0 GB can be used"):
        told += events
    assert "loading" not in [text for _, text in statuses(told)]


def test_energy_is_one_figure_for_a_reply(run: Run, refer: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter(range(0, 10**9, 2_000_000))

    def read() -> EnergyReading:
        counter = EnergyCounter(name="package-0", microjoules=next(spent), range_microjoules=10**12)
        return EnergyReading(counters=(counter,))

    monkeypatch.setattr(take, "EnergyMeter", lambda: EnergyMeter(read=read, sample_s=60.0))
    for each in results(run([refer(*THINKER, name="a"), refer(*GUESSER, name="b")])):
        assert each.joules == pytest.approx(2.0)
        assert each.no_joules == ""


# ---- downloads


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], threading.Event]:
    """Make a script one that must be fetched first; the download ends when the event returned is set."""

    def take_away(reference: str) -> threading.Event:
        came = threading.Event()
        fetched: list[Choice] = []

        def choose_without(asked: str, **wishes: Any) -> Choice:
            choice = choose(asked, **wishes)
            if asked.partition("@")[0] != reference or fetched:
                return choice
            variant = replace(choice.plans[0].variant, path=None, repo="owner/repo", file="a.gguf")
            return replace(choice, plans=(replace(choice.plans[0], variant=variant),))

        def supply(choice: Choice, *, confirm: Callable[[Offer | None], None], **wishes: Any) -> Choice:
            confirm(None)
            assert came.wait(60)
            fetched.append(choose(choice.reference, settings=choice.settings))
            return fetched[0]

        for room in (lanes, conductor):
            monkeypatch.setattr(room, "choose", choose_without)
        monkeypatch.setattr(lanes, "supplied", supply)
        return came

    return take_away


def test_while_one_is_fetched_the_other_answers(
    run: Run, refer: Callable[..., str], absent: Callable[[str], threading.Event]
) -> None:
    missing, here = refer(*THINKER, name="a"), refer(*GUESSER, name="b")
    came = absent(missing)
    events = run([missing, here, f"{missing}@no-think"])
    first = next(each for each in events if isinstance(each, LaneResult))
    assert first.lane == 1
    assert first.remarks == ("another model was being fetched meanwhile",)
    came.set()
    assert [(each.lane, each.error, bool(each.reply.answer)) for each in results(events)] == [
        (0, None, True),
        (2, None, True),
    ]


def test_a_download_that_is_declined_is_that_lanes_error_and_the_others_go_on(
    run: Run, refer: Callable[..., str], absent: Callable[[str], threading.Event]
) -> None:
    def decline(offer: Offer) -> None:
        raise Interrupted("nothing was fetched")

    missing, here = refer(*THINKER, name="a"), refer(*GUESSER, name="b")
    absent(missing)
    by_lane = {each.lane: each for each in results(run([missing, here], confirm=decline))}
    assert isinstance(by_lane[0].error, Interrupted)
    assert by_lane[1].error is None
    assert by_lane[1].correct is False


# ---- what goes wrong


def test_a_lane_that_crashes_keeps_what_it_wrote_and_the_others_go_on(run: Run, refer: Callable[..., str]) -> None:
    crash = refer({"text": "half an", "ids": [1]}, {"fault": "exit"}, name="a")
    first, second = results(run([crash, refer(*GUESSER, name="b")]))
    assert isinstance(first.error, WorkerCrashed)
    assert (first.reply.answer, first.reply.finish, first.correct) == ("half an", "error", None)
    assert (second.error, second.reply.finish) == (None, "stop")


def test_a_lane_that_does_not_load_has_its_error_for_every_prompt(run: Run, refer: Callable[..., str]) -> None:
    broken = refer(*GUESSER, name="a", setup={"load_fault": "exit"})
    found = results(run([broken, refer(*GUESSER, name="b")], [SUM, SUM]))
    assert [(each.prompt, type(each.error)) for each in found if each.lane == 0] == [
        (0, WorkerCrashed),
        (1, WorkerCrashed),
    ]
    assert all(each.error is None for each in found if each.lane == 1)


def test_a_slip_of_the_pen_ends_all_before_anything_is_loaded(run: Run, refer: Callable[..., str]) -> None:
    told: list[CompareEvent] = []
    with pytest.raises(UnknownModel):
        told += run([refer(*GUESSER, name="a"), "no-such-model"])
    with pytest.raises(UsageError, match="temprature"):
        told += run([refer(*GUESSER, name="a") + "@temprature=1"])
    assert "loading" not in [text for _, text in statuses(told)]


def test_cancel_keeps_what_is_there_and_marks_the_rest(run: Run, refer: Callable[..., str]) -> None:
    control = Control()
    found: list[LaneResult] = []
    for each in run([refer(*GUESSER, name="a"), refer(*SLOW, name="b"), refer(*GUESSER, name="c")], control=control):
        if isinstance(each, LaneEvent) and each.lane == 1 and isinstance(each.event, AnswerDelta):
            control.cancel()
        if isinstance(each, LaneResult):
            found.append(each)
    assert [(each.lane, each.reply.finish, each.reply.answer) for each in found] == [
        (0, "stop", "The answer is **412**."),
        (1, "cancelled", "one"),
        (2, "cancelled", ""),
    ]
    assert [each.correct for each in found] == [False, None, None]


def test_cancel_keeps_what_came_from_the_users_server(run: Run, refer: Callable[..., str]) -> None:
    pool = Pool(load_registry, lambda own: load_settings({}, reference_settings=own))
    link = Link(pool)
    link.start("http://127.0.0.1:11435")
    control = Control()
    found: list[LaneResult] = []
    try:
        for each in run([refer(*SLOW, name="a"), refer(*GUESSER, name="b")], control=control):
            if isinstance(each, LaneEvent) and isinstance(each.event, AnswerDelta):
                assert [running.live for running in pool.running()] == [1]
                control.cancel()
            if isinstance(each, LaneResult):
                found.append(each)
    finally:
        link.close()
        pool.close()
    assert [(each.lane, each.error, each.reply.finish, each.reply.answer) for each in found] == [
        (0, None, "cancelled", "one"),
        (1, None, "cancelled", ""),
    ]


def test_a_consumer_that_goes_away_stops_everything(run: Run, refer: Callable[..., str]) -> None:
    control = Control()
    events = run([refer(*SLOW, name="a"), refer(*GUESSER, name="b")], control=control)
    next(each for each in events if isinstance(each, LaneEvent) and isinstance(each.event, AnswerDelta))
    events.close()  # type: ignore[attr-defined]
    assert control.cancelled
    assert "compare" not in [thread.name for thread in threading.enumerate()]


def test_answer_now_ends_the_thinking_of_the_reply_under_way_alone(run: Run, refer: Callable[..., str]) -> None:
    control = Control()
    rows = [{"text": "<think>", "ids": [1]}, {"text": "hm {n} ", "ids": [2], "delay": 0.02, "times": 3000}]
    rows += [{"text": "</think>", "ids": [3]}, {"text": "85", "ids": [4], "end": "stop"}]
    found: list[LaneResult] = []
    for each in run([f"{refer(*rows, name='a')}@loop-guard=false", refer(*THINKER, name="b")], control=control):
        if isinstance(each, LaneEvent) and each.lane == 0 and isinstance(each.event, ThinkDelta):
            control.end_thinking()
        if isinstance(each, LaneResult):
            found.append(each)
    assert [each.reply.cut for each in found] == ["user", "none"]


def test_what_is_saved_is_a_conversation_for_each_reply(run: Run, refer: Callable[..., str]) -> None:
    from slm_local.store import open_store

    a, b = refer(*THINKER, name="a"), refer(*GUESSER, name="b")
    with open_store(paths().data) as store:
        list(run([a, b], [SUM, SUM], store=store))
        rows = store.chats()
        assert [(row.kind, row.turn_count) for row in rows] == [("compare", 1)] * 4
        assert {row.model for row in rows} == {a, b}
        kept = [store.chat(row.id).turns[0] for row in rows]
        assert {(turn.prompt, turn.thinking, turn.answer) for turn in kept} == {
            (SUM.prompt, "7 + 8 = 15", "The answer is **85**."),
            (SUM.prompt, "", "The answer is **412**."),
        }


# ---- what thinking bought


@pytest.mark.parametrize(
    ("table", "interval"),
    [  # Newcombe 1998, table II, method 10; Altman et al., Statistics with Confidence, 2nd edition, page 52
        ((36, 12, 2, 0), (0.2, 0.0569, 0.3404)),
        ((14, 5, 0, 22), (0.122, 0.0115, 0.2265)),
    ],
)
def test_the_interval_is_that_of_the_paper(
    table: tuple[int, int, int, int], interval: tuple[float, float, float]
) -> None:
    found = paired_difference(*table)
    assert (found.difference, found.low, found.high) == pytest.approx(interval, abs=5e-4)


@pytest.mark.parametrize("table", [(10, 0, 0, 0), (0, 10, 0, 0), (0, 0, 10, 0), (0, 0, 0, 10), (5, 0, 0, 5)])
def test_the_interval_holds_the_difference_also_at_the_edges(table: tuple[int, int, int, int]) -> None:
    found = paired_difference(*table)
    assert -1.0 <= found.low <= found.difference <= found.high <= 1.0


def result(lane: int, prompt: int, *, correct: bool | None, think_tokens: int = 0, total_s: float = 1.0) -> LaneResult:
    usage = Usage(think_tokens=think_tokens, answer_tokens=10)
    reply = Reply(thinking="", answer="", finish="stop", cut="none", usage=usage, timings=Timings())
    return LaneResult(
        lane=lane, prompt=prompt, reference="ab"[lane], seed=1, reply=reply, correct=correct, total_s=total_s
    )


def test_the_verdict_is_of_what_thinks_more_against_what_thinks_less() -> None:
    direct = [result(0, prompt, correct=prompt < 3) for prompt in range(20)]
    thinker = [result(1, prompt, correct=prompt < 18, think_tokens=100, total_s=3.0) for prompt in range(20)]
    (found,) = verdicts([*direct, *thinker])
    assert (found.reference, found.other_reference, found.pairs) == ("b", "a", 20)
    assert found.sentence == (
        "what thinking bought b against a: +75 points (18 of 20 right against 3; 95 % interval +46 to +87);"
        " what it cost: +100 tokens and +2.00 s a problem"
    )


def test_a_difference_that_may_be_chance_is_called_so() -> None:
    thinker = [result(1, prompt, correct=prompt < 6, think_tokens=9) for prompt in range(10)]
    direct = [result(0, prompt, correct=prompt < 5) for prompt in range(10)]
    (found,) = verdicts([*direct, *thinker])
    assert "which may be chance" in found.sentence


def test_prompts_that_one_lane_did_not_answer_are_left_out_and_one_pair_says_nothing() -> None:
    some = [
        result(0, 0, correct=True),
        result(0, 1, correct=None),
        result(1, 0, correct=True),
        result(1, 1, correct=True),
    ]
    assert verdicts(some) == ()
    (found,) = verdicts([*some, result(0, 2, correct=True), result(1, 2, correct=False)])
    assert found.pairs == 2
