"""What every route has at hand: the pool, the models served, the meters; and how a request's body is read."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from slm_local.errors import SlmError
from slm_local.server.asked import REFUSED, WITHOUT_EFFECT, Part
from slm_local.server.faults import Fault, Refused, fault_of, fault_of_body, refusal
from slm_local.server.metrics import SERVED, Meters
from slm_local.server.pool import Pool
from slm_local.server.served import Catalogue, Served
from slm_local.server.streaming import Ask, EventStream, Generation, ended_by_leaving

LOG = logging.getLogger("slm_local.server")

P = TypeVar("P", bound=Part)


EVENTS = "text/event-stream"


class Answer(Protocol):
    """What a face makes of a generation."""

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """Return the answer once it is there. Errors: the generation's."""
        ...

    def chunks(self, generation: Generation) -> AsyncIterator[bytes]:
        """Yield the answer as it comes; what goes wrong is the last of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What answers requests."""

    pool: Pool
    catalogue: Catalogue
    meters: Meters

    async def find(self, name: str | None, request: Request) -> Served:
        """Return the model that a request is for. Errors: `UnknownModel`, `UsageError` where none is named."""
        served = self.catalogue.known(name)
        if served is None:
            served = await run_in_threadpool(self.catalogue.find, name)
        request.scope[SERVED] = served.name
        return served

    def generate(self, served: Served, ask: Ask) -> Generation:
        """Begin a request's generations."""
        return Generation(self.pool, served, ask, lambda course: self.meters.count_course(served.name, course))


async def body_of(request: Request, kind: type[P]) -> P:
    """Read a request's body. Errors: `Refused` naming the field that is wrong or can't be honoured."""
    written = await request.body()
    try:
        body = kind.model_validate_json(written)
    except ValidationError as error:
        raise Refused(fault_of_body(error, written)) from None
    for name, instead in REFUSED.items():
        if body.unknown.get(name) or getattr(body, name, None):
            raise refusal(name, f"{name} can't be honoured: {instead}", code="unsupported")
    return body


async def answered(
    request: Request, generation: Generation, begun: Callable[[], Answer], *, streams: bool, media_type: str = EVENTS
) -> Response:
    """Answer a request once its generation has begun, whole or as it comes; a client that leaves ends it."""
    async with ended_by_leaving(request.receive, generation.leave):
        await generation.opened()
        answer = begun()
        if not streams:
            return JSONResponse(await answer.whole(generation))
    return EventStream(answer.chunks(generation), generation.leave, media_type=media_type)


def unused(fields: Iterable[str]) -> tuple[str, ...]:
    """Return what is to be said of fields that mean nothing here."""
    return tuple(f"{name} has no effect here" for name in fields if name not in WITHOUT_EFFECT)


def fault_from(error: Exception) -> Fault:
    """Return what a client is told of whatever went wrong; a bug is written to the log, in full."""
    if isinstance(error, Refused):
        return error.fault
    if isinstance(error, SlmError):
        fault = fault_of(error)
        if fault.status == 500:
            LOG.warning("%s: %s%s", type(error).__name__, error.message, f" ({error.hint})" if error.hint else "")
        return fault
    LOG.error("a bug of slm", exc_info=error)
    return Fault(status=500, message="a bug of slm: its log says more", kind="server_error", code="failed")
