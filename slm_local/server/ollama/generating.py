"""`/api/chat` and `/api/generate`: an answer as lines of JSON, or as one object."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from slm_local.server.ollama.answer import Answer, Shown, as_message, as_response
from slm_local.server.ollama.asked import ChatBody, GenerateBody
from slm_local.server.ollama.names import found
from slm_local.server.ollama.reading import Asked, chat_asked, generate_asked
from slm_local.server.served import Served
from slm_local.server.service import Service, answered, body_of

LINES = "application/x-ndjson"


def generating_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.post("/api/chat")
    async def chat(request: Request) -> Response:
        body = await body_of(request, ChatBody)
        served = await found(service, body.model, request)
        return await _answered(service, served, chat_asked(body, served), as_message, request)

    @router.post("/api/generate")
    async def generate(request: Request) -> Response:
        body = await body_of(request, GenerateBody)
        served = await found(service, body.model, request)
        return await _answered(service, served, generate_asked(body), as_response, request)

    return router


async def _answered(service: Service, served: Served, asked: Asked, shown: Shown, request: Request) -> Response:
    """Return the answer to a request, under the name by which it asked. Errors: the generation's."""
    answer = Answer(asked, shown)
    if asked.only_opens and asked.keep_alive_s == 0.0 and not _is_open(service, served):
        return JSONResponse(answer.end()[0])  # it would be opened only to be closed
    streams = asked.body.stream is not False and not asked.only_opens
    generation = service.generate(served, asked.requests)
    return await answered(request, generation, lambda: answer, streams=streams, media_type=LINES)


def _is_open(service: Service, served: Served) -> bool:
    return any(each.model == served.spec.id for each in service.pool.running())
