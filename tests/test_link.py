"""One warm model for everything: the user's own commands find the server, use its engines, and do without it."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from slm_local import __version__
from slm_local.config import Settings, load_settings
from slm_local.engine import Engine, open_model
from slm_local.errors import Interrupted, UnknownModel, UsageError, WorkerCrashed
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    Message,
    PromptProgress,
    Started,
    StreamEvent,
    ThinkDelta,
    TokenOrder,
)
from slm_local.paths import paths
from slm_local.registry import load_registry
from slm_local.server import clients
from slm_local.server.link import Link
from slm_local.server.pool import Attachment, Pool
from slm_local.worker import attached
from slm_local.worker.attached import read_server_file
from tests.conftest import ScriptWriter
from tests.governed import END, OPEN, VARIED
from tests.test_worker import wait_until

pytestmark = pytest.mark.usefixtures("scripted_allowed")


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(load_registry, lambda own: load_settings({}, reference_settings=own))
    yield made
    made.close()


@pytest.fixture
def link(pool: Pool) -> Iterator[Link]:
    made = Link(pool)
    made.start("http://127.0.0.1:11435")
    yield made
    made.close()


@pytest.fixture
def hello(script: ScriptWriter) -> str:
    return f"scripted:{script({'text': '<think>hm</think>'}, {'text': 'hello', 'end': 'stop'}, name='hello')}"


@pytest.fixture
def endless(script: ScriptWriter) -> str:
    return f"scripted:{script({'text': 'on ', 'delay': 0.02, 'times': 100_000}, name='endless')}"


def answers(stream: Iterator[StreamEvent]) -> str:
    return "".join(event.text for event in stream if isinstance(event, AnswerDelta))


def own_engine_starts(engine: Engine) -> bool:
    return engine.pid is not None


# ---- a model that the server has open


def test_a_reply_comes_from_the_servers_engine_with_all_its_parts(link: Link, pool: Pool, hello: str) -> None:
    with open_model(hello) as engine:
        reply = engine.reply("hi")
        assert (reply.thinking, reply.answer, reply.finish) == ("hm", "hello", "stop")
        assert (reply.usage.think_tokens, reply.usage.answer_tokens, reply.usage.tag_tokens) == (1, 1, 1)
        assert reply.timings.load_s > 0.0
        assert engine.pid is None
        assert str(os.getpid()) in engine.service
        assert "http://127.0.0.1:11435" in engine.service
        assert engine.facts == pool._places[0].engine.facts  # type: ignore[union-attr]
        wait_until(lambda: [(each.attached, each.live) for each in pool.running()] == [(1, 0)])
    wait_until(lambda: pool.running()[0].attached == 0)
    with open_model(hello) as engine:
        assert engine.reply("hi").answer == "hello"
    assert len(pool.running()) == 1


def test_settings_of_a_request_are_the_clients_own(link: Link, pool: Pool, hello: str) -> None:
    with open_model(f"{hello}@think=off,temperature=0.3,system=Short.") as one, open_model(hello) as other:
        assert (one.request("hi").think, one.sampling().temperature, one.system) == ("off", 0.3, "Short.")
        assert other.request("hi").think == "auto"
        assert (one.reply("hi").thinking, other.reply("hi").thinking) == ("", "hm")
    assert len(pool.running()) == 1


def test_what_is_fixed_at_load_is_as_it_was_asked_for(link: Link, pool: Pool, hello: str) -> None:
    with open_model(hello) as plain, open_model(f"{hello}@ctx=512") as short:
        assert (plain.facts.context_tokens, short.facts.context_tokens) == (16384, 512)
        assert short.reply("hi").answer == "hello"
    assert len(pool.running()) == 2


def test_a_template_is_read_from_the_clients_folder(
    link: Link, hello: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"template": "own.jinja"})
    monkeypatch.chdir("/")
    with pytest.raises(UsageError, match=r"own\.jinja can't be read"):
        open_model(hello, settings=settings)
    monkeypatch.chdir(tmp_path)
    with open_model(hello, settings=settings) as engine:
        assert "process" in engine.service
        started = next(iter(engine.stream("hi!")))
        assert getattr(started, "prompt_tokens", None) == 3


def test_ctrl_c_ends_a_reply_and_the_model_stays(link: Link, pool: Pool, endless: str) -> None:
    with open_model(endless) as engine:
        control = Control()
        events: list[StreamEvent] = []
        for event in engine.stream("hi", control):
            events.append(event)
            if isinstance(event, AnswerDelta):
                control.cancel()
        assert isinstance(events[-1], Done)
        assert events[-1].reply.finish == "cancelled"
        assert events[-1].reply.answer
        assert engine.reply("hi", cancelled()).finish == "cancelled"
        assert "process" in engine.service
        wait_until(lambda: pool.running()[0].live == 0)


def cancelled() -> Control:
    control = Control()
    control.cancel()
    return control


def test_the_answer_can_be_asked_for_now(link: Link, script: ScriptWriter) -> None:
    thoughts = {"text": VARIED, "times": 900, "delay": 0.01}
    path = script(OPEN, thoughts, END, {"text": "at once", "end": "stop"})
    with open_model(f"scripted:{path}") as engine:
        control = Control()
        for event in engine.stream("hi", control):
            if isinstance(event, ThinkDelta):
                control.end_thinking()
            if isinstance(event, Done):
                assert (event.reply.cut, event.reply.answer) == ("user", "at once")


def test_the_next_prompt_is_prepared_in_the_server(link: Link, hello: str) -> None:
    with open_model(hello) as engine:
        warming = engine.prepare([Message(role="user", content="a long question")])
        assert warming is not None
        assert warming.wait(60.0)
        assert "tokens are held" in warming.summary


def test_tokens_are_told_also_of_a_model_that_was_closed_meanwhile(link: Link, pool: Pool, hello: str) -> None:
    with open_model(hello) as engine:
        for _ in range(2):
            assert engine.tokens(TokenOrder(text="ab")).ids == (97, 98)
            pool.stop()
        with pytest.raises(UsageError, match="nothing was given"):
            engine.tokens(TokenOrder())


def test_several_clients_are_at_one_engine_at_once(link: Link, pool: Pool, endless: str) -> None:
    with open_model(endless) as one, open_model(endless) as other:
        controls = [Control(), Control()]
        streams = [engine.stream("hi", control) for engine, control in zip((one, other), controls, strict=True)]
        for stream in streams:
            while not isinstance(next(stream), AnswerDelta):
                pass
        assert [each.live for each in pool.running()] == [2]
        controls[0].cancel()
        last = list(streams[0])[-1]
        assert isinstance(last, Done)
        assert last.reply.finish == "cancelled"
        assert isinstance(next(streams[1]), AnswerDelta)  # it goes on
        controls[1].cancel()
        list(streams[1])


def test_a_model_that_was_closed_meanwhile_is_opened_again(link: Link, pool: Pool, hello: str) -> None:
    with open_model(hello) as engine:
        pool.stop(hello)
        warming = engine.prepare([Message(role="user", content="long")])
        assert warming is not None
        assert warming.wait(60.0)
        assert warming.summary == "not warmed: the model was closed meanwhile"
        assert engine.reply("hi").answer == "hello"
        assert engine.pid is None


def test_what_stops_a_load_stops_nothing_once_the_model_is_open(link: Link, pool: Pool, hello: str) -> None:
    control = Control()
    with open_model(hello, control=control) as engine:
        control.cancel()
        assert engine.reply("hi").answer == "hello"
        assert engine.pid is None
        assert [each.attached for each in pool.running()] == [1]


# ---- ends


def test_a_client_that_hangs_up_is_no_longer_worked_for(link: Link, pool: Pool, endless: str) -> None:
    engine = open_model(endless)
    stream = engine.stream("hi")
    while not isinstance(next(stream), AnswerDelta):
        pass
    engine._worker.kill()  # type: ignore[union-attr]
    wait_until(lambda: (pool.running()[0].live, pool.running()[0].attached) == (0, 0))
    wait_until(lambda: link.clients == 0)


def test_a_client_that_takes_nothing_any_more_loses_its_place(
    link: Link, pool: Pool, script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "STALL_S", 0.2)
    path = script({"text": "on " * 40_000, "delay": 0.002, "times": 20_000}, name="flood")
    server = attached.read_server_file(paths().server_file)
    assert server is not None
    stopped = attached.Link(server)  # as of a process stopped by Ctrl-Z: nobody reads it
    settings = load_settings({"loop_guard": False})
    message = stopped.ask({"op": "open", "reference": f"scripted:{path}", "settings": settings, "keep_alive_s": None})
    while message["op"] == "status":
        message = stopped.receive()
    with open_model(f"scripted:{path}@loop-guard=false") as engine:
        assert [(each.live, each.attached) for each in pool.running()] == [(0, 2)]
        stopped.send({"op": "start", "id": 1, "request": engine.request("hi")})
        assert isinstance(stopped.receive()["event"], PromptProgress | Started)
        wait_until(lambda: [(each.live, each.attached) for each in pool.running()] == [(0, 1)])
        taken = stopped.lines.read()
        assert len(taken) > 100_000
        assert b'"Done"' not in taken
        stopped.close()


def test_a_server_that_ends_in_a_reply_is_missed_and_the_next_one_needs_none(
    link: Link, pool: Pool, endless: str
) -> None:
    with open_model(endless) as engine:
        stream = engine.stream("hi")
        while not isinstance(next(stream), AnswerDelta):
            pass
        link.close()
        with pytest.raises(WorkerCrashed, match="the server is gone"):
            list(stream)
        control = Control()
        stream = engine.stream("hi", control)
        while not isinstance(next(stream), AnswerDelta):
            pass
        assert own_engine_starts(engine)
        control.cancel()
        assert isinstance(list(stream)[-1], Done)


def test_a_killed_engine_is_an_error_of_that_reply_alone(link: Link, pool: Pool, endless: str, hello: str) -> None:
    with open_model(endless) as engine:
        stream = engine.stream("hi")
        while not isinstance(next(stream), AnswerDelta):
            pass
        pool._places[0].engine._worker.kill()  # type: ignore[union-attr]
        with pytest.raises(WorkerCrashed, match="engine process is gone"):
            list(stream)
        control = Control()
        stream = engine.stream("hi", control)
        while not isinstance(next(stream), AnswerDelta):
            pass
        control.cancel()
        list(stream)
        assert engine.pid is None


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are counted as POSIX has them")
def test_two_hundred_connections_leave_nothing_behind(link: Link, pool: Pool, hello: str) -> None:
    server = attached.read_server_file(paths().server_file)
    assert server is not None
    open_model(hello).close()
    wait_until(lambda: link.clients == 0)
    process = psutil.Process()
    descriptors, children = process.num_fds(), set(process.children(recursive=True))
    for number in range(200):
        connection = attached.Link(server)
        if number % 40 == 0:
            connection.send({"op": "open", "reference": hello, "settings": Settings(), "keep_alive_s": None})
        connection.close()
        wait_until(lambda: link.clients < 20)
    wait_until(lambda: link.clients == 0)
    wait_until(lambda: not [each for each in threading.enumerate() if each.name.startswith("slm-link-")])
    wait_until(lambda: process.num_fds() <= descriptors)
    wait_until(lambda: set(process.children(recursive=True)) <= children)
    assert [(each.live, each.waiting, each.attached) for each in pool.running()] == [(0, 0, 0)]


# ---- what the server can't do


def test_without_a_server_or_with_fresh_an_engine_of_its_own_is_started(link: Link, pool: Pool, hello: str) -> None:
    with open_model(hello, settings=Settings(fresh=True)) as engine:
        assert own_engine_starts(engine)
        assert engine.service.endswith("--fresh")
    link.close()
    with open_model(hello) as engine:
        assert own_engine_starts(engine)
        assert engine.service == ""
    assert pool.running() == ()


def test_what_the_server_can_not_open_is_opened_here_and_said(
    link: Link, hello: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise UnknownModel("no model of that name here")

    monkeypatch.setattr(Pool, "attach", refuse)
    with open_model(hello) as engine:
        assert own_engine_starts(engine)
        assert engine.service.endswith("did not open it: no model of that name here")


def test_a_server_of_another_version_is_left_alone(link: Link, hello: str) -> None:
    file = paths().server_file
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": "0.0.1"}))
    with open_model(hello) as engine:
        assert own_engine_starts(engine)
        assert "is slm 0.0.1" in engine.service


def test_a_file_that_a_killed_server_left_is_passed_over_and_removed(hello: str) -> None:
    file = paths().server_file
    file.parent.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    values = {"pid": 1, "port": port, "key": "k", "version": "x", "address": None}
    file.write_text(json.dumps(values))
    assert not attached.is_up(file)
    assert not file.exists()
    file.write_text(json.dumps({**values, "version": __version__}))
    with open_model(hello) as engine:
        assert own_engine_starts(engine)
        assert engine.service == ""
    assert not file.exists()


# ---- who may speak


@pytest.mark.skipif(sys.platform == "win32", reason="rights as POSIX has them")
def test_the_servers_file_is_the_users_alone_and_goes_with_the_server(link: Link) -> None:
    file = paths().server_file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["pid"] == os.getpid()
    link.close()
    assert not file.exists()


def test_a_second_server_says_where_the_first_one_is(link: Link, pool: Pool) -> None:
    with pytest.raises(UsageError, match=rf"http://127\.0\.0\.1:11435 as process {os.getpid()}"):
        Link(pool).start()
    link.close()
    after = Link(pool)
    after.start()
    after.close()


def test_a_server_takes_the_place_of_one_in_the_background_which_ends_what_it_has_begun(
    pool: Pool, endless: str, hello: str
) -> None:
    before = Link(pool)
    before.start()
    of_before = read_server_file(paths().server_file)
    new_pool = Pool(load_registry, lambda own: load_settings({}, reference_settings=own))
    new = Link(new_pool)
    with open_model(hello) as idle, open_model(endless) as busy:
        control = Control()
        stream = busy.stream("hi", control)
        next(event for event in stream if isinstance(event, AnswerDelta))
        try:
            assert new.start("http://127.0.0.1:11435") == of_before
            assert [each.reference for each in pool.running()] == [endless]
            assert before.has_left
            next(event for event in stream if isinstance(event, AnswerDelta))
            control.cancel()
            assert isinstance(list(stream)[-1], Done)
            wait_until(lambda: not pool.running())
            before.close()
            assert json.loads(paths().server_file.read_text())["address"] == "http://127.0.0.1:11435"
            wait_until(lambda: idle.running is None)
            assert idle.reply("hi").answer == "hello"
            with open_model(hello) as engine:
                assert engine.reply("hi").answer == "hello"
            assert [each.reference for each in new_pool.running()] == [hello]
        finally:
            before.close()
            new.close()
            new_pool.close()


@pytest.mark.parametrize("said", [None, b"", b'{"op":"le'], ids=["no greeting", "a greeting", "half an answer"])
def test_the_place_of_one_that_goes_while_it_is_asked_is_taken(pool: Pool, said: bytes | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as lines:
                asked = json.loads(lines.readline())["nonce"]
                if said is not None:
                    greeting = {"nonce": "1", "proof": attached.proof("k", "server", asked, "1")}
                    connection.sendall(json.dumps(greeting).encode() + b"\n")
                    lines.readline()  # its proof
                    lines.readline()  # what it asks
                    connection.sendall(said)

        threading.Thread(target=hang_up, daemon=True).start()
        of_before = attached.ServerFile(
            pid=1, port=listening.getsockname()[1], key="k", version=__version__, address=None
        )
        paths().server_file.parent.mkdir(parents=True, exist_ok=True)
        paths().server_file.write_text(json.dumps(asdict(of_before)))
        link = Link(pool)
        assert link.start("http://127.0.0.1:11435") == of_before
        link.close()


def test_of_several_servers_that_take_one_place_at_once_one_stays(pool: Pool) -> None:
    before = Link(pool)
    before.start()
    links = [Link(pool) for _ in range(3)]
    refused: list[UsageError] = []

    def start(link: Link) -> None:
        try:
            link.start("http://127.0.0.1:11435")
        except UsageError as error:
            refused.append(error)

    threads = [threading.Thread(target=start, args=(link,)) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [error.message for error in refused] == [
        f"a server of yours runs already at http://127.0.0.1:11435 as process {os.getpid()}"
    ] * 2
    assert before.has_left
    assert read_server_file(paths().server_file) is not None
    for link in (before, *links):
        link.close()
    assert not paths().server_file.exists()


def test_who_is_gone_before_it_is_let_in_keeps_nobody_out(pool: Pool) -> None:
    class Gone(socket.socket):
        def setsockopt(self, *options: object) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as macOS has it

    link = Link(pool)
    here, there = socket.socketpair()
    there.close()
    gone = Gone(fileno=here.detach())
    waiting: list[socket.socket] = [gone]

    def accept() -> tuple[socket.socket, None]:
        link.has_left = not waiting
        if link.has_left:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return waiting.pop(), None

    link._accept(SimpleNamespace(accept=accept), "k")  # type: ignore[arg-type]
    wait_until(lambda: (link.clients, gone.fileno()) == (0, -1))


@pytest.mark.parametrize(
    "said",
    [
        b'{"op":"ps"}\n',
        b'{"op":"hello","nonce":"1"}\n{"op":"proof","proof":"0"}\n{"op":"ps"}\n',
        b'{"op":"hello","nonce":1' + b"1" * clients.LONGEST_HELLO,
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\xff\n",
        b"[]\n",
    ],
)
def test_who_does_not_know_the_key_learns_nothing(link: Link, said: bytes) -> None:
    server = attached.read_server_file(paths().server_file)
    assert server is not None
    with socket.create_connection(("127.0.0.1", server.port)) as stranger:
        stranger.sendall(said)
        heard = stranger.makefile("rb").read()
    assert b"running" not in heard
    assert server.key.encode() not in heard


def test_a_stranger_at_the_servers_port_is_told_nothing(link: Link, hello: str) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def pose() -> None:
            connection, _ = stranger.accept()
            with connection:
                heard.append(connection.recv(10_000))
                connection.sendall(b'{"op":"hello","nonce":"00","proof":"00"}\n')
                heard.append(connection.recv(10_000))

        posing = threading.Thread(target=pose)
        posing.start()
        file = paths().server_file
        file.write_text(json.dumps({**json.loads(file.read_text()), "port": stranger.getsockname()[1]}))
        with open_model(hello) as engine:
            assert own_engine_starts(engine)
            assert "not the server" in engine.service
        posing.join()
    assert b"".join(heard).count(b"\n") == 1  # the greeting alone


def test_a_line_without_end_ends_the_connection(
    link: Link, pool: Pool, hello: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "LONGEST_LINE", 1000)
    with open_model(hello) as engine:
        with pytest.raises(WorkerCrashed):
            engine.reply("x" * 2000)
        wait_until(lambda: link.clients == 0)


def test_how_a_load_goes_on_reaches_the_client_and_ctrl_c_ends_it(link: Link, pool: Pool, script: ScriptWriter) -> None:
    statuses: list[str] = []
    control = Control()

    def note(text: str) -> None:
        statuses.append(text)
        control.cancel()

    slow = script({"text": "late"}, setup={"load_fault": "slow"})
    with pytest.raises(Interrupted, match="loading was stopped"):
        open_model(f"scripted:{slow}", on_status=note, control=control)
    assert statuses == ["starting the engine…"]
    wait_until(lambda: not pool.running())


def test_a_load_that_is_stopped_is_so_whatever_the_server_had_said_by_then(
    link: Link, pool: Pool, hello: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses: list[str] = []
    control, all_is_said = Control(), threading.Event()
    attach, do = Pool.attach, clients.Client._open

    def attach_and_tell(pool: Pool, *arguments: Any, on_status: Callable[[str], None], **options: Any) -> Attachment:
        for text in ("one", "two"):
            on_status(text)
        return attach(pool, *arguments, on_status=on_status, **options)

    def open_and_note(client: clients.Client, *arguments: Any) -> None:
        do(client, *arguments)
        all_is_said.set()

    def note(text: str) -> None:
        statuses.append(text)
        assert all_is_said.wait(60.0)
        control.cancel()

    monkeypatch.setattr(Pool, "attach", attach_and_tell)
    monkeypatch.setattr(clients.Client, "_open", open_and_note)
    with pytest.raises(Interrupted, match="loading was stopped"):
        open_model(hello, on_status=note, control=control)
    assert statuses == ["one"]
    wait_until(lambda: [each.attached for each in pool.running()] == [0])
