"""The kinds of servers there are, what each can do beyond OpenAI's protocol, and how its fields are called: data.

Sources: tools/server/README.md of llama.cpp; entrypoints/openai and entrypoints/serve of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One program that serves models."""

    name: str
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of our `Sampling` that it takes, by its own name, besides OpenAI's."""
    chat: Mapping[str, Any] = field(default_factory=dict)
    """What every conversation is sent with."""
    completion: Mapping[str, Any] = field(default_factory=dict)
    """What every raw prompt is sent with."""
    budget: str = ""
    """The field of a limit of thinking that it keeps itself."""
    bridge: str = ""
    """The field of what it then writes before the closing tag."""
    effort: bool = False
    """Whether `reasoning_effort` "none" switches thinking off."""
    decides: bool = False
    """Whether it switches thinking itself, in every way it is asked for: nothing is put behind a prompt for that."""
    template_variables: bool = False
    """Whether it takes `chat_template_kwargs`."""
    renders: str = ""
    """The path that renders a conversation; empty where none does."""
    counts: bool = False
    """Whether it says how many tokens each chunk is."""
    tells_cached: bool = False
    """Whether it says how much of a prompt it found in its KV cache."""
    schema: bool = False
    """Whether it keeps an answer to a JSON schema, thinking left free."""
    completes_schema: bool = False
    """Whether it keeps a raw completion to one: an answer then is gone on with where thinking has ended."""
    budget_holds_prompt: bool = False
    """Whether its limit of thinking counts what the prompt holds behind the opening tag, too."""
    shown: str = ""
    """The field of control tokens' texts that a raw completion is to show."""
    tells_thinking: bool | None = None
    """Whether thinking comes in a field of its own; None: as it was started."""


USUAL = {"presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "seed": "seed"}

LLAMA_SERVER = Kind(
    name="llama-server",
    fields={
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repeat_penalty",
        "repeat_last_n": "repeat_last_n",
        **USUAL,
    },
    chat={
        "timings_per_token": True,
        "return_progress": True,
        "reasoning_format": "none",  # thinking stays in the text as it was written: every token counted on its side
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],  # in the order of our own engines
    },
    completion={
        "timings_per_token": True,
        "return_progress": True,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
    },
    budget="thinking_budget_tokens",
    bridge="reasoning_budget_message",
    template_variables=True,
    renders="/apply-template",
    counts=True,
    tells_cached=True,
    shown="preserved_tokens",
    tells_thinking=False,
)

VLLM = Kind(
    name="vLLM",
    fields={"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty", **USUAL},
    chat={
        "return_token_ids": True,
        "skip_special_tokens": False,  # a tag may be one
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    completion={
        "return_token_ids": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    budget="thinking_token_budget",
    template_variables=True,
    renders="/tokenize",
    counts=True,
    completes_schema=True,  # of a conversation it does so from the first token, unless it has a reasoning parser
    budget_holds_prompt=True,
)

SLM = Kind(
    name="slm serve",
    fields={"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repeat_penalty", **USUAL},
    budget="thinking_token_budget",
    effort=True,
    decides=True,
    renders="/tokenize",
    tells_cached=True,
    schema=True,
    tells_thinking=True,
)

OTHER = Kind(name="server", fields=USUAL, effort=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as it was found, with the model that was asked for."""

    kind: Kind
    version: str = ""
    model: str
    """What it calls the model."""
    context_tokens: int | None = None
    """The longest context of a request; None where it does not say."""
    trained_context_tokens: int | None = None
    vocabulary_size: int | None = None
    known_ids: int = 0
    """How far the ids of its vocabulary are known to reach: vLLM tells its size only where it was told to."""
    parameters: int | None = None
    quant: str = ""
    template: str | None = None
    bos_text: str = ""
    eos_text: str = ""
    places: int | None = None
    """How many requests it serves at once; None where it does not say."""
    is_rendering: bool = False
    """Whether its renderings and tokens can be asked for."""

    @property
    def goes_on_for_schema(self) -> bool:
        """Return whether an answer is kept to a schema by going on behind the thinking."""
        return self.kind.completes_schema and self.is_rendering
