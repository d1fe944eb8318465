"""ollama's API through the official Python client, against a real server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from slm_local import __version__
from slm_local.model import ModelSpec
from slm_local.server.ollama.listing import OLLAMA_VERSION, shown
from slm_local.server.served import Served
from tests.command import THINK_THEN_ANSWER
from tests.conftest import ScriptWriter
from tests.serving import Serving, serving
from tests.test_template_files import source_of
from tests.test_template_tools import QWEN, tool
from tests.test_worker import wait_until

THINKING, ANSWER = "7 + 8 = 15, carry 1.", "It is **85**."
ASKED: Any = [{"role": "user", "content": "What is 47 + 38?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Gent"}}\n</tool_call>'
PROMPT_TOKENS = len("<|user|>What is 47 + 38?\n<|assistant|>")
RESULT = "<|im_start|>user\n<tool_response>\nRain.\n</tool_response><|im_end|>\n"
CALLING = (
    {"text": "<think>\nI look.\n</think>\n\n"},
    {"text": "Wait.\n"},
    {"text": CALL[:20]},
    {"text": CALL[20:]},
    {"end": "stop"},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, known_machine: Path, smollm2: Path) -> Iterator[Serving]:
    """Serve models that think and answer, call tools, die, never end; the embedded one and SmolLM2."""
    folder = tmp_path_factory.mktemp("models")
    rows: dict[str, list[dict[str, Any]]] = {
        "sums": [*THINK_THEN_ANSWER],
        "caller": [{"setup": {"template": source_of(QWEN), "context": 8192}}, *CALLING],
        "dying": [{"text": "So"}, {"fault": "exit"}],
        "endless": [{"text": "on {n} ", "delay": 0.01, "times": 10_000}],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    references = [f"scripted:{folder / name}.jsonl" for name in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_SCRIPTED", "1")
        patch.setenv("SLM_HOME", str(known_machine.parent))
        with serving(*references, "tiny-reasoner", str(smollm2), has_ollama=True) as running:
            yield running


@pytest.fixture
def client(server: Serving) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.address) as client:
        yield client


def post(server: Serving, path: str, **fields: Any) -> httpx.Response:
    return server.http.post(path, json={"model": "sums", **fields})


def test_a_conversation_is_answered_with_its_thinking_apart(client: ollama.Client) -> None:
    answer = client.chat("sums", ASKED)
    assert (answer.message.role, answer.message.content, answer.message.thinking) == ("assistant", ANSWER, THINKING)
    assert (answer.model, answer.done, answer.done_reason) == ("sums", True, "stop")
    assert (answer.eval_count, answer.prompt_eval_count) == (10, PROMPT_TOKENS)
    total = answer.total_duration or 0
    assert 0 < (answer.eval_duration or 0) + (answer.prompt_eval_duration or 0) + (answer.load_duration or 0) <= total
    assert total < 60e9


def test_a_stream_tells_the_same_in_pieces_and_counts_in_the_last(client: ollama.Client) -> None:
    chunks = list(client.chat("sums", ASKED, stream=True))
    assert "".join(chunk.message.thinking or "" for chunk in chunks) == THINKING
    assert "".join(chunk.message.content or "" for chunk in chunks) == ANSWER
    assert not [chunk for chunk in chunks if chunk.message.thinking and chunk.message.content]
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (chunks[-1].eval_count, chunks[-1].done_reason) == (10, "stop")
    assert chunks[0].eval_count is None


def test_a_prompt_is_answered_whole_and_in_pieces(client: ollama.Client) -> None:
    answer = client.generate("sums:latest", "What is 47 + 38?", system="Be brief.", think=True)
    assert (answer.response, answer.thinking, answer.model) == (ANSWER, THINKING, "sums:latest")
    chunks = list(client.generate("sums", "What is 47 + 38?", stream=True))
    assert "".join(chunk.response or "" for chunk in chunks) == ANSWER
    assert "".join(chunk.thinking or "" for chunk in chunks) == THINKING


def test_a_raw_prompt_is_neither_templated_nor_split(client: ollama.Client) -> None:
    answer = client.generate("sums", "2+2=", raw=True)
    assert answer.prompt_eval_count == 4
    assert (answer.response or "").startswith("<think>")
    assert answer.thinking is None


def test_thinking_is_switched_and_bounded(server: Serving, client: ollama.Client) -> None:
    off = client.chat("sums", ASKED, think=False)
    assert off.prompt_eval_count == PROMPT_TOKENS + len("<think>\n\n</think>\n\n")
    low: Any = client.chat("sums", ASKED, think="low")
    assert low.message.thinking
    refused = post(server, "/api/chat", messages=ASKED, think="loud")
    assert refused.status_code == 400
    assert "loud" in refused.json()["error"]


def test_options_apply_and_those_that_do_not_are_told_of(server: Serving) -> None:
    told = post(
        server, "/api/chat", messages=ASKED, stream=False, options={"num_predict": 4, "stop": ["x"], "num_gpu": 1}
    )
    assert (told.json()["done_reason"], told.json()["eval_count"]) == ("length", 4)
    assert told.json()["warnings"] == ["options.num_gpu has no effect here"]
    told = post(
        server, "/api/chat", messages=ASKED, stream=False, shift=True, options={"num_ctx": 10**6, "num_predict": -1}
    )
    assert told.json()["eval_count"] == 10
    assert told.json()["warnings"][0] == "shift has no effect here"
    assert "num_ctx 1000000 has no effect: the model is open with" in told.json()["warnings"][1]


@pytest.mark.parametrize(
    ("path", "fields", "error"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "not images"),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, "not images"),
        ("/api/chat", {"messages": ASKED, "options": {"mirostat": 2}}, "options.mirostat can't be honoured"),
        ("/api/chat", {"messages": ASKED, "options": {"temperature": -1}}, "options.temperature"),
        ("/api/chat", {"messages": ASKED, "keep_alive": "soon"}, "keep_alive is seconds"),
        ("/api/chat", {"messages": ASKED, "format": "xml"}, "format is"),
        ("/api/chat", {"messages": [{"content": "x"}]}, "messages[0].role"),
        ("/api/chat", {"messages": ASKED, "top_logprobs": 2}, "goes with logprobs"),
        ("/api/chat", {"messages": ASKED, "tools": [tool()]}, "takes no tools"),
        ("/api/chat", {"messages": ASKED, "tools": [tool()], "format": "json"}, "leaves no room for calls"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix can't be honoured"),
        ("/api/generate", {"prompt": "x", "template": "y"}, "template can't be honoured"),
        ("/api/generate", {"prompt": "x", "context": [1]}, "context can't be honoured"),
        ("/api/generate", {"prompt": "x", "raw": True, "think": True}, "a raw prompt has no"),
        ("/api/generate", {"prompt": " "}, "the prompt is empty"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_ollamas_words(
    server: Serving, path: str, fields: dict[str, Any], error: str
) -> None:
    answer = post(server, path, **fields)
    assert answer.status_code == 400
    assert error in answer.json()["error"]


def test_a_call_is_answered_with_its_result(client: ollama.Client) -> None:
    offered: Any = [tool()]
    first = client.chat("caller", ASKED, tools=offered)
    assert (first.message.content, first.message.thinking) == ("Wait.", "I look.\n")
    calls = first.message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", {"city": "Gent"})]
    result = {"role": "tool", "tool_name": "weather", "content": "Rain."}
    second = client.chat("caller", [*ASKED, first.message, result], tools=offered, stream=True)
    chunks = list(second)
    told = '<tool_call>\n{"name": "weather", "arguments": {"city": "Gent"}}\n</tool_call>'
    more = len(f"<|im_start|>assistant\nWait.\n{told}<|im_end|>\n") + len(RESULT)
    assert chunks[-1].prompt_eval_count == (first.prompt_eval_count or 0) + more
    assert [len(chunk.message.tool_calls or []) for chunk in chunks if not chunk.done].count(1) == 1
    assert "".join(chunk.message.content or "" for chunk in chunks) == "Wait."


def test_a_call_of_a_function_that_was_not_offered_is_text(client: ollama.Client) -> None:
    offered: Any = [tool(name="other")]
    answer = client.chat("caller", ASKED, tools=offered)
    assert not answer.message.tool_calls
    assert answer.message.content == f"Wait.\n{CALL}"


def test_an_engine_that_dies_ends_the_stream_with_an_error_and_the_next_request_is_served(
    server: Serving, client: ollama.Client
) -> None:
    with pytest.raises(ollama.ResponseError, match="engine process is gone"):
        list(client.chat("dying", ASKED, stream=True))
    assert client.chat("sums", ASKED).message.content == ANSWER


def test_a_model_stays_open_for_as_long_as_a_request_says(server: Serving, client: ollama.Client) -> None:
    for keep_alive, stays_s in (("1h30m", 5400.0), (120, 120.0), ("-1", math.inf), ("250", 250.0)):
        client.chat("sums", ASKED, keep_alive=keep_alive)
        server.wait_idle()
        expires_s = next(each.expires_s for each in server.pool.running() if "sums" in each.model)
        assert (math.inf if expires_s is None else expires_s) == pytest.approx(stays_s, abs=30.0)
    assert client.generate("sums", "", keep_alive=0).done_reason == "unload"
    wait_until(lambda: not any("sums" in each.model for each in server.pool.running()))
    assert client.generate("sums", keep_alive=0).done_reason == "unload"
    assert client.chat("sums").done_reason == "load"
    assert [each.model for each in client.ps().models if each.model == "sums"] == ["sums"]


def test_what_is_here_and_open_is_listed(server: Serving, client: ollama.Client) -> None:
    client.chat("tiny-reasoner", ASKED, options={"num_predict": 1})
    listed = {each.model: each for each in client.list().models}
    assert {"sums", "caller", "dying", "endless", "tiny-reasoner"} < set(listed)
    tiny = listed["tiny-reasoner"]
    assert tiny.details is not None
    assert (tiny.details.format, tiny.details.family) == ("gguf", "llama")
    assert (tiny.size or 0) > 10**6
    opened = next(each for each in client.ps().models if each.model == "tiny-reasoner")
    assert (opened.size or 0) > 10**6
    assert (opened.context_length or 0) >= 512
    assert opened.expires_at is not None


def test_a_model_is_shown_with_what_it_can(client: ollama.Client) -> None:
    told = client.show("tiny-reasoner:latest")
    assert told.capabilities == ["completion", "thinking"]
    assert told.modelinfo is not None
    assert told.modelinfo["general.architecture"] == "llama"
    assert "<think>" in (told.template or "")
    for template, can in ((source_of(QWEN), ["completion", "tools"]), ("{% if", ["completion"])):
        spec = ModelSpec(id="q", name="Q", template=template)
        assert shown(Served(name="q", reference="q", spec=spec, variant=None))["capabilities"] == can


def test_the_version_is_one_that_editors_take(server: Serving) -> None:
    assert server.http.get("/api/version").json() == {"version": OLLAMA_VERSION, "slm": __version__}
    assert server.http.head("/").status_code == 200


def test_an_unknown_model_is_not_found_and_the_names_are_told(client: ollama.Client) -> None:
    for ask in (lambda: client.chat("none", ASKED), lambda: client.show("none"), lambda: client.generate("none", "x")):
        with pytest.raises(ollama.ResponseError, match="there are: sums, caller") as caught:
            ask()
        assert caught.value.status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("POST", "/api/push"),
    ],
)
def test_nothing_is_fetched_made_or_removed(server: Serving, method: str, path: str) -> None:
    answer = server.http.request(method, path, json={"model": "sums"})
    assert answer.status_code == 404
    assert answer.json()["error"] == f"there is no {method} {path}"


def test_an_unknown_model_is_404_with_the_route_that_lists_them(server: Serving) -> None:
    answer = server.http.post("/api/chat", json={"model": "other", "messages": [{"role": "user", "content": "hi"}]})
    assert (answer.status_code, answer.json()["hint"]) == (404, "GET /api/tags")


def test_the_gate_stands_before_it_and_refuses_in_its_words(server: Serving) -> None:
    answer = server.http.get("/api/tags", headers={"Host": "evil.example"})
    assert answer.status_code == 403
    assert "evil.example" in answer.json()["error"]
    plain = server.http.post("/api/chat", content="{}", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    assert isinstance(plain.json()["error"], str)


def test_the_embedded_model_holds_a_conversation(client: ollama.Client) -> None:
    messages: Any = [{"role": "user", "content": "What is 47 + 38?"}]
    first = client.chat("tiny-reasoner", messages)
    assert "85" in (first.message.content or "")
    assert first.message.thinking
    messages += [first.message, {"role": "user", "content": "What is 12 + 5?"}]
    chunks = list(client.chat("tiny-reasoner", messages, stream=True))
    assert "17" in "".join(chunk.message.content or "" for chunk in chunks)


def test_smollm2_holds_a_conversation(client: ollama.Client) -> None:
    (name,) = {each.model for each in client.list().models if (each.model or "").lower().startswith("smollm2")}
    assert name is not None
    first = client.chat(name, ASKED, options={"num_predict": 6, "temperature": 0.0})
    assert first.message.content
    messages: Any = [*ASKED, first.message, {"role": "user", "content": "And 2 + 2?"}]
    chunks = list(client.chat(name, messages, stream=True, options={"num_predict": 6, "temperature": 0.0}))
    assert "".join(chunk.message.content or "" for chunk in chunks)
    assert (chunks[-1].prompt_eval_count or 0) > (first.prompt_eval_count or 0)
    assert (chunks[-1].eval_count, chunks[-1].done_reason) == (6, "length")


def test_an_answer_has_the_form_that_was_asked_for_and_its_tokens_are_scored(client: ollama.Client) -> None:
    properties = {"answer": {"enum": [85, 90]}}
    form = {"type": "object", "properties": properties, "required": ["answer"], "additionalProperties": False}
    answer = client.chat("tiny-reasoner", ASKED, format=form, logprobs=True, top_logprobs=2)
    content = answer.message.content or ""
    assert json.loads(content)["answer"] in (85, 90)
    scores = list(answer.logprobs or [])
    assert "".join(each.token for each in scores).strip() == content
    assert {len(each.top_logprobs or []) for each in scores} == {2}
    chunks = client.chat("tiny-reasoner", ASKED, format=form, logprobs=True, stream=True)
    assert "".join(each.token for chunk in chunks for each in chunk.logprobs or []).strip() == content


def test_a_client_that_goes_away_ends_its_answer(server: Serving) -> None:
    with server.http.stream("POST", "/api/generate", json={"model": "endless", "prompt": "go"}) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert json.loads(next(answer.iter_lines()))["response"].startswith("on 1")
    server.wait_idle()


def test_what_is_open_for_its_own_user_alone_is_listed_without_its_path(server: Serving, script: ScriptWriter) -> None:
    path = script(*THINK_THEN_ANSWER, name="private")
    with server.pool.lease(f"scripted:{path}"):
        answer = server.http.get("/api/ps")
    assert "private" in [each["name"] for each in answer.json()["models"]]
    assert str(path.parent) not in answer.text
