"""Events in ollama's words: chunks of an answer, the last of which carries counts and durations."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from slm_local.generation import AnswerDelta, Done, Reply, Started, StreamEvent, ThinkDelta, TokenScore
from slm_local.server.ollama.reading import Asked
from slm_local.server.service import fault_from
from slm_local.server.streaming import Generation, merged
from slm_local.server.wording import FINISHES, chat_logprobs, ours
from slm_local.toolcalls import ToolCall, ToolCallParser, family_named

Shown = Callable[[dict[str, Any]], dict[str, Any]]
"""Puts `content`, `thinking` and `tool_calls` where an API has them."""


def as_message(said: dict[str, Any]) -> dict[str, Any]:
    """Return what was said as `/api/chat` has it."""
    return {"message": {"role": "assistant", "content": "", **said}}


def as_response(said: dict[str, Any]) -> dict[str, Any]:
    """Return what was said as `/api/generate` has it."""
    thinking = {"thinking": said["thinking"]} if "thinking" in said else {}
    return {"response": said.get("content", ""), **thinking}


class Answer:
    """An answer under way: what the client is told of it, and all of it so far."""

    def __init__(self, asked: Asked, shown: Shown) -> None:
        self._asked, self._shown = asked, shown
        self._begun_s = time.monotonic()
        self._is_over = False
        self._parser: ToolCallParser | None = None
        """What finds calls in the answer; None where no tools are offered."""
        self._scores: list[TokenScore] = []
        self._told_scores = 0
        self._said: dict[str, list[str]] = {"content": [], "thinking": []}
        self._calls: list[dict[str, Any]] = []

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """Return the answer as one object once it is there. Errors: the generation's."""
        last = [chunk async for chunk in self._chunks(generation)][-1]
        said: dict[str, Any] = {name: text for name, parts in self._said.items() if (text := "".join(parts))}
        if self._calls:
            said["tool_calls"] = self._calls
        return {**last, **self._shown(said), **_logprobs(self._scores)}

    async def chunks(self, generation: Generation) -> AsyncIterator[bytes]:
        """Yield the answer as lines of JSON; what goes wrong is the last of them."""
        try:
            async for chunk in self._chunks(generation):
                yield _line(chunk)
        except Exception as error:  # the answer has begun: there is no status left to say it with
            yield _line({"error": fault_from(error).message})

    async def _chunks(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        async for batch in generation.batches():
            for each in merged(batch):
                for chunk in self.feed(each.event):
                    yield chunk
        for chunk in self.end():
            yield chunk

    def feed(self, event: StreamEvent) -> list[dict[str, Any]]:
        """Take an event; return the chunks that tell of it."""
        parser = self._parser
        match event:
            case Started(tool_family=family) if family:
                self._parser = ToolCallParser(family_named(family), self._asked.tools)
                return []
            case ThinkDelta(text=text) if text:
                return [self._chunk({"thinking": text})]
            case AnswerDelta(text=text):
                self._scores += event.scores
                return self._parts(parser.feed(text) if parser is not None else [text])
            case Done(reply=reply):
                rest = self._parts(parser.finish()) if parser is not None else []
                return [*rest, self._last({}, FINISHES[reply.finish], reply)]
            case _:
                return []

    def end(self) -> list[dict[str, Any]]:
        """Return the only chunk of a request that asked for no answer; nothing behind any other's last."""
        if self._is_over:
            return []
        return [self._last({}, "unload" if self._asked.keep_alive_s == 0.0 else "load", None)]

    def _parts(self, parts: list[str | ToolCall]) -> list[dict[str, Any]]:
        """Return chunks for parts of the answer."""
        chunks = []
        for part in parts:
            if isinstance(part, ToolCall):
                function = {"index": len(self._calls), "name": part.name, "arguments": json.loads(part.arguments)}
                call = {"id": f"call{len(self._calls):05d}", "function": function}
                self._calls.append(call)
                chunks.append(self._chunk({"tool_calls": [call]}))
            elif part:
                chunks.append(self._chunk({"content": part}))
        return chunks

    def _chunk(self, said: dict[str, Any]) -> dict[str, Any]:
        for name in self._said.keys() & said.keys():
            self._said[name].append(said[name])
        return {**self._head(), **self._shown(said), "done": False, **_logprobs(self._untold())}

    def _last(self, said: dict[str, Any], reason: str, reply: Reply | None) -> dict[str, Any]:
        self._is_over = True
        counts = _counts(reply, time.monotonic() - self._begun_s) if reply is not None else {}
        ending = {"done": True, "done_reason": reason, **counts, **_logprobs(self._untold())}
        warnings = {"warnings": self._asked.warnings} if self._asked.warnings else {}
        return {**self._head(), **self._shown(said), **ending, **({"slm": ours(reply)} if reply else {}), **warnings}

    def _head(self) -> dict[str, Any]:
        return {"model": self._asked.body.model, "created_at": now()}

    def _untold(self) -> list[TokenScore]:
        """Return the scores that no chunk has carried yet."""
        untold = self._scores[self._told_scores :]
        self._told_scores = len(self._scores)
        return untold


def now() -> str:
    """Return the time as ollama writes it."""
    return written(datetime.now(UTC))


def written(moment: datetime) -> str:
    """Return a moment of UTC as ollama writes it: 2026-11-22T16:00:00.000000Z."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _logprobs(scores: list[TokenScore]) -> dict[str, Any]:
    return {"logprobs": chat_logprobs(scores)["content"]} if scores else {}


def _counts(reply: Reply, total_s: float) -> dict[str, int]:
    """Return counts, and durations in nanoseconds; what the engine does not tell is left out.

    A load that somebody else waited for, or nobody, is no part of this request.
    """
    usage, timings = reply.usage, reply.timings
    thought, answered = usage.think_tokens, usage.answer_tokens
    generated = None if thought is None or answered is None else thought + answered
    counts = {"prompt_eval_count": usage.prompt_tokens, "eval_count": generated}
    seconds = {
        "total_duration": total_s,
        "load_duration": min(timings.load_s, max(0.0, total_s - timings.prefill_s - timings.decode_s)),
        "prompt_eval_duration": timings.prefill_s,
        "eval_duration": timings.decode_s,
    }
    durations = {name: round(each * 1e9) for name, each in seconds.items()}
    return durations | {name: count for name, count in counts.items() if count is not None}
