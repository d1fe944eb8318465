"""The HTTP app: the gate, the routes, and errors as clients of OpenAI's API know them."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from slm_local.errors import SlmError
from slm_local.server.chat import chat_routes
from slm_local.server.completions import completion_routes
from slm_local.server.faults import Fault, Refused
from slm_local.server.gate import Gate, Rules, answer_of
from slm_local.server.metrics import Counted, Meters
from slm_local.server.models import model_routes
from slm_local.server.ollama import ollama_routes
from slm_local.server.pool import Pool
from slm_local.server.served import Catalogue
from slm_local.server.service import Service, fault_from
from slm_local.server.tokens import token_routes


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """How the app is reached, and what it offers."""

    rules: Rules
    has_ollama: bool = False
    """Whether it also speaks ollama's API."""


def make_app(pool: Pool, catalogue: Catalogue, options: AppOptions, meters: Meters | None = None) -> FastAPI:
    """Return the app over a pool."""
    meters = meters or Meters()
    meters.watch(pool)
    service = Service(pool=pool, catalogue=catalogue, meters=meters)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for routes in (chat_routes, completion_routes, model_routes, token_routes):
        app.include_router(routes(service))
    if options.has_ollama:
        app.include_router(ollama_routes(service))
    for kind in (SlmError, Refused, Exception):
        app.add_exception_handler(kind, _fault)
    app.add_exception_handler(HTTPException, _http_fault)
    origins = list(options.rules.origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(Gate, rules=options.rules)
    app.add_middleware(Counted, meters=meters)
    return app


async def _fault(request: Request, error: Exception) -> JSONResponse:
    return answer_of(fault_from(error), request.url.path)


async def _http_fault(request: Request, error: Exception) -> JSONResponse:
    """Answer a route or a method that there is not."""
    assert isinstance(error, HTTPException)
    message = f"there is no {request.method} {request.url.path}"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    answer = answer_of(Fault(status=error.status_code, message=message, code=code), request.url.path)
    answer.headers.update(error.headers or {})
    return answer
