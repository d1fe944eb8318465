"""How long is one generation of an open model until its first token, and how fast are the tokens after it?

Prompts are token ids drawn from the whole vocabulary, as llama-bench draws them: of exact length, neither templated nor
governed, and none begins like another, so that nothing is found in the KV cache. Times are this process's clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from slm_local.engine import Engine
from slm_local.errors import Interrupted, UsageError
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    Message,
    PromptProgress,
    Reply,
    Started,
    StreamEvent,
    ThinkDelta,
)

SHORT_PROMPT_TOKENS = 16

WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car city name team minute idea body back face level office door health person art
"""
"""Words that most vocabularies have as one token: a prompt for a server that takes no token ids, and says afterwards
how many it made of them."""

MOST_REPLIES = 100
"""A model that ends its replies early is asked again, so often at most: the smallest ones end after three tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one generation, or several in a row, took."""

    prompt_tokens: int
    """Of the first."""
    cached_tokens: int | None
    """Of these, found in the KV cache; None where the runtime does not say."""
    decoded_tokens: int
    """Tokens after the first of each."""
    first_token_s: float
    """From the request to the first token of the first."""
    prefill_s: float
    """From the tokenized prompt to the first token of the first."""
    decode_s: float
    """From the first token to the last, all together."""

    @property
    def prefill_tps(self) -> float:
        """Return prompt tokens read per second."""
        return self.prompt_tokens / max(self.prefill_s, 1e-9)

    @property
    def decode_tps(self) -> float:
        """Return tokens decoded per second."""
        return self.decoded_tokens / max(self.decode_s, 1e-9)


def random_prompt(engine: Engine, tokens: int, seed: int) -> tuple[int, ...]:
    """Return so many token ids of a loaded model, the same for the same seed."""
    drawn = random.Random(seed)
    return tuple(drawn.randrange(engine.facts.vocabulary_size or len(WORDS.split())) for _ in range(tokens))


def read_prompt(engine: Engine, prompt_ids: Sequence[int], control: Control) -> Pass:
    """Read a prompt and make one token. Errors: those of `Engine.stream`, `Interrupted`."""
    return timed(engine, ids_request(engine, prompt_ids, 1), control)


def decode(engine: Engine, tokens: int, seed: int, control: Control, *, held: Sequence[int] = ()) -> Pass:
    """Decode so many tokens behind a short prompt; a reply that ends early is followed by another.

    All prompts begin with `held`, which the KV cache keeps from one to the next. Errors: those of `Engine.stream`,
    `Interrupted`, `UsageError` for a model that makes no second token.
    """
    done: list[Pass] = []
    missing = tokens
    while missing > 0 and len(done) < MOST_REPLIES:
        prompt = (*held, *random_prompt(engine, short_tokens(engine), seed + len(done)))
        done.append(timed(engine, ids_request(engine, prompt, missing + 1), control))
        missing -= done[-1].decoded_tokens
    if missing == tokens:
        raise UsageError(
            f"{engine.spec.id} ended {len(done)} replies at their first token: its decode speed can't be measured",
            hint=f'slm run {engine.spec.id} "..." -v',
        )
    return Pass(
        prompt_tokens=done[0].prompt_tokens,
        cached_tokens=done[0].cached_tokens,
        decoded_tokens=tokens - missing,
        first_token_s=done[0].first_token_s,
        prefill_s=done[0].prefill_s,
        decode_s=sum(each.decode_s for each in done),
    )


def short_tokens(engine: Engine) -> int:
    """Return the length of a short prompt of a loaded model."""
    return max(1, min(SHORT_PROMPT_TOKENS, engine.facts.context_tokens // 4))


def ids_request(engine: Engine, prompt_ids: Sequence[int], max_tokens: int) -> GenerationRequest:
    """Return the request to go on behind raw token ids; of a server that takes none, to answer as many words."""
    sampling, facts = engine.sampling(engine.settings.think), engine.facts
    if "chat" in facts.capabilities and ("ids" not in facts.capabilities or not facts.vocabulary_size):
        known = WORDS.split()
        words = " ".join(known[each % len(known)] for each in prompt_ids)
        return GenerationRequest(
            messages=(Message(role="user", content=words),), sampling=sampling, max_tokens=max_tokens
        )
    return GenerationRequest(prompt_ids=tuple(prompt_ids), sampling=sampling, max_tokens=max_tokens)


def timed(engine: Engine, request: GenerationRequest, control: Control) -> Pass:
    """Generate once and take the time. Errors: those of `Engine.stream`, `Interrupted`."""
    engine.start(control)  # an engine that was closed is no part of a request
    begun = started = time.perf_counter()
    first: float | None = None
    reply: Reply | None = None
    for event in engine.stream(request, control):
        now = time.perf_counter()
        if isinstance(event, Started):
            started = now
        elif first is None and is_first_token(event):
            first = now
        if isinstance(event, Done):
            reply = event.reply
    if reply is None or control.cancelled:
        raise Interrupted("the measurement was stopped")
    first = first or now
    made = (reply.usage.think_tokens or 0) + (reply.usage.answer_tokens or 0)
    return Pass(
        prompt_tokens=len(request.prompt_ids or ()) or reply.usage.prompt_tokens or 0,
        cached_tokens=reply.usage.cached_tokens,
        decoded_tokens=max(0, made - 1),
        first_token_s=first - begun,
        prefill_s=first - started,
        decode_s=now - first,
    )


def is_first_token(event: StreamEvent) -> bool:
    """Say whether an event comes with the first token: the prompt's end does, also where that token has no text."""
    if isinstance(event, PromptProgress):
        return event.done_tokens >= event.total_tokens
    return isinstance(event, ThinkDelta | AnswerDelta)
