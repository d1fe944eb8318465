"""How the stand-in for the Hub may be told to misbehave: which answer, which request, how often."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

Route = Literal["info", "tree", "paths", "auth", "resolve", "cache", "cdn", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One misbehaviour; what is not set stays as the Hub does it."""

    hangs_up: bool = False
    """Close the connection without an answer."""
    is_mute: bool = False
    """Take the request and say nothing until the stand-in is released or closed."""
    status: int | None = None
    """Answer with this status and `body` in place of what was asked for."""
    body: bytes = b""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Headers that replace the answer's own; None takes one away (without a Content-Length the body ends with the
    connection)."""
    location: str | None = None
    """Redirect there; `{url}` is the address that was asked for, `{path}` its path and query."""
    change: Callable[[bytes], bytes] | None = None
    """What becomes of the file before a range is cut out of it."""
    ignores_range: bool = False
    range_shift: int = 0
    """Answer a range that begins this much later, and say so in Content-Range."""
    gzips: bool = False
    """Compress the body although nobody asked for it."""
    stated_length: int | None = None
    """The Content-Length that is told; the body stays as it is, and the connection ends after it."""
    drop_after: int | None = None
    """Close the connection after that many bytes of the body."""
    resets: bool = False
    """With `drop_after`: by a reset, not in order."""
    stall_after: int | None = None
    """Send that many bytes of the body, then nothing until the stand-in is released or closed."""
    then: Callable[[], object] | None = None
    """Called once the answer is made, before it goes out (whole or cut)."""


GOOD = Fault()
"""No misbehaviour."""


@dataclass(slots=True, kw_only=True)
class _Rule:
    fault: Fault
    route: str
    file: str
    method: str
    skip: int
    times: int | None


class Faults:
    """The misbehaviours still to come, in the order they were added."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(
        self,
        fault: Fault,
        *,
        route: Route | Literal["*"] = "cdn",
        file: str = "*",
        method: str = "GET",
        skip: int = 0,
        times: int | None = 1,
    ) -> None:
        """Misbehave in answers to requests that match, after `skip` of them, `times` times (None: always).

        `file` and `method` are patterns with `*`; the method is GET where none is named.
        """
        rule = _Rule(fault=fault, route=route, file=file, method=method, skip=skip, times=times)
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """Behave again."""
        with self._lock:
            self._rules.clear()

    def take(self, route: str, file: str, method: str) -> Fault:
        """Return what to do about a request, and count it."""
        with self._lock:
            for rule in self._rules:
                if not _matches(rule, route, file, method) or rule.times == 0:
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                if rule.times is not None:
                    rule.times -= 1
                return rule.fault
        return GOOD


def _matches(rule: _Rule, route: str, file: str, method: str) -> bool:
    return rule.route in ("*", route) and fnmatchcase(file, rule.file) and fnmatchcase(method, rule.method)


def wrong_bytes(content: bytes) -> bytes:
    """Return as many bytes, one of them another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def shorter(content: bytes) -> bytes:
    """Return the content without its last bytes."""
    return content[: len(content) * 9 // 10]


def longer(content: bytes) -> bytes:
    """Return the content with more after it."""
    return content + b"\0" * 1000


SERVER_BUSY = Fault(status=503, body=b"<html>503 Service Temporarily Unavailable</html>")
RATE_LIMITED = Fault(status=429, body=b"", headers={"Retry-After": "7"})
LOGIN_PAGE = Fault(
    status=200, body=b"<!DOCTYPE html><title>Hotel Wi-Fi: please log in</title>", headers={"Content-Type": "text/html"}
)
"""What a captive portal answers to everything."""
