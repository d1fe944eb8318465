"""What requests may say: their fields with types and limits. Unknown fields are kept aside, to be reported.

Sources: OpenAI's API reference; vLLM, llama-server, OpenRouter and ollama for the fields that only they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from slm_local.config import MAX_SEED
from slm_local.samples import MAX_SAMPLES

MAX_TOKENS = 2**31 - 1
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_PROMPTS = 256
MAX_TOOLS = 128
MAX_TOP_LOGPROBS = 20
"""OpenAI's own limit."""
MAX_NAME_CHARS = 512

Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Budget = Annotated[int, Field(ge=-1, le=MAX_TOKENS)]
"""Tokens of thinking; -1: no limit, as llama-server writes it."""
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKENS)]], Field(min_length=1)]


class Part(BaseModel):
    """A part of an object: unknown fields are kept aside."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)

    @property
    def unknown(self) -> Mapping[str, Any]:
        """Return the fields that mean nothing here."""
        return self.model_extra or {}

    @property
    def unknown_names(self) -> tuple[str, ...]:
        """Return the names of those fields, with those of the objects in it: `reasoning.summary`."""
        parts = ((name, getattr(self, name)) for name in type(self).model_fields)
        inside = (f"{name}.{each}" for name, part in parts if isinstance(part, Part) for each in part.unknown_names)
        return (*self.unknown, *inside)


class StreamOptions(Part):
    """What a stream carries beside deltas."""

    include_usage: bool | None = None


class ContentPart(Part):
    """A part of a message's content."""

    type: str
    text: str | None = None


class MessageBody(Part):
    """A message as a client writes it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    """Past thinking, under any of its names, is taken and left out of the prompt."""


class ReasoningBody(Part):
    """OpenRouter's way to ask for thinking."""

    effort: int | str | None = None
    max_tokens: Budget | None = None
    exclude: bool | None = None
    enabled: bool | None = None


class ThinkingBody(Part):
    """Anthropic's way to ask for thinking."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Budget | None = None


class ThinkingFields(Part):
    """Every way to ask for thinking, in one place; docs/serve.md lists them."""

    reasoning_effort: int | str | None = None
    reasoning: ReasoningBody | int | str | None = None
    think: bool | int | str | None = None
    thinking: ThinkingBody | None = None
    thinking_budget_tokens: Budget | None = None
    reasoning_budget_tokens: Budget | None = None
    thinking_token_budget: Budget | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class SamplingFields(Part):
    """How tokens are chosen, and where a reply ends; what is not said is the model's own default."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=10.0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    logit_bias: dict[str, Any] | None = None


class JsonSchemaBody(Part):
    """A schema with its labels; it is always held to strictly."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(Part):
    """The form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class ChatBody(SamplingFields, ThinkingFields):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(SamplingFields):
    """The body of `/v1/completions`."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | TokenIds
        | Annotated[list[Annotated[str, Field(min_length=1)] | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class TokenizeBody(Part):
    """The body of `/tokenize`, as vLLM has it: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None


class DetokenizeBody(Part):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=MAX_TOKENS)]]


REFUSED: Mapping[str, str] = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "logit_bias": "no engine here takes it",
    "audio": "models here write text",
    "web_search_options": "nothing here opens a connection",
    "grammar": "use response_format",
    "json_schema": "use response_format",
    "guided_json": "use response_format",
    "guided_regex": "use response_format",
    "guided_choice": "use response_format",
    "guided_grammar": "use response_format",
    "structured_outputs": "use response_format",
    "ignore_eos": "no engine here takes it",
    "min_tokens": "no engine here takes it",
    "continue_final_message": "use /v1/completions with the ids of /tokenize",
    "stop_token_ids": "give their texts as stop",
    "bad_words": "no engine here takes it",
    "allowed_token_ids": "no engine here takes it",
    "use_beam_search": "no engine here takes it",
    "mirostat": "no engine here takes it",
    "dry_multiplier": "no engine here takes it",
    "xtc_probability": "no engine here takes it",
    "reasoning_budget_message": "it is set where the model is loaded: @bridge on the model",
    "suffix": "models here are not asked to fill a gap",
    "chat_template": "it is set where the model is loaded: slm serve --template FILE",
}
"""Fields that would change the answer and can't be honoured, with what to do instead."""

WITHOUT_EFFECT = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Fields of OpenAI's that label a request and change no answer: nothing to report."""
