"""The driver's own parts: stop strings under every chunking, waiting for a place, cancels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_local.backends.scripted import ScriptedBackend
from slm_local.driver import Driver, DriverEvent, StopText
from slm_local.errors import PromptTooLong
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    PromptProgress,
    Started,
    StreamEvent,
    ThinkDelta,
)
from slm_local.governor import NUDGE
from slm_local.reasoning import derive_tags
from tests.conftest import ScriptWriter
from tests.contract.runners import Heard, ask
from tests.governed import BRIDGE, CASES, END, OPEN, VARIED, Case
from tests.loading import THINK_TAGS, load_settings_for


def through(stops: tuple[str, ...], chunks: list[str]) -> tuple[str, bool]:
    stopper = StopText(stops)
    text = "".join(stopper.feed(chunk) for chunk in chunks)
    return text + stopper.flush(), stopper.found


@given(
    text=st.text(alphabet="ab\n", max_size=40),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(min_value=0, max_value=40), max_size=10),
)
def test_a_text_ends_at_the_first_stop_string_whatever_its_chunks(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    chunks = [text[a:b] for a, b in pairwise(edges)]
    # the stop that is complete first ends the text, as a reader of single characters would see it
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    first_end = min((end for end, _ in ends), default=None)
    expected = text if first_end is None else text[: min(at for end, at in ends if end == first_end)]
    assert through(tuple(stops), list(text)) == (expected, first_end is not None)
    assert through(tuple(stops), chunks) == (expected, first_end is not None)


def test_text_that_only_begins_a_stop_string_is_not_lost() -> None:
    assert through(("</end>",), ["abc</e", "nx", "</en"]) == ("abc</enx</en", False)
    assert through((), ["abc"]) == ("abc", False)


def test_more_requests_than_places_wait_and_are_all_answered(script: ScriptWriter) -> None:
    path = script(*[{"text": f"{n} "} for n in range(40)], {"end": "stop"})
    driver = Driver(ScriptedBackend())
    driver.load(load_settings_for("scripted", path), Control(), lambda fraction: None)
    started = [driver.start(number, ask("go", max_tokens=3)) for number in range(7)]
    assert [bool(events) for events in started] == [True] * 4 + [False] * 3
    done = set()
    while driver.is_busy:
        done |= {number for number, event in driver.step() if isinstance(event, Done)}
    assert done == set(range(7))


def test_usage_says_how_much_was_shared_even_when_the_one_that_read_it_was_cancelled(script: ScriptWriter) -> None:
    driver = Driver(ScriptedBackend())
    path = script({"text": "yes"}, {"end": "stop"})
    driver.load(load_settings_for("scripted", path, context=16_384), Control(), lambda fraction: None)
    question = ask("x" * 9000)
    driver.start(1, question)
    events = driver.start(2, question) + driver.step()
    driver.cancel(1)
    while driver.is_busy:
        events += driver.step()
    heard = Heard([event for number, event in events if number == 2 and isinstance(event, StreamEvent)])
    assert heard.started.cached_tokens == (heard.started.prompt_tokens or 0) - 1
    assert heard.reply.usage.cached_tokens == 4096  # what one step read


def test_a_request_cancelled_while_it_waits_ends_without_having_run(script: ScriptWriter) -> None:
    path = script(*[{"text": f"{n} "} for n in range(40)], {"end": "stop"})
    driver = Driver(ScriptedBackend())
    driver.load(load_settings_for("scripted", path), Control(), lambda fraction: None)
    for number in range(5):
        driver.start(number, ask("go", max_tokens=3))
    driver.cancel(4)
    replies = {}
    texts: dict[int, str] = {}
    while driver.is_busy:
        for number, event in driver.step():
            if isinstance(event, Done):
                replies[number] = event.reply
            if isinstance(event, AnswerDelta):
                texts[number] = texts.get(number, "") + event.text
    assert replies[4].finish == "cancelled"
    assert 4 not in texts
    assert replies[0].finish == "length"


def test_a_request_cancelled_while_the_backend_computes_is_over_before_the_step_is(script: ScriptWriter) -> None:
    early: list[tuple[int, DriverEvent]] = []

    @contextmanager
    def computing() -> Iterator[None]:
        if steps == 3:  # as another thread would
            driver.cancel(1)
            early.extend(driver.end_cancelled())
        yield

    steps = 0
    driver = Driver(ScriptedBackend(), computing=computing)
    path = script(*[{"text": f"{n} "} for n in range(9)], {"end": "stop"})
    driver.load(load_settings_for("scripted", path), Control(), lambda fraction: None)
    events = driver.start(1, ask("go")) + driver.start(2, ask("go"))
    while driver.is_busy:
        steps += 1
        events += driver.step()
    heard = Heard([event for number, event in events + early if number == 1 and isinstance(event, StreamEvent)])
    assert isinstance(early[-1][1], Done)
    assert early[-1] not in events
    assert heard.reply.finish == "cancelled"
    assert heard.reply.answer == heard.answer
    assert heard.reply.usage.answer_tokens == 1
    (other,) = [event.reply for number, event in events if number == 2 and isinstance(event, Done)]
    assert other.finish == "stop"
    assert other.usage.answer_tokens == 9


def test_a_refused_request_takes_no_other_requests_end_with_it(script: ScriptWriter) -> None:
    path = script({"text": "on"}, {"end": "stop"})
    driver = Driver(ScriptedBackend())
    driver.load(load_settings_for("scripted", path, context=200), Control(), lambda fraction: None)
    driver.start(1, ask("go"))
    driver.cancel(1)
    events = dict(driver.start(2, ask("x" * 400)))
    assert isinstance(events[1], Done)
    assert isinstance(events[2], PromptTooLong)
    assert not driver.is_busy


# ---- the governor at work


class Clock:
    """A clock that goes on by a second at every look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def thinker(path: Path, *, context: int = 4096, bridge: str | None = None) -> Driver:
    driver = Driver(ScriptedBackend(), clock=Clock())
    settings = replace(load_settings_for("scripted", path, context=context, tags=THINK_TAGS), bridge=bridge)
    driver.load(settings, Control(), lambda fraction: None)
    return driver


def thought(**limits: object) -> GenerationRequest:
    return replace(ask("go", max_tokens=None), **limits)  # type: ignore[arg-type]


def hear(driver: Driver, request: GenerationRequest, control: Control | None = None) -> Heard:
    return Heard(list(driver.run(request, control)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whatever_a_model_does_it_comes_to_the_end_that_was_promised(case: Case, script: ScriptWriter) -> None:
    request = thought(think_tokens=case.think_tokens, max_tokens=case.max_tokens)
    heard = hear(thinker(script(*case.rows)), request)
    reply, usage = heard.reply, heard.reply.usage
    assert (reply.finish, reply.cut) == (case.finish, case.cut)
    assert reply.thinking.endswith(case.thinking_end)
    assert reply.answer == (reply.answer if case.answer is None else case.answer)
    assert (heard.thinking, heard.answer.rstrip()) == (reply.thinking, reply.answer.rstrip())
    generated = (usage.think_tokens or 0) + (usage.answer_tokens or 0)
    assert generated <= (case.max_tokens or 4096)
    if case.think_tokens is not None:
        assert (usage.think_tokens or 0) - (usage.tag_tokens or 0) - (usage.injected_tokens or 0) <= case.think_tokens


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 4, 5, 6, 7])
def test_a_budget_that_falls_into_the_closing_tag_leaves_its_beginning_in_the_thinking(
    budget: int, script: ScriptWriter
) -> None:
    own = ("a ", "b", "</", "think", ">")
    driver = thinker(
        script(*({"text": text} for text in own), {"text": "c", "end": "stop"}, {"text": "c", "end": "stop"})
    )
    reply = hear(driver, thought(think="on", think_tokens=budget)).reply
    usage = reply.usage
    assert (usage.think_tokens or 0) - (usage.tag_tokens or 0) - (usage.injected_tokens or 0) <= budget
    assert reply.answer == "c"
    if budget > 4:
        assert (reply.cut, reply.thinking, usage.tag_tokens, usage.injected_tokens) == ("none", "a b", 3, 0)
    else:
        assert reply.cut == "budget"
        assert reply.thinking == ("".join(own[:budget]) + " " + BRIDGE).lstrip()


def test_a_bridge_of_ones_own_is_injected_and_marked(script: ScriptWriter) -> None:
    driver = thinker(script(OPEN, {"text": VARIED, "times": 90}, END, {"text": "c", "end": "stop"}), bridge=" So:")
    heard = hear(driver, thought(think_tokens=1))
    injected = [event for event in heard.events if isinstance(event, ThinkDelta) and event.injected]
    assert "".join(event.text for event in injected) == " So:\n"
    assert heard.reply.usage.injected_tokens == len(" So:\n</think>\n\n")


def test_a_nudge_is_counted_but_seen_nowhere(script: ScriptWriter) -> None:
    rows = (OPEN, {"text": "hm</think>"}, {"text": "\n\n", "end": "stop"}, {"text": " 42", "end": "stop"})
    heard = hear(thinker(script(*rows)), thought())
    usage = heard.reply.usage
    assert (heard.thinking, heard.answer, heard.reply.answer) == ("hm", "42", "42")
    assert usage.injected_tokens == len(NUDGE)
    assert usage.think_tokens == 2 + len(NUDGE)
    assert usage.answer_tokens == 2


def test_a_model_without_tags_may_say_nothing(script: ScriptWriter) -> None:
    driver = Driver(ScriptedBackend())
    driver.load(load_settings_for("scripted", script(END, {"text": "b", "end": "stop"})), Control(), lambda _: None)
    assert hear(driver, thought()).reply.finish == "empty"


def test_an_answer_that_a_stop_string_ends_at_once_is_not_nudged(script: ScriptWriter) -> None:
    driver = thinker(script(OPEN, {"text": "hm</think>"}, {"text": "STOP it"}, END, {"text": "b", "end": "stop"}))
    reply = hear(driver, thought(stop=("STOP",))).reply
    assert (reply.finish, reply.answer, reply.usage.injected_tokens) == ("empty", "", 0)


def test_thinking_ends_when_its_time_is_over(script: ScriptWriter) -> None:
    driver = thinker(script(OPEN, {"text": VARIED, "times": 900}, END, {"text": "c", "end": "stop"}))
    reply = hear(driver, thought(think_s=40.0)).reply
    assert (reply.cut, reply.finish, reply.answer) == ("time", "stop", "c")
    assert 15 < reply.thinking.count("idea") < 25  # two looks at the clock a token


# ---- answer now


def hurried(driver: Driver, request: GenerationRequest, after: type[StreamEvent]) -> Iterator[StreamEvent]:
    """Ask for the answer at the first event of a kind."""
    control = Control()
    for event in driver.run(request, control):
        yield event
        if isinstance(event, after):
            control.end_thinking()


def test_a_wish_for_the_answer_ends_thinking_before_the_next_token(script: ScriptWriter) -> None:
    driver = thinker(script(OPEN, {"text": "idea {n}, ", "times": 900}, END, {"text": "c", "end": "stop"}))
    heard = Heard(list(hurried(driver, thought(), ThinkDelta)))
    assert (heard.reply.cut, heard.reply.answer) == ("user", "c")
    assert heard.thinking == "idea 1,  " + BRIDGE


@pytest.mark.parametrize("moment", [Started, PromptProgress])
def test_a_wish_before_the_first_token_is_a_budget_of_nothing(moment: type[StreamEvent], script: ScriptWriter) -> None:
    driver = thinker(script({"text": "idea"}, END, {"text": "c", "end": "stop"}), context=20_000)
    request = replace(ask("long " * 2000, max_tokens=None), think="on")
    heard = Heard(list(hurried(driver, request, moment)))
    assert (heard.reply.cut, heard.thinking, heard.answer) == ("user", BRIDGE, "c")
    kinds = [type(event) for event in heard.events]
    assert PromptProgress not in kinds[kinds.index(ThinkDelta) :]
    control = Control()
    control.end_thinking()
    driver = thinker(script({"text": "idea"}, END, {"text": "c", "end": "stop"}))
    assert hear(driver, thought(think="on"), control).thinking == BRIDGE


def test_a_wish_that_comes_too_late_changes_nothing(script: ScriptWriter) -> None:
    driver = thinker(script(OPEN, {"text": "hm"}, {"text": "</think>"}, {"text": "a "}, {"text": "b"}, END))
    heard = Heard(list(hurried(driver, thought(), AnswerDelta)))
    assert (heard.reply.cut, heard.answer, heard.reply.usage.injected_tokens) == ("none", "a b", 0)
    driver.end_thinking(1)
    assert hear(driver, thought()).reply.cut == "none"


def test_a_wish_for_one_request_leaves_the_others_thinking(script: ScriptWriter) -> None:
    rows = ({"text": "<think>"}, {"text": "<think>"}, {"text": VARIED, "times": 60}, END)
    driver = thinker(script(*rows))
    for number in (1, 2):
        driver.start(number, thought(max_tokens=300))
    driver.end_thinking(2)
    cuts: dict[int, str] = {}
    while driver.is_busy:
        cuts |= {number: event.reply.cut for number, event in driver.step() if isinstance(event, Done)}
    assert cuts[2] == "user"
    assert cuts[1] != "user"


@pytest.mark.parametrize("more", [{}, {"think_tokens": 3}])
def test_when_the_answer_begins_all_tokens_of_thinking_were_told(script: ScriptWriter, more: dict[str, int]) -> None:
    driver = thinker(script(OPEN, {"text": "one "}, *[{"text": f"{at} "} for at in range(5)], END, {"text": "b"}))
    heard = hear(driver, thought(**more))
    kinds = [type(event) for event in heard.events]
    before = heard.events[: kinds.index(AnswerDelta)]
    told = sum(event.tokens for event in before if isinstance(event, ThinkDelta))
    assert told == heard.reply.usage.think_tokens
    assert (heard.reply.usage.tag_tokens or 0) + (heard.reply.usage.injected_tokens or 0) > 1


# ---- the room for the answer


def test_a_prompt_that_leaves_less_than_the_answers_room_is_refused_with_all_counts(script: ScriptWriter) -> None:
    driver = thinker(script(OPEN, {"text": "hm</think>ok", "end": "stop"}), context=800)
    with pytest.raises(PromptTooLong) as caught:
        hear(driver, replace(ask("x" * 700, max_tokens=None)))
    assert "holds 800, 100 of them for the answer and 42 to end thinking" in caught.value.message
    assert caught.value.exit_code == 6
    assert not driver.is_busy
    assert hear(driver, replace(ask("x" * 700, max_tokens=None), think="off")).started.think_tokens is None


def test_a_prompt_that_leaves_less_than_the_budget_says_what_is_left(script: ScriptWriter) -> None:
    driver = thinker(script(OPEN, {"text": VARIED, "times": 900}, END, {"text": "c", "end": "stop"}), context=800)
    heard = hear(driver, replace(ask("x" * 500, max_tokens=None), think_tokens=400))
    assert heard.started.prompt_tokens is not None
    assert heard.started.think_tokens == 800 - heard.started.prompt_tokens - 100 - 42
    assert (heard.reply.cut, heard.answer) == ("context", "c")
    assert hear(driver, thought(think_tokens=400)).started.think_tokens == 400


def test_a_longer_answer_can_be_given_its_room(script: ScriptWriter) -> None:
    rows = (OPEN, {"text": VARIED, "times": 900}, END, {"text": VARIED, "times": 900}, END)
    reply = hear(thinker(script(*rows)), thought(max_tokens=500, answer_reserve=400)).reply
    assert (reply.finish, reply.cut) == ("length", "max_tokens")
    assert reply.usage.answer_tokens == 400


def test_a_limit_too_small_to_end_thinking_ends_the_reply(script: ScriptWriter) -> None:
    reply = hear(
        thinker(script(OPEN, {"text": "hm "}, {"text": "so "}, {"text": "or "}, END)), thought(max_tokens=3)
    ).reply
    assert (reply.finish, reply.cut, reply.thinking) == ("length", "max_tokens", "hm so ")


# ---- the splitter's rules hold


@pytest.mark.parametrize(
    ("rows", "thinking", "answer"),
    [
        (("<think>a", "</", "thi", "nk>", "b"), "a", "b"),
        (("<think>a</think>", "b ", "<think>", "c", "</think>"), "a", "b <think>c</think>"),
        (("<think>a</think>", "```\n", "</think>", "\n```"), "a", "```\n</think>\n```"),
        (("So ", "<think>", "a", "</think>", "b"), "", "So <think>a</think>b"),
        (("just ", "an answer"), "", "just an answer"),
    ],
)
def test_the_splitters_rules_hold_under_a_budget(
    rows: tuple[str, ...], thinking: str, answer: str, script: ScriptWriter
) -> None:
    heard = hear(thinker(script(*({"text": text} for text in rows), END)), thought(think_tokens=4, think_s=60.0))
    assert (heard.reply.thinking, heard.reply.answer, heard.reply.cut) == (thinking, answer, "none")


@pytest.mark.parametrize("mark", ["[THINK]", "<seed:think>", "<|channel|>analysis<|message|>"])
def test_other_families_of_tags_are_governed_as_data(mark: str, script: ScriptWriter) -> None:
    tags = derive_tags(mark, lambda _: False)
    assert tags is not None
    texts = (tags.open, "a", "b", tags.close + tags.answer_open)
    path = script(*({"text": text} for text in texts), {"text": "Paris.", "end": "stop"})
    driver = Driver(ScriptedBackend())
    driver.load(load_settings_for("scripted", path, tags=tags), Control(), lambda _: None)
    cut = hear(driver, thought(think_tokens=2)).reply
    assert (cut.cut, cut.answer) == ("budget", "Paris.")
    assert cut.thinking.startswith("ab Enough thinking, I answer now.")
    free = hear(driver, thought(think_tokens=9)).reply
    assert (free.cut, free.thinking, free.answer) == ("none", "ab", "Paris.")


def test_raw_ids_are_not_governed(script: ScriptWriter) -> None:
    driver = thinker(script({"text": "wait ", "times": 500}, END))
    reply = hear(driver, GenerationRequest(prompt_ids=(1, 2, 3), think_tokens=0)).reply
    assert (reply.finish, reply.usage.answer_tokens, reply.usage.injected_tokens) == ("stop", 501, 0)
