"""`/v1/chat/completions`: a conversation, answered through the engine, splitter and governor of the command line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from slm_local.generation import (
    AnswerDelta,
    Done,
    GenerationRequest,
    Message,
    Reply,
    Started,
    StreamEvent,
    ThinkDelta,
    TokenScore,
)
from slm_local.samples import seeded, seeds_from, varied
from slm_local.server.asked import ChatBody
from slm_local.server.conversation import messages_of, unused_fields
from slm_local.server.effort import AskedThinking, for_model, thinking_asked
from slm_local.server.faults import refusal
from slm_local.server.pool import Lease
from slm_local.server.sampling import limit_of, sampling_of, stops_of
from slm_local.server.served import Served
from slm_local.server.service import Service, answered, body_of, fault_from, unused
from slm_local.server.streaming import Generation, merged
from slm_local.server.wording import DONE, FINISHES, chat_logprobs, event, fresh_id, head, ours, usage
from slm_local.toolcalls import ToolCall, ToolCallParser, family_named

ANY_OBJECT = '{"type": "object"}'


def chat_routes(service: Service) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await body_of(request, ChatBody)
        served = await service.find(body.model, request)
        asked = ChatRequest.read(body, served)
        generation = service.generate(served, asked.requests)

        def begun() -> ChatAnswer:
            return ChatAnswer(asked, head("chat.completion", "chatcmpl", served.name))

        return await answered(request, generation, begun, streams=bool(body.stream))

    return router


@dataclass(slots=True, kw_only=True)
class ChatRequest:
    """What a body asks for, read before any model is opened."""

    body: ChatBody
    messages: tuple[Message, ...]
    thinking: AskedThinking
    schema: str | None
    tools: str
    must_call: tuple[str, ...]
    warnings: list[str] = field(default_factory=list)
    """What was asked for and has no effect; more may come when the model is known."""

    @classmethod
    def read(cls, body: ChatBody, served: Served) -> ChatRequest:
        """Read a body. Errors: `Refused`."""
        thinking = thinking_asked(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise refusal("top_logprobs", "top_logprobs goes with logprobs", hint='"logprobs": true')
        if body.unknown.get("modalities") not in (None, ["text"]):
            raise refusal("modalities", "models here write text")
        warnings = [*unused(name for name in body.unknown_names if name != "modalities")]
        warnings += [f"{name} has no effect here" for name in unused_fields(body.messages)]
        if body.tools and body.parallel_tool_calls is False:
            warnings.append("parallel_tool_calls has no effect here: a model may make several calls")
        return cls(
            body=body,
            messages=messages_of(body.messages, served.spec.tags),
            thinking=thinking,
            schema=_schema(body),
            tools=_tools(body),
            must_call=_must_call(body),
            warnings=[*warnings, *thinking.warnings],
        )

    def requests(self, lease: Lease) -> Sequence[GenerationRequest]:
        """Return a generation for each choice. Errors: `Refused`, `UsageError`."""
        body, maker = self.body, lease.maker
        asked = for_model(self.thinking, thinks=maker.spec.thinks)
        self.warnings += [each for each in asked.warnings if each not in self.warnings]
        messages = self.messages
        if maker.system and messages[0].role != "system":
            messages = (Message(role="system", content=maker.system), *messages)
        request = maker.request(messages, think=asked.thinking, max_tokens=limit_of(body))
        request = replace(
            request,
            sampling=sampling_of(request.sampling, body),
            stop=stops_of(body, request.stop),
            schema=self.schema,
            tools=self.tools,
            must_call=self.must_call,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        if (body.n or 1) == 1:
            return [request]
        request = varied(request, body.n or 1) if body.temperature is None else request
        return [seeded(request, seed) for seed in seeds_from(request.sampling.seed, body.n or 1)]


class ChatAnswer:
    """The answer to a request, whole or in chunks."""

    def __init__(self, asked: ChatRequest, head: dict[str, Any]) -> None:
        self._asked = asked
        self._head = head
        self._choices = [
            Choice(n, shows_thinking=asked.thinking.is_shown, tools=asked.tools) for n in range(asked.body.n or 1)
        ]

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """Return the answer once it is there. Errors: the generation's."""
        async for batch in generation.batches():
            for said in batch:
                self._choices[said.choice].feed(said.event)
        choices = [each.values(has_logprobs=bool(self._asked.body.logprobs)) for each in self._choices]
        return {**self._head, "choices": choices, "usage": usage(self._replies()), **self._warnings()}

    async def chunks(self, generation: Generation) -> AsyncIterator[bytes]:
        """Yield server-sent events; what goes wrong is the last of them."""
        begin, end = self._frame()
        try:
            async for batch in generation.batches():
                for said in merged(batch) if len(batch) > 1 else batch:
                    for chunk in self._choices[said.choice].feed(said.event):
                        yield begin + json.dumps(chunk, separators=(",", ":")).encode() + end
        except Exception as error:  # the answer has begun: there is no status left to say it with
            yield event(fault_from(error).values())
            return
        if self._wants_usage():
            values = {"choices": [], "usage": usage(self._replies()), **self._warnings()}
            yield event({**self._head, "object": "chat.completion.chunk", **values})
        yield DONE

    def _frame(self) -> tuple[bytes, bytes]:
        """Return what stands before and behind a choice in each chunk."""
        head = json.dumps({**self._head, "object": "chat.completion.chunk"}, separators=(",", ":")).encode()
        tail = b',"usage":null' if self._wants_usage() else b""
        return b"data: " + head[:-1] + b',"choices":[', b"]" + tail + self._warning_bytes() + b"}\n\n"

    def _warning_bytes(self) -> bytes:
        warnings = self._warnings()
        return b"," + json.dumps(warnings).encode()[1:-1] if warnings and not self._wants_usage() else b""

    def _warnings(self) -> dict[str, Any]:
        return {"warnings": self._asked.warnings} if self._asked.warnings else {}

    def _wants_usage(self) -> bool:
        options = self._asked.body.stream_options
        return options is not None and bool(options.include_usage)

    def _replies(self) -> list[Reply]:
        return [each.reply for each in self._choices if each.reply is not None]


class Choice:
    """One choice under way: what the client is told of it, and all of it so far."""

    def __init__(self, index: int, *, shows_thinking: bool, tools: str) -> None:
        self.reply: Reply | None = None
        self._index = index
        self._tools = tools
        self._parser: ToolCallParser | None = None
        self._calls: list[dict[str, Any]] = []
        self._shows_thinking = shows_thinking
        self._has_begun = False
        self._thinking: list[str] = []
        self._answer: list[str] = []
        self._scores: list[TokenScore] = []
        self._unsaid_scores: tuple[TokenScore, ...] = ()

    def feed(self, event: StreamEvent) -> list[dict[str, Any]]:
        """Take an event; return the choices of the chunks that tell of it."""
        told = [] if self._has_begun else [self._chunk({"role": "assistant", "content": ""})]
        self._has_begun = True
        match event:
            case Started(tool_family=family) if family:
                self._parser = ToolCallParser(family_named(family), self._tools)
            case ThinkDelta(text=text) if text and self._shows_thinking:
                self._thinking.append(text)
                told.append(self._chunk({"reasoning_content": text, "reasoning": text}))
            case AnswerDelta(text=text):
                self._scores += event.scores
                self._unsaid_scores += event.scores
                told += self._answered([text] if self._parser is None else self._parser.feed(text))
            case Done(reply=reply):
                self.reply = reply
                told += self._answered([] if self._parser is None else self._parser.finish())
                told.append({**self._chunk({}), "finish_reason": self._finish(), "slm": ours(reply)})
            case _:
                pass
        return told

    def values(self, *, has_logprobs: bool) -> dict[str, Any]:
        """Return the whole choice."""
        assert self.reply is not None
        thinking = "".join(self._thinking)
        reasoning = {"reasoning_content": thinking, "reasoning": thinking} if thinking else {}
        answer = "".join(self._answer)
        calls = {"tool_calls": self._calls} if self._calls else {}
        content = None if calls and not answer else answer
        message = {"role": "assistant", "content": content, "refusal": None, **reasoning, **calls}
        return {
            "index": self._index,
            "message": message,
            "logprobs": chat_logprobs(self._scores) if has_logprobs else None,
            "finish_reason": self._finish(),
            "slm": ours(self.reply),
        }

    def _answered(self, parts: Sequence[str | ToolCall]) -> list[dict[str, Any]]:
        """Take parts of the answer; return the choices of their chunks."""
        told: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, ToolCall):
                function = {"name": part.name, "arguments": part.arguments}
                call = {"id": fresh_id("call"), "type": "function", "function": function}
                told.append(self._chunk({"tool_calls": [{"index": len(self._calls), **call}]}))
                self._calls.append(call)
            elif part:
                self._answer.append(part)
                told.append(self._chunk({"content": part}))
        return told

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        scores, self._unsaid_scores = self._unsaid_scores, ()
        logprobs = chat_logprobs(scores) if scores else None
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _finish(self) -> str:
        assert self.reply is not None
        finish = FINISHES[self.reply.finish]
        return "tool_calls" if self._calls and finish == "stop" else finish


def _schema(body: ChatBody) -> str | None:
    """Return the schema that the answer has to match, as text. Errors: `Refused`."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise refusal("response_format.json_schema.schema", "json_schema has no schema")
    return json.dumps(wanted.json_schema.schema_)


def _tools(body: ChatBody) -> str:
    """Return the functions that may be called, as text; empty: none. Errors: `Refused`."""
    if not body.tools or body.tool_choice == "none":
        return ""
    if body.response_format is not None and body.response_format.type != "text":
        raise refusal("response_format", "a form of the answer leaves no room for calls: use tools or response_format")
    return json.dumps(body.tools)


def _must_call(body: ChatBody) -> tuple[str, ...]:
    """Return the functions one of which the answer has to call; empty: it need not. Errors: `Refused`."""
    choice = body.tool_choice
    if choice in (None, "auto", "none"):
        return ()
    names = [_name_in(tool) for tool in body.tools or ()]
    if choice == "required" and all(names) and names:
        return tuple(names)
    name = _name_in(choice)
    if name and name in names:
        return (name,)
    if name or choice == "required":
        raise refusal("tool_choice", "tool_choice asks for a tool that is not among tools")
    ways = 'auto, none, required or {"type": "function", "function": {"name": ...}}'
    raise refusal("tool_choice", f"tool_choice is {ways}")


def _name_in(value: Any) -> str:
    """Return the name of a function that is offered or asked for; empty: it has none."""
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""
