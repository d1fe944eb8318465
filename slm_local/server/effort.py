"""One reading for every way to ask for thinking: which ones say what, and what they come to together.

The spellings are those of DeepSeek, llama-server, vLLM, OpenRouter, ollama, LM Studio, OpenAI and Anthropic. Two that
contradict each other are refused; a number of tokens is more exact than a word and wins over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from slm_local.generation import Thinking
from slm_local.server.asked import ReasoningBody, ThinkingFields
from slm_local.server.faults import refusal
from slm_local.thinking import SENTENCE, WORD_TOKENS, read_thinking

MINIMAL, XHIGH = WORD_TOKENS["low"] // 4, WORD_TOKENS["high"] * 4
"""The words below and above ours go on as ours do: each four times the one before."""

WORDS: dict[str, object] = {"none": "off", "minimal": MINIMAL, "xhigh": XHIGH, "ultra": "max"}
"""Words of effort that are not ours, as ours."""

SPELLED = f"{SENTENCE}; also none, minimal, xhigh and ultra"

TEMPLATE_WORDS = ("enable_thinking", "thinking", "reasoning_effort")
"""Variables of chat templates that ask for thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedThinking:
    """What all the fields of a request come to."""

    thinking: Thinking
    is_shown: bool = True
    """Whether thinking is sent to the client."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Wish:
    field: str
    thinking: Thinking

    @property
    def is_exact(self) -> bool:
        """Whether it is a number or a time, not a word."""
        return self.thinking.word[:1].isdigit()


def thinking_asked(body: ThinkingFields) -> AskedThinking:
    """Return the thinking that a request asks for. Errors: `Refused` naming the field, or the two that contradict."""
    wishes = list(_wishes(body))
    offs = [each for each in wishes if each.thinking.mode == "off"]
    rest = [each for each in wishes if each.thinking.mode != "off"]
    if offs and rest:
        raise _contradiction(offs[0], rest[0])
    is_shown = body.include_reasoning is not False
    if isinstance(body.reasoning, ReasoningBody):
        is_shown = is_shown and not body.reasoning.exclude
    if offs:
        return AskedThinking(thinking=offs[0].thinking, is_shown=is_shown)
    exact, words = [each for each in rest if each.is_exact], [each for each in rest if not each.is_exact]
    limits = [each for each in words if each.thinking.word not in ("on", "auto")]
    for same in (exact, limits):
        other = next((each for each in same if each.thinking != same[0].thinking), None)
        if other is not None:
            raise _contradiction(same[0], other)
    warnings = tuple(f"{each.field} gives way to {exact[0].field}" for each in limits) if exact else ()
    chosen = next(iter([*exact, *limits, *words]), _Wish("", Thinking()))
    return AskedThinking(thinking=chosen.thinking, is_shown=is_shown, warnings=warnings)


def for_model(asked: AskedThinking, *, thinks: bool) -> AskedThinking:
    """Return what of it a model can be asked for: one without thinking is asked for none, which is reported."""
    if thinks or asked.thinking == Thinking():
        return asked
    nothing_lost = asked.thinking.mode == "off" or asked.thinking.word == "auto"
    warning = () if nothing_lost else ("this model marks no thinking: what was asked of it has no effect",)
    return replace(asked, thinking=Thinking(), warnings=(*asked.warnings, *warning))


def _wishes(body: ThinkingFields) -> Iterator[_Wish]:
    """Give what each field that is there says."""
    yield from _said("reasoning_effort", body.reasoning_effort, effort)
    yield from _said("think", body.think, effort)
    for name in ("thinking_budget_tokens", "reasoning_budget_tokens", "thinking_token_budget"):
        yield from _said(name, getattr(body, name), _budget)
    if isinstance(body.reasoning, ReasoningBody):
        yield from _said("reasoning.effort", body.reasoning.effort, effort)
        yield from _said("reasoning.max_tokens", body.reasoning.max_tokens, _budget)
        yield from _said("reasoning.enabled", body.reasoning.enabled, effort)
    else:
        yield from _said("reasoning", body.reasoning, effort)
    if body.thinking is not None:
        words = {"enabled": "on", "disabled": "off", "adaptive": "auto"}
        yield _Wish("thinking.type", read_thinking(words[body.thinking.type]))
        yield from _said("thinking.budget_tokens", body.thinking.budget_tokens, _budget)
    for name, value in (body.chat_template_kwargs or {}).items():
        if name not in TEMPLATE_WORDS:
            raise refusal(
                f"chat_template_kwargs.{name}",
                f"chat_template_kwargs takes {', '.join(TEMPLATE_WORDS)} only, not {name!r}",
            )
        yield from _said(f"chat_template_kwargs.{name}", value, effort)


def _said(field: str, value: Any, read: Callable[[str, Any], Thinking]) -> Iterator[_Wish]:
    if value is not None:
        yield _Wish(field, read(field, value))


def effort(field: str, value: object) -> Thinking:
    """Read a word, a switch, a number or a time. Errors: `Refused`."""
    word = value.strip().casefold() if isinstance(value, str) else value
    try:
        return read_thinking(WORDS.get(word, word) if isinstance(word, str) else word)
    except ValueError:
        raise refusal(field, f"{field} {SPELLED}, not {value!r}"[:500]) from None


def _budget(field: str, tokens: int) -> Thinking:
    return effort(field, "max" if tokens == -1 else tokens)


def _contradiction(one: _Wish, other: _Wish) -> Exception:
    return refusal(
        one.field,
        f"{one.field} ({one.thinking.word}) and {other.field} ({other.thinking.word}) contradict each other",
        hint=f"leave {other.field} out",
    )
