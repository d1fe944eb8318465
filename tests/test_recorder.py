"""A conversation is kept while it happens, and goes on whatever happens to where it is kept."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slm_local.engine import Engine, choose, open_model
from slm_local.errors import PromptTooLong, WorkerCrashed
from slm_local.generation import AnswerDelta, Control, Started, ThinkDelta
from slm_local.paths import paths
from slm_local.session import ChatSession
from slm_local.store import Store, TurnState, UnknownChat, open_store, recorder
from slm_local.store.values import KeptTurn
from tests.command import child_environment
from tests.conftest import ScriptWriter
from tests.kept_chats import FACTS, child, keep
from tests.test_worker import wait_until

posix_only = pytest.mark.skipif(os.name == "nt", reason="signals, limits and open files as POSIX has them")

ROWS: tuple[dict[str, Any], ...] = (
    *({"text": "<think>secret"}, {"text": "</think>one"}, {"end": "stop"}),
    *({"text": "two"}, {"end": "stop"}),
    *({"text": "three"}, {"end": "stop"}),
)


@pytest.fixture
def engine(script: ScriptWriter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    with open_model(f"scripted:{script(*ROWS, setup={'context': 400})}") as opened:
        yield opened


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(paths().data) as opened:
        yield opened


def states(store: Store, chat: int = 1) -> list[tuple[TurnState, str, str]]:
    return [(turn.state, turn.prompt, turn.answer) for turn in store.chat(chat).turns]


def contents(session: ChatSession) -> list[str]:
    return [message.content for message in session.messages]


# ---- what is kept, and when


def test_the_prompt_is_kept_before_the_first_event(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store, system="be brief", kind="run")
    for event in session.send("first"):
        if isinstance(event, Started):
            kept = store.chat(1)
            assert (kept.turns[0].state, kept.turns[0].prompt) == ("live", "first")
            assert (kept.kind, kept.system, kept.model) == ("run", "be brief", engine.reference)
    turn = store.chat(1).turns[0]
    assert turn.reply == session.last_reply
    assert (turn.facts.backend, turn.facts.context_tokens) == ("scripted", engine.plan.context_tokens)
    assert session.chat == 1


def test_the_end_is_kept_before_it_is_told(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store)
    last = [store.chat(1).turns[0].state for _ in session.send("first")][-1]
    assert last == "done"


def test_nothing_is_begun_before_something_is_said(engine: Engine, store: Store) -> None:
    assert ChatSession(engine, store=store).chat is None
    assert store.chats() == []


def test_text_is_kept_though_the_model_falls_silent(
    script: ScriptWriter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    rows = ({"text": "<think>a thought and then"}, {"text": " no more", "delay": 600.0})
    control = Control()
    with open_model(f"scripted:{script(*rows)}") as opened:
        session = ChatSession(opened, store=store)
        events = session.send("first", control)
        while not isinstance(next(events), ThinkDelta):
            pass
        wait_until(lambda: store.chat(1).turns[0].thinking)
        assert store.chat(1).turns[0].thinking == "a thought and then"
        control.cancel()
        list(events)
    assert (store.chat(1).turns[0].state, store.chat(1).turns[0].finish) == ("done", "cancelled")


def test_a_refused_prompt_is_kept_with_the_refusal(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store)
    with pytest.raises(PromptTooLong):
        list(session.send("z" * 900))
    (turn,) = store.chat(1).turns
    assert turn.error is not None
    assert (turn.prompt, turn.error.type, turn.finish) == ("z" * 900, "PromptTooLong", "error")
    assert ChatSession(engine, store=store, chat=1).unanswered == "z" * 900


def test_a_reply_that_is_left_is_kept_as_stopped(engine: Engine, store: Store) -> None:
    events = ChatSession(engine, store=store).send("first")
    while not isinstance(next(events), AnswerDelta):
        pass
    events.close()  # type: ignore[attr-defined]
    (turn,) = store.chat(1).turns
    assert (turn.state, turn.finish, turn.thinking, turn.answer) == ("done", "cancelled", "secret", "one")


@posix_only
def test_a_crash_of_the_worker_keeps_what_it_wrote(
    script: ScriptWriter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    model = f"scripted:{script({'text': 'half an'}, {'text': ' answer', 'fault': 'segv'})}"
    with open_model(model) as opened, pytest.raises(WorkerCrashed):
        list(ChatSession(opened, store=store).send("first"))
    (turn,) = store.chat(1).turns
    assert turn.error is not None
    assert (turn.error.type, turn.answer) == ("WorkerCrashed", "half an")


# ---- what is taken back


def test_undo_regenerate_and_drop_mark_and_never_delete(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store)
    list(session.send("first"))
    list(session.regenerate())
    list(session.send("second"))
    session.undo()
    list(session.send("third"))
    session.drop()
    assert states(store) == [
        ("replaced", "first", "one"),
        ("dropped", "first", "two"),
        ("undone", "second", "three"),
        ("done", "third", "one"),
    ]
    assert contents(ChatSession(engine, store=store, chat=1)) == contents(session) == ["third", "one"]


def test_an_answer_that_could_not_be_written_anew_stays(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store)
    list(session.send("first"))
    session.system = "z" * 900
    with pytest.raises(PromptTooLong):
        list(session.regenerate())
    assert [state for state, _, _ in states(store)] == ["done", "undone"]
    assert contents(ChatSession(engine, store=store, chat=1, system="")) == ["first", "one"]


def test_a_cleared_conversation_goes_on_as_a_chat_of_its_own(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store)
    list(session.send("first"))
    session.clear()
    list(session.send("second"))
    assert [[prompt for _, prompt, _ in states(store, chat)] for chat in (1, 2)] == [["first"], ["second"]]


# ---- going on


def test_a_kept_chat_goes_on_without_its_thoughts_and_with_its_system_prompt(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store, system="be brief", kind="run")
    list(session.send("first"))
    again = ChatSession(engine, store=store, chat=1)
    list(again.send("second"))
    assert contents(again) == ["be brief", "first", "one", "second", "two"]
    assert (store.chats()[0].kind, store.chats()[0].turn_count, len(store.chats())) == ("run", 2, 1)
    other = ChatSession(engine, store=store, chat=1, system="be long")
    assert contents(other)[0] == "be long"
    list(other.send("third"))
    assert store.chat(1).system == "be long"
    assert other.undo() == "third"
    assert states(store)[-1][0] == "undone"


def test_what_died_unanswered_can_be_asked_again(engine: Engine, store: Store) -> None:
    keep(store, ("first", "t", "one"))
    dead = child(
        "import os; from slm_local.paths import paths; from slm_local.store import open_store\n"
        "from tests.kept_chats import FACTS; s = open_store(paths().data)\n"
        "s.add_text(s.begin_turn(1, 'second', FACTS), 'thought', 'half'); os._exit(9)"
    )
    assert dead.returncode == 9, dead.stderr
    with open_store(paths().data) as fresh:
        session = ChatSession(engine, store=fresh, chat=1)
        assert (contents(session), session.unanswered) == (["first", "one"], "second")
        list(session.regenerate())
        assert [state for state, _, _ in states(fresh)] == ["done", "replaced", "done"]


def test_a_chat_that_is_not_kept_can_t_be_gone_on_with(engine: Engine, store: Store) -> None:
    with pytest.raises(UnknownChat, match="there is no chat 7"):
        ChatSession(engine, store=store, chat=7)


def test_a_chat_is_found_again_by_the_reference_of_its_last_model(engine: Engine, store: Store) -> None:
    keep(store, ("first", "", "one"), model="r1-8b")
    session = ChatSession(engine, store=store, chat=1)
    assert store.chat(1).model == "r1-8b"
    list(session.send("second"))
    assert store.chat(1).model == engine.reference


def test_a_path_is_kept_in_full_with_its_settings_and_a_name_as_typed(
    tiny_reasoner: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.gguf").write_bytes(tiny_reasoner.read_bytes())
    monkeypatch.chdir(tmp_path)
    for reference, kept in (
        ("./mine.gguf@no-think", f"{tmp_path / 'mine.gguf'}@no-think"),
        ("mine.gguf", str(tmp_path / "mine.gguf")),
        ("tiny-reasoner", "tiny-reasoner"),
    ):
        with Engine(choose(reference)) as opened:
            session = ChatSession(opened, store=store, kind="run")
            next(session.send("What is 47 + 38?"))
            assert session.chat is not None
            assert store.chat(session.chat).model == kept


# ---- whatever happens to the store


@posix_only
def test_a_history_deleted_in_between_is_begun_anew_with_a_notice(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store)
    list(session.send("first"))
    store.path.unlink()
    list(session.send("second"))
    assert contents(session) == ["first", "one", "second", "two"]
    assert states(store) == [("done", "second", "two")]
    (notice,) = session.notices
    assert "was deleted" in notice
    assert session.undo() == "second"
    assert session.undo() == "first"
    assert states(store) == [("undone", "second", "two")]


@posix_only
def test_a_history_deleted_while_the_model_writes_holds_the_whole_reply(
    engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_local.store.recorder.KEEP_EVERY_S", 600.0)  # else it may come before the other window
    session = ChatSession(engine, store=store)
    for event in session.send("first"):
        if isinstance(event, AnswerDelta) and store.path.exists():
            store.path.unlink()
            keep(store, ("another window's chat", "", "a"))
    assert states(store, 1) == [("done", "another window's chat", "a")]
    assert states(store, 2) == [("done", "first", "one")]
    assert session.chat == 2


def test_a_chat_removed_from_another_window_goes_on_as_a_new_one(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store)
    list(session.send("first"))
    with open_store(paths().data) as other:
        other.remove(1)
    list(session.send("second"))
    assert states(store, 2) == [("done", "second", "two")]
    assert session.notices == ["chat 1 was removed from the history; from here on it is a new one"]


def test_a_store_that_fails_is_told_of_once_and_what_it_missed_is_kept_later(engine: Engine, store: Store) -> None:
    session = ChatSession(engine, store=store)
    list(session.send("first"))
    store._connection.execute("PRAGMA busy_timeout = 10")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        list(session.send("second"))
    assert session.notices == ["not kept: another program holds the history · try again when it is done"]
    assert states(store) == [("done", "first", "one")]
    list(session.send("third"))
    assert contents(session) == ["first", "one", "second", "two", "third", "three"]
    assert [prompt for _, prompt, _ in states(store)] == ["first", "second", "third"]
    assert len(session.notices) == 1


FILL_THE_DISK = """
import resource, sys
from slm_local.engine import open_model
from slm_local.paths import paths
from slm_local.session import ChatSession
from slm_local.store import open_store
with open_store(paths().data) as store, open_model(sys.argv[1]) as engine:
    session = ChatSession(engine, store=store)
    list(session.send("first"))
    largest = max(each.stat().st_size for each in paths().data.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    list(session.send("second"))
    print(*session.notices)
    session.notices.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    list(session.send("third"))
    assert session.notices == [], session.notices
    print([(turn.state, turn.prompt[:6], turn.answer) for turn in store.chat(1).turns])
"""


@posix_only
def test_a_full_disk_stops_no_chat_and_loses_nothing_once_there_is_room(script: ScriptWriter) -> None:
    done = child(FILL_THE_DISK, f"scripted:{script(*ROWS)}")
    assert done.returncode == 0, done.stderr
    notice, turns = done.stdout.splitlines()
    assert notice.startswith("not kept: the history in ")
    assert notice.endswith(" · df -h")
    assert turns == str([("done", "first", "one"), ("done", "second", "two"), ("done", "third", "three")])


# ---- kill -9


class Paced(threading.Event):
    """Takes note of how long somebody would wait, who goes on when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waits_s: list[float | None] = []
        self._begun, self._over = threading.Semaphore(0), threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.waits_s.append(timeout)
        self._begun.release()
        self._over.acquire()
        return self.is_set()

    def go_on(self) -> None:
        """Have a wait come to its end, and stay until the next one has begun."""
        self._over.release()
        self.reach()

    def reach(self) -> None:
        assert self._begun.acquire(timeout=60)

    def set(self) -> None:
        super().set()
        self._over.release()


def test_a_reply_that_grows_is_written_twice_a_second(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: so that a second of text is the most that can be lost."""
    paced = Paced()
    monkeypatch.setattr(recorder, "Record", partial(recorder.Record, stopped=paced))
    with recorder.Recorder(store).turn("first", model="m", system=None, facts=FACTS) as record:
        paced.reach()
        for texts in (("one ",), ("two ", "three "), ()):
            for text in texts:
                record.feed(AnswerDelta(text=text, tokens=1))
            paced.go_on()
            assert store.chat(1).turns[0].answer == "".join(record.answer)
    assert {each for each in paced.waits_s if each is None or each > 0.5} == set()


@posix_only
def test_kill_9_loses_nothing_that_was_written_and_no_turn_before(script: ScriptWriter) -> None:
    """S1: two turns, the second killed while its answer comes; all that came is in the file soon, and stays there."""
    count = 400
    texts = ["<think>", *(f"{n} " + "</think>" * (n == count // 4) for n in range(count))]
    pieces = [{"text": text, "ids": [1], "delay": 0.01} for text in texts]
    model = f"scripted:{script({'text': 'the first answer', 'end': 'stop'}, *pieces, {'delay': 600.0, 'end': 'stop'})}"
    program = (
        "import sys\nfrom slm_local.engine import open_model\nfrom slm_local.paths import paths\n"
        "from slm_local.session import ChatSession\nfrom slm_local.store import open_store\n"
        "from slm_local.generation import AnswerDelta, ThinkDelta\n"
        "with open_store(paths().data) as store, open_model(sys.argv[1]) as engine:\n"
        "    session = ChatSession(engine, store=store)\n"
        "    list(session.send('first'))\n"
        "    for event in session.send('second'):\n"
        "        if isinstance(event, ThinkDelta | AnswerDelta): print(event.text, flush=True)\n"
    )
    talker = subprocess.Popen(
        [sys.executable, "-c", program, model], stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    assert talker.stdout is not None
    seen: list[int] = []
    for line in talker.stdout:
        seen += map(int, line.split())
        if seen and seen[-1] > count * 3 // 4:
            break
    with open_store(paths().data) as store:
        wait_until(lambda: set(seen) <= set(numbers(store.chat(1).turns[1])))
        talker.kill()
        talker.wait()
        talker.stdout.close()
    with open_store(paths().data) as store:
        first, second = store.chat(1).turns
    assert (first.state, first.answer, second.state) == ("done", "the first answer", "interrupted")
    kept = numbers(second)
    assert kept == list(range(len(kept)))
    assert set(seen) <= set(kept)
    assert len(seen) > count // 2


def numbers(turn: KeptTurn) -> list[int]:
    return [int(word) for word in f"{turn.thinking} {turn.answer}".split()]


@posix_only
def test_run_is_kept_as_it_is_shown_and_survives_its_own_death(script: ScriptWriter) -> None:
    rows = ({"text": "<think>a thought"}, {"text": "</think>an answer"}, {"text": " that never ends", "delay": 600.0})
    command = [sys.executable, "-m", "slm_local", "run", f"scripted:{script(*rows)}", "first", "--jsonl"]
    talker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment())
    assert talker.stdout is not None
    while json.loads(talker.stdout.readline())["event"] != "answer":
        pass
    with open_store(paths().data) as store:
        wait_until(lambda: store.chat(1).turns[0].answer)
    talker.kill()
    talker.wait()
    talker.stdout.close()
    with open_store(paths().data) as store:
        (turn,) = store.chat(1).turns
    assert (turn.state, turn.thinking, turn.answer) == ("interrupted", "a thought", "an answer")
