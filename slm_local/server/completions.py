"""`/v1/completions`: raw text or token ids, neither templated, split nor governed; a prompt's own log-probabilities.

lm-eval's log-likelihood tasks and engines that go on with a prompt of their own making need it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from slm_local.generation import (
    AnswerDelta,
    Done,
    GenerationRequest,
    PromptScores,
    Reply,
    StreamEvent,
    TokenOrder,
    TokenScore,
)
from slm_local.samples import seeded, seeds_from, varied
from slm_local.server.asked import MAX_PROMPTS, CompletionBody
from slm_local.server.faults import refusal
from slm_local.server.pool import Lease
from slm_local.server.sampling import sampling_of, stops_of
from slm_local.server.service import Service, answered, body_of, fault_from, unused
from slm_local.server.streaming import Generation, merged
from slm_local.server.wording import DONE, FINISHES, completion_logprobs, event, head, ours, usage_of_prompts

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own."""

ELSEWHERE = {
    "max_completion_tokens": "here it is max_tokens",
    "response_format": "/v1/chat/completions has it",
    "tools": "/v1/chat/completions has it",
}
"""Fields of chat completions that would change a completion, with what to do instead."""


def completion_routes(service: Service) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await body_of(request, CompletionBody)
        asked = CompletionRequest.read(body)
        served = await service.find(body.model, request)
        generation = service.generate(served, asked.requests)

        def begun() -> CompletionAnswer:
            return CompletionAnswer(asked, head("text_completion", "cmpl", served.name))

        return await answered(request, generation, begun, streams=bool(body.stream))

    return router


@dataclass(slots=True, kw_only=True)
class CompletionRequest:
    """What a body asks for."""

    body: CompletionBody
    prompts: list[str | list[int]]
    warnings: list[str]
    texts: list[str] = field(default_factory=list)
    """The prompts as text, where they are to be echoed; known once the model is open."""

    @classmethod
    def read(cls, body: CompletionBody) -> CompletionRequest:
        """Read a body. Errors: `Refused`."""
        for name, instead in ELSEWHERE.items():
            if body.unknown.get(name) not in (None, [], {"type": "text"}):
                raise refusal(name, f"{name} can't be honoured: {instead}", code="unsupported")
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise refusal("best_of", "best_of can't be honoured: every choice is returned, n of them")
        if body.max_tokens == 0 and not body.echo:
            raise refusal("max_tokens", "max_tokens 0 writes nothing: it goes with echo, to score the prompt")
        prompts = _prompts(body.prompt)
        if len(prompts) * (body.n or 1) > MAX_PROMPTS:
            raise refusal("n", f"{len(prompts)} prompts with {body.n} choices each are more than {MAX_PROMPTS} answers")
        return cls(body=body, prompts=prompts, warnings=list(unused(body.unknown_names)))

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's own tokens are scored; without an answer that is the only thing to do."""
        return bool(self.body.echo) and (self.body.logprobs is not None or self.body.max_tokens == 0)

    def requests(self, lease: Lease) -> Sequence[GenerationRequest]:
        """Return a generation for each choice of each prompt. Errors: `UsageError`."""
        body, engine, count = self.body, lease.engine, self.body.n or 1
        base = GenerationRequest(
            sampling=sampling_of(lease.maker.sampling(), body),
            max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
            stop=stops_of(body, ()),
            logprobs=body.logprobs if body.logprobs is not None or not self.scores_prompt else 0,
            scores_prompt=self.scores_prompt,
        )
        base = varied(base, count) if body.temperature is None else base
        seeds = seeds_from(base.sampling.seed, count)
        made: list[GenerationRequest] = []
        for prompt in self.prompts:
            if isinstance(prompt, str):
                ids = engine.tokens(TokenOrder(text=prompt, adds_special=True, parses_special=True)).ids
            else:
                ids = tuple(prompt)
            if body.echo:
                self.texts.append(prompt if isinstance(prompt, str) else _text(lease, ids))
            made += [seeded(replace(base, prompt_ids=ids), seed) for seed in seeds]
        return made


class CompletionAnswer:
    """The answer to a request, whole or in chunks."""

    def __init__(self, asked: CompletionRequest, head: dict[str, Any]) -> None:
        self._asked = asked
        self._head = head
        body, count = asked.body, asked.body.n or 1
        self._choices = [
            Completion(
                at,
                echoed=asked.texts[at // count] if body.echo else "",
                has_logprobs=body.logprobs is not None,
            )
            for at in range(count * len(asked.prompts))
        ]

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """Return the answer once it is there. Errors: the generation's."""
        async for batch in generation.batches():
            for said in batch:
                self._choices[said.choice].feed(said.event)
        return {**self._head, "choices": [each.values() for each in self._choices], **self._rest()}

    async def chunks(self, generation: Generation) -> AsyncIterator[bytes]:
        """Yield server-sent events; what goes wrong is the last of them."""
        options = self._asked.body.stream_options
        try:
            async for batch in generation.batches():
                for said in merged(batch):
                    for chunk in self._choices[said.choice].feed(said.event):
                        yield event({**self._head, "choices": [chunk]})
        except Exception as error:  # the answer has begun: there is no status left to say it with
            yield event(fault_from(error).values())
            return
        if options is not None and options.include_usage:
            yield event({**self._head, "choices": [], **self._rest()})
        yield DONE

    def _rest(self) -> dict[str, Any]:
        replies = [each.reply for each in self._choices if each.reply is not None]
        warnings = {"warnings": self._asked.warnings} if self._asked.warnings else {}
        return {"usage": usage_of_prompts(replies, self._asked.body.n or 1), **warnings}


class Completion:
    """One choice under way."""

    def __init__(self, index: int, *, echoed: str, has_logprobs: bool) -> None:
        self.reply: Reply | None = None
        self._index = index
        self._has_logprobs = has_logprobs
        self._texts: list[str] = [echoed] if echoed else []
        self._scores: list[TokenScore] = []
        self._said_texts, self._said_scores, self._said_chars = 0, 0, 0

    def feed(self, event: StreamEvent) -> list[dict[str, Any]]:
        """Take an event; return the choices of the chunks that tell of it."""
        match event:
            case PromptScores(scores=scores):
                self._scores += scores
            case AnswerDelta():
                self._scores += event.scores
                self._texts.append(event.text)
                return [self._chunk()]
            case Done(reply=reply):
                self.reply = reply
                return [{**self._chunk(), "finish_reason": FINISHES[reply.finish], "slm": ours(reply)}]
            case _:
                pass
        return []

    def values(self) -> dict[str, Any]:
        """Return the whole choice."""
        assert self.reply is not None
        return {
            "index": self._index,
            "text": "".join(self._texts),
            "logprobs": completion_logprobs(self._scores) if self._has_logprobs else None,
            "finish_reason": FINISHES[self.reply.finish],
            "slm": ours(self.reply),
        }

    def _chunk(self) -> dict[str, Any]:
        """Return what no chunk has told yet."""
        text, scores = "".join(self._texts[self._said_texts :]), self._scores[self._said_scores :]
        logprobs = completion_logprobs(scores, self._said_chars) if self._has_logprobs and scores else None
        self._said_texts, self._said_scores = len(self._texts), len(self._scores)
        self._said_chars += len(text)
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": None}


def _prompts(given: str | list[int] | list[Any]) -> list[str | list[int]]:
    """Return the prompts of a body: one text or list of ids is one of them."""
    if isinstance(given, str):
        return [given]
    return [given] if isinstance(given[0], int) else [*given]


def _text(lease: Lease, ids: tuple[int, ...]) -> str:
    data = lease.engine.tokens(TokenOrder(ids=ids)).data
    return bytes(byte for token in data for byte in token).decode(errors="replace")
