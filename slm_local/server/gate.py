"""The one gate before every route: who may come in, from where, with what, and how much of it.

A page open in the person's browser can reach a port of this machine (DNS rebinding included), so names and origins
are compared exactly; without a key only this machine's own names are answered to. `/health` needs no key.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm_local.errors import UsageError
from slm_local.server.faults import Fault, Refused

MAX_BODY_BYTES = 8 * 2**20
"""Eight bytes of JSON for each of a million token ids: longer than any context that fits a laptop."""

MAX_BODY_S = 30.0
"""How long a body may take to come: whoever drips it holds a connection."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
NAME = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?")
ORIGIN = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://{NAME.pattern}/?")
EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Who may come in."""

    hosts: frozenset[str]
    """What the Host header may say, in lower case."""
    takes_addresses: bool = False
    """Whether any numeric address will do for it: no name can be rebound to those."""
    origins: frozenset[str] = frozenset()
    """Web pages that may call, as browsers write them."""
    key: str | None = None


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on is this machine's own only."""
    if host.casefold() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def rules_for(
    host: str, port: int, *, key: str | None = None, hosts: Iterable[str] = (), origins: Iterable[str] = ()
) -> Rules:
    """Return the rules for an address that is listened on; `hosts` are further names that it is reached by.

    Errors: `UsageError` for a name or an origin that no request can have.
    """
    hosts = [_checked_name(each) for each in hosts]
    own = f"[{host}]" if ":" in host and not host.startswith("[") else host
    names = {*LOOPBACK_NAMES, *(() if host in EVERYWHERE else (own,)), *hosts}
    allowed = {f"{name}:{port}".casefold() for name in names} | {name.casefold() for name in hosts}
    if port == 80:
        allowed |= {name.casefold() for name in names}
    return Rules(
        hosts=frozenset(allowed),
        takes_addresses=host in EVERYWHERE and key is not None,
        origins=frozenset(_checked_origin(each) for each in origins),
        key=key,
    )


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(f"--allow-host takes a name, not {name!r}", hint="--allow-host box.lan")
    return name


def _checked_origin(origin: str) -> str:
    """Return an origin as browsers write it."""
    if not ORIGIN.fullmatch(origin):
        raise UsageError(
            f"--allow-origin takes a scheme and a name, without a path, not {origin!r}",
            hint="--allow-origin https://page.example",
        )
    return origin.rstrip("/").casefold()


class Gate:
    """Stands before the app and lets in what the rules allow."""

    def __init__(self, app: ASGIApp, *, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with a body that is limited in size and time."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            fault = self._fault(scope)
            if fault is None:
                await self._app(scope, _limited(receive), send)
            else:
                await answer_of(fault, scope["path"])(scope, receive, send)

    def _fault(self, scope: Scope) -> Fault | None:
        headers, rules = Headers(scope=scope), self._rules
        host = headers.get("host", "").casefold()
        if host not in rules.hosts and not (rules.takes_addresses and _is_address(host)):
            return _forbidden(f"this server does not go by the name {host!r}", "slm serve --allow-host NAME")
        origin = headers.get("origin")
        if origin is not None and origin.casefold() not in rules.origins:
            return _forbidden(f"pages of {origin!r} may not call this server", "slm serve --allow-origin ORIGIN")
        if scope["method"] == "OPTIONS" and origin is not None:
            return None  # a preflight carries no key
        if scope["path"] != "/health" and rules.key is not None and not _has_key(headers, rules.key):
            wanted = "takes another key" if "authorization" in headers else "needs its key"
            message = f"this server {wanted}: Authorization: Bearer KEY"
            return Fault(status=401, message=message, code="invalid_api_key")
        return _body_fault(scope["method"], headers)


def answer_of(fault: Fault, path: str) -> JSONResponse:
    """Make the answer that tells a client of a fault, in the words of the API that it called."""
    return JSONResponse(fault.values(path), status_code=fault.status, headers=fault.headers)


def _forbidden(message: str, hint: str) -> Fault:
    return Fault(status=403, message=message, code="forbidden", hint=hint)


def _has_key(headers: Headers, key: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.casefold() == "bearer" and secrets.compare_digest(given.strip().encode(), key.encode())


def _is_address(host: str) -> bool:
    """Tell whether a Host header is a numeric address, with or without a port."""
    bare = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ip_address(bare)
    except ValueError:
        return False
    return True


def _body_fault(method: str, headers: Headers) -> Fault | None:
    if method not in ("POST", "PUT", "PATCH"):
        return None
    if headers.get("content-type", "").partition(";")[0].strip().casefold() != "application/json":
        return Fault(status=415, message="the body has to be application/json", code="unsupported_media_type")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return Fault(status=400, message="Content-Length is no number", code="invalid_length")
    return _too_large() if len(length) > 18 or int(length) > MAX_BODY_BYTES else None


def _too_large() -> Fault:
    return Fault(
        status=413, message=f"a body has at most {MAX_BODY_BYTES // 2**20} MB", code="request_too_large", param=None
    )


def _limited(receive: Receive) -> Receive:
    """Return what receives a body that is neither too large nor too slow. Errors: `Refused`."""
    got, until, is_whole = 0, asyncio.get_running_loop().time() + MAX_BODY_S, False

    async def limited() -> Message:
        nonlocal got, is_whole
        try:
            async with asyncio.timeout_at(None if is_whole else until):
                message = await receive()
        except TimeoutError:
            raise Refused(Fault(status=408, message="the body did not come in time", code="request_timeout")) from None
        got += len(message.get("body", b""))
        is_whole = is_whole or not message.get("more_body", False)
        if got > MAX_BODY_BYTES:
            raise Refused(_too_large())
        return message

    return limited
