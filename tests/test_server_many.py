"""Many clients: in order, unmixed, bounded; those who go away leave nothing behind; and what is counted of it all."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from slm_local.server import streaming
from tests.command import THINK_THEN_ANSWER
from tests.conftest import ScriptWriter
from tests.serving import Serving, serving
from tests.test_worker import wait_until

pytestmark = pytest.mark.usefixtures("scripted_allowed")

ENDLESS = ({"text": "on "}, {"text": "and on ", "delay": 0.002, "times": 20_000}, {"delay": 600.0, "end": "stop"})


@pytest.fixture
def endless(script: ScriptWriter) -> str:
    return f"scripted:{script(*ENDLESS, name='endless')}@loop-guard=false"


@pytest.fixture
def server(script: ScriptWriter) -> Iterator[Serving]:
    with serving("tiny-reasoner@backend=llamacpp") as running:
        yield running


def streamed(server: Serving, first: int, second: int) -> str:
    """Ask for a sum as a stream; return thinking and answer together, whose ids must all be one."""
    body = {"messages": [{"role": "user", "content": f"What is {first} + {second}?"}], "stream": True, "think": 12}
    ids, texts = set(), []
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                ids.add(chunk["id"])
                delta = chunk["choices"][0]["delta"]
                texts.append(delta.get("reasoning_content") or delta.get("content") or "")
    assert len(ids) == 1
    return "".join(texts)


def test_sixteen_clients_for_three_rounds_get_each_their_own_answer(server: Serving) -> None:
    def rounds(client: int) -> list[tuple[str, str]]:
        sums = [(11 + client, 20 + each) for each in range(3)]
        return [(f"{first}+{second}", streamed(server, first, second)) for first, second in sums]

    with ThreadPoolExecutor(16) as clients:
        told = [pair for each in clients.map(rounds, range(16)) for pair in each]
    assert len(told) == 48
    for asked, answer in told:
        assert answer.startswith(f"Line up: {asked}")
    server.wait_idle()


def test_more_than_may_wait_are_503_and_told_when_to_come_again(endless: str) -> None:
    with serving(endless, queue_limit=2) as server, ThreadPoolExecutor(16) as clients:
        statuses: list[int] = []
        enough = threading.Event()

        def ask(_: int) -> None:
            body = {"messages": [{"role": "user", "content": "go"}], "stream": True}
            with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=60.0) as response:
                statuses.append(response.status_code)
                if response.status_code == 503:
                    assert response.headers["retry-after"] == "2"
                    assert json.loads(response.read())["error"]["code"] == "server_busy"
                    return
                enough.wait(120.0)

        server.http.post("/tokenize", json={"prompt": "the model is open"})
        asked = [clients.submit(ask, number) for number in range(16)]
        wait_until(lambda: statuses.count(503) == 16 - 4 - 2)
        enough.set()
        for each in asked:
            each.result()
    assert Counter(statuses) == {200: 6, 503: 10}


def test_who_waits_longest_is_next(endless: str) -> None:
    begun: list[int] = []
    with serving(endless) as server, ThreadPoolExecutor(8) as clients:
        leave = [threading.Event() for _ in range(8)]

        def ask(number: int) -> None:
            body = {"messages": [{"role": "user", "content": "go"}], "stream": True}
            with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=60.0):
                begun.append(number)
                leave[number].wait(120.0)

        asked = []
        for number in range(8):
            asked.append(clients.submit(ask, number))
            wait_until(lambda: sum(each.live + each.waiting for each in server.pool.running()) == len(asked))
        _wait_for(begun, 4)
        for number in range(4):
            leave[number].set()
            _wait_for(begun, 5 + number)
        for each in leave:
            each.set()
        for future in asked:
            future.result()
    assert begun[4:] == [4, 5, 6, 7]


def connected(server: Serving, body: object) -> socket.socket:
    """Ask for a chat completion through a connection of its own; closing it is going away."""
    port = int(server.address.rpartition(":")[2])
    text = json.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=60.0)
    connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
    return connection


def counts_of(server: Serving) -> dict[tuple[str | tuple[str, str], ...], float]:
    """Return what `/metrics` tells, by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(server.http.get("/metrics").text)
        for sample in family.samples
    }


def _wait_for(items: list[int], count: int) -> None:
    wait_until(lambda: len(items) == count)


def test_a_client_that_takes_nothing_any_more_is_no_longer_worked_for(
    script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "STALL_S", 0.2)
    path = script({"text": "on " * 40_000, "delay": 0.002, "times": 20_000}, name="flood")
    with (
        serving(f"scripted:{path}@loop-guard=false") as server,
        connected(server, {"messages": [{"role": "user", "content": "go"}], "stream": True}) as stopped,
    ):
        assert stopped.recv(1, socket.MSG_PEEK) == b"H"  # it began, and not a byte was taken
        server.wait_idle()
        taken = b"".join(iter(lambda: stopped.recv(1 << 20), b""))
        assert taken.startswith(b"HTTP/1.1 200")
        assert not taken.endswith(b"0\r\n\r\n")  # which an answer that is whole ends with
        assert b"[DONE]" not in taken
        model = ("model", "flood@loop-guard=false")
        request = ("slm_requests_total", ("code", "200"), model, ("route", "/v1/chat/completions"))
        answer = ("slm_tokens_total", ("kind", "answer"), model)  # counted as of one who hangs up in the middle
        wait_until(lambda: {request, answer} <= {each for each, count in counts_of(server).items() if count})


def test_a_client_that_does_not_take_the_last_of_an_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STALL_S", 0.05)
    left: list[bool] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"all"

    async def never(message: object = None) -> Message:
        del message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            await never()

    async def answer() -> None:
        stream = streaming.EventStream(chunks(), lambda: left.append(True), media_type="text/event-stream")
        async with asyncio.timeout(10.0):
            await stream({"type": "http"}, never, send)

    asyncio.run(answer())
    assert left == [True]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_frees_its_place(endless: str, stream: bool) -> None:
    with serving(endless) as server:
        with connected(server, {"messages": [{"role": "user", "content": "go"}], "stream": stream}):
            wait_until(lambda: any(each.live for each in server.pool.running()))
        server.wait_idle()  # it would go on for minutes
        wait_until(lambda: stream or 'code="499"' in server.http.get("/metrics").text)


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are counted otherwise there")
def test_two_hundred_who_come_and_go_leave_nothing(endless: str) -> None:
    body = {"messages": [{"role": "user", "content": "go"}], "stream": True}

    def visit(server: Serving) -> None:
        with connected(server, body) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")

    def held() -> tuple[int, int, int]:
        own = psutil.Process()
        return own.num_fds(), threading.active_count(), len(own.children(recursive=True))

    with serving(endless) as server:
        for _ in range(10):
            visit(server)
        server.wait_idle()
        before, rss = held(), psutil.Process().memory_info().rss  # what ends at this moment may still be among it
        with ThreadPoolExecutor(8) as visitors:
            list(visitors.map(visit, [server] * 200))
        server.wait_idle()
        wait_until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
        assert psutil.Process().memory_info().rss - rss < 32 * 2**20


def test_a_killed_engine_is_an_error_event_and_the_next_request_is_served(endless: str) -> None:
    body = {"messages": [{"role": "user", "content": "go"}], "stream": True}
    with serving(endless) as server:
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            (pid,) = [each.pid for each in server.pool.running()]
            psutil.Process(pid).kill()
            *_, last = filter(None, lines)
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_died"
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            assert next(response.iter_lines()).startswith("data: {")
        (again,) = [each.pid for each in server.pool.running()]
    assert again != pid


def test_everything_is_counted_in_prometheus_form(script: ScriptWriter) -> None:
    with serving(f"scripted:{script(*THINK_THEN_ANSWER, name='sums')}") as server:
        assert server.chat().status_code == 200
        assert server.chat(model="nobody").status_code == 404
        assert server.chat(think=0).status_code == 200
        server.wait_idle()
        found = counts_of(server)
    model = ("model", "sums")
    chat = ("route", "/v1/chat/completions")
    assert found["slm_requests_total", ("code", "200"), model, chat] == 2
    assert found["slm_requests_total", ("code", "404"), ("model", ""), chat] == 1
    assert found["slm_tokens_total", ("kind", "answer"), model] >= 3
    assert found["slm_tokens_total", ("kind", "thinking"), model] >= 7
    assert found["slm_tokens_total", ("kind", "prompt"), model] > 0
    assert found["slm_cuts_total", model, ("reason", "budget")] == 1
    assert found["slm_model_loads_total", model] == 1
    assert (found["slm_live_requests", model], found["slm_queue_length", model]) == (0, 0)
    assert found["slm_memory_bytes", model] > 0
    assert found["slm_time_to_first_token_seconds_count", model] == 2
    assert found["slm_time_to_first_answer_token_seconds_count", model] == 2
    assert ("slm_decode_tokens_per_second_count", model) in found


def test_a_model_open_in_two_settings_is_one_series(script: ScriptWriter) -> None:
    reference = f"scripted:{script(*THINK_THEN_ANSWER, name='sums')}"
    with serving(reference, f"{reference}@ctx=256") as server:
        for name in ("sums", "sums@ctx=256"):
            assert server.chat(model=name).status_code == 200
        lines = server.http.get("/metrics").text.splitlines()
    assert len([line for line in lines if line.startswith("slm_memory_bytes{")]) == 1
    assert len([line for line in lines if line.startswith("slm_live_requests{")]) == 1
