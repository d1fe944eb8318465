"""A client's messages as ours: text parts joined, past thinking left out, tool calls read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slm_local.generation import AnswerDelta, Message, ReasoningTags
from slm_local.reasoning import ReasoningParser
from slm_local.server.asked import MessageBody
from slm_local.server.faults import refusal

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def messages_of(bodies: Sequence[MessageBody], tags: ReasoningTags | None) -> tuple[Message, ...]:
    """Return the conversation. Errors: `Refused` naming the message that can't be read, or that says nothing."""
    names: dict[str, str] = {}
    messages = tuple(_message(each, place, tags, names) for place, each in enumerate(bodies))
    last = messages[-1]
    if last.role in ("user", "system") and not last.content.strip():
        raise refusal(f"messages[{len(messages) - 1}].content", "the last message is empty: there is nothing to answer")
    return messages


def unused_fields(bodies: Sequence[MessageBody]) -> tuple[str, ...]:
    """Return the fields of messages that mean nothing here."""
    found: list[str] = []
    for place, each in enumerate(bodies):
        found += [f"messages[{place}].{name}" for name, value in each.unknown.items() if value not in (None, "", [])]
        if each.name and each.role != "tool":
            found.append(f"messages[{place}].name")
        parts = each.content if isinstance(each.content, list) else ()
        found += [f"messages[{place}].content[{at}].{name}" for at, part in enumerate(parts) for name in part.unknown]
    return tuple(found)


def _message(body: MessageBody, place: int, tags: ReasoningTags | None, names: dict[str, str]) -> Message:
    where = f"messages[{place}]"
    text = _text(body, where)
    if body.role == "assistant":
        calls = _calls(body.tool_calls or [], where, names)
        return Message(role="assistant", content=without_thinking(text, tags), tool_calls=calls)
    if body.tool_calls:
        raise refusal(f"{where}.tool_calls", f"{where}: only an assistant calls tools")
    if body.role == "tool":
        if not body.tool_call_id:
            raise refusal(f"{where}.tool_call_id", f"{where}: a tool's result names the call: tool_call_id")
        name = body.name or names.get(body.tool_call_id, "")
        return Message(role="tool", content=text, tool_call_id=body.tool_call_id, name=name)
    return Message(role="system" if body.role == "developer" else body.role, content=text)


def without_thinking(text: str, tags: ReasoningTags | None) -> str:
    """Return an assistant's text without the thinking that it begins with."""
    if tags is None or not text.lstrip().startswith(tags.open):
        return text
    parser = ReasoningParser(tags, state="unopened")
    deltas = [*parser.feed(text), *parser.finish()]
    return "".join(each.text for each in deltas if isinstance(each, AnswerDelta))


def _text(body: MessageBody, where: str) -> str:
    if body.content is None:
        if body.role == "assistant":
            return ""
        raise refusal(f"{where}.content", f"{where} has no content")
    if isinstance(body.content, str):
        return body.content
    texts: list[str] = []
    for number, part in enumerate(body.content):
        if part.type not in TEXT_PARTS:
            raise refusal(f"{where}.content[{number}].type", f"models here read text, not {part.type[:40]!r}")
        said = part.text if part.text is not None else part.unknown.get("refusal")
        if not isinstance(said, str):
            raise refusal(f"{where}.content[{number}].text", f"{where}.content[{number}] has no text")
        texts.append(said)
    return "\n".join(texts)


def _calls(calls: Sequence[dict[str, Any]], where: str, names: dict[str, str]) -> str:
    """Return the calls as JSON with their arguments as objects; empty: none."""
    read: list[dict[str, Any]] = []
    for number, call in enumerate(calls):
        place = f"{where}.tool_calls[{number}]"
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise refusal(f"{place}.function.name", f"{place} names no function")
        call_id = call.get("id")
        if isinstance(call_id, str):
            names[call_id] = function["name"]
        arguments = _arguments(function.get("arguments"), f"{place}.function.arguments")
        known = {"id": call_id, "type": "function"} if isinstance(call_id, str) else {"type": "function"}
        read.append({**known, "function": {"name": function["name"], "arguments": arguments}})
    return json.dumps(read, ensure_ascii=False) if read else ""


def _arguments(given: Any, place: str) -> dict[str, Any]:
    try:
        value = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise refusal(place, f"{place} is no JSON object")
    return value
