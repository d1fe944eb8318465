"""Texts, conversations and ids to tokens, without computing anything."""

from __future__ import annotations

from collections.abc import Callable

from slm_local.backends.base import Backend
from slm_local.errors import UsageError
from slm_local.generation import GenerationRequest, ModelFacts, Prompt, PromptRun, TokenOrder, Tokens


def tokens_of(
    backend: Backend, facts: ModelFacts, order: TokenOrder, prompt_of: Callable[[GenerationRequest], Prompt]
) -> Tokens:
    """Return the tokens that are asked for. Errors: `UsageError` for an order of nothing, or of unknown ids."""
    if order.ids is not None:
        ids = list(order.ids)
    elif order.text is not None:
        ids = backend.token_ids(Prompt(runs=_runs(order.text, order, facts)))
    elif order.request is not None:
        ids = backend.token_ids(prompt_of(order.request))
    else:
        raise UsageError("nothing was given to tokenize", hint="give a text, messages or token ids")
    return Tokens(ids=tuple(ids), data=tuple(tuple(data) for data in backend.token_bytes(ids)))


def _runs(text: str, order: TokenOrder, facts: ModelFacts) -> tuple[PromptRun, ...]:
    """Return a text as it is to be tokenized, behind a BOS where one belongs there and it does not write it itself."""
    run = PromptRun(text=text, allows_control=order.parses_special)
    has_bos = order.parses_special and text.startswith(facts.bos_text)
    if not order.adds_special or not facts.adds_bos or has_bos:
        return (run,)
    return (PromptRun(text=facts.bos_text, allows_control=True), run)
