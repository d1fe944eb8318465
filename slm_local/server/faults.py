"""What a client is told when its request can't be carried out: a status, and OpenAI's error object.

A message names what was wrong with the request; what lies on this machine's disk stays here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from slm_local.errors import (
    DoesNotFit,
    Interrupted,
    PromptTooLong,
    RemoteFailed,
    ServerBusy,
    SlmError,
    UnknownModel,
    UsageError,
    WorkerCrashed,
)

FOLDERS = re.compile(r"(?!/v1/)(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\"]+)+[\\/]")
"""What stands before a file's name in a path; a route is none."""

SHOULD_BE = "Input should be "
"""How pydantic begins what it says of a type."""

RETRY_AFTER_S = 2
"""When a client that found all places taken may try again."""

OLLAMA_PATHS = "/api/"
"""What the paths of ollama's API begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a request is not carried out."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    """OpenAI's `type`."""
    code: str | None = None
    param: str | None = None
    """The field it is about."""
    hint: str | None = None
    """What to do about it."""

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}

    def values(self, path: str = "") -> dict[str, Any]:
        """Return it as OpenAI writes errors; to a path of ollama's API, as ollama does."""
        if path.startswith(OLLAMA_PATHS):
            hint = (self.hint or "").replace("/v1/models", "/api/tags")
            return {"error": self.message, **({"hint": hint} if hint else {})}
        told = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {**told, **({"hint": self.hint} if self.hint else {})}}


CLIENT_LEFT = Fault(status=499, message="the client hung up", kind="server_error", code="client_left")
"""With nginx's status for it: nobody reads it, but requests are counted by status."""


class Refused(Exception):
    """A request that is not carried out."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def refusal(param: str | None, message: str, *, hint: str | None = None, code: str | None = None) -> Refused:
    """Make the refusal of a request that asks for what can't be."""
    return Refused(Fault(status=400, message=message, param=param, hint=hint, code=code))


STATUSES: Mapping[type[SlmError], tuple[int, str, str]] = {
    UnknownModel: (404, "invalid_request_error", "model_not_found"),
    PromptTooLong: (400, "invalid_request_error", "context_length_exceeded"),
    UsageError: (400, "invalid_request_error", "unsupported"),
    ServerBusy: (503, "server_error", "server_busy"),
    DoesNotFit: (507, "server_error", "does_not_fit"),
    Interrupted: (503, "server_error", "stopped"),
    RemoteFailed: (502, "server_error", "remote_failed"),
    WorkerCrashed: (500, "server_error", "engine_died"),
    SlmError: (500, "server_error", "failed"),
}
"""Status, type and code by the error's nearest class; the first that fits."""


def fault_of(error: SlmError) -> Fault:
    """Return what a client is told of an error."""
    status, kind, code = next(row for cls, row in STATUSES.items() if isinstance(error, cls))
    hint = without_folders(error.hint) if error.hint and status < 500 else None
    return Fault(status=status, message=without_folders(error.message), kind=kind, code=code, hint=hint)


def fault_of_body(error: ValidationError, body: bytes) -> Fault:
    """Return what a client is told of a body that is not what it should be: the first field that is wrong.

    Of a field that may be of several kinds it is the one that came nearest: deepest, then of the right type.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return Fault(status=400, message=f"the body is no JSON: {details[0]['msg']}", code="invalid_json")
    values = json.loads(body)
    first, *others = [_Wrong.read(each, values) for each in details]
    rivals = [first, *(each for each in others if first.union is not None and each.union == first.union)]
    nearest = max(rivals, key=lambda each: (len(each.field), not each.has_wrong_type))
    texts = [each.message for each in rivals if each.field == nearest.field and each.has_wrong_type]
    message = _either(texts) if nearest.has_wrong_type else nearest.message
    field = field_name(nearest.field)
    message = f"{field}: {message}" if field else message
    return Fault(status=400, message=message, param=field or None, code=nearest.kind)


@dataclass(frozen=True, slots=True)
class _Wrong:
    """A fault that pydantic found, without the names that it gives the kinds a field may be of."""

    field: tuple[int | str, ...]
    union: tuple[int | str, ...] | None
    """The field around it that may be of several kinds, if there is one."""
    kind: str
    message: str

    @property
    def has_wrong_type(self) -> bool:
        return self.kind.endswith("_type")

    @classmethod
    def read(cls, detail: ErrorDetails, values: Any) -> _Wrong:
        """Read a fault found in the values of a body."""
        field: list[int | str] = []
        union: tuple[int | str, ...] | None = None
        for step in detail["loc"]:
            if isinstance(step, int) if isinstance(values, list) else isinstance(values, dict) and step in values:
                values = values[step]
                field.append(step)
            elif isinstance(values, dict) and detail["type"] == "missing":
                field.append(step)
            else:
                union = tuple(field) if union is None else union
        return cls(tuple(field), union, detail["type"], detail["msg"])


def _either(messages: Sequence[str]) -> str:
    """Say what several kinds ask for in one sentence: `Input should be a valid string or a valid array`."""
    wanted = [each.removeprefix(SHOULD_BE) for each in dict.fromkeys(messages)]
    return SHOULD_BE + " or ".join(wanted) if len(wanted) > 1 else messages[0]


def field_name(place: Sequence[int | str]) -> str:
    """Write where a field stands: `messages[0].role`."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in place]
    return "".join(steps).lstrip(".")


def without_folders(message: str) -> str:
    """Return a message in which paths are bare names."""
    return FOLDERS.sub("", message)
