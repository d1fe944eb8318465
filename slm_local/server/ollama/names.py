"""What ollama's clients call models: a name may end with a tag, of which `:latest` says nothing."""

from __future__ import annotations

from fastapi import Request

from slm_local.server.served import Served
from slm_local.server.service import Service

LATEST = ":latest"


async def found(service: Service, name: str, request: Request) -> Served:
    """Return the model of a name. Errors: `UnknownModel`."""
    return await service.find(name.removesuffix(LATEST), request)
