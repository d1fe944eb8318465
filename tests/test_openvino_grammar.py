"""From a JSON Schema to a grammar: which texts it takes, as another library reads it, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest

from slm_local.backends.openvino.grammar import MOST_CHARS, grammar_of
from slm_local.errors import UsageError

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"nick": {"type": "string"}, "name": {"type": "string"}, "age": {"type": ["integer", "null"]}},
    "required": ["name"],
}
TREE: dict[str, Any] = {
    "title": "Tree",
    "$ref": "#/$defs/tree",
    "$defs": {"tree": {"type": "object", "properties": {"sub": {"$ref": "#/$defs/tree"}}}},
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return llguidance.LLTokenizer("byte")


def takes(tokenizer: Any, schema: object, text: str) -> bool:
    """Tell whether a text, all of it, is one of the grammar's."""
    grammar = llguidance.grammar_from("gbnf", grammar_of(json.dumps(schema)))
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.tokenize_bytes(text.encode())
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (PERSON, '{"name": "A\\"\\u00e9\\n"}'),
        (PERSON, '\n\n{"nick":"a","name":"é😀","age":null}'),
        (PERSON, '{ "name" : "x" , "age" : -12 }'),
        ({"type": "object"}, '{"a": [1.5e-3, {"b": null}], "c": true}'),
        ({"type": "object"}, "{}"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"a": 1, "b": 2}'),
        ({"type": "object", "properties": {}, "additionalProperties": False}, "{}"),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, "{}"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, "[1, 2]"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, "[1,2,3]"),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "[]"),
        ({"type": "array", "maxItems": 0}, "[]"),
        ({"type": "array"}, '["a", 1]'),
        ({"type": "string", "minLength": 2, "maxLength": 3}, '"a\\n"'),
        ({"enum": ['say "hi"', "back\\slash", 3, None, {"a": [1]}]}, '"say \\"hi\\""'),
        ({"enum": ['say "hi"', "back\\slash", 3, None, {"a": [1]}]}, '"back\\\\slash"'),
        ({"enum": ['say "hi"', "back\\slash", 3, None, {"a": [1]}]}, '{"a": [1]}'),
        ({"anyOf": [{"type": "boolean"}, {"const": "no"}]}, "true"),
        ({"type": "number"}, "-0.25E+10"),
        (True, '[{"a": 1}]'),
        (TREE, '{"sub": {"sub": {}}}'),
        ({"minLength": 1}, '"a"'),
    ],
)
def test_a_text_that_matches_is_taken(tokenizer: Any, schema: object, text: str) -> None:
    assert takes(tokenizer, schema, text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (PERSON, "{}"),
        (PERSON, '{"age": 1}'),
        (PERSON, '{"name": "a", "age": 1.5}'),
        (PERSON, '{"name": "a", "other": 1}'),
        (PERSON, '{"name": "a",}'),
        (PERSON, '{"name": "a"'),
        (PERSON, '{"name": "a\nb"}'),
        (PERSON, '{"name":   "a"}'),
        ({"type": "object"}, "[]"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"a": "1"}'),
        ({"type": "object", "properties": {}, "additionalProperties": False}, '{"a": 1}'),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, "[1]"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, "[1,2,3,4]"),
        ({"type": "array", "maxItems": 0}, "[1]"),
        ({"type": "string", "minLength": 2, "maxLength": 3}, '"a"'),
        ({"type": "string", "minLength": 2, "maxLength": 3}, '"abcd"'),
        ({"enum": ["a", "b"]}, '"c"'),
        ({"const": "a"}, '"A"'),
        ({"type": "integer"}, "01"),
        ({"type": "integer"}, "1.5"),
        (TREE, '{"sub": 1}'),
        ({"minLength": 1}, "1"),
    ],
)
def test_a_text_that_does_not_match_is_not_taken(tokenizer: Any, schema: object, text: str) -> None:
    assert not takes(tokenizer, schema, text)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "integer", "minimum": 1}, "minimum in #"),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "date"}}}, "format in #/properties/a"),
        ({"type": "array", "items": {"not": {}}}, "not in #/items"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "maxItems": 3}, "maxItems in #"),
        ({"anyOf": [{"type": "null"}], "required": ["a"]}, "required in #"),
        ({"$ref": "#"}, "refers to itself"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers to itself"),
        ({"$ref": "#/$defs/none"}, "which is not there"),
        ({"$ref": "other.json"}, "not in the schema itself"),
        ({"type": "strnig"}, "no type 'strnig'"),
        ({"type": "object", "required": ["a"]}, "requires 'a'"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "null"}}, "both properties"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "allows nothing"),
        ({"type": "array", "maxItems": 10**6}, "maxItems in # is not a whole number"),
        ({"type": "string", "minLength": "2"}, "minLength in # is not a whole number"),
        ({"enum": []}, "allows nothing"),
        (False, "allows nothing"),
    ],
)
def test_what_it_cant_hold_to_is_refused_with_its_place(schema: object, reason: str) -> None:
    with pytest.raises(UsageError, match="OpenVINO can't hold") as caught:
        grammar_of(json.dumps(schema))
    assert reason in caught.value.message
    assert caught.value.hint == "--backend llamacpp"


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "object", "properties": 3}',
        '{"type": 3}',
        '{"enum": 3}',
        '{"anyOf": {"a": 1}}',
        '{"type": "object", "required": 3}',
        '{"properties": [1], "type": "object"}',
        '{"type": [["string"]]}',
        '{"anyOf": [3]}',
        '{"$ref": ["a"]}',
        '{"type": "object", "properties": {"a": true}, "required": [3]}',
        "[1]",
        "{",
        '"' + "x" * MOST_CHARS + '"',
        '{"items": ' * 5000 + "{}" + "}" * 5000,
    ],
)
def test_what_is_no_schema_is_refused_whatever_it_is(schema: str) -> None:
    with pytest.raises(UsageError):
        grammar_of(schema)
