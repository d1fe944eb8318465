"""Chats that resume warm: what is saved on leaving is found again, and nothing that is not exactly that is used."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.cli.render import Terminal
from slm_local.config import Settings
from slm_local.engine import Engine, open_model
from slm_local.generation import Control, Message, Prompt, Reply, StateMoved
from slm_local.registry import load_registry
from slm_local.session import ChatSession
from slm_local.store import States, Store, open_store
from tests.command import slm
from tests.loading import load_settings_for

__all__ = ["slm"]

MODEL = "tiny-reasoner"
LLAMA = Settings(backend="llamacpp", threads=1)
PROMPTS = ("What is 12 + 30?", "And 7 * 6?", "Tom has 5 apples and eats 2. How many are left?", "What is 90 - 48?")
IDS = tuple(range(300, 420))


def loaded(path: Path, **changes: Any) -> LlamaCppBackend:
    backend = LlamaCppBackend()
    backend.load(replace(load_settings_for("llamacpp", path), **changes), Control(), lambda fraction: None)
    return backend


def read(backend: LlamaCppBackend, ids: tuple[int, ...] = IDS) -> None:
    handle = backend.add(Prompt(ids=ids), None)
    while backend._cache.live():
        backend.step(Control())
    backend.remove(handle)


@pytest.fixture(scope="module")
def backend(tiny_reasoner: Path) -> Iterator[LlamaCppBackend]:
    made = loaded(tiny_reasoner)
    yield made
    made.close()


@pytest.fixture
def saved(backend: LlamaCppBackend, tmp_path: Path) -> Path:
    """Return a state of IDS; the cache holds nothing of it any more."""
    read(backend)
    path = tmp_path / "state"
    assert backend.save_state(IDS, path, "this model", 10**9) == StateMoved(tokens=len(IDS))
    forget(backend)
    return path


def forget(backend: LlamaCppBackend) -> None:
    backend._cache.shelf.states.clear()
    for slot in backend._cache.slots:
        backend._cache.cut(slot, 0)


# ---- the file


def test_a_state_is_found_again_token_for_token(backend: LlamaCppBackend, saved: Path) -> None:
    assert backend.restore_state(saved, "this model") == StateMoved(tokens=len(IDS))
    handle = backend.add(Prompt(ids=(*IDS, 299)), None)
    assert handle.cached_tokens == len(IDS)
    assert sum(bool(slot.cells) for slot in backend._cache.slots) == 1, "it goes on in the sequence restored"
    backend.remove(handle)
    assert backend.restore_state(saved, "this model").note == "held already"


def test_only_what_the_prompt_begins_with_is_saved(backend: LlamaCppBackend, tmp_path: Path) -> None:
    read(backend)
    other = (*IDS[:50], 299, *IDS[51:])
    assert backend.save_state(other, tmp_path / "state", "m", 10**9).tokens == 50
    forget(backend)
    assert backend.restore_state(tmp_path / "state", "m").tokens == 50


@pytest.mark.parametrize(
    ("changes", "model", "reason"),
    [
        ({}, "that model", "another model or file"),
        ({"_kv_types": "8 8"}, "this model", "another type of KV cache"),
        ({"_used_template": "another"}, "this model", "another chat template"),
    ],
)
def test_a_state_of_something_else_is_refused(
    backend: LlamaCppBackend,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    model: str,
    reason: str,
) -> None:
    for name, value in changes.items():
        monkeypatch.setattr(backend, name, value)
    moved = backend.restore_state(saved, model)
    assert (moved.tokens, moved.is_refused) == (0, True)
    assert reason in moved.note


def test_a_state_of_another_build_is_refused(
    backend: LlamaCppBackend, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.0.1")
    assert "another build" in backend.restore_state(saved, "this model").note


def test_a_damaged_state_is_refused_wherever_the_damage_is(backend: LlamaCppBackend, saved: Path) -> None:
    whole = saved.read_bytes()
    for at in (0, 5, 9, 40, 1000, len(whole) // 2, len(whole) - 300, len(whole) - 40, len(whole) - 12, len(whole) - 1):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        moved = backend.restore_state(saved, "this model")
        assert (moved.tokens, moved.is_refused) == (0, True), at
    assert not any(slot.cells for slot in backend._cache.slots)


def test_a_truncated_state_is_refused(backend: LlamaCppBackend, saved: Path) -> None:
    whole = saved.read_bytes()
    for size in (0, 1, 11, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        moved = backend.restore_state(saved, "this model")
        assert (moved.tokens, moved.is_refused) == (0, True), size


def test_a_state_that_finds_no_room_is_left_as_it_is(tiny_reasoner: Path, saved: Path) -> None:
    small = loaded(tiny_reasoner, context_tokens=64)
    small._cache.tokens = 64  # llama.cpp rounds a context up
    moved = small.restore_state(saved, "this model")
    assert (moved.tokens, moved.is_refused) == (0, False)
    assert "no room" in moved.note
    small.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_costs_the_state_and_nothing_else(backend: LlamaCppBackend, tmp_path: Path) -> None:
    read(backend)
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    assert "can't be written" in backend.save_state(IDS, full, "this model", 10**9).note
    assert "there is room for" in backend.save_state(IDS, tmp_path / "state", "this model", 1000).note
    assert not (tmp_path / "state").exists()


# ---- the room for them


def put(states: States, chat: int, size: int) -> Path:
    place = states.of_chat(chat)
    with states.writing(place) as (part, _):
        part.write_bytes(bytes(size))
    os.utime(place, (chat, chat))
    return place


def test_the_longest_unused_gives_way(tmp_path: Path) -> None:
    states = States(tmp_path, most_gb=1e-6)
    first, second = put(states, 1, 400), put(states, 2, 400)
    states.used(first)
    third = put(states, 3, 400)
    assert [place.exists() for place in (first, second, third)] == [True, False, True]


def test_the_folder_is_the_owners_alone_and_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    states = States(tmp_path)

    def fail_half_way() -> None:
        with states.writing(states.of_chat(1)) as (part, most_bytes):
            assert 0 < most_bytes <= 2 * 10**9
            part.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list((tmp_path / "states").iterdir()) == []
    if sys.platform != "win32":
        assert (tmp_path / "states").stat().st_mode & 0o777 == 0o700
        assert put(states, 1, 4).stat().st_mode & 0o777 == 0o600


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    states = States(tmp_path)
    put(states, 1, 4)
    old = tmp_path / "states" / "1-1.part"
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    put(states, 2, 4)
    assert not old.exists()


# ---- conversations


@pytest.fixture
def store(slm_home: Path) -> Iterator[Store]:
    with open_store(slm_home / "data") as opened:
        yield opened


def nobody(waited_s: float) -> None:
    """Wait without a word."""


def had(store: Store | None, *, settings: Settings = LLAMA, prepares: bool = True) -> ChatSession:
    """Have a chat in an engine of its own, and leave it."""
    with open_model(MODEL, settings=settings) as engine:
        session = ChatSession(engine, store=store)
        for prompt in PROMPTS:
            list(session.send(prompt))
        assert session.warming is not None
        assert session.warming.wait(60)
        assert session.keep(nobody) == ""
        return session


def answered(session: ChatSession, prompt: str) -> Reply:
    list(session.send(prompt))
    assert session.last_reply is not None
    return session.last_reply


def test_a_chat_resumes_in_another_process_with_nothing_to_read_again(store: Store) -> None:
    number = had(store).chat
    assert number is not None
    with open_model(MODEL, settings=LLAMA) as engine:
        session = ChatSession(engine, store=store, chat=number)
        session.prepare()
        assert session.warming is not None
        assert session.warming.wait(60)
        assert session.warming.take_resumed() == "restored, 0 tokens read again"
        assert session.warming.take_resumed() == ""
        assert session.warming._prepared is not None
        held = session.warming._prepared.held_tokens
        warm = answered(session, "And 2 + 2?")
    assert (warm.usage.cached_tokens, warm.answer != "") == (held, True)


def test_a_resumed_chat_says_what_one_that_was_read_anew_says(store: Store) -> None:
    number = had(store).chat
    replies = []
    for limit in (None, 0.0):
        with open_model(MODEL, settings=replace(LLAMA, state_cache_gb=limit, speculation=False)) as engine:
            session = ChatSession(engine, store=store, chat=number, kind="run")
            replies.append(answered(session, "What is 55 + 44?"))
            session.undo()
    assert (replies[0].thinking, replies[0].answer) == (replies[1].thinking, replies[1].answer)
    assert [(reply.usage.cached_tokens or 0) > 50 for reply in replies] == [True, False]


def test_a_state_that_does_not_fit_is_removed_and_the_chat_read_anew(store: Store, slm_home: Path) -> None:
    number = had(store).chat
    place = slm_home / "data" / "states" / f"chat-{number}.state"
    place.write_bytes(place.read_bytes()[:-1])
    with open_model(MODEL, settings=LLAMA) as engine:
        session = ChatSession(engine, store=store, chat=number)
        session.prepare()
        assert session.warming is not None
        assert session.warming.wait(60)
        words = session.warming.take_resumed()
        assert words == "the kept state was not used, it is no whole state: the chat is read again"
        assert not place.exists()
        assert answered(session, "And 2 + 2?").answer


def test_nothing_is_written_of_what_is_not_kept(store: Store, slm_home: Path) -> None:
    had(None)
    had(store, settings=replace(LLAMA, state_cache_gb=0.0))
    assert not (slm_home / "data" / "states").exists()


def test_removing_a_chat_removes_its_state(store: Store, slm_home: Path, slm: Callable[..., Any]) -> None:
    number = had(store).chat
    states = slm_home / "data" / "states"
    start = states / f"chat-{number}.start-00ff.state"
    other = states / f"chat-{number}1.state"
    for place in (start, other):
        place.write_bytes(b"kept")
    assert {place.name for place in states.iterdir()} == {f"chat-{number}.state", start.name, other.name}
    store.close()
    assert slm("history", "rm", str(number), "-y").code == 0
    assert [place.name for place in states.iterdir()] == [other.name]


def test_what_two_prompts_begin_with_is_read_once(
    slm: Callable[..., Any], slm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_local.resuming.LEAST_START_TOKENS", 100)
    file = tmp_path / "file.txt"
    file.write_text("\n".join(f"Line {n} of the file." for n in range(30)), encoding="utf-8")
    flags = ("run", f"{MODEL}@backend=llamacpp", "-f", str(file), "--no-think", "-n", "4", "-v")
    assert "restored" not in slm(*flags, "What is 1 + 1?").err
    (place,) = (slm_home / "data" / "states").iterdir()
    assert place.name.startswith("chat-1.start-")
    again = slm(*flags, "Which line is last?").err
    held, total = (int(word) for word in again.split("restored: ")[1].split(" tokens")[0].split(" of "))
    assert 100 < held < total < held + 30
    assert "restored: " in slm(*flags, "Which line is longest?", "--samples", "2").err
    assert slm(*flags, "Why?", "--no-log").code == 0
    assert [each.name for each in (slm_home / "data" / "states").iterdir()] == [place.name]


def test_a_single_question_leaves_no_state(slm: Callable[..., Any], slm_home: Path) -> None:
    assert slm("run", f"{MODEL}@backend=llamacpp", "What is 47 + 38?").code == 0
    assert not (slm_home / "data" / "states").exists()


# ---- leaving


def leave(session: ChatSession) -> str:
    """Leave a conversation as the command line does; return what it says."""
    from slm_local.cli.answering import Teller
    from slm_local.cli.options import Flags

    said = io.StringIO()
    teller = Teller(terminal=Terminal(io.StringIO(), said, {"TERM": "dumb"}), flags=Flags(), registry=load_registry())
    teller.keep(session)
    return said.getvalue()


class Slow(ChatSession):
    """One whose state takes its time."""

    def __init__(self, *, is_interrupted: bool) -> None:
        self._is_interrupted = is_interrupted

    def keep(self, on_wait: Callable[[float], None]) -> str:
        for waited_s in (0.1, 0.9, 1.1, 1.2):
            on_wait(waited_s)
        if self._is_interrupted:
            raise KeyboardInterrupt
        return "a reason"


def test_a_long_saving_is_spoken_of_once_and_ctrl_c_skips_it() -> None:
    words = "keeping the chat warm… · Ctrl-C skips it\n"
    assert leave(Slow(is_interrupted=False)) == words
    assert leave(Slow(is_interrupted=True)) == words + "the chat is not kept warm: skipped\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes with names like files")
def test_a_saving_that_is_interrupted_ends_its_engine(slm_home: Path) -> None:
    def interrupt(waited_s: float) -> None:
        raise KeyboardInterrupt

    pipe = slm_home / "pipe"
    os.mkfifo(pipe)
    with open_model(MODEL, settings=LLAMA) as engine:
        messages = (Message(role="user", content=PROMPTS[0] * 4),)
        warming = engine.prepare(messages)
        assert warming is not None
        assert warming.wait(60)
        with pytest.raises(KeyboardInterrupt):
            engine.save_state(pipe, messages, think=None, least_tokens=0, most_bytes=10**9, on_wait=interrupt)
        assert not is_alive(engine)
        assert engine.reply(PROMPTS[0]).answer


def is_alive(engine: Engine) -> bool:
    return engine._worker is not None and engine._worker.is_alive
