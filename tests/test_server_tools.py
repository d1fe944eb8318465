"""Tool calls in chat answers: parsed behind the thinking, streamed and whole, and the results taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptWriter
from tests.serving import Serving, serving

pytestmark = pytest.mark.usefixtures("scripted_allowed")

TEMPLATE = (Path(__file__).parent / "data" / "templates" / "Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8")
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 47, "b": 38}}\n</tool_call>'
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
ASKED: Any = [{"role": "user", "content": "What is 47 + 38?"}]


@pytest.fixture
def server(script: ScriptWriter) -> Iterator[Serving]:
    texts = ["<think>", "I call.", "</think>", "\n\n", *(CALL[at : at + 5] for at in range(0, len(CALL), 5))]
    rows = [{"text": text} for text in texts]
    with serving(f"scripted:{script(*rows, {'end': 'stop'}, setup={'template': TEMPLATE}, name='caller')}") as running:
        yield running


def test_a_call_is_parsed_out_of_the_answer_behind_the_thinking(server: Serving) -> None:
    answer = server.openai.chat.completions.create(model="caller", messages=ASKED, tools=[ADD])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.model_dump()["reasoning_content"] == "I call."
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 47, "b": 38})


def test_a_call_comes_whole_in_a_stream(server: Serving) -> None:
    stream = server.openai.chat.completions.create(model="caller", messages=ASKED, tools=[ADD], stream=True)
    choices = [chunk.choices[0] for chunk in stream]
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls if call.function] == [(0, "add")]
    assert choices[-1].finish_reason == "tool_calls"
    assert not "".join(choice.delta.content or "" for choice in choices)


def test_a_result_goes_back_under_its_call(server: Serving) -> None:
    called = server.openai.chat.completions.create(model="caller", messages=ASKED, tools=[ADD]).choices[0].message
    assert called.tool_calls is not None
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "85"}
    messages: Any = [*ASKED, called.model_dump(), result]
    tokens = server.http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    prompt = bytes(tokens).decode()
    assert '{"name": "add", "arguments": {"a": 47, "b": 38}}' in prompt
    assert "<tool_response>\n85\n</tool_response>" in prompt
    assert "I call." not in prompt


def test_without_tools_the_same_text_is_an_answer(server: Serving) -> None:
    asked: list[dict[str, Any]] = [{}, {"tools": [ADD], "tool_choice": "none"}]
    for fields in asked:
        choice = server.chat(**fields).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [ADD], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "subtract"}}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, None),
        ({"tools": [{"type": "web_search"}]}, None),
    ],
    ids=["form", "not offered", "no way", "no word", "nothing offered", "nameless", "no function"],
)
def test_tools_that_can_not_be_honoured_are_400(server: Serving, fields: dict[str, Any], param: str | None) -> None:
    response = server.chat(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_call_that_is_none_is_400_and_named(server: Serving) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "[1, 2"}}
    messages = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, *ASKED]
    response = server.http.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"
