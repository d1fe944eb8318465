"""A call that has to be made: what is written of it for the model, and the schema of the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from slm_local.errors import UsageError
from slm_local.template.turns import Json, function_names, tools_of
from slm_local.toolcalls.families import NAME, ToolFamily


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedCall:
    """What makes an answer a call. What ends one in its family is not needed: the answer ends with it."""

    opening: str
    """What the answer begins with, written for the model."""
    schema: str
    """JSON Schema of all that follows."""


def forced_call(family: ToolFamily, tools: str, names: Sequence[str]) -> ForcedCall:
    """Return how an answer is made a call of one of the functions named.

    Errors: `UsageError` for tools that are none, for a function that is not among them, and where this family's calls
    can't be had so.
    """
    declared = tools_of(tools)
    parameters = dict(zip(function_names(declared), map(_parameters, declared), strict=True))
    unknown = sorted(set(names) - set(parameters))
    if unknown:
        raise UsageError(f"no tool is called {unknown[0]!r}", hint=f"one of {', '.join(parameters)}")
    if family.opening is None:
        raise UsageError(
            f"a call can't be asked for: this model writes calls ({family.name}) in a form that no schema holds it to",
            hint='"tool_choice": "auto"',
        )
    if NAME in family.opening and len(names) > 1:
        raise UsageError(
            f"this model's calls ({family.name}) name the function first, so it has to be said which one",
            hint=f'"tool_choice": {{"type": "function", "function": {{"name": "{names[0]}"}}}}',
        )
    opening = "".join(names[0] if part == NAME else part for part in family.opening)
    if family.body == "arguments":
        return ForcedCall(opening=opening, schema=json.dumps(parameters[names[0]]))
    calls = [_call(name, family.arguments_word) for name in names]
    definitions = {name: _moved(parameters[name], f"#/$defs/{name}") for name in names}
    schema = {"$defs": definitions, "anyOf": calls}
    return ForcedCall(opening=opening, schema=json.dumps(schema))


def _parameters(tool: Json) -> dict[str, Json]:
    assert isinstance(tool, dict)
    function = tool["function"]
    assert isinstance(function, dict)
    parameters = function["parameters"]
    assert isinstance(parameters, dict)
    return {**parameters, "type": "object"}


def _call(name: str, arguments_word: str) -> dict[str, Json]:
    """Return the schema of a whole call."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, arguments_word: {"$ref": f"#/$defs/{name}"}},
        "required": ["name", arguments_word],
        "additionalProperties": False,
    }


def _moved(schema: Json, place: str) -> Json:
    """Return a schema for a place in a larger one: what it refers to in itself is found there."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        moved["$ref"] = place + target[1:]
    return moved
