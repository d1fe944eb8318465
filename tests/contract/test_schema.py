"""What every backend promises that can hold an answer to a schema: it matches, and thinking is free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llguidance
import pytest

from slm_local.backends.llamacpp import schemas
from slm_local.errors import SlmError, UsageError
from slm_local.generation import AnswerDelta, Control, Done, GenerationRequest, Sampling, TokenOrder
from tests.contract.runners import CASES, InProcess, InWorker, Runner, ask, hear, runner_for
from tests.loading import THINK_TAGS, load_settings_for

QUESTION = "What is 47 + 38?"
DRAWN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "left": {"$ref": "#/$defs/tree"},
        "note": {"type": "string", "minLength": 2, "maxLength": 40},
        "flags": {
            "type": "array",
            "items": {"anyOf": [{"type": "boolean"}, {"const": None}]},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["note", "flags"],
    "additionalProperties": False,
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/tree"}},
            "additionalProperties": False,
        }
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer"},
        "unit": {"enum": ['say "hi"', "tab\\t", "é😀"]},
        "note": {"type": "string", "maxLength": 8},
    },
    "required": ["sum", "unit", "note"],
    "additionalProperties": False,
}


@pytest.fixture(
    scope="module",
    params=["llamacpp", "openvino", "llamacpp-smollm2", *(each for each in CASES if each.startswith("openai-remote"))],
)
def runner(
    request: pytest.FixtureRequest, tiny_reasoner: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    """Return the embedded reasoner, which thinks, or SmolLM2, which does not; or whatever a server elsewhere has."""
    backend, _, model = str(request.param).partition("-")
    folder = tmp_path_factory.mktemp("schema")
    path, tags = (smollm2, None) if model else (tiny_reasoner, THINK_TAGS)
    settings = replace(load_settings_for(backend, path, context=512, tags=tags), cache_dir=str(folder))
    is_elsewhere = backend == "openai"
    made = runner_for(str(request.param), path, folder, context=512) if is_elsewhere else InProcess(settings)
    yield made
    made.close()


@pytest.fixture
def able(runner: Runner) -> Runner:
    if "schema" not in runner.facts.capabilities:
        pytest.skip("this engine holds no answer to a schema")
    return runner


@pytest.fixture
def local(able: Runner) -> Runner:
    if "chat" in able.facts.capabilities:
        pytest.skip("the tokens of a server are its own")
    return able


def asked(schema: object = SCHEMA, **changes: Any) -> GenerationRequest:
    request = GenerationRequest(messages=ask(QUESTION).messages, max_tokens=350, schema=json.dumps(schema))
    return replace(request, **changes)


def check(answer: str) -> None:
    """Look whether an answer matches `SCHEMA`."""
    value = json.loads(answer)
    assert list(value) == ["sum", "unit", "note"]
    assert isinstance(value["sum"], int)
    assert value["unit"] in SCHEMA["properties"]["unit"]["enum"]
    assert len(value["note"]) <= 8


def test_an_answer_matches_its_schema_and_the_thinking_before_it_is_what_it_would_be(able: Runner) -> None:
    free = hear(able, replace(asked(), schema=None, think="open"))
    heard = hear(able, asked())
    check(heard.answer)
    assert heard.reply.finish == "stop"
    assert heard.thinking == free.thinking
    assert heard.answer == heard.reply.answer


def test_an_answer_matches_also_where_thinking_was_cut_or_switched_off(able: Runner) -> None:
    if hear(able, asked()).thinking:
        cut = hear(able, asked(think_tokens=5))
        assert cut.reply.cut == "budget"
        check(cut.answer)
        check(hear(able, asked(think="off")).answer)
    check(hear(able, asked(think_tokens=0)).answer)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_drawn_matches(able: Runner, seed: int) -> None:
    sampling = Sampling(temperature=1.5, seed=seed)
    value = json.loads(hear(able, asked(DRAWN, sampling=sampling, think_tokens=8)).answer)
    assert set(value) <= {"note", "flags", "left"}
    assert 2 <= len(value["note"]) <= 40
    assert 1 <= len(value["flags"]) <= 3
    assert all(each is None or isinstance(each, bool) for each in value["flags"])
    tree = value.get("left", {})
    while tree:
        assert list(tree) == ["left"]
        tree = tree["left"]


def test_an_answer_cut_by_a_limit_is_what_it_is(able: Runner) -> None:
    whole = hear(able, asked(think_tokens=0)).reply
    limit = (whole.usage.think_tokens or 0) + (whole.usage.answer_tokens or 0) - 4
    short = hear(able, asked(think_tokens=0, max_tokens=limit)).reply
    assert short.finish == "length"
    assert whole.answer.startswith(short.answer)
    assert short.answer != whole.answer


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ('{"type": "objekt"}', "objekt"),
        ('{"not": {"type": "string"}}', "not"),
        ('{"type": "object", "properties": {"a": {"$ref": "https://example.org/a.json"}}}', "example.org"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-a|pattern"),
        ('{"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}', "defs/a"),
        ("{type: object}", "is no JSON"),
        ("[]", "JSON object"),
    ],
)
def test_a_schema_that_cant_be_held_to_is_refused_before_the_first_event(
    able: Runner, schema: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        next(able.stream(replace(asked(), schema=schema), Control()))
    check(hear(able, asked()).answer)


def test_raw_ids_are_held_to_a_schema_from_the_first_token_on(local: Runner) -> None:
    ids = local.tokens(TokenOrder(request=ask(QUESTION, think="off"))).ids
    check(hear(local, replace(asked(), messages=(), prompt_ids=ids)).answer)


def test_a_request_beside_it_is_not_held_to_anything(local: Runner) -> None:
    assert isinstance(local, InProcess)
    plain = replace(asked(), schema=None, max_tokens=60)
    alone = hear(local, plain).reply
    answers = {1: "", 2: ""}
    local.driver.start(first := local.driver._newest_id + 1, asked(think_tokens=4))
    local.driver.start(first + 1, plain)
    ends = 0
    while local.driver.is_busy:
        for number, event in local.driver.step():
            if isinstance(event, AnswerDelta):
                answers[number - first + 1] += event.text
            ends += isinstance(event, Done)
    assert ends == 2
    check(answers[1])
    assert answers[2] == alone.answer


def test_a_schema_holds_in_a_child_process_and_with_drafts(tiny_reasoner: Path, tmp_path: Path) -> None:
    settings = load_settings_for("llamacpp", tiny_reasoner, context=512, tags=THINK_TAGS)
    worker = InWorker(replace(settings, speculation=True), tmp_path)
    long = {"type": "array", "items": {"enum": ["the same words again and again"]}, "minItems": 12, "maxItems": 12}
    heard = hear(worker, asked(long, think_tokens=4, max_tokens=480))
    worker.close()
    assert json.loads(heard.answer) == ["the same words again and again"] * 12
    assert heard.reply.usage.drafted_tokens


def test_a_schema_that_grows_too_complex_fails_its_own_request_and_no_other(
    tiny_reasoner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = InProcess(load_settings_for("llamacpp", tiny_reasoner, context=1024, tags=THINK_TAGS))
    plain = hear(runner, ask(QUESTION, max_tokens=300)).reply
    limits = llguidance.LLParserLimits(step_max_items=1)
    whole = llguidance.LLMatcher
    limited = SimpleNamespace(
        LLTokenizer=llguidance.LLTokenizer,
        LLMatcher=lambda *values, **named: whole(*values, limits=limits, **named),
    )
    limited.LLMatcher.grammar_from_lark = whole.grammar_from_lark
    monkeypatch.setattr(schemas, "_library", lambda: limited)
    runner.driver.start(101, asked(think_tokens=2))
    runner.driver.start(102, ask(QUESTION, max_tokens=300))
    ends: dict[int, object] = {}
    while runner.driver.is_busy:
        ends |= {number: event for number, event in runner.driver.step() if isinstance(event, Done | SlmError)}
    runner.close()
    failure, done = ends[101], ends[102]
    assert isinstance(failure, SlmError)
    assert "the schema can't be followed" in failure.message
    assert isinstance(done, Done)
    assert done.reply.answer == plain.answer


def test_bounds_and_patterns_hold_on_llama_cpp(tiny_reasoner: Path) -> None:
    runner = InProcess(load_settings_for("llamacpp", tiny_reasoner, context=512, tags=THINK_TAGS))
    bounded = {"type": "integer", "minimum": 300, "exclusiveMaximum": 312}
    heard = [
        hear(runner, asked(each, think="off")).answer for each in (bounded, {"type": "string", "pattern": "^x+z$"})
    ]
    runner.close()
    assert 300 <= int(heard[0]) < 312
    assert json.loads(heard[1]).strip("x") == "z"


def test_what_a_schema_forbids_is_scored_by_what_the_model_said(tiny_reasoner: Path) -> None:
    runner = InProcess(load_settings_for("llamacpp", tiny_reasoner, context=512, tags=THINK_TAGS))
    heard = hear(runner, asked({"const": 7}, think="off", logprobs=1))
    runner.close()
    assert heard.answer == "7"
    (score,) = [score for event in heard.events if isinstance(event, AnswerDelta) for score in event.scores][-1:]
    assert score.data == tuple(b"7")
    assert score.logprob is not None
    assert score.top[0].logprob is not None
    assert score.top[0].logprob > score.logprob
