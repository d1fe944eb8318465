"""When the driver holds an answer to its schema, and behind what: seen at a backend that takes note of it."""

from __future__ import annotations

import json

import pytest

from slm_local.backends.base import misbegun
from slm_local.backends.scripted import ScriptedBackend
from slm_local.driver import Driver
from slm_local.errors import SlmError, UsageError
from slm_local.generation import Control, GenerationRequest, Handle, Message, ReasoningTags
from slm_local.reasoning import derive_tags
from tests.conftest import ScriptWriter
from tests.contract.runners import Heard, ask
from tests.governed import END, OPEN, Row
from tests.loading import THINK_TAGS, load_settings_for

SCHEMA = json.dumps({"type": "object"})
SAID: Row = {"text": '{"a": 1}'}


class Unable(ScriptedBackend):
    """Can't hold an answer to anything."""

    capabilities = frozenset({"cached_tokens"})


class Noting(ScriptedBackend):
    """Keeps what it was told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def inject(self, handle: Handle, text: str) -> None:
        self.told.append(f"inject {text}")
        super().inject(handle, text)

    def constrain(self, handle: Handle, schema: str, begun: str = "") -> None:
        assert schema == SCHEMA
        self.told.append(f"hold {begun}".strip())
        if begun.startswith("No"):
            raise misbegun(begun)


def driver_of(script: ScriptWriter, *rows: Row, tags: ReasoningTags | None = THINK_TAGS) -> tuple[Driver, Noting]:
    backend = Noting()
    driver = Driver(backend)
    settings = load_settings_for("scripted", script(*rows), tags=tags)
    driver.load(settings, Control(), lambda fraction: None)
    return driver, backend


def asked(think_tokens: int | None = None) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content="go"),), schema=SCHEMA, think_tokens=think_tokens)


def test_an_answer_is_held_to_its_schema_once_thinking_has_ended(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, {"text": "hm"}, {"text": "</think>"}, SAID, END)
    heard = Heard(list(driver.run(asked())))
    assert heard.started.think_state == "open", "where the answer begins is not for the model to decide"
    assert (heard.thinking, heard.answer) == ("hm", '{"a": 1}')
    assert backend.told == ["hold"]


def test_the_schema_is_in_force_behind_what_ends_thinking_before_the_next_token(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, {"text": "hm "}, {"text": "hm "}, {"text": "</think>"}, SAID, END)
    heard = Heard(list(driver.run(asked(think_tokens=1))))
    assert heard.answer == '{"a": 1}'
    closing, held = backend.told
    assert closing.endswith("</think>\n\n")
    assert held == "hold"


def test_a_model_that_stops_in_its_thinking_is_nudged_into_its_schema(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, {"text": "hm", "end": "stop"}, SAID, END)
    assert Heard(list(driver.run(asked()))).answer == '{"a": 1}'
    assert [told.split()[0] for told in backend.told] == ["inject", "hold"]


def test_what_stands_behind_the_closing_tag_in_its_token_is_looked_at(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, {"text": 'hm</think> {"a'}, {"text": '": 1}'}, END)
    assert Heard(list(driver.run(asked()))).answer == '{"a": 1}'
    assert backend.told == ['hold {"a']


def test_an_answer_that_began_otherwise_fails_alone(script: ScriptWriter) -> None:
    driver, _ = driver_of(script, {"text": "hm</think>No."}, END, {"text": "yes"}, END)
    with pytest.raises(SlmError, match=r"the answer began with 'No\.'"):
        list(driver.run(asked()))
    assert not driver.is_busy
    assert Heard(list(driver.run(ask("go", think="off")))).answer == "yes"


def test_where_nothing_thinks_the_schema_is_in_force_from_the_start(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, SAID, END, tags=None)
    driver.start(1, asked())
    assert backend.told == ["hold"]


def test_channels_are_opened_for_the_answer(script: ScriptWriter) -> None:
    tags = derive_tags("<|channel|>analysis<|message|>", lambda text: False)
    assert tags is not None
    driver, backend = driver_of(script, {"text": "hm"}, {"text": "<|end|>"}, END, SAID, END, tags=tags)
    heard = Heard(list(driver.run(asked())))
    assert (heard.thinking, heard.answer) == ("hm", '{"a": 1}')
    assert backend.told == [f"inject {tags.answer_open}", "hold"]


def test_an_engine_that_cant_is_refused_with_a_word_on_who_can(script: ScriptWriter) -> None:
    driver = Driver(Unable())
    driver.load(load_settings_for("scripted", script(SAID, END)), Control(), lambda fraction: None)
    with pytest.raises(UsageError, match="can't hold an answer to a schema") as caught:
        list(driver.run(asked()))
    assert caught.value.hint == "--backend llamacpp"


def test_a_request_without_a_schema_is_held_to_nothing(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, OPEN, {"text": "hm</think>yes"}, END)
    assert Heard(list(driver.run(ask("go")))).answer == "yes"
    assert backend.told == []
