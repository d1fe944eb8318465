"""What is read while nobody waits: the next prompt finds it, a request ends it at once, nothing is said of its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_local.backends import backend_named
from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.config import Settings
from slm_local.driver import Driver
from slm_local.engine import Warming, open_model
from slm_local.errors import SlmError
from slm_local.generation import (
    Control,
    Done,
    GenerationRequest,
    Message,
    Note,
    Prepared,
    Prompt,
    PromptProgress,
    Reply,
    Sampling,
    Started,
    Update,
)
from slm_local.session import ChatSession
from slm_local.system.saving import linux_saves_power, mac_saves_power
from slm_local.worker import Child, Worker
from tests.command import slm
from tests.conftest import ScriptWriter
from tests.loading import THINK_TAGS, load_settings_for

__all__ = ["slm"]

Messages = tuple[Message, ...]
CHATS = (
    ("What is 12 + 30?", "And 7 * 6?", "Thanks!"),
    ("Hello", "Tom has 5 apples and eats 2. How many are left?", "Why?"),
    ("What is 99 - 57?", "\n  What is 3 * 14?", "</think> 1 + 1?"),
)


def said(history: Messages, text: str) -> GenerationRequest:
    return GenerationRequest(messages=(*history, Message(role="user", content=text)), max_tokens=64)


def reply_to(driver: Driver, request: GenerationRequest) -> Reply:
    last = list(driver.run(request))[-1]
    assert isinstance(last, Done)
    return last.reply


def prepared(driver: Driver, history: Messages) -> Prepared:
    """Prepare what follows a history, to the end."""
    events = [event for _, event in driver.prepare(1000, said(history, ""))]
    while driver.is_busy:
        events += [event for _, event in driver.step()]
    last = events[-1]
    assert isinstance(last, Prepared)
    return last


def driver_of(backend: str, path: Path, *, context: int = 2048, folder: Path | None = None) -> Driver:
    driver = Driver(backend_named(backend))
    settings = load_settings_for(backend, path, context=context, tags=THINK_TAGS)
    settings = replace(settings, cache_dir=None if folder is None else str(folder))
    driver.load(settings, Control(), lambda fraction: None)
    return driver


@pytest.fixture
def driver(tiny_reasoner: Path) -> Iterator[Driver]:
    made = driver_of("llamacpp", tiny_reasoner)
    yield made
    made.close()


def llama(driver: Driver) -> LlamaCppBackend:
    backend = driver._backend
    assert isinstance(backend, LlamaCppBackend)
    return backend


def forget(driver: Driver) -> None:
    """Empty the KV cache."""
    cache = llama(driver)._cache
    for slot in cache.slots:
        cache.cut(slot, 0)


# ---- exactness


@pytest.mark.parametrize("chat", CHATS, ids=range(len(CHATS)))
def test_a_warm_history_gives_the_text_of_a_fresh_prefill(
    driver: Driver, tiny_reasoner: Path, chat: tuple[str, ...]
) -> None:
    fresh = driver_of("llamacpp", tiny_reasoner)
    history: Messages = ()
    held = 0
    for text in chat:
        forget(fresh)
        warm, cold = reply_to(driver, said(history, text)), reply_to(fresh, said(history, text))
        assert (warm.thinking, warm.answer) == (cold.thinking, cold.answer)
        assert (warm.usage.cached_tokens, cold.usage.cached_tokens) == (held, 0)
        history = (*said(history, text).messages, Message(role="assistant", content=warm.answer))
        state = prepared(driver, history)
        assert state.held_tokens == state.total_tokens > held
        held = state.total_tokens
    fresh.close()


def test_the_answer_is_written_anew_as_by_a_fresh_prefill(driver: Driver) -> None:
    first = reply_to(driver, said((), CHATS[0][0]))
    prepared(driver, (*said((), CHATS[0][0]).messages, Message(role="assistant", content=first.answer)))
    again = reply_to(driver, said((), CHATS[0][0]))
    assert (again.thinking, again.answer) == (first.thinking, first.answer)
    assert (again.usage.cached_tokens or 0) >= (again.usage.prompt_tokens or 0) - 4, "but for the prompt's tail"


def test_what_is_held_already_costs_no_decode(driver: Driver) -> None:
    history = (*said((), "Hello").messages, Message(role="assistant", content="Hello!"))
    prepared(driver, history)
    before = llama(driver).decoded_tokens
    assert prepared(driver, history).held_tokens
    assert llama(driver).decoded_tokens == before


# ---- a request on its way


def test_a_request_finds_what_was_read_before_it_came(driver: Driver) -> None:
    history = long_history()
    driver.prepare(1, said(history, ""))
    while not [event for _, event in driver.step() if isinstance(event, PromptProgress)]:
        pass
    driver.make_way()
    events = driver.start(2, said(history, "Go on."))
    assert [type(event) for _, event in events] == [Prepared, Started]
    over, started = events[0][1], events[1][1]
    assert isinstance(over, Prepared)
    assert isinstance(started, Started)
    assert 0 < (over.held_tokens or 0) < over.total_tokens
    assert started.cached_tokens == over.held_tokens


def test_a_request_goes_on_in_the_sequence_that_was_being_read(driver: Driver) -> None:
    history = long_history()
    driver.prepare(1, said(history, ""))
    while not [event for _, event in driver.step() if isinstance(event, PromptProgress)]:
        pass
    driver.make_way()
    driver.start(2, said(history, "Go on."))
    while driver.is_busy:
        driver.step()
    assert sum(bool(slot.cells) for slot in llama(driver)._cache.slots) == 1


def test_what_the_engine_decides_meanwhile_is_told_to_nobody(
    script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_of("scripted", script({"end": "stop"}, setup={"prefill": 8}))
    step = driver._backend.step

    def noting(control: Control) -> list[Update]:
        updates = step(control)
        return [*(Note(handle=update.handle, text="a thread fewer") for update in updates), *updates]

    monkeypatch.setattr(driver._backend, "step", noting)
    state = prepared(driver, said((), "x" * 30).messages)
    assert state.held_tokens == state.total_tokens > 0


def test_a_decode_under_way_is_aborted_and_nothing_read_before_is_lost(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request comes in the middle of a decode, as the child's reading thread would tell of it."""
    history, backend = long_history(), llama(driver)
    monkeypatch.setattr(backend._chunks, "size_at", lambda depth: 64)  # other chunks round otherwise
    driver.prepare(1, said(history, ""))
    driver.step()
    decode, statuses = backend._lib.llama_decode, list[int]()

    def interrupted(context: Any, batch: Any) -> int:
        driver.make_way()
        statuses.append(decode(context, batch))
        return statuses[-1]

    with monkeypatch.context() as patch:
        patch.setattr(backend._lib, "llama_decode", interrupted)
        assert driver.step() == []
    assert statuses == [2]
    started = driver.start(2, said(history, "Go on."))[-1][1]
    assert isinstance(started, Started)
    assert started.cached_tokens, "what the step before had read"
    while driver.is_busy:
        driver.step()
    forgotten = said(history, "Go on.")
    warm = reply_to(driver, forgotten)
    forget(driver)
    assert reply_to(driver, forgotten).answer == warm.answer


def long_history() -> Messages:
    """More tokens than are read in one step."""
    turns = [(f"What is {n} + {n}?", f"The answer is **{2 * n}**. " * 3) for n in range(10, 40)]
    return tuple(
        message
        for prompt, answer in turns
        for message in (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    )


def test_nothing_is_prepared_while_a_request_waits_or_runs(script: ScriptWriter) -> None:
    driver = driver_of("scripted", script({"text": "on", "delay": 0.01}, {"text": "on"}, {"end": "stop"}))
    driver.make_way()
    assert driver.prepare(1, said((), "a")) == [(1, Prepared(held_tokens=0, total_tokens=0))]
    driver.start(2, said((), "b"))
    assert driver.prepare(3, said((), "a")) == [(3, Prepared(held_tokens=0, total_tokens=0))]
    while driver.is_busy:
        driver.step()
    assert prepared(driver, ()).total_tokens


def test_a_history_that_leaves_no_room_is_not_read(script: ScriptWriter) -> None:
    driver = driver_of("scripted", script({"end": "stop"}, setup={"context": 40}))
    assert "40" in prepared(driver, said((), "x" * 60).messages).note


@pytest.mark.parametrize("backend", ["scripted", "llamacpp", "openvino"])
def test_a_prompt_that_is_only_read_gives_no_pieces(
    backend: str, tiny_reasoner: Path, script: ScriptWriter, tmp_path: Path
) -> None:
    path = tiny_reasoner if backend != "scripted" else script({"text": "never"}, setup={"prefill": 16})
    driver = driver_of(backend, path, folder=tmp_path)
    engine = driver._backend
    ids = engine.token_ids(driver._prompt(said(long_history()[:20], "Hello")))
    handle = engine.add(Prompt(ids=tuple(ids)), None)
    updates: list[Update] = []
    while not updates or not (isinstance(updates[-1], PromptProgress) and updates[-1].done_tokens == len(ids)):
        updates += engine.step(Control())
    assert engine.step(Control()) == []
    assert {type(update) for update in updates} == {PromptProgress}
    engine.remove(handle)
    again = engine.add(Prompt(ids=(*ids, ids[-1])), Sampling())
    assert again.cached_tokens in (len(ids), None)
    engine.remove(again)
    driver.close()


# ---- the worker, the engine, the session


@pytest.fixture
def dull(script: ScriptWriter, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that answers at once, and reads a prompt ten bytes a minute once it is longer than a first one."""
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    rows = [{"text": "yes"}, {"end": "stop"}]
    return f"scripted:{script(*rows, setup={'prefill': 10, 'prefill_delay': 60})}"


@pytest.fixture
def quick(script: ScriptWriter, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    return f"scripted:{script({'text': 'yes'}, {'end': 'stop'}, setup={'prefill': 8})}"


def test_a_request_over_the_pipe_ends_a_preparation_at_once(script: ScriptWriter, tmp_path: Path) -> None:
    path = script({"text": "yes"}, {"end": "stop"}, setup={"prefill": 30, "prefill_delay": 60})
    worker = Worker(Child(tmp_path))
    worker.load(load_settings_for("scripted", path), Control(), lambda waited, fraction: None)
    heard: list[PromptProgress | Prepared] = []
    asked = threading.Event()

    def prepare() -> None:
        events = worker.prepare(said((), "x" * 500), Control())
        asked.set()
        heard.extend(events)

    thread = threading.Thread(target=prepare)
    thread.start()
    asked.wait()
    control = Control()
    events = worker.stream(said((), "y"), control)  # would wait for minutes behind it
    assert isinstance(next(iter(events)), Started)
    thread.join(60)
    assert [type(event) for event in heard] == [Prepared]
    control.cancel()
    assert isinstance(list(events)[-1], Done)
    worker.close()


def test_closing_ends_what_is_prepared_and_does_not_wait_for_it(dull: str) -> None:
    engine = open_model(dull)
    warming = engine.prepare((Message(role="user", content="x" * 90),))
    assert warming is not None
    engine.close()
    assert warming.wait(60)
    assert engine.prepare((Message(role="user", content="x"),)) is None


def test_a_dead_engine_is_no_error_of_the_preparation(dull: str) -> None:
    with open_model(dull) as engine:
        warming = engine.prepare((Message(role="user", content="x" * 90),))
        assert warming is not None
        assert engine._worker is not None
        engine._worker.kill()
        assert warming.wait(60)
        assert warming.summary == ""


def test_a_chat_finds_its_history_read_and_a_single_run_reads_nothing(quick: str) -> None:
    with open_model(quick) as engine:
        chat = ChatSession(engine)
        list(chat.send("first"))
        assert chat.warming is not None
        assert chat.warming.wait(60)
        assert chat.warming.summary.startswith("warmed: 38 of 38 tokens are held, read in ")
        list(chat.send("second"))
        assert chat.last_reply is not None
        assert chat.last_reply.usage.cached_tokens == 38
        single = ChatSession(engine, kind="run")
        list(single.send("first"))
        assert single.warming is None


def test_who_wants_none_of_it_has_none(quick: str) -> None:
    with open_model(quick, settings=Settings(warm=False)) as engine:
        assert engine.prepare((Message(role="user", content="x"),)) is None


def test_a_machine_that_saves_power_is_left_alone(quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_local.engine.is_saving_power", lambda: True)
    with open_model(quick) as engine:
        warming = engine.prepare((Message(role="user", content="x"),))
        assert warming is not None
        assert warming.wait(60)
        assert warming.summary == "not warmed: the machine saves power"


def preparing(*events: PromptProgress | Prepared, error: SlmError | None = None) -> Callable[..., Any]:
    def run(control: Control) -> Iterator[PromptProgress | Prepared]:
        yield from events
        if error is not None:
            raise error

    return run


def test_an_error_of_the_engine_is_only_noted() -> None:
    warming = Warming(preparing(error=SlmError("it failed")), lambda: "")
    assert warming.wait(60)
    assert (warming.summary, warming.words) == ("not warmed: it failed", "")


def test_the_words_say_how_far_it_is_once_it_takes_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    reached, goes_on = threading.Event(), threading.Event()

    def slowly(control: Control) -> Iterator[PromptProgress | Prepared]:
        yield PromptProgress(done_tokens=43, total_tokens=100)
        reached.set()
        goes_on.wait(60)

    warming = Warming(slowly, lambda: "")
    reached.wait(60)
    monkeypatch.setattr("slm_local.engine.warming.SHOWN_AFTER_S", 0.0)
    assert warming.words == "warming 43 %"
    monkeypatch.setattr("slm_local.engine.warming.SHOWN_AFTER_S", 1e9)
    assert warming.words == ""
    goes_on.set()
    assert warming.wait(60)


class Awaited(Warming):
    """One that is over before anybody goes on."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.wait(60)


def test_the_plain_chat_says_what_it_read_to_those_who_ask(
    slm: Callable[..., Any], script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_local.engine.Warming", Awaited)
    model = f"scripted:{script({'text': 'yes'}, {'end': 'stop'})}"
    for flags, count in (((), 0), (("-v",), 3)):
        result = slm("chat", model, "--plain", *flags, stdin=b"one\ntwo\nthree\n")
        assert result.out == "yes\nyes\nyes\n"
        assert result.err.count("tokens are held, read in") == count


# ---- the system's own saving of power


@pytest.mark.parametrize(
    ("file", "text", "saves"),
    [
        ("firmware/acpi/platform_profile", "low-power\n", True),
        ("firmware/acpi/platform_profile", "balanced\n", False),
        ("devices/system/cpu/cpufreq/policy0/energy_performance_preference", "power\n", True),
        ("devices/system/cpu/cpufreq/policy0/energy_performance_preference", "balance_power\n", False),
        ("nothing", "", False),
    ],
)
def test_linux_saves_power_where_its_profile_says_so(tmp_path: Path, file: str, text: str, saves: bool) -> None:
    place = tmp_path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    assert linux_saves_power(tmp_path) is saves


def test_macos_saves_power_where_its_list_says_so() -> None:
    assert mac_saves_power("System-wide power settings:\n lowpowermode         1\n")
    assert not mac_saves_power(" lowpowermode         0\n hibernatemode 1\n")
    assert not mac_saves_power("")
