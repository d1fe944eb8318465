"""The driver's own parts: stop strings under every chunking, waiting for a place, cancels."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slm_local.backends.scripted import ScriptedBackend
from slm_local.driver import Driver, StopText
from slm_local.errors import PromptTooLong
from slm_local.generation import AnswerDelta, Control, Done
from tests.conftest import ScriptWriter
from tests.contract.runners import ask
from tests.loading import load_settings_for


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
