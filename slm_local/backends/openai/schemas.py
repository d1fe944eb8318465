"""In which form a server takes a schema: found out before anything is generated, as some are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from slm_local.backends.openai.bodies import json_format, spaced_format
from slm_local.backends.openai.kinds import Server
from slm_local.backends.openai.link import Link
from slm_local.errors import RemoteFailed, UsageError
from slm_local.sanitize import one_line

VALUES = frozenset({"const", "enum", "default", "examples"})
"""Words whose values are no schemas."""
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
"""Words whose values are schemas by names."""
LOOK_AROUND = re.compile(r"\(\?<?[=!]")


async def format_of(schema: str, link: Link, server: Server) -> dict[str, Any]:
    """Return the `response_format` of a schema. Errors: `UsageError` for one that is refused, `RemoteFailed`."""
    try:
        value = json.loads(schema)
    except ValueError as error:
        raise UsageError(f"the schema is no JSON: {error}", hint='{"type": "object"}') from error
    if not isinstance(value, dict):
        raise UsageError("a schema is a JSON object", hint='{"type": "object"}')
    usual = json_format(schema)
    if not server.goes_on_for_schema:
        return usual  # told with the request, and checked with it
    passed_over = next(_passed_over(value), None)
    if passed_over is not None:
        raise UsageError(
            f"{server.kind.name} does not hold an answer to {passed_over}", hint="leave that out of the schema"
        )
    spaced = spaced_format(schema)
    if await _refusal_of(spaced, link, server) is None:
        return spaced
    said = await _refusal_of(usual, link, server)  # of an older server, or with the reason in words
    if said is not None:
        raise UsageError(f"the schema is refused: {said}", hint="leave that out of the schema") from said
    return usual


async def _refusal_of(response_format: dict[str, Any], link: Link, server: Server) -> RemoteFailed | None:
    """Return how a server refuses a form, asked for one token in it; None: it takes it. Errors: `RemoteFailed`."""
    asked = {"model": server.model, "prompt": "?", "max_tokens": 1, "response_format": response_format}
    try:
        await link.answer("completions", asked)
    except RemoteFailed as error:
        if error.status == 400:
            return error
        raise
    return None


def _passed_over(schema: Any) -> Iterator[str]:
    """Yield what of a schema vLLM 0.32 takes and does not hold an answer to."""
    if isinstance(schema, list):
        for each in schema:
            yield from _passed_over(each)
    if not isinstance(schema, dict):
        return
    for word, value in schema.items():
        if word == "not":
            yield "not"
        elif word == "$ref" and isinstance(value, str) and not value.startswith("#"):
            yield f"a $ref to another document: {one_line(value, 80)}"
        elif word == "pattern" and isinstance(value, str) and LOOK_AROUND.search(value):
            yield f"a pattern with look-around: {one_line(value, 80)}"
        elif word in NAMED and isinstance(value, dict):
            yield from _passed_over(list(value.values()))
        elif word not in VALUES:
            yield from _passed_over(value)
