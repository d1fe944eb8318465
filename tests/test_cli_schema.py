"""`slm run --schema FILE`: what it asks for, what it prints, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slm_local.backends import check_schema
from slm_local.engine import Engine
from slm_local.errors import UsageError
from tests.command import Result, slm
from tests.conftest import ScriptWriter

Slm = Callable[..., Result]

__all__ = ["slm"]

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["sum"],
    "additionalProperties": False,
}


def forbidden(*arguments: object) -> None:
    raise AssertionError("a model was opened")


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return str(path)


def test_the_answer_of_the_embedded_reasoner_matches_a_schema(slm: Slm, schema: str) -> None:
    done = slm("run", "tiny-reasoner", "What is 47 + 38?", "--schema", schema, "--json", "--backend", "llamacpp")
    assert done.code == 0, done.err
    reply = json.loads(done.out)
    assert isinstance(reply["answer"], str)
    assert list(json.loads(reply["answer"])) == ["sum"]
    assert reply["thinking"]
    assert reply["finish"] == "stop"


def test_every_sample_matches(slm: Slm, schema: str) -> None:
    words = ("run", "tiny-reasoner", "What is 4 + 5?", "--schema", schema, "--samples", "3", "--json")
    done = slm(*words, "--backend", "llamacpp")
    assert done.code == 0, done.err
    assert [list(json.loads(each["answer"])) for each in json.loads(done.out)["samples"]] == [["sum"]] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "a schema is a JSON object"),
        ('{"type": "objekt"}', "can't be compiled: Invalid type: objekt"),
    ],
)
def test_a_schema_that_is_none_is_refused_before_a_model_is_opened(
    slm: Slm, schema: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "start", forbidden)
    Path(schema).write_text(text, encoding="utf-8")
    done = slm("run", "tiny-reasoner", "hi", "--schema", schema, "--backend", "llamacpp")
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_openvinos_refusal_of_a_schema_needs_no_model_either() -> None:
    with pytest.raises(UsageError, match="pattern"):
        check_schema("openvino", '{"type": "string", "pattern": "a+"}')
    check_schema("openvino", json.dumps({"type": "boolean"}))


def test_a_schema_that_is_not_there_and_a_chat_with_one_are_refused(
    slm: Slm, schema: str, script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = f"scripted:{script({'text': '{}'}, {'end': 'stop'})}"
    missing = slm("run", model, "hi", "--schema", "nowhere.json")
    assert missing.code == 2
    assert "--schema nowhere.json: No such file" in missing.err
    monkeypatch.setattr("slm_local.cli.run.joined_prompt", lambda *words: None)
    chat = slm("run", model, "--schema", schema)
    assert chat.code == 2
    assert "--schema needs a prompt" in chat.err
