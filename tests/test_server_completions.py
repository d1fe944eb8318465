"""Raw completions, log-probabilities, tokens, and answers in a form, with the embedded reasoner on llama.cpp."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Serving, serving

TEXT = "What is 47 + 38?"
ASKED: Any = [{"role": "user", "content": TEXT}]


@pytest.fixture
def server(tiny_reasoner: Path) -> Iterator[Serving]:
    del tiny_reasoner
    with serving("tiny-reasoner@backend=llamacpp") as running:
        yield running


def test_one_server_answers_everything_that_lm_eval_asks(server: Serving) -> None:
    """Its local-completions with tokenizer_backend=remote: the calls, and what it reads of the answers."""
    info = server.http.get("/tokenizer_info").json()
    assert info["eos_token"]
    assert info["chat_template"]
    encode = {"prompt": TEXT, "add_special_tokens": False}
    tokens = server.http.post("/tokenize", json=encode).json()["tokens"]
    assert server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == TEXT
    eos = server.http.post("/tokenize", json={**encode, "prompt": info["eos_token"]}).json()["tokens"]
    assert eos == [info["eos_token_id"]]
    asked = {"prompt": [tokens], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    (choice,) = server.http.post("/v1/completions", json=asked).json()["choices"]
    scored = choice["logprobs"]
    counts = {name: len(scored[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    assert set(counts.values()) == {len(tokens) + 1}
    assert (scored["token_logprobs"][0], scored["top_logprobs"][0]) == (None, None)
    for own, top in zip(scored["token_logprobs"][1:], scored["top_logprobs"][1:], strict=True):
        assert own <= max(top.values()) <= 0.0
    assert choice["text"].startswith(TEXT)
    begins = [choice["text"][at:] for at in scored["text_offset"]]
    assert all(begin.startswith(token) for begin, token in zip(begins, scored["tokens"], strict=True))


def test_a_prompt_alone_is_scored_without_writing_anything(server: Serving) -> None:
    asked = {"prompt": TEXT, "max_tokens": 0, "logprobs": 2, "echo": True}
    answer = server.http.post("/v1/completions", json=asked).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]
    likely = sum(choice["logprobs"]["token_logprobs"][1:])
    assert math.isfinite(likely)
    assert likely < 0.0
    refused = server.http.post("/v1/completions", json={**asked, "echo": False})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")


def test_the_end_token_counts_among_the_scored(server: Serving) -> None:
    prompt = server.http.post("/tokenize", json={"messages": ASKED}).json()["tokens"]
    asked = {"prompt": prompt, "max_tokens": 300, "logprobs": 0, "temperature": 0}
    answer = server.http.post("/v1/completions", json=asked).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"]


def test_raw_completions_are_neither_templated_nor_split_and_stream(server: Serving) -> None:
    prompt = server.http.post("/tokenize", json={"messages": ASKED}).json()["tokens"]
    fields: Any = {"model": "tiny-reasoner@backend=llamacpp", "prompt": prompt, "max_tokens": 300, "temperature": 0}
    whole = server.openai.completions.create(**fields)
    assert "</think>" in whole.choices[0].text
    assert whole.object == "text_completion"
    streamed = list(server.openai.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == whole.choices[0].text
    assert streamed[-1].usage is not None
    assert whole.usage is not None
    assert streamed[-1].usage.total_tokens == whole.usage.total_tokens
    assert [chunk.choices[0].finish_reason for chunk in streamed if chunk.choices][-1] == "stop"


def test_several_prompts_and_choices_are_numbered_in_order(server: Serving) -> None:
    asked = {"prompt": ["one", "two"], "n": 2, "max_tokens": 2, "echo": True, "temperature": 0.8, "seed": 1}
    answer = server.http.post("/v1/completions", json=asked).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:3] for choice in answer["choices"]] == ["one", "one", "two", "two"]
    assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"prompt": "x", "response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt": "x", "logprobs": 99}, "logprobs"),
        ({"prompt": ["x"] * 100, "n": 3}, "n"),
    ],
    ids=str,
)
def test_a_completion_that_can_not_be_is_400_and_names_the_field(
    server: Serving, fields: dict[str, Any], param: str
) -> None:
    response = server.http.post("/v1/completions", json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_ids_beyond_the_vocabulary_are_400(server: Serving) -> None:
    for path, body in (("/v1/completions", {"prompt": [10**6]}), ("/detokenize", {"tokens": [10**6]})):
        response = server.http.post(path, json=body)
        assert response.status_code == 400


def test_an_answers_tokens_come_with_their_log_probabilities(server: Serving) -> None:
    fields: Any = {"messages": ASKED, "logprobs": True, "top_logprobs": 2, "temperature": 0}
    choice = server.http.post("/v1/chat/completions", json=fields).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries).strip() == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0.0 for entry in entries)
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)
    streamed = server.http.post("/v1/chat/completions", json={**fields, "stream": True}).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in streamed if line.startswith("data: {")]
    spread = [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]]
    assert [entry["token"] for entry in spread] == [entry["token"] for entry in entries]


def test_the_form_of_an_answer_holds_behind_free_thinking(server: Serving) -> None:
    schema = {"type": "object", "properties": {"sum": {"enum": ["85", "86"]}}, "required": ["sum"]}
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": {**schema, "additionalProperties": False}}}
    fields: Any = {"messages": ASKED, "response_format": form, "max_tokens": 300}
    message = server.http.post("/v1/chat/completions", json=fields).json()["choices"][0]["message"]
    assert json.loads(message["content"])["sum"] in ("85", "86")
    assert "ones: 7+8" in message["reasoning_content"]


def test_tools_for_a_model_whose_template_takes_none_are_400_with_the_reason(server: Serving) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    response = server.http.post("/v1/chat/completions", json={"messages": ASKED, "tools": [tool]})
    assert response.status_code == 400
    assert "takes no tools" in response.json()["error"]["message"]
    ignored = server.http.post("/v1/chat/completions", json={"messages": ASKED, "tools": [tool], "tool_choice": "none"})
    assert ignored.status_code == 200
