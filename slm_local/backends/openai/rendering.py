"""What a server makes of a conversation, where it tells: token ids, and how their end leaves thinking.

The same decisions as `template.thinking` makes for a model of this machine, on a prompt that is rendered elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm_local.backends.openai.bodies import rendering_body
from slm_local.backends.openai.kinds import LLAMA_SERVER, Server
from slm_local.backends.openai.link import Link
from slm_local.errors import RemoteFailed, UsageError
from slm_local.generation import GenerationRequest, Message, Prompt, ReasoningTags, ThinkControl, ThinkState
from slm_local.reasoning import FAMILIES, derive_tags, derive_think_control, line_break, think_state

TAIL_TOKENS = 32
"""What is looked at of a prompt's end: more than any tag with its white space."""

GREETING = (Message(role="user", content="?"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A rendered conversation."""

    ids: tuple[int, ...]
    tail: str
    """The text of its end."""


class Renderer:
    """Asks one server for tokens and prompts."""

    def __init__(self, link: Link, server: Server) -> None:
        self._link, self.server = link, server

    async def tokens(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens, control tokens on and none added. Errors: `RemoteFailed`."""
        if not text:
            return ()
        if self.server.kind is LLAMA_SERVER:
            body: dict[str, Any] = {"content": text, "add_special": False, "parse_special": True}
        else:
            body = {"model": self.server.model, "prompt": text, "add_special_tokens": False}
        return _ids(await self._link.answer("/tokenize", body))

    async def prompt(self, messages: Sequence[Message], switch: bool | None, think: ThinkControl) -> Rendering:
        """Return a conversation's prompt. Errors: `RemoteFailed`, `UsageError` for one that the template refuses."""
        body = rendering_body(messages, switch, self.server, think)
        found = await self._link.answer(self.server.kind.renders, body)
        if self.server.kind is LLAMA_SERVER:
            text = found.get("prompt") if isinstance(found, dict) else None
            if not isinstance(text, str):
                raise RemoteFailed("llama-server rendered no prompt", hint="slm run MODEL, of this machine")
            whole = {"content": text, "add_special": True, "parse_special": True}
            return Rendering(ids=_ids(await self._link.answer("/tokenize", whole)), tail=text)
        ids = _ids(found)
        tail = await self._link.answer("/detokenize", {"model": self.server.model, "tokens": ids[-TAIL_TOKENS:]})
        return Rendering(ids=ids, tail=str(tail.get("prompt", "")) if isinstance(tail, dict) else "")

    async def tags(self) -> ReasoningTags | None:
        """Find how the model marks its thinking: by its template, else its prompts' end, else its vocabulary."""
        if self.server.template is not None:
            return derive_tags(self.server.template, lambda text: False)
        rendering = await self.prompt(GREETING, None, ThinkControl())
        opened = next((each.tags for each in FAMILIES if rendering.tail.rstrip().endswith(each.tags.open)), None)
        if opened is not None:
            return opened
        texts = sorted({text for family in FAMILIES for text in family.tokens})
        found = await asyncio.gather(*map(self.tokens, texts))
        whole = {text for text, ids in zip(texts, found, strict=True) if len(ids) == 1}
        return derive_tags(None, whole.__contains__)

    async def think_control(self) -> ThinkControl:
        """Find how thinking is switched: by what the template mentions, else by what its prompts do."""
        if self.server.template is not None:
            return derive_think_control(self.server.template)
        usual = derive_think_control("enable_thinking")
        both = await asyncio.gather(*(self.prompt(GREETING, switch, usual) for switch in (True, False)))
        return usual if both[0].ids != both[1].ids else ThinkControl()


async def prompt_of(
    renderer: Renderer, request: GenerationRequest, tags: ReasoningTags | None, think: ThinkControl
) -> Prompt:
    """Render a request with thinking as asked for. Errors: `UsageError` where it can't be switched so."""

    async def rendered(switch: bool | None) -> tuple[Rendering, ThinkState]:
        found = await renderer.prompt(request.messages, switch if think.switch is not None else None, think)
        return found, think_state(found.tail, tags)

    wish = request.think
    if renderer.server.kind.decides:
        found, state = await rendered(None)
        return Prompt(request=request, rendered=found.ids, think_state="closed" if wish == "off" else state)
    if tags is None:
        if wish == "on":
            raise UsageError("this model has no thinking to switch on", hint="leave it out: --think auto")
        found, _ = await rendered(None)
        return Prompt(request=request, rendered=found.ids, think_state="closed")
    switch = {"off": False, "on": True, "open": True, "auto": None}[wish]
    found, state = await rendered(switch)
    if wish == "auto" and state == "closed" and think.switch is not None:
        switch = True  # only because it was not set: a reasoning model should think
        found, state = await rendered(switch)
    opening = _opening(wish, state, tags, think, found.tail)
    if opening:
        state = "closed" if wish == "off" else "open"
    switch = switch if think.switch is not None else None
    return Prompt(request=request, rendered=found.ids, think_state=state, opening=opening, switch=switch)


def _opening(wish: str, state: ThinkState, tags: ReasoningTags, think: ThinkControl, tail: str) -> str:
    """Return what has to stand behind the prompt for thinking to be as it was asked for."""
    line = line_break(tags)
    match wish, state:
        case "off", "open":
            return f"{'' if tail.endswith(line) else line}{line}{tags.close}{line}{line}"
        case "off", "unopened" if think.off_block:
            return f"{tags.open}{line}{line}{tags.close}{line}{line}"
        case "off", "unopened" if think.switch is None:
            raise UsageError("this model's thinking can't be switched off", hint="leave it out: --think auto")
        case (("on" | "open"), "unopened"):
            return tags.open + line
        case "auto", "unopened" if tags.force_open:
            return tags.open + line
        case "on", "closed":
            raise UsageError(
                "the server's chat template closes thinking, whatever it is asked for", hint="--think auto"
            )
        case _:
            return ""


def _ids(found: Any) -> tuple[int, ...]:
    tokens = found.get("tokens") if isinstance(found, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(each, int) for each in tokens):
        raise RemoteFailed("the server's /tokenize answers without tokens", hint="slm run MODEL, of this machine")
    return tuple(tokens)
