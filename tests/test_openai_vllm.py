"""What was seen of a real vLLM, played by a stand-in: schemas, chunks of several tokens, an untold vocabulary."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slm_local.errors import RemoteFailed, UsageError
from slm_local.generation import GenerationRequest
from tests.contract.runners import ask
from tests.fake_engine import DONE, Answer, FakeEngine, Json, Route
from tests.test_openai_kinds import (
    BRIDGE,
    PROMPT,
    answered,
    codes,
    heard,
    piece,
    slm_chunks,
    streamed,
    thought,
    vllm,
    words,
)

SCHEMA = json.dumps({"type": "object", "properties": {"sum": {"type": "integer"}}})
HELD = '{"sum": 42}'


def schemed(**changes: Any) -> GenerationRequest:
    return GenerationRequest(messages=ask("Where?").messages, schema=SCHEMA, **changes)


def completing(*refused: str, text: str = HELD) -> Route:
    """Answer raw completions with what matches; refuse these forms of a schema, as one that it can't read."""

    def route(body: Json) -> Answer:
        form = body.get("response_format", {}).get("type")
        if form in refused:
            return Answer({"error": {"message": f"{form} can't be read", "code": 400}}, 400)
        if body.get("stream"):
            return Answer(chunks=[*(piece(char) for char in text), piece(ids="$", reason="stop"), DONE])
        return Answer({"choices": [{"text": "{"}]})

    return route


def told(engine: FakeEngine) -> tuple[str, Json]:
    """Return the prompt and the form of the schema that an answer was asked for with."""
    (body,) = [each for each in engine.bodies("/v1/completions") if each.get("stream")]
    return words(body["prompt"]), body["response_format"]


@pytest.mark.parametrize("is_parsed", [True, False])
def test_thinking_is_free_and_the_answer_goes_on_under_its_schema(is_parsed: bool) -> None:
    ended = [piece(ids="#")] if is_parsed else [piece(ids="#", content="</think>")]
    free = thought("Hm.") if is_parsed else [piece(ids=char, content=char) for char in "Hm."]
    chat = streamed(*free, *ended, *answered("\n\nIt is Rome."))
    with vllm(chat, v1__completions=completing()) as (driver, engine):
        found = heard(driver, schemed())
        assert "response_format" not in engine.bodies("/v1/chat/completions")[0]
        prompt, form = told(engine)
    assert prompt == PROMPT + ("Hm.</think>" if is_parsed else "Hm.#")
    before, answer = form["format"]["elements"]
    assert (answer["json_schema"], answer["max_whitespace_cnt"]) == (json.loads(SCHEMA), 1)
    assert before == {"type": "regex", "pattern": "[ \\n]{0,2}"}
    assert (found.thinking, found.answer, found.reply.finish) == ("Hm.", HELD, "stop")


def test_a_limit_of_thinking_and_a_schema_go_together() -> None:
    chat = streamed(*thought("I wonder."), piece(ids="#"), *answered("Rome."))
    with vllm(chat, v1__completions=completing()) as (driver, engine):
        found = heard(driver, schemed(think_tokens=3))
        assert told(engine)[0] == PROMPT + "I w" + BRIDGE
    assert (found.reply.cut, found.answer) == ("budget", HELD)


def test_a_schema_is_in_force_from_the_start_where_nothing_is_thought() -> None:
    with vllm(streamed(), v1__completions=completing()) as (driver, engine):
        assert heard(driver, schemed(think="off")).answer == HELD
        assert told(engine)[0] == PROMPT + "\n</think>\n\n"
        assert engine.bodies("/v1/chat/completions") == []


def test_whether_a_model_thinks_before_its_schema_is_not_for_it_to_decide() -> None:
    def unopened(body: Json) -> Answer:
        return Answer({"tokens": codes("<u>Where?<a>" if "messages" in body else body["prompt"])})

    with vllm(streamed(), v1__completions=completing(text="Hm.</think>"), tokenize=unopened) as (driver, engine):
        driver.start(1, schemed())
        while not [each for each in engine.bodies("/v1/completions") if each.get("stream")]:
            driver.step()
        (body,) = [each for each in engine.bodies("/v1/completions") if each.get("stream")]
    assert words(body["prompt"]) == "<u>Where?<a><think>\n"
    assert "response_format" not in body


def test_a_server_that_knows_only_the_usual_form_is_told_that() -> None:
    chat = streamed(*thought("Hm."), piece(ids="#"), *answered("Rome."))
    with vllm(chat, v1__completions=completing("structural_tag")) as (driver, engine):
        assert heard(driver, schemed()).answer == HELD
        assert told(engine)[1]["json_schema"]["schema"] == json.loads(SCHEMA)


def test_a_schema_that_the_server_refuses_is_an_error_before_anything_is_generated() -> None:
    with vllm(streamed(), v1__completions=completing("structural_tag", "json_schema")) as (driver, engine):
        with pytest.raises(UsageError, match=r"the schema is refused: .* json_schema can't be read"):
            heard(driver, schemed())
        with pytest.raises(UsageError, match="the schema is no JSON"):
            heard(driver, GenerationRequest(messages=ask("?").messages, schema="{type: object}"))
        with pytest.raises(UsageError, match="a schema is a JSON object"):
            heard(driver, GenerationRequest(messages=ask("?").messages, schema="[]"))
        assert engine.bodies("/v1/chat/completions") == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "to not"),
        ({"anyOf": [{"type": "null"}, {"$ref": "https://box/a.json"}]}, "another document: https://box/a.json"),
        ({"type": "array", "items": {"type": "string", "pattern": "^(?!x)y"}}, "look-around"),
    ],
)
def test_what_vllm_takes_and_does_not_hold_to_is_refused_by_name(schema: Json, said: str) -> None:
    with vllm(streamed(), v1__completions=completing()) as (driver, engine):
        with pytest.raises(UsageError, match=f"vLLM does not hold an answer .*{said}"):
            heard(driver, GenerationRequest(messages=ask("?").messages, schema=json.dumps(schema)))
        assert engine.bodies("/v1/completions") == []


def test_names_and_values_are_no_words_of_a_schema() -> None:
    named = {"type": "object", "properties": {"not": {"enum": [{"not": 1}]}, "$ref": {"$ref": "#/$defs/pattern"}}}
    schema = json.dumps({**named, "$defs": {"pattern": {"type": "string", "pattern": "(?:ab)+"}}})
    chat = streamed(*thought("Hm."), piece(ids="#"), *answered("Rome."))
    with vllm(chat, v1__completions=completing()) as (driver, _):
        assert heard(driver, GenerationRequest(messages=ask("?").messages, schema=schema)).answer == HELD


def test_a_server_that_fails_while_it_is_asked_about_a_schema_did_not_refuse_it() -> None:
    broken: Route = lambda body: Answer({"error": {"message": "out of memory"}}, 500)  # noqa: E731
    with vllm(streamed(), v1__completions=broken) as (driver, _), pytest.raises(RemoteFailed, match="answers 500"):
        heard(driver, schemed())


def test_slm_serve_is_told_the_schema_with_the_request() -> None:
    mine: Route = lambda body: Answer({"data": [{"id": "m", "owned_by": "slm-local"}]})  # noqa: E731
    with vllm(slm_chunks(), v1__models=mine) as (driver, engine):
        assert heard(driver, schemed()).answer == "Rome."
        (body,) = engine.bodies("/v1/chat/completions")
        assert body["response_format"]["json_schema"]["schema"] == json.loads(SCHEMA)
        assert engine.bodies("/v1/completions") == []


@pytest.mark.parametrize("is_parsed", [True, False])
def test_tokens_of_both_sides_in_one_chunk_are_counted_on_their_own(is_parsed: bool) -> None:
    text = {"reasoning": "m.", "content": "Ro"} if is_parsed else {"content": "m.</think>Ro"}
    first = {"reasoning": "H"} if is_parsed else {"content": "H"}
    chat = streamed(piece(ids="H", **first), piece(ids="m.#Ro", **text), *answered("me."))
    with vllm(chat, tokenize=with_tag("#")) as (driver, _):
        found = heard(driver, ask("Where?", max_tokens=None))
    said = found.reply.usage
    assert (found.thinking, found.answer) == ("Hm.", "Rome.")
    assert (said.think_tokens, said.tag_tokens, said.answer_tokens) == (4, 1, 6)


def with_tag(token: str) -> Route:
    """Tokenize by characters; the closing tag is this one."""

    def route(body: Json) -> Answer:
        text = PROMPT if "messages" in body else body["prompt"].replace("</think>", token)
        return Answer({"max_model_len": 4096, "tokens": codes(text)})

    return route


def test_an_answer_that_begins_in_the_chunk_of_the_tag_is_held_to_its_schema() -> None:
    chat = streamed(piece(ids="Hm.#\n\nIt", content="Hm.</think>\n\nIt"), *answered(" is Rome."))
    with vllm(chat, v1__completions=completing(), tokenize=with_tag("#")) as (driver, engine):
        found = heard(driver, schemed())
        assert told(engine)[0] == PROMPT + "Hm.#"
    assert (found.thinking, found.answer) == ("Hm.", HELD)


def test_ids_can_be_drawn_from_a_vocabulary_whose_size_is_not_told() -> None:
    with vllm(streamed()) as (driver, _):
        assert driver._backend is not None
        assert driver._rules is not None
        assert driver._rules.facts.vocabulary_size == max(codes(PROMPT)) + 1
