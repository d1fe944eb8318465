"""Messages and tools as the values that a chat template sees: JSON checked and put into transformers' shape.

It renders nothing and knows no template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from slm_local.errors import UsageError
from slm_local.generation import Message

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Turn = dict[str, Json]

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""OpenAI's, and the dot that tool servers use; nothing that a family's markup could be made of."""

DEEPEST = 32
"""Levels of a schema or of arguments; half of what a template may make (`Limits.depth`)."""

SCHEMA_WORDS = frozenset(
    {
        *("type", "function", "name", "description", "parameters", "return", "arguments", "id"),
        *("object", "array", "string", "number", "integer", "boolean", "null"),
        *("properties", "required", "items", "enum", "const", "default", "format", "title", "nullable", "examples"),
        *("additionalProperties", "oneOf", "anyOf", "allOf", "not", "minimum", "maximum", "pattern", "$ref", "$defs"),
    }
)
"""Words of JSON Schema and of OpenAI's tools: templates look for them, so nothing takes their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """How a template wants the calls that an assistant made."""

    has_text_arguments: bool = False
    """Whether arguments are JSON text, not objects."""
    has_null_content: bool = False
    """Whether a message of calls alone has no content, not an empty one."""
    has_many_calls: bool = True
    """Whether all calls of a message are shown."""


def tools_of(text: str) -> list[Json]:
    """Return the tools of a request (OpenAI's `tools`) as transformers gives them to templates; none for no text.

    What templates rely on is filled in: a description, and parameters of an object. Errors: `UsageError`.
    """
    if not text:
        return []
    tools = read_json(text, "tools")
    if not isinstance(tools, list):
        raise _bad("tools", "they are no list")
    names = [_function_name(tool) for tool in tools]
    if len(set(names)) < len(names):
        raise _bad("tools", "two functions have one name")
    return [_declared(tool) for tool in tools]


def function_names(tools: Sequence[Json]) -> tuple[str, ...]:
    """Return the names of the functions that `tools_of` gave."""
    return tuple(map(_function_name, tools))


def turns_of(messages: Sequence[Message], shape: CallShape) -> list[Turn]:
    """Return messages as a template of this shape sees them. Errors: `UsageError` for calls that are none."""
    names: dict[str, str] = {}
    turns: list[Turn] = []
    for message in messages:
        turn: Turn = {"role": message.role, "content": message.content}
        if message.tool_calls:
            calls = _calls(message.tool_calls, shape)
            names |= {str(call["id"]): _function_name(call) for call in calls if "id" in call}
            if shape.has_null_content:
                turns += [turn] if message.content else []
                turn = {**turn, "content": None}
            turn["tool_calls"] = [*calls]
        name = message.name or names.get(message.tool_call_id, "")
        turn |= {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
        turns.append(turn | ({"name": name} if name else {}))
    return turns


def read_json(text: str, what: str) -> Json:
    """Parse JSON that a client sent. Errors: `UsageError`, also for what is nested too deep or no JSON number."""
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _bad(what, f"they are no JSON: {error}") from error
    if _depth(value) > DEEPEST:
        raise _bad(what, f"they are nested deeper than {DEEPEST} levels")
    return value


def texts_in(value: Json) -> Iterator[str]:
    """Yield every text in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts_in(item)


def mapped(value: Json, change: Callable[[str], str]) -> Json:
    """Return a value with every text in it changed, keys too, but for the words of JSON Schema."""
    if isinstance(value, str):
        return value if value in SCHEMA_WORDS else change(value)
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {key if key in SCHEMA_WORDS else change(key): mapped(item, change) for key, item in value.items()}
    return value


def mapped_turn(turn: Turn, change: Callable[[str], str]) -> Turn:
    """Return a turn with all text in it changed that a person, a model or a tool wrote."""
    changed: Turn = {}
    for key, value in turn.items():
        if key == "role":
            changed[key] = value
        else:
            changed[key] = change(value) if isinstance(value, str) else mapped(value, change)
    return changed


def _calls(text: str, shape: CallShape) -> list[Turn]:
    calls = read_json(text, "tool calls")
    if not isinstance(calls, list) or not calls:
        raise _bad("tool calls", "they are no list of calls")
    if len(calls) > 1 and not shape.has_many_calls:
        raise UsageError(
            f"the model's chat template shows one call a message, and one has {len(calls)}",
            hint="give every call a message of its own, with its result behind it",
        )
    return [_call(call, shape) for call in calls]


def _call(call: Json, shape: CallShape) -> Turn:
    name = _function_name(call, "tool calls")
    assert isinstance(call, dict)
    function = call["function"]
    assert isinstance(function, dict)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = read_json(arguments, f"arguments of {name}") if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise _bad(f"arguments of {name}", "they are no object")
    shown: Json = json.dumps(arguments, ensure_ascii=False) if shape.has_text_arguments else arguments
    known: Turn = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**known, "type": "function", "function": {"name": name, "arguments": shown}}


def _function_name(entry: Json, what: str = "tools") -> str:
    function = entry.get("function") if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(entry, dict) or entry.get("type", "function") != "function":
        raise _bad(what, 'an entry is not {"type": "function", "function": {...}}')
    name = function.get("name")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise _bad(what, "a function's name is 1 to 64 letters, digits, _, - and dots")
    return name


def _declared(tool: Json) -> Json:
    assert isinstance(tool, dict)
    function = tool["function"]
    assert isinstance(function, dict)
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise _bad("tools", f"the parameters of {function['name']} are no JSON Schema")
    shown: Turn = {"name": function["name"], "description": function.get("description") or "", "parameters": parameters}
    if "return" in function:
        shown["return"] = function["return"]
    return {"type": "function", "function": shown}


def _depth(value: Json) -> int:
    """Return how many levels a value has; a text or a number has none."""
    level, depth = [value], 0
    while level := [
        item
        for held in level
        if isinstance(held, dict | list)
        for item in (held.values() if isinstance(held, dict) else held)
    ]:
        depth += 1
        if depth > DEEPEST:
            break
    return depth


def _refuse_constant(constant: str) -> Json:
    raise ValueError(f"{constant} is no JSON")


def _bad(what: str, reason: str) -> UsageError:
    return UsageError(f"the {what} can't be used: {reason}", hint="give them as OpenAI's API takes them")
