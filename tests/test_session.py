"""Conversations: what the model is shown again, and what leaves the history and what never does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slm_local.engine import Engine, open_model
from slm_local.errors import PromptTooLong, UsageError
from slm_local.generation import Control, ThinkDelta
from slm_local.session import ChatSession
from tests.conftest import ScriptWriter


@pytest.fixture
def engine(script: ScriptWriter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    path = script(
        *({"text": "<think>secret"}, {"text": "</think>one"}, {"end": "stop"}),
        *({"text": "two"}, {"end": "stop"}),
        *({"text": "three"}, {"end": "stop"}),
        setup={"context": 400},
    )
    with open_model(f"scripted:{path}") as opened:
        yield opened


def contents(session: ChatSession) -> list[str]:
    return [message.content for message in session.messages]


def test_thinking_never_goes_back_into_the_prompt(engine: Engine) -> None:
    session = ChatSession(engine, system="be brief")
    list(session.send("first"))
    list(session.send("second"))
    assert contents(session) == ["be brief", "first", "one", "second", "two"]
    assert session.turns[0][1].thinking == "secret"


def test_a_refused_turn_changes_nothing_and_drop_makes_room(engine: Engine) -> None:
    session = ChatSession(engine)
    list(session.send("x" * 100))
    list(session.send("y" * 60))
    before = contents(session)
    with pytest.raises(PromptTooLong, match="400"):
        list(session.send("z" * 120))
    assert contents(session) == before
    assert session.drop() == 2
    list(session.send("z" * 120))
    assert contents(session)[0] == "y" * 60


def test_a_cancelled_turn_keeps_the_answer_it_has_and_none_without_one(engine: Engine) -> None:
    session = ChatSession(engine)
    control = Control()
    for event in session.send("first", control):
        if isinstance(event, ThinkDelta):
            control.cancel()
    assert session.last_reply is not None
    if not session.last_reply.answer:
        assert contents(session) == []


def test_writing_anew_replaces_the_answer(engine: Engine) -> None:
    session = ChatSession(engine)
    list(session.send("first"))
    list(session.regenerate())
    assert contents(session) == ["first", "two"]
    with pytest.raises(UsageError):
        list(ChatSession(engine).regenerate())


def test_undo_clear_and_drop_take_away_what_they_say(engine: Engine) -> None:
    session = ChatSession(engine, system="s")
    list(session.send("first"))
    list(session.send("second"))
    assert session.undo() == "second"
    assert contents(session) == ["s", "first", "one"]
    session.clear()
    assert contents(session) == ["s"]
    assert session.drop() == 0
    assert session.undo() is None


def test_the_export_has_thinking_apart_and_the_exact_text(engine: Engine) -> None:
    session = ChatSession(engine)
    list(session.send("first"))
    text = session.export_markdown()
    assert "> secret" in text
    assert "### Answer\n\none\n" in text


def test_a_turn_without_an_answer_can_be_asked_again(script: ScriptWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    path = script({"text": "<think>only thoughts</think>"}, *[{"end": "stop"}] * 2, {"text": "now"}, {"end": "stop"})
    with open_model(f"scripted:{path}") as opened:
        session = ChatSession(opened)
        list(session.send("first"))
        assert (contents(session), session.unanswered) == ([], "first")
        list(session.regenerate())
        assert (contents(session), session.unanswered) == (["first", "now"], None)
