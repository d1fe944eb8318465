"""What thinking costs on this machine, in words: tokens and the time they take at the speed that is foretold."""

from __future__ import annotations

from slm_local.generation import Thinking
from slm_local.model import Plan
from slm_local.selector import duration
from slm_local.thinking import PATIENCE_S, WORD_TOKENS, patient


def limit_words(think: Thinking, plan: Plan) -> str:
    """Return how far thinking may go: "up to 1,800 tokens, 3 min here"; empty without a limit, or without thinking."""
    if think.max_s is not None:
        return f"up to {duration(think.max_s)}"
    if not think.max_tokens:
        return ""
    tps = plan.expected_decode_tps
    cost = f", {duration(think.max_tokens / tps)} here" if tps else ""
    return f"up to {think.max_tokens:,} tokens{cost}"


def thinking_words(plan: Plan) -> tuple[str, ...]:
    """Return a line for each way to ask for thinking, with what it costs here: "high: up to 8,192 tokens, ..."."""
    if not plan.spec.thinks:
        return (f"{plan.spec.id} has no thinking of its own",)
    tps, context = plan.expected_decode_tps, plan.context_tokens
    usual = patient(Thinking(), PATIENCE_S, decode_tps=tps, context_tokens=context)
    auto = limit_words(usual, plan) if usual.max_s is not None else _cost(usual.max_tokens, plan)
    return (
        "off: no thinking",
        *(f"{word}: {_cost(tokens, plan)}" for word, tokens in WORD_TOKENS.items()),
        f"max: {_cost(None, plan)}",
        f"auto: {auto}; where no person watches, as max",
        "on: as auto, and always with thinking",
        "256, 30s, 5m: up to so many tokens, or so long",
    )


def _cost(tokens: int | None, plan: Plan) -> str:
    """Say how far so many tokens go; None, and more than the context has, is as far as the context goes."""
    context, tps = plan.context_tokens, plan.expected_decode_tps
    if tokens is None or tokens >= context:
        what, tokens = f"as far as the context of {context:,} tokens goes", context
    else:
        what = f"up to {tokens:,} tokens"
    return f"{what}, about {duration(tokens / tps)}" if tps else what
