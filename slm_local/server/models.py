"""`/v1/models`, `/health` and `/metrics`: what there is, and how it does. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from slm_local import __version__
from slm_local.selector import DEFAULT_CONTEXT_TOKENS
from slm_local.server.served import Served
from slm_local.server.service import Service


def model_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/v1/models")
    def models() -> dict[str, Any]:
        opened = contexts(service)
        return {"object": "list", "data": [model_values(each, opened) for each in service.catalogue.models()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        return model_values(await service.find(name, request), contexts(service))

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @router.get("/metrics")
    def metrics() -> Response:
        return Response(service.meters.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def contexts(service: Service) -> dict[str, int]:
    """Return the contexts of the models that are open, by their ids."""
    return {each.model: each.plan.context_tokens for each in service.pool.running() if each.plan is not None}


def model_values(served: Served, opened: Mapping[str, int]) -> dict[str, Any]:
    """Return a model as OpenAI lists it; beside it vLLM's `max_model_len`, and whether it thinks.

    The length is that of the open context; of a model that is not open, what would be opened by default.
    """
    spec = served.spec
    expected = min(spec.context_tokens or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "slm-local",
        "aliases": list(spec.aliases),
        "max_model_len": opened.get(spec.id, expected),
        "thinks": spec.thinks,
    }
