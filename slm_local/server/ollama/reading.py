"""A request to ollama's API as one of ours: messages, thinking, sampling, and what of it has no effect."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from slm_local.errors import UsageError
from slm_local.generation import GenerationRequest, Message, Sampling, TokenOrder
from slm_local.server import asked as openai
from slm_local.server.asked import SamplingFields, ThinkingFields
from slm_local.server.chat import ANY_OBJECT
from slm_local.server.conversation import messages_of
from slm_local.server.effort import AskedThinking, for_model, thinking_asked
from slm_local.server.faults import refusal
from slm_local.server.ollama.asked import AskedBody, ChatBody, GenerateBody, MessageBody, Options
from slm_local.server.pool import Lease
from slm_local.server.sampling import sampling_of, stops_of
from slm_local.server.served import Served
from slm_local.server.service import unused

NOT_OPTIONS = frozenset(SamplingFields.model_fields) - frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop"),
        *("repeat_penalty", "presence_penalty", "frequency_penalty"),
    }
)
"""Fields of OpenAI's API that are no options of ollama's."""

SAMPLERS_OFF = {"mirostat": 0, "tfs_z": 1.0, "typical_p": 1.0}
"""Samplers that no engine here has, and the value that asks for none."""

DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(slots=True, kw_only=True)
class Asked:
    """What a body asks for, read before any model is opened."""

    body: AskedBody
    messages: tuple[Message, ...]
    raw: str | None
    """A prompt that is neither templated nor split."""
    thinking: AskedThinking
    schema: str | None
    tools: str
    keep_alive_s: float | None
    """None: as it is."""
    warnings: list[str] = field(default_factory=list)

    @property
    def only_opens(self) -> bool:
        """Whether nothing is to be answered: the model is only to be opened, or kept for another time."""
        return not self.messages and not self.raw

    def requests(self, lease: Lease) -> Sequence[GenerationRequest]:
        """Return the generation, if there is one. Errors: `Refused`, `UsageError`."""
        if self.keep_alive_s is not None:
            lease.keep(self.keep_alive_s)
        if self.only_opens:
            return []
        options = self.body.options or Options()
        self._check_context(options, lease)
        base = self._raw_request(lease) if self.raw is not None else self._chat_request(lease)
        limit = options.num_predict if options.num_predict is not None and options.num_predict > 0 else None
        request = replace(
            base,
            sampling=_sampling(base.sampling, options, lease.engine.facts.context_tokens),
            max_tokens=limit or base.max_tokens,
            stop=stops_of(options, base.stop),
            schema=self.schema,
            logprobs=(self.body.top_logprobs or 0) if self.body.logprobs else None,
        )
        return [request]

    def _chat_request(self, lease: Lease) -> GenerationRequest:
        maker = lease.maker
        if self.thinking.thinking.mode in ("on", "open") and not maker.spec.thinks:
            raise UsageError(f"{maker.spec.id} does not support thinking", hint='"think": false')
        messages = self.messages
        if maker.system and messages[0].role != "system":
            messages = (Message(role="system", content=maker.system), *messages)
        asked = for_model(self.thinking, thinks=maker.spec.thinks)
        return replace(maker.request(messages, think=asked.thinking), tools=self.tools)

    def _raw_request(self, lease: Lease) -> GenerationRequest:
        ids = lease.engine.tokens(TokenOrder(text=self.raw, adds_special=True, parses_special=True)).ids
        return GenerationRequest(prompt_ids=ids, sampling=lease.maker.sampling())

    def _check_context(self, options: Options, lease: Lease) -> None:
        has = lease.engine.facts.context_tokens
        if options.num_ctx is not None and options.num_ctx > has:
            self.warnings.append(f"num_ctx {options.num_ctx} has no effect: the model is open with {has} tokens")


def chat_asked(body: ChatBody, served: Served) -> Asked:
    """Read the body of `/api/chat`. Errors: `Refused`."""
    given = body.messages or []
    if body.tools and body.format:
        raise refusal("format", "a form of the answer leaves no room for calls: use tools or format")
    messages = messages_of(_bodies(given), served.spec.tags) if given else ()
    asked = _asked(body, messages=messages, tools=json.dumps(body.tools) if body.tools else "")
    names = [f"messages[{place}].{name}" for place, each in enumerate(given) for name in each.unknown]
    asked.warnings += [f"{name} has no effect here" for name in names]
    return asked


def generate_asked(body: GenerateBody) -> Asked:
    """Read the body of `/api/generate`. Errors: `Refused`."""
    _refuse_images(body.images, "images")
    for name, instead in (("template", "slm serve --template FILE"), ("context", "/api/chat takes a conversation")):
        if getattr(body, name):
            raise refusal(name, f"{name} can't be honoured: {instead}", code="unsupported")
    if not body.prompt:
        return _asked(body)
    if body.raw:
        if body.system or body.think is not None:
            raise refusal("raw", "a raw prompt has no system text and no thinking of its own")
        return _asked(body, raw=body.prompt)
    system = [Message(role="system", content=body.system)] if body.system else []
    if not body.prompt.strip():
        raise refusal("prompt", "the prompt is empty: there is nothing to answer")
    return _asked(body, messages=(*system, Message(role="user", content=body.prompt)))


def _asked(body: AskedBody, *, messages: tuple[Message, ...] = (), raw: str | None = None, tools: str = "") -> Asked:
    if body.top_logprobs is not None and not body.logprobs:
        raise refusal("top_logprobs", "top_logprobs goes with logprobs", hint='"logprobs": true')
    options = body.options or Options()
    for name, off in SAMPLERS_OFF.items():
        if getattr(options, name) not in (None, off):
            raise refusal(f"options.{name}", f"options.{name} can't be honoured: no engine here has it")
    ignored = [*options.unknown, *(options.model_fields_set & NOT_OPTIONS)]
    warnings = [*unused(body.unknown), *(f"options.{name} has no effect here" for name in sorted(ignored))]
    return Asked(
        body=body,
        messages=messages,
        raw=raw,
        thinking=thinking_asked(ThinkingFields(think=body.think)),
        schema=_schema(body.format),
        tools=tools,
        keep_alive_s=_seconds(body.keep_alive),
        warnings=warnings,
    )


def _sampling(base: Sampling, options: Options, context_tokens: int) -> Sampling:
    sampling = sampling_of(base, options)
    if options.repeat_last_n is None:
        return sampling
    last = context_tokens if options.repeat_last_n == -1 else options.repeat_last_n
    return replace(sampling, repeat_last_n=last)


def _bodies(messages: Sequence[MessageBody]) -> list[openai.MessageBody]:
    """Return messages as OpenAI's clients write them: every call with an id, every result with its call's.

    A result that names no id belongs to the first unanswered call of its function, else to the first one at all.
    """
    unanswered: dict[str, str] = {}
    bodies: list[openai.MessageBody] = []
    count = 0
    for place, message in enumerate(messages):
        _refuse_images(message.images, f"messages[{place}].images")
        calls = []
        for call in message.tool_calls or []:
            count += 1
            call_id = call.id or f"call{count:05d}"
            unanswered[call_id] = str(call.function.get("name"))
            calls.append({"id": call_id, "type": "function", "function": call.function})
        answered: str | None = None
        if message.role == "tool":
            wanted = [each for each, name in unanswered.items() if name == message.tool_name] or [*unanswered, "call"]
            answered = message.tool_call_id or wanted[0]
            unanswered.pop(answered, None)
        bodies.append(
            openai.MessageBody(
                role=message.role,
                content=message.content or "",
                tool_calls=calls or None,
                tool_call_id=answered,
                name=message.tool_name if message.role == "tool" else None,
            )
        )
    return bodies


def _refuse_images(images: Sequence[str] | None, where: str) -> None:
    if images:
        raise refusal(where, "models here read text, not images", code="unsupported")


def _schema(wanted: str | dict[str, object] | None) -> str | None:
    """Return the schema that the answer has to match, as text. Errors: `Refused`."""
    if not wanted:
        return None
    if isinstance(wanted, dict):
        return json.dumps(wanted)
    if wanted != "json":
        raise refusal("format", f'format is "json" or a JSON Schema, not {wanted[:40]!r}')
    return ANY_OBJECT


def _seconds(keep_alive: float | str | None) -> float | None:
    """Return how long a model stays open: seconds, or a duration such as `5m`; infinity where it is below 0."""
    if keep_alive is None or isinstance(keep_alive, float | int):
        seconds = keep_alive
    else:
        text = keep_alive.strip().removeprefix("-")
        parts = DURATION.findall(text)
        if not re.fullmatch(r"\d+(?:\.\d+)?", text) and (not parts or "".join(map("".join, parts)) != text):
            raise refusal("keep_alive", f'keep_alive is seconds or a duration such as "5m", not {keep_alive[:40]!r}')
        seconds = sum(float(number) * UNITS_S[unit] for number, unit in parts) if parts else float(text)
        seconds = -1.0 if keep_alive.strip().startswith("-") else seconds
    return math.inf if seconds is not None and seconds < 0 else seconds
