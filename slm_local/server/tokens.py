"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them: lm-eval's remote tokenizer reads these."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from slm_local.generation import Control, TokenOrder
from slm_local.server.asked import DetokenizeBody, TokenizeBody
from slm_local.server.conversation import messages_of
from slm_local.server.faults import refusal
from slm_local.server.pool import Lease
from slm_local.server.served import Served
from slm_local.server.service import Service, body_of, unused
from slm_local.server.streaming import ended_by_leaving
from slm_local.server.wording import text_of

T = TypeVar("T")


def token_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await body_of(request, TokenizeBody)
        served = await service.find(body.model, request)
        if (body.prompt is None) == (body.messages is None):
            raise refusal("prompt", "give a prompt or messages, one of the two")
        if body.add_generation_prompt is False:
            raise refusal("add_generation_prompt", "a conversation's tokens end where the model goes on")
        return await at_model(service, served, request, lambda lease: tokenized(lease, body))

    @router.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, Any]:
        body = await body_of(request, DetokenizeBody)
        served = await service.find(body.model, request)

        def read(lease: Lease) -> dict[str, Any]:
            data = lease.engine.tokens(TokenOrder(ids=tuple(body.tokens))).data
            return {"prompt": text_of(byte for token in data for byte in token)}

        return await at_model(service, served, request, read)

    @router.get("/tokenizer_info")
    async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
        served = await service.find(model, request)
        return await at_model(service, served, request, info)

    return router


async def at_model(service: Service, served: Served, request: Request, read: Callable[[Lease], T]) -> T:
    """Return what `read` finds out at a model, which is opened where it is not. Errors: the pool's."""
    control = Control()

    def leased() -> T:
        with service.pool.lease(served.reference, served.settings, control) as lease:
            return read(lease)

    async with ended_by_leaving(request.receive, control.cancel):
        return await run_in_threadpool(leased)


def tokenized(lease: Lease, body: TokenizeBody) -> dict[str, Any]:
    """Return a prompt's ids; control tokens' texts in it are such, as in vLLM. Messages go through the template."""
    if body.messages is not None:
        messages = messages_of(body.messages, lease.maker.spec.tags)
        tools = json.dumps(body.tools) if body.tools else ""
        order = TokenOrder(request=replace(lease.maker.request(messages), tools=tools))
    else:
        adds_special = body.add_special_tokens is not False
        order = TokenOrder(text=body.prompt, adds_special=adds_special, parses_special=True)
    tokens = lease.engine.tokens(order)
    strings = [text_of(each) for each in tokens.data] if body.return_token_strs else None
    return {
        "count": len(tokens.ids),
        "max_model_len": lease.engine.facts.context_tokens,
        "tokens": list(tokens.ids),
        "token_strs": strings,
        **({"warnings": list(unused(body.unknown))} if body.unknown else {}),
    }


def info(lease: Lease) -> dict[str, Any]:
    """Return what is known of a model's tokenizer, under the names of a tokenizer_config.json."""
    facts = lease.engine.facts
    return {
        "tokenizer_class": facts.architecture,
        "chat_template": facts.chat_template,
        "model_max_length": facts.context_tokens,
        "vocab_size": facts.vocabulary_size,
        "add_bos_token": facts.adds_bos,
        "bos_token": facts.bos_text or None,
        "eos_token": facts.eos_text or None,
        "pad_token": facts.pad_text or None,
        "bos_token_id": facts.bos_id,
        "eos_token_id": facts.eos_id,
        "pad_token_id": facts.pad_id,
    }
