"""What a server is sent: requests as the bodies of /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from slm_local.backends.openai.kinds import Server
from slm_local.errors import UsageError
from slm_local.generation import GenerationRequest, Message, Prompt, Sampling, ThinkControl

OFF = Sampling()
SPACE_BEFORE = 2
"""Characters that may stand between the closing tag and an answer that is held to a schema."""


def check(request: GenerationRequest, server: Server) -> None:
    """Refuse what a server can't do. Errors: `UsageError`."""
    name = server.kind.name
    if request.schema is not None and not (server.kind.schema or server.goes_on_for_schema):
        raise UsageError(f"{name} can't be told a schema for the answer alone", hint="a model of this machine: slm ls")
    if request.tools:
        raise UsageError("tools can't be given to a remote engine from here", hint="a model of this machine: slm ls")
    if request.logprobs is not None or request.scores_prompt:
        raise UsageError(
            "log-probabilities can't be asked of a remote engine from here", hint="a model of this machine: slm ls"
        )


def sampling_fields(sampling: Sampling, server: Server) -> dict[str, Any]:
    """Return the sampling as a server's own fields, all of them: it has defaults of its own.

    Errors: `UsageError` for one that it lacks.
    """
    told: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for each in fields(Sampling):
        value, theirs = getattr(sampling, each.name), server.kind.fields.get(each.name)
        if each.name in told or (each.name == "repeat_last_n" and sampling.repeat_penalty == OFF.repeat_penalty):
            continue
        if theirs is not None and value is not None:
            told[theirs] = value
        elif theirs is None and value != getattr(OFF, each.name):
            raise UsageError(
                f"{each.name} can't be told to this server ({server.kind.name})",
                hint=f"-o {each.name}={getattr(OFF, each.name):g}",
            )
    return told


def chat_body(
    prompt: Prompt, sampling: Sampling, server: Server, think: ThinkControl, bridge: str, begun: int = 0
) -> dict[str, Any]:
    """Return the body of a conversation.

    `bridge` is what thinking is to be ended with, `begun` how many tokens of the prompt the server counts as thinking.
    """
    request, kind = prompt.request, server.kind
    assert request is not None
    body = {
        "model": server.model,
        "messages": [_turn(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling_fields(sampling, server),
        **kind.chat,
        **template_fields(prompt.switch, server, think),
    }
    if request.think == "off" and kind.effort:
        body["reasoning_effort"] = "none"
    elif request.think == "on" and kind.decides:
        body["reasoning_effort"] = "on"
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if prompt.is_kept:
        body[kind.budget] = (request.think_tokens or 0) + begun
        if kind.bridge:
            body[kind.bridge] = bridge
    if request.schema is not None and kind.schema:
        body["response_format"] = json_format(request.schema)
    return body


def template_fields(switch: bool | None, server: Server, think: ThinkControl) -> dict[str, Any]:
    """Return the fields that set the template's variable for thinking."""
    if switch is None or think.switch is None or not server.kind.template_variables:
        return {}
    return {"chat_template_kwargs": {think.switch: switch}}


def rendering_body(messages: Sequence[Message], switch: bool | None, server: Server, think: ThinkControl) -> Any:
    """Return the body that asks for a conversation's prompt."""
    turns = [_turn(message) for message in messages]
    return {
        "model": server.model,
        "messages": turns,
        "add_generation_prompt": True,
        **template_fields(switch, server, think),
    }


def completion_body(
    ids: Sequence[int],
    sampling: Sampling,
    server: Server,
    max_tokens: int | None,
    response_format: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the body that has a server go on behind token ids."""
    body = {
        "model": server.model,
        "prompt": list(ids),
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling_fields(sampling, server),
        **server.kind.completion,
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    elif server.context_tokens is not None:
        body["max_tokens"] = max(1, server.context_tokens - len(ids))  # servers' own default may be 16
    if response_format is not None:
        body["response_format"] = response_format
    return body


def json_format(schema: str) -> dict[str, Any]:
    """Return OpenAI's form of a schema."""
    named = {"name": "answer", "schema": json.loads(schema), "strict": True}
    return {"type": "json_schema", "json_schema": named}


def spaced_format(schema: str) -> dict[str, Any]:
    """Return vLLM's form of a schema that says how much white space there may be: else a model may write no end of it.

    As on our own engines white space may come before, and one character of it between two words.
    """
    answer = {"type": "json_schema", "json_schema": json.loads(schema), "max_whitespace_cnt": 1}
    before = {"type": "regex", "pattern": f"[ \\n]{{0,{SPACE_BEFORE}}}"}
    return {"type": "structural_tag", "format": {"type": "sequence", "elements": [before, answer]}}


def _turn(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}
