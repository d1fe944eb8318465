"""Under which rules a model's replies come about: how a request is split, what bounds its thinking, what ends it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slm_local.backends.base import Backend, prompt_too_long
from slm_local.errors import PromptTooLong, UsageError
from slm_local.generation import GenerationRequest, Handle, ModelFacts, Prompt, ReasoningTags
from slm_local.governor import (
    NUDGE,
    Closing,
    Governor,
    Limits,
    closing_for,
    closing_texts,
    limits_for,
    reserve_tokens,
)
from slm_local.governor.convergence import LEAD, Convergence, ExitRule
from slm_local.reasoning import ReasoningParser, line_break


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one request is split and governed."""

    parser: ReasoningParser
    governor: Governor
    limits: Limits
    closing: Closing | None
    """What ends thinking in the model's place; None where there is none to end, or no room for it."""
    nudge: Closing | None
    """What is put behind the closing tag when nothing follows it; None for a model without tags."""
    room_tokens: int | None
    """Most tokens that can be generated and injected."""
    convergence: Convergence | None = None
    """What ends thinking once its answer has settled; None where nobody asked for it, or it can't be tried."""
    probe: Closing | None = None
    """What is put behind the thinking for a probe."""
    answer_open: str = ""
    """What has to stand before the answer when the model itself ended its thinking."""
    answer_space: str = ""
    """White space that then stands before what is written of the answer for the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is the same for all requests to a model."""

    tags: ReasoningTags | None
    facts: ModelFacts
    closings: tuple[Closing, ...]
    """With the bridge, and without it; empty without tags."""
    nudge: Closing | None
    probe: Closing | None
    """None without tags, and for an engine that can't fork a sequence."""
    exit_rule: ExitRule
    can_close: bool = True
    """Whether the engine can be made to end its thinking."""

    def rule_for(self, request: GenerationRequest, prompt: Prompt, handle: Handle) -> Rule | None:
        """Return the rule for a request; None: raw ids. Errors: `PromptTooLong` for one that leaves too little."""
        if prompt.ids is not None:
            return None
        self._check_limits(request, prompt)
        closing = closing_for(request.max_tokens, self.closings) if self.closings else None
        limits = Limits(has_loop_guard=request.has_loop_guard)
        context_tokens = self.facts.context_tokens
        if self.tags is not None and prompt.think_state != "closed":
            limits = limits_for(request, closing, context_tokens=context_tokens, prompt_tokens=handle.prompt_tokens)
            limits = replace(limits, is_kept=prompt.is_kept)
            if limits.room_tokens is not None and limits.room_tokens < 0:
                raise self._too_long(request, closing, handle.prompt_tokens or 0)
        parser = ReasoningParser(self.tags, state=prompt.think_state)
        can_exit = request.early_exit and self.probe is not None and closing is not None
        room = None if handle.prompt_tokens is None else context_tokens - handle.prompt_tokens
        return Rule(
            parser=parser,
            governor=Governor(limits, parser),
            limits=limits,
            closing=closing,
            nudge=self.nudge,
            room_tokens=min((each for each in (room, request.max_tokens) if each is not None), default=None),
            convergence=Convergence(self.exit_rule) if can_exit and prompt.think_state != "closed" else None,
            probe=self.probe,
            answer_open=self.tags.answer_open if self.tags is not None else "",
            answer_space=2 * line_break(self.tags) if self.tags is not None else "",
        )

    def _check_limits(self, request: GenerationRequest, prompt: Prompt) -> None:
        """Refuse a limit of thinking that nobody would keep to. Errors: `UsageError`."""
        is_kept = request.think_tokens is None or prompt.is_kept
        if not self.can_close and (request.think_s is not None or not is_kept):
            raise UsageError(
                "budget not available: this server has no way to end thinking",
                hint="--think max, or --think off where the model can",
            )

    def _too_long(self, request: GenerationRequest, closing: Closing | None, prompt_tokens: int) -> PromptTooLong:
        return prompt_too_long(
            prompt_tokens,
            self.facts.context_tokens,
            self.facts.trained_context_tokens,
            answer_tokens=reserve_tokens(request, self.facts.context_tokens),
            closing_tokens=closing.tokens if closing is not None else 0,
        )


def rules_of(
    backend: Backend, facts: ModelFacts, tags: ReasoningTags | None, bridge: str | None, exit_rule: ExitRule
) -> Rules:
    """Make the rules of a loaded model; `bridge` None: the default one."""

    def counted(text: str) -> Closing:
        return Closing(text=text, tokens=backend.token_count(text))

    capabilities = backend.capabilities
    bare = Rules(
        tags=tags,
        facts=facts,
        closings=(),
        nudge=None,
        probe=None,
        exit_rule=exit_rule,
        can_close="chat" not in capabilities or "inject" in capabilities,
    )
    if tags is None or not bare.can_close:
        return bare
    closings = tuple(map(counted, closing_texts(tags, bridge)))
    probe = counted(closings[0].text + LEAD) if "fork" in capabilities else None
    return replace(bare, closings=closings, nudge=counted(NUDGE), probe=probe)
