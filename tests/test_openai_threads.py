"""A remote engine in threads of this process: cancels, hanging servers, several streams, and that nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from slm_local.errors import Interrupted, RemoteFailed, WorkerCrashed
from slm_local.generation import AnswerDelta, Control, Done, GenerationRequest, Started, StreamEvent
from slm_local.worker import Threads, Worker
from tests.contract.runners import Heard, ask
from tests.fake_engine import DONE, Answer, FakeEngine, Json, Route, delta, fake_engine, finish, says, usage
from tests.test_openai import settings_for
from tests.test_worker import wait_until

SOON_S = 60.0
"""Nothing here takes a second; what hangs is to fail, not to hang the suite."""


class Gate:
    """Where a stream of the server waits until the test lets it go on, and says that it got there."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(SOON_S)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """See that every thread of ours is gone."""
    before = set(threading.enumerate())
    yield
    for each in set(threading.enumerate()) - before:
        if each.name.startswith("slm-"):
            each.join(SOON_S)
            assert not each.is_alive(), each.name


def opened(engine: FakeEngine) -> Worker:
    worker = Worker(Threads())
    worker.load(settings_for(engine), Control(), lambda waited, fraction: None)
    return worker


def cancel_at(gate: Gate, control: Control) -> None:
    """Cancel, in a thread of its own, once the server is at the gate."""

    def cancel() -> None:
        assert gate.reached.wait(SOON_S)
        control.cancel()

    threading.Thread(target=cancel, daemon=True).start()


def endless(gate: Gate) -> Route:
    """Say a word, wait, then go on until the client goes away."""

    def words() -> Iterator[object]:
        yield delta(content="one ")
        yield gate
        while True:
            yield delta(content="more ")

    return lambda body: Answer(chunks=words())  # type: ignore[arg-type]


def test_a_cancel_in_mid_stream_keeps_what_came_and_closes_the_connection(gate: Gate) -> None:
    with fake_engine(v1__chat__completions=endless(gate)) as engine:
        worker = opened(engine)
        control = Control()
        events: list[StreamEvent] = []
        for event in worker.stream(ask("?", max_tokens=None), control):
            events.append(event)
            if isinstance(event, AnswerDelta):
                control.cancel()
        heard = Heard(events)
        assert (heard.reply.finish, heard.reply.answer) == ("cancelled", "one ")
        gate.opened.set()
        assert engine.hung_up.acquire(timeout=SOON_S)
        engine.routes["/v1/chat/completions"] = says(delta(content="ok"), finish())
        assert Heard(list(worker.stream(ask("?"), Control()))).answer == "ok"
        worker.close()


def test_a_cancel_while_the_server_has_not_even_answered_ends_at_once(gate: Gate) -> None:
    def silent(body: Json) -> Answer:
        gate()
        return Answer(chunks=[DONE])

    with fake_engine(v1__chat__completions=silent) as engine:
        worker = opened(engine)
        control = Control()
        cancel_at(gate, control)
        heard = Heard(list(worker.stream(ask("?"), control)))
        assert (heard.reply.finish, heard.reply.answer) == ("cancelled", "")
        assert worker.is_alive
        gate.opened.set()
        worker.close()


def test_closing_while_a_request_hangs_leaves_nothing(gate: Gate) -> None:
    with fake_engine(v1__chat__completions=endless(gate)) as engine:
        worker = opened(engine)
        stream = worker.stream(ask("?"), Control())
        assert isinstance(next(stream), Started)
        assert gate.reached.wait(SOON_S)
        worker.close()
        wait_until(lambda: not worker.is_alive)
        with pytest.raises(WorkerCrashed):
            list(stream)


def test_killing_while_a_request_hangs_leaves_nothing(gate: Gate) -> None:
    with fake_engine(v1__chat__completions=endless(gate)) as engine:
        worker = opened(engine)
        stream = worker.stream(ask("?"), Control())
        assert isinstance(next(stream), Started)
        worker.kill()
        with pytest.raises(WorkerCrashed):
            list(stream)


def test_loading_is_stopped_while_the_server_says_nothing(gate: Gate) -> None:
    def silent(body: Json) -> Answer:
        gate()
        return Answer({"data": []})

    with fake_engine(v1__models=silent) as engine:
        worker, control = Worker(Threads()), Control()
        cancel_at(gate, control)
        with pytest.raises(Interrupted):
            worker.load(settings_for(engine), control, lambda waited, fraction: None)
        assert not worker.is_alive or worker._channel.wait(SOON_S)
        gate.opened.set()


def test_a_load_that_fails_leaves_nothing_and_says_why() -> None:
    with fake_engine(v1__models=lambda body: Answer({"error": "no"}, 500)) as engine:
        worker = Worker(Threads())
        with pytest.raises(RemoteFailed, match="answers 500"):
            worker.load(settings_for(engine), Control(), lambda waited, fraction: None)


def test_streams_at_once_are_not_mixed_and_one_that_hangs_holds_up_no_other(gate: Gate) -> None:
    together = threading.Barrier(8)

    def answers(body: Json) -> Answer:
        name = body["messages"][-1]["content"]
        if name == "hang":
            return endless(gate)(body)
        words = [delta(content=f"{name}{n} ") for n in range(40)]
        return Answer(chunks=[words[0], lambda: together.wait(SOON_S), *words[1:], finish(), usage(3, 40), DONE])

    def hear(name: str) -> str:
        return Heard(list(worker.stream(ask(name, max_tokens=None), Control()))).answer

    with fake_engine(v1__chat__completions=answers) as engine, ThreadPoolExecutor(8) as pool:
        worker = opened(engine)
        hanging = worker.stream(ask("hang"), Control())
        next(hanging)
        names = [f"s{n}-" for n in range(8)]
        assert list(pool.map(hear, names)) == ["".join(f"{name}{n} " for n in range(40)) for name in names]
        hanging.close()  # type: ignore[attr-defined]
        gate.opened.set()
        assert engine.hung_up.acquire(timeout=SOON_S)
        worker.close()


def test_one_stream_that_fails_is_no_other_ones_failure(gate: Gate) -> None:
    def answers(body: Json) -> Answer:
        if body["messages"][-1]["content"] == "fail":
            return Answer(chunks=[delta(content="Pa"), {"error": {"message": "gone"}}])
        return Answer(chunks=[delta(content="ok "), gate, delta(content="ok"), finish(), DONE])

    with fake_engine(v1__chat__completions=answers) as engine:
        worker = opened(engine)
        good = worker.stream(ask("good"), Control())
        next(good)
        assert gate.reached.wait(SOON_S)
        with pytest.raises(RemoteFailed, match="gone"):
            list(worker.stream(ask("fail"), Control()))
        gate.opened.set()
        assert Heard([*good]).answer == "ok ok"
        worker.close()


def test_an_error_is_told_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with fake_engine(v1__chat__completions=lambda body: Answer({"error": "no"}, 500)) as engine:
        worker = opened(engine)
        with pytest.raises(RemoteFailed):
            list(worker.stream(ask("?"), Control()))
        worker.close()
    assert capfd.readouterr() == ("", "")


def test_many_requests_leave_no_thread_and_no_connection_behind() -> None:
    with fake_engine(v1__chat__completions=says(delta(content="ok"), finish())) as engine:
        worker = opened(engine)
        list(worker.stream(ask("?"), Control()))
        threads = own_threads()
        for _ in range(20):
            done = list(worker.stream(GenerationRequest(messages=ask("?").messages), Control()))
            assert isinstance(done[-1], Done)
        wait_until(lambda: own_threads() <= threads)
        worker.close()


def own_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("slm-")}
