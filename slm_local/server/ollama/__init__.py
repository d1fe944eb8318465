"""ollama's API over the same pool and engine, for programs that know no other; off unless asked for.

It answers and lists, and nothing more: no pull, push, create, copy or delete. Source: ollama's docs/api.md, and the
official Python client for what comes back.
"""

from fastapi import APIRouter

from slm_local.server.ollama.generating import generating_routes
from slm_local.server.ollama.listing import listing_routes
from slm_local.server.service import Service

__all__ = ["ollama_routes"]


def ollama_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    router.include_router(generating_routes(service))
    router.include_router(listing_routes(service))
    return router
