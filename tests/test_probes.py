"""Probes beside a thought: they end it when its answer has settled, and change nothing else of any reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.driver import Driver
from slm_local.driver.probes import MOST_TOKENS
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    PromptProgress,
    Reply,
    StreamEvent,
    ThinkDelta,
    Usage,
)
from slm_local.governor.convergence import LEAD, ExitRule
from slm_local.reasoning import derive_tags
from tests.conftest import ScriptWriter
from tests.contract.runners import Heard, ask
from tests.governed import ANSWER, BRIDGE, CASES, END, OPEN, Case, Row
from tests.loading import THINK_TAGS, load_settings_for
from tests.probed import ANSWERED, IDEA, ForkingBackend

RULE = ExitRule(same_answers=3, least_spacing=16, most_spacing=16)
NEVER = replace(RULE, same_answers=10**9)
THOUGHT = (OPEN, IDEA, {"text": "</think>"}, END, ANSWER)
ENDLESS = ("x ",) * 1000
CLOSING = " " + BRIDGE + "</think>\n\n"


def thinker(backend: ForkingBackend, path: Path, *, rule: ExitRule = RULE, context: int = 100_000) -> Driver:
    driver = Driver(backend, exit_rule=rule)
    driver.load(load_settings_for("scripted", path, context=context, tags=THINK_TAGS), Control(), lambda _: None)
    return driver


def wish(**more: object) -> GenerationRequest:
    return replace(ask("go", max_tokens=None), **{"early_exit": True, **more})  # type: ignore[arg-type]


def hear(driver: Driver, request: GenerationRequest) -> Heard:
    return Heard(list(driver.run(request)))


def told(events: list[StreamEvent]) -> list[StreamEvent]:
    """Return the events without what a clock or a probe may change: the timings and the probes' counts."""
    return [_told(event) if isinstance(event, Done) else event for event in events]


def _told(event: Done) -> Done:
    usage = replace(event.reply.usage, probes=0, probe_tokens=0)
    return Done(reply=replace(event.reply, usage=usage, timings=None))  # type: ignore[arg-type]


def test_the_same_answer_three_times_in_a_row_ends_thinking(script: ScriptWriter) -> None:
    backend = ForkingBackend((" **41", "**."), ANSWERED)
    heard = hear(thinker(backend, script(*THOUGHT)), wish())
    reply = heard.reply
    assert (reply.cut, reply.finish, reply.answer) == ("converged", "stop", "It is 42.")
    assert heard.thinking == reply.thinking
    assert reply.thinking.endswith(BRIDGE)
    assert "**" not in heard.thinking + heard.answer
    assert backend.given == [CLOSING + LEAD] * 4
    assert (reply.usage.probes, reply.usage.probe_tokens) == (4, 4 * (len(CLOSING + LEAD) + 2))
    assert 4 * 16 <= reply.thinking.count("idea") <= 4 * 16 + 4


def test_answers_that_differ_let_it_think_to_its_end(script: ScriptWriter) -> None:
    backend = ForkingBackend(*((f" **{number}", "**") for number in range(100)))
    reply = hear(thinker(backend, script(*THOUGHT)), wish()).reply
    assert (reply.cut, reply.thinking.count("idea"), reply.usage.injected_tokens) == ("none", 400, len("Answer:"))
    assert (reply.usage.probes or 0) > 20


def test_a_probe_that_comes_to_no_answer_in_its_tokens_is_no_answer(script: ScriptWriter) -> None:
    backend = ForkingBackend(ANSWERED, ANSWERED, ENDLESS, ANSWERED, ANSWERED, ENDLESS)
    reply = hear(thinker(backend, script(*THOUGHT)), wish()).reply
    assert reply.cut == "none"
    assert (reply.usage.probe_tokens or 0) <= (reply.usage.probes or 0) * (len(CLOSING + LEAD) + MOST_TOKENS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_probes_that_never_settle_it_change_not_one_event(case: Case, script: ScriptWriter) -> None:
    request = wish(think_tokens=case.think_tokens, max_tokens=case.max_tokens)
    path = script(*case.rows)
    plain = hear(thinker(ForkingBackend(), path, context=4096), replace(request, early_exit=False))
    probed = hear(thinker(ForkingBackend(ANSWERED), path, rule=NEVER, context=4096), request)
    assert told(probed.events) == told(plain.events)
    assert plain.reply.usage.probes == 0


def test_a_long_thought_with_many_probes_is_word_for_word_the_same(script: ScriptWriter) -> None:
    path = script(*THOUGHT)
    backend = ForkingBackend(ANSWERED, ENDLESS, ("<think>", "</think>", "\n"))
    probed = hear(thinker(backend, path, rule=NEVER), wish())
    assert told(probed.events) == told(hear(thinker(ForkingBackend(), path), wish(early_exit=False)).events)
    assert (probed.reply.usage.probes or 0) > 10
    assert (backend.live_forks, backend.removed) == (0, len(backend.given))


@pytest.mark.parametrize("budget", [1, 15, 16, 17, 40, 64])
def test_the_budget_holds_beside_probes(budget: int, script: ScriptWriter) -> None:
    backend = ForkingBackend(ENDLESS)
    reply = hear(thinker(backend, script(*THOUGHT)), wish(think_tokens=budget)).reply
    assert (reply.cut, thought_tokens(reply.usage)) == ("budget", budget)
    assert bool(backend.given) == (budget > 16)
    assert (backend.live_forks, backend.removed) == (0, len(backend.given))


def thought_tokens(usage: Usage) -> int:
    return (usage.think_tokens or 0) - (usage.tag_tokens or 0) - (usage.injected_tokens or 0)


def test_the_limit_of_tokens_counts_no_probes(script: ScriptWriter) -> None:
    reply = hear(thinker(ForkingBackend(ANSWERED), script(*THOUGHT), rule=NEVER), wish(max_tokens=300)).reply
    assert (reply.usage.probe_tokens or 0) > 300
    assert reply.cut == "max_tokens"
    assert (reply.usage.think_tokens or 0) + (reply.usage.answer_tokens or 0) <= 300


def until_a_probe(driver: Driver, backend: ForkingBackend, number: int = 1) -> None:
    """Step until a request thinks with a probe beside it."""
    driver.start(number, wish())
    while not backend.live_forks:
        driver.step()


def test_a_probe_ends_with_its_request(script: ScriptWriter) -> None:
    backend = ForkingBackend(ENDLESS)
    driver = thinker(backend, script(*THOUGHT))
    until_a_probe(driver, backend)
    driver.cancel(1)
    events = [event for _, event in driver.step()]
    assert isinstance(events[-1], Done)
    assert (events[-1].reply.finish, backend.live_forks, driver.is_busy) == ("cancelled", 0, False)


def test_a_probe_ends_when_the_answer_is_wanted_now(script: ScriptWriter) -> None:
    backend = ForkingBackend(ENDLESS)
    driver = thinker(backend, script(*THOUGHT))
    until_a_probe(driver, backend)
    driver.end_thinking(1)
    driver.step()
    assert backend.live_forks == 0
    assert last_reply(driver).cut == "user"


def test_a_probe_ends_with_the_thought_that_ends_by_itself(script: ScriptWriter) -> None:
    backend = ForkingBackend(ENDLESS)
    rows: tuple[Row, ...] = (OPEN, {**IDEA, "times": 17}, {"text": "</think>"}, {"text": "so ", "times": 9}, ANSWER)
    driver = thinker(backend, script(*rows))
    until_a_probe(driver, backend)
    while not any(isinstance(event, AnswerDelta) for _, event in driver.step()):
        pass
    driver.step()
    assert (backend.live_forks, backend.removed, driver.is_busy) == (0, 1, True)


def test_probes_are_forgotten_with_all_requests(script: ScriptWriter) -> None:
    backend = ForkingBackend(ENDLESS)
    driver = thinker(backend, script(*THOUGHT))
    until_a_probe(driver, backend)
    assert driver.abandon() == [1]
    assert backend.live_forks == 0


def last_reply(driver: Driver) -> Reply:
    replies = [
        event.reply
        for _ in iter(lambda: driver.is_busy, False)
        for _, event in driver.step()
        if isinstance(event, Done)
    ]
    return replies[-1]


# ---- never at another request's cost


def test_where_no_place_is_free_it_thinks_on(script: ScriptWriter) -> None:
    backend = ForkingBackend(places=0)
    reply = hear(thinker(backend, script(*THOUGHT)), wish()).reply
    assert backend.asked > 1
    assert (reply.cut, reply.usage.probes, reply.usage.probe_tokens) == ("none", 0, 0)


def test_a_prompt_takes_the_room_of_a_probe(script: ScriptWriter) -> None:
    backend = ForkingBackend(ENDLESS)
    driver = thinker(backend, script(*THOUGHT), context=2000)
    until_a_probe(driver, backend)
    driver.start(2, ask("x" * 1900))
    driver.step()
    assert (backend.live_forks, backend.removed) == (0, 1)


def test_no_probe_begins_while_a_prompt_is_read(script: ScriptWriter) -> None:
    backend = ForkingBackend(("5.", "\n"))
    driver = thinker(backend, script(*THOUGHT), rule=NEVER)
    until_a_probe(driver, backend)
    tried = len(backend.given)
    driver.start(2, replace(ask("long " * 18_000, max_tokens=None)))
    reading = True
    while reading:
        assert len(backend.given) == tried
        updates = [event for _, event in driver.step() if isinstance(event, PromptProgress)]
        reading = not updates or updates[-1].done_tokens < updates[-1].total_tokens


def test_where_the_context_has_no_room_for_a_probe_nothing_is_tried(script: ScriptWriter) -> None:
    rows = (OPEN, {**IDEA, "times": 900}, END, ANSWER)
    backend = ForkingBackend(ANSWERED)
    driver = thinker(backend, script(*rows), rule=NEVER, context=500)
    held: list[int] = []
    driver.start(1, wish(answer_reserve=1))
    while driver.is_busy:
        before = len(backend.given)
        for _, event in driver.step():
            held += [event.tokens] if isinstance(event, ThinkDelta) else []
        if len(backend.given) > before:
            assert sum(held) + len(CLOSING + LEAD) + 2 * MOST_TOKENS <= 500
    assert backend.given


# ---- where there is nothing to probe


@pytest.mark.parametrize(
    "request_of", [lambda: wish(think="off"), lambda: replace(wish(), messages=(), prompt_ids=(1, 2))]
)
def test_without_thinking_nothing_is_tried(request_of: Callable[[], GenerationRequest], script: ScriptWriter) -> None:
    backend = ForkingBackend()
    reply = hear(thinker(backend, script(IDEA, END)), request_of()).reply
    assert (backend.given, reply.usage.probes) == ([], 0)


def test_an_engine_that_can_not_fork_thinks_to_the_end(script: ScriptWriter) -> None:
    backend = ForkingBackend()
    backend.capabilities = frozenset({"cached_tokens"})
    assert hear(thinker(backend, script(*THOUGHT)), wish()).reply.cut == "none"
    assert backend.given == []


@pytest.mark.parametrize("mark", ["[THINK]", "<seed:think>", "<|channel|>analysis<|message|>"])
def test_other_families_of_tags_are_probed_as_data(mark: str, script: ScriptWriter) -> None:
    tags = derive_tags(mark, lambda _: False)
    assert tags is not None
    backend = ForkingBackend(ANSWERED)
    driver = Driver(backend, exit_rule=RULE)
    path = script({"text": tags.open}, IDEA, {"text": tags.close + tags.answer_open}, ANSWER)
    driver.load(load_settings_for("scripted", path, context=100_000, tags=tags), Control(), lambda _: None)
    reply = hear(driver, wish()).reply
    assert (reply.cut, reply.answer) == ("converged", "It is 42.")
    assert all(given.endswith(tags.answer_open + LEAD) and tags.close in given for given in backend.given)
