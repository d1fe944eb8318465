"""`/api/tags`, `/api/show`, `/api/ps` and `/api/version`: what there is. Nothing here changes anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response

from slm_local import __version__
from slm_local.model import ModelSpec, SamplingDefaults, Variant
from slm_local.server.faults import refusal
from slm_local.server.ollama.answer import written
from slm_local.server.ollama.asked import ShowBody
from slm_local.server.ollama.names import found
from slm_local.server.pool import Running
from slm_local.server.served import Served, can_call_tools
from slm_local.server.service import Service, body_of

OLLAMA_VERSION = "0.13.0"
"""The version whose API this follows: editors refuse one that is older than what they need."""

FOREVER = timedelta(days=100 * 365)
"""After that a model expires that is never closed by itself: the field has to have a date."""


def listing_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/api/tags")
    def tags() -> dict[str, Any]:
        return {"models": [listed(each) for each in service.catalogue.models()]}

    @router.post("/api/show")
    async def show(request: Request) -> dict[str, Any]:
        body = await body_of(request, ShowBody)
        name = body.model or body.name
        if name is None:
            raise refusal("model", "which model?", hint="GET /api/tags")
        served = await found(service, name, request)
        return await run_in_threadpool(shown, served)

    @router.get("/api/ps")
    def running() -> dict[str, Any]:
        names = {each.spec.id: each.name for each in service.catalogue.models()}
        return {"models": [open_model(each, names.get(each.model)) for each in service.pool.running()]}

    @router.api_route("/", methods=["GET", "HEAD"])
    async def root() -> Response:
        return PlainTextResponse("slm answers ollama's API here\n")  # clients ask whether anybody is there

    @router.get("/api/version")
    async def version() -> dict[str, str]:
        return {"version": OLLAMA_VERSION, "slm": __version__}

    return router


def listed(served: Served) -> dict[str, Any]:
    """Return a model as a list of models has it."""
    variant = served.variant
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": _moment(served.created),
        "size": (variant.size_bytes or 0) if variant else 0,
        "digest": (variant.sha256 or "") if variant else "",
        "details": details(served.spec, variant),
    }


def shown(served: Served) -> dict[str, Any]:
    """Return what is known of a model; reads its header where it is a file."""
    spec, variant = served.spec, served.variant
    template = served.template() or ""
    can = {"tools": can_call_tools(template), "thinking": spec.thinks}
    return {
        "license": spec.licence or "",
        "modelfile": f"FROM {served.name}\n",
        "parameters": "\n".join(_parameters(spec.sampling)),
        "template": template,
        "details": details(spec, variant),
        "model_info": _facts(spec),
        "capabilities": ["completion", *(name for name, is_so in can.items() if is_so)],
        "modified_at": _moment(served.created),
    }


def open_model(running: Running, name: str | None) -> dict[str, Any]:
    """Return an open model as the list of those has it; `name` None: it is not served, only open for its own user.

    The id of such a one may be a path, which is nobody else's business.
    """
    plan = running.plan
    name = name or (plan.spec.name if plan else "")
    size = running.memory_bytes or (plan.memory_bytes if plan else None) or 0
    stays = FOREVER if running.expires_s is None else timedelta(seconds=running.expires_s)
    return {
        "name": name,
        "model": name,
        "size": size,
        "digest": (plan.variant.sha256 or "") if plan else "",
        "details": details(plan.spec, plan.variant) if plan else {},
        "expires_at": written(datetime.now(UTC) + stays),
        "size_vram": size if plan and plan.device != "cpu" else 0,
        "context_length": plan.context_tokens if plan else 0,
    }


def details(spec: ModelSpec, variant: Variant | None) -> dict[str, Any]:
    """Return what kind of model it is."""
    family = spec.architecture or spec.family
    return {
        "parent_model": "",
        "format": variant.kind if variant else "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _size(spec.parameters),
        "quantization_level": variant.quant if variant else "",
    }


def _facts(spec: ModelSpec) -> dict[str, Any]:
    """Return a model's facts under the names of a GGUF header, which clients look for."""
    kind = spec.architecture or "model"
    facts = {
        "general.architecture": spec.architecture,
        "general.parameter_count": spec.parameters,
        f"{kind}.context_length": spec.context_tokens,
        f"{kind}.embedding_length": spec.shape.hidden,
        f"{kind}.block_count": spec.shape.layers,
        f"{kind}.attention.head_count": spec.shape.heads,
        f"{kind}.attention.head_count_kv": spec.shape.kv_heads,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _parameters(sampling: SamplingDefaults) -> list[str]:
    names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty")
    return [f"{name} {value}" for name in names if (value := getattr(sampling, name)) is not None]


def _size(parameters: int | None) -> str:
    if parameters is None:
        return ""
    return f"{parameters / 1e9:.1f}B" if parameters >= 10**9 else f"{parameters / 1e6:.1f}M"


def _moment(seconds: int) -> str:
    return written(datetime.fromtimestamp(seconds, UTC))
