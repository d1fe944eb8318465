"""What requests to ollama's API may say: their fields with types and limits. Unknown fields are kept aside."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from slm_local.server.asked import (
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_TOKENS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    Part,
    SamplingFields,
)

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class Options(SamplingFields):
    """How to generate; the names that OpenAI's API shares mean the same."""

    num_predict: Annotated[int, Field(ge=-2, le=MAX_TOKENS)] | None = None
    """Most tokens of thinking and answer; none where it is not above 0."""
    num_ctx: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    mirostat: int | None = None
    tfs_z: float | None = None
    typical_p: float | None = None


class ToolCallBody(Part):
    """A call that an assistant made."""

    id: str | None = None
    function: dict[str, Any]


class MessageBody(Part):
    """A message as ollama's clients write it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    """Past thinking is taken and left out of the prompt."""
    images: list[str] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class AskedBody(Part):
    """What both ways to generate have in common."""

    model: Name
    stream: bool | None = None
    """Not said is yes."""
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class ChatBody(AskedBody):
    """The body of `/api/chat`."""

    messages: Annotated[list[MessageBody], Field(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None


class GenerateBody(AskedBody):
    """The body of `/api/generate`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[str] | None = None
    template: str | None = None
    context: list[int] | None = None


class ShowBody(Part):
    """The body of `/api/show`."""

    model: Name | None = None
    name: Name | None = None
    """What `model` was called before."""
    verbose: bool | None = None
