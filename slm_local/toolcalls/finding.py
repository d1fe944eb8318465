"""Which way of writing calls a model has: the one that reads back what its chat template makes of a call."""

from __future__ import annotations

import json

from slm_local.errors import UsageError
from slm_local.template import ChatTemplate
from slm_local.template.probing import FUNCTION, KEY, TOOLS_TEXT, VALUE
from slm_local.toolcalls.families import FAMILIES, ToolFamily
from slm_local.toolcalls.parser import ToolCall, ToolCallParser


def family_of(template: ChatTemplate) -> ToolFamily:
    """Return how a model with this chat template writes calls. Errors: `UsageError` with the reason, `ModelBroken`.

    It renders the template a few times, which takes some tens of milliseconds.
    """
    if not template.takes_tools:
        raise UsageError("the model's chat template takes no tools", hint="leave tools out, or choose another model")
    left = {family.name: _left(family, template.shown_call) for family in FAMILIES}
    found = [family for family in FAMILIES if left[family.name] is not None]
    if not found:
        raise UsageError(
            "this model writes its tool calls in a way that is not known here",
            hint="leave tools out, or choose another model",
        )
    return min(found, key=lambda family: left[family.name] or 0)


def family_named(name: str) -> ToolFamily:
    """Return one of `FAMILIES`."""
    return next(family for family in FAMILIES if family.name == name)


def _left(family: ToolFamily, shown: str) -> int | None:
    """Return how many characters around the call this family leaves as text; None: it finds no such call."""
    parser = ToolCallParser(family, TOOLS_TEXT)
    parts = [*parser.feed(shown), *parser.finish()]
    calls = [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, ToolCall)]
    if calls != [(FUNCTION, {KEY: VALUE})]:
        return None
    return sum(len(part) for part in parts if isinstance(part, str))
