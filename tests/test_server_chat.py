"""Chat completions through the official client, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import openai
import pytest

from tests.command import THINK_THEN_ANSWER
from tests.conftest import ScriptWriter
from tests.serving import Serving, serving

pytestmark = pytest.mark.usefixtures("scripted_allowed")

THINKING, ANSWER = "7 + 8 = 15, carry 1.", "It is **85**."
ASKED: Any = [{"role": "user", "content": "What is 47 + 38?"}]


@pytest.fixture
def server(script: ScriptWriter) -> Iterator[Serving]:
    with serving(f"scripted:{script(*THINK_THEN_ANSWER, name='sums')}") as running:
        yield running


def chunks_of(server: Serving, **fields: Any) -> list[dict[str, Any]]:
    """Return the chunks of a streamed answer as plain values."""
    stream = server.openai.chat.completions.create(model="sums", messages=ASKED, stream=True, **fields)
    return [chunk.model_dump() for chunk in stream]


def test_an_answer_has_its_thinking_in_fields_of_its_own(server: Serving) -> None:
    answer = server.openai.chat.completions.create(model="sums", messages=ASKED)
    message = answer.choices[0].message.model_dump()
    assert (message["role"], message["content"]) == ("assistant", ANSWER)
    assert message["reasoning_content"] == message["reasoning"] == THINKING
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", "sums", "stop")
    usage = answer.model_dump()["usage"]
    assert (usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (10, 7)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    ours = answer.model_dump()["choices"][0]["slm"]
    assert (ours["finish"], ours["cut"]) == ("stop", "none")
    assert ours["timings"]["decode_tps"] >= 0.0


def test_a_stream_says_the_role_once_and_never_both_kinds_in_one_chunk(server: Serving) -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(server)]
    assert [delta.get("role") for delta in deltas].count("assistant") == 1 == bool(deltas[0]["role"])
    assert not [delta for delta in deltas if delta.get("content") and delta.get("reasoning_content")]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == THINKING
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == THINKING
    assert "".join(delta.get("content") or "" for delta in deltas) == ANSWER
    kinds = ["think" if delta.get("reasoning") else "answer" for delta in deltas[1:-1]]
    assert kinds == sorted(kinds, reverse=True)


def test_a_stream_ends_with_its_reason_and_with_usage_only_when_asked(server: Serving) -> None:
    plain = chunks_of(server)
    assert plain[-1]["choices"][0]["finish_reason"] == "stop"
    assert plain[-1]["choices"][0]["slm"]["cut"] == "none"
    assert not any(chunk["usage"] for chunk in plain)
    counted = chunks_of(server, stream_options={"include_usage": True})
    assert (counted[-1]["choices"], counted[-1]["usage"]["completion_tokens"]) == ([], 10)
    assert counted[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 7
    assert [chunk["usage"] for chunk in counted[:-1]] == [None] * (len(counted) - 1)


def test_a_raw_stream_ends_with_done(server: Serving) -> None:
    with server.http.stream("POST", "/v1/chat/completions", json={"messages": ASKED, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def test_several_choices_come_from_one_request(server: Serving) -> None:
    answer = server.openai.chat.completions.create(model="sums", messages=ASKED, n=2, temperature=0.5, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1]
    streamed = chunks_of(server, n=2)
    ends = [chunk["choices"][0]["index"] for chunk in streamed if chunk["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_a_stop_string_ends_the_answer(server: Serving) -> None:
    for stop in (" **", [" **", "never"]):
        answer = server.openai.chat.completions.create(model="sums", messages=ASKED, stop=stop)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("It is", "stop")


def test_a_limit_ends_thinking_in_time_for_an_answer(script: ScriptWriter) -> None:
    rows = [
        {"text": "<think>"},
        {"text": "thought {n}, ", "times": 400},
        {"text": "</think>"},
        {"text": "yes", "end": "stop"},
    ]
    with serving(f"scripted:{script(*rows, name='thinker')}@loop-guard=false") as server:
        name = server.openai.models.list().data[0].id
        answer = server.openai.chat.completions.create(model=name, messages=ASKED, max_completion_tokens=200)
    assert name == "thinker@loop-guard=false"
    choice = answer.choices[0].model_dump()
    assert (choice["message"]["content"], choice["slm"]["cut"]) == ("yes", "max_tokens")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 200


def test_an_answer_that_reaches_its_limit_says_length(server: Serving) -> None:
    answer = server.chat(max_tokens=3, think=False).json()
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "fields", [{"reasoning": {"exclude": True}}, {"include_reasoning": False}], ids=["exclude", "include"]
)
def test_thinking_can_be_kept_back(server: Serving, fields: dict[str, Any]) -> None:
    answer = server.chat(**fields).json()
    assert "reasoning_content" not in answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 7
    streamed = server.chat(stream=True, **fields).text
    assert "reasoning_content" not in streamed


def test_past_thinking_is_taken_and_left_out_of_the_prompt(server: Serving) -> None:
    def prompt(**fields: Any) -> list[int]:
        past: Any = {"role": "assistant", "content": "85", **fields}
        messages = [ASKED[0], past, {"role": "user", "content": "sure?"}]
        return list(server.http.post("/tokenize", json={"messages": messages}).json()["tokens"])

    plain = prompt()
    assert bytes(plain).decode().count("85") == 1
    for name in ("reasoning_content", "reasoning", "thinking"):
        assert prompt(**{name: "so many words"}) == plain
    assert prompt(content="<think>so many words</think>\n85") == plain


def test_parts_of_text_are_joined_and_developers_are_systems(server: Serving) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    tokens = server.http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert bytes(tokens).decode() == "<|system|>Be brief.\n<|user|>one\ntwo\n<|assistant|>"


def test_what_has_no_effect_is_reported(server: Serving) -> None:
    answer = server.chat(user="me", frobnicate=3, verbosity="low").json()
    assert answer["warnings"] == ["frobnicate has no effect here", "verbosity has no effect here"]
    assert "warnings" not in server.chat(user="me").json()
    answer = server.chat(reasoning={"effort": "low", "summary": "auto"}, stream_options={"include_obfuscation": False})
    told = {"stream_options.include_obfuscation has no effect here", "reasoning.summary has no effect here"}
    assert set(answer.json()["warnings"]) == told
    last = server.chat(stream=True, frobnicate=3).text.split("\n\n")[-3]
    assert json.loads(last.removeprefix("data: "))["warnings"] == ["frobnicate has no effect here"]


def test_a_prompt_too_long_is_refused_with_both_counts_before_the_stream(script: ScriptWriter) -> None:
    reference = f"scripted:{script(*THINK_THEN_ANSWER, setup={'context': 256}, name='small')}"
    with serving(reference) as server, pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "word " * 100}], stream=True
        )
    assert caught.value.code == "context_length_exceeded"
    assert "522" in caught.value.message
    assert "256" in caught.value.message


def test_an_unknown_model_is_404_with_the_names(server: Serving) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.chat.completions.create(model="gpt-9", messages=ASKED)
    assert caught.value.code == "model_not_found"
    assert "sums" in caught.value.message
    assert cast("dict[str, Any]", caught.value.body)["hint"] == "GET /v1/models"


def test_a_path_or_an_address_in_the_models_name_opens_nothing(server: Serving, script: ScriptWriter) -> None:
    other = script({"text": "no", "end": "stop"}, name="other")
    for name in (f"scripted:{other}", "/etc/passwd", "hf:owner/repo", "http://127.0.0.1:1/v1#x", "tiny-reasoner"):
        assert server.chat(model=name).status_code == 404


SCHEMALESS = {"type": "json_schema"}
BAD_BODIES: dict[str, tuple[Any, str | None]] = {
    "no messages": ({}, "messages"),
    "messages a string": ({"messages": "hi"}, "messages"),
    "messages numbers": ({"messages": [1, 2]}, "messages[0]"),
    "no message": ({"messages": []}, "messages"),
    "no role": ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    "role a number": ({"messages": [{"role": 3, "content": "hi"}]}, "messages[0].role"),
    "unknown role": ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "blank": ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
    ),
    "too hot": ({"messages": ASKED, "temperature": 2.5}, "temperature"),
    "not a number": ({"messages": ASKED, "temperature": "hot"}, "temperature"),
    "no tokens": ({"messages": ASKED, "max_tokens": 0}, "max_tokens"),
    "no choice": ({"messages": ASKED, "n": 0}, "n"),
    "too many choices": ({"messages": ASKED, "n": 1000}, "n"),
    "seed": ({"messages": ASKED, "seed": 2**40}, "seed"),
    "two limits": ({"messages": ASKED, "max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    "top_logprobs alone": ({"messages": ASKED, "top_logprobs": 2}, "top_logprobs"),
    "logit_bias": ({"messages": ASKED, "logit_bias": {"1": 5}}, "logit_bias"),
    "functions": ({"messages": ASKED, "functions": [{"name": "f"}]}, "functions"),
    "no schema": (
        {"messages": ASKED, "response_format": {"type": "json_schema"}},
        "response_format.json_schema.schema",
    ),
    "tokens that stop": ({"messages": ASKED, "stop_token_ids": [5]}, "stop_token_ids"),
    "must call": ({"messages": ASKED, "tools": [{}], "tool_choice": "required"}, "tool_choice"),
    "effort of nothing": ({"messages": ASKED, "reasoning": {"max_tokens": -2}}, "reasoning.max_tokens"),
    "content a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "empty stop": ({"messages": ASKED, "stop": [""]}, "stop[0]"),
    "too many stops": ({"messages": ASKED, "stop": ["a"] * 20}, "stop"),
    "result of nothing": ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].tool_call_id"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_that_is_wrong_is_400_and_names_the_field(server: Serving, name: str) -> None:
    body, param = BAD_BODIES[name]
    response = server.http.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"]


def test_a_field_of_several_kinds_is_told_of_in_one_sentence(server: Serving) -> None:
    assert "at most 16 items" in server.chat(stop=["a"] * 20).json()["error"]["message"]
    told = server.chat(stop=5).json()["error"]["message"]
    assert told == "stop: Input should be a valid string or a valid array"


def test_what_is_no_json_is_400(server: Serving) -> None:
    headers = {"Content-Type": "application/json"}
    for content in ('{"messages": [', "", "[" * 100_000, '{"messages": "\\ud800"}', '{"temperature": NaN}'):
        response = server.http.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["message"]


def test_a_failure_in_the_stream_is_an_error_event_and_the_next_request_is_served(script: ScriptWriter) -> None:
    rows = [{"text": "It is"}, {"fault": "segv"}]
    with serving(f"scripted:{script(*rows, name='frail')}") as server:
        with pytest.raises(openai.APIError, match="gone") as caught:
            list(server.openai.chat.completions.create(model="frail", messages=ASKED, stream=True))
        assert caught.value.code == "engine_died"
        failed = server.chat()
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "engine_died")
        assert "/" not in failed.json()["error"]["message"]


def test_models_are_listed_with_what_is_known(server: Serving) -> None:
    listed = server.openai.models.list().data
    assert [model.id for model in listed] == ["sums"]
    assert server.openai.models.retrieve("SUMS").id == "sums"
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("gpt-9")


def test_without_named_models_all_that_are_here_are_served() -> None:
    with serving() as server:
        assert {"tiny-reasoner", "tiny-direct"} <= {model.id for model in server.openai.models.list()}
        assert server.chat(model=None).json()["error"]["message"].startswith("which model?")
        assert server.chat("What is 47 + 38?", model="tiny").json()["model"] == "tiny-reasoner"
