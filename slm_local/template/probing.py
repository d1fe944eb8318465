"""What a chat template does with tools and calls, found by rendering a conversation that has one.

No template is recognised by its text: what counts is what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from slm_local.errors import SlmError
from slm_local.generation import Message
from slm_local.template.turns import CallShape, Json, Turn, tools_of, turns_of

QUESTION, FUNCTION, OTHER, KEY, VALUE, RESULT = "Whereto?", "find_lighthouse", "find_windmill", "coast", "Skaw", "46 m"
"""Words of the probe, found in no template."""

IDS = ("lighthous", "windmills")
"""Of nine letters: the length that Mistral's templates insist on."""

TOOLS_TEXT = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": "Find one.",
                "parameters": {
                    "type": "object",
                    "properties": {KEY: {"type": "string", "description": "Where."}},
                    "required": [KEY],
                },
            },
        }
        for name in (FUNCTION, OTHER)
    ]
)

SHAPES = tuple(
    CallShape(has_text_arguments=has_text, has_null_content=has_null)
    for has_text in (False, True)
    for has_null in (False, True)
)

Rendering = Callable[[list[Turn], list[Json]], str]
"""Renders turns and tools, and may raise any `SlmError`."""


def takes_tools(render: Rendering) -> bool:
    """Say whether tools that a request offers come into the prompt."""
    text = _rendered(render, _conversation(0), CallShape())
    return FUNCTION in text and KEY in text


def call_shape(render: Rendering) -> CallShape | None:
    """Return how a template wants calls, with the results behind them; None: it has no place for them."""
    for shape in SHAPES:
        if _shows_calls(_behind_question(render, 1, shape), FUNCTION):
            return replace(shape, has_many_calls=_shows_calls(_behind_question(render, 2, shape), FUNCTION, OTHER))
    return None


def shown_call(render: Rendering, shape: CallShape) -> str:
    """Return what a template of this shape makes of a call of `FUNCTION` with `KEY` and `VALUE`, and of what follows.

    What the prompt ends with before an answer is taken off its start, where it begins so.
    """
    return _behind_question(render, 1, shape).removeprefix(_behind_question(render, 0, shape))


def _conversation(calls: int) -> list[Message]:
    """Return a question, an answer that makes so many calls, and their results."""
    made = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": {KEY: VALUE}}}
        for name, call_id in zip((FUNCTION, OTHER), IDS, strict=True)
    ][:calls]
    answer = [Message(role="assistant", content="", tool_calls=json.dumps(made))] if made else []
    results = [Message(role="tool", content=RESULT, tool_call_id=call_id) for call_id in IDS[:calls]]
    return [Message(role="user", content=QUESTION), *answer, *results]


def _behind_question(render: Rendering, calls: int, shape: CallShape) -> str:
    return _rendered(render, _conversation(calls), shape).rpartition(QUESTION)[2]


def _rendered(render: Rendering, messages: list[Message], shape: CallShape) -> str:
    """Return what a template makes of messages; nothing where it fails on them."""
    try:
        return render(turns_of(messages, shape), tools_of(TOOLS_TEXT))
    except SlmError:
        return ""


def _shows_calls(text: str, *functions: str) -> bool:
    """Say whether calls and results stand in a text, and no arguments as Python writes them."""
    return all(word in text for word in (*functions, KEY, VALUE, RESULT)) and f"'{KEY}'" not in text
