"""Between rows and values: exact text in and out, JSON for what is never searched by."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from slm_local.errors import FailureRecord
from slm_local.generation import Sampling, Timings, Usage
from slm_local.store.values import ChatRow, KeptTurn, PlanFacts

Value = TypeVar("Value", Usage, Timings, Sampling, FailureRecord)

UNCOUNTED = Usage(
    **dict.fromkeys(
        (
            *("prompt_tokens", "cached_tokens", "think_tokens", "answer_tokens", "tag_tokens", "injected_tokens"),
            *("drafted_tokens", "accepted_tokens"),
        ),
        None,
    )
)

SETTINGS = ("think", "think_tokens", "think_s", "max_tokens")

Pieces = Iterable[sqlite3.Row]


def kept(text: str) -> str | bytes:
    """Return a text as it is bound: bytes where it holds lone surrogates, which UTF-8 can't carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def exact(value: str | bytes) -> str:
    """Return the text that `kept` was given."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


def now() -> str:
    """Return the time in UTC, as it is kept."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def settings_text(facts: PlanFacts) -> str:
    """Return the settings of a reply as they are kept."""
    return json.dumps({**{name: getattr(facts, name) for name in SETTINGS}, "sampling": asdict(facts.sampling)})


def json_of(value: Usage | Timings | FailureRecord) -> str:
    """Return a value's fields as they are kept."""
    return json.dumps(asdict(value))


def chat_row_of(row: sqlite3.Row) -> ChatRow:
    """Return a line of the list of chats."""
    return ChatRow(
        id=row["id"],
        kind=row["kind"],
        model=exact(row["model"]),
        title=exact(row["title"]),
        system=None if row["system"] is None else exact(row["system"]),
        created_at=datetime.fromisoformat(row["created_at"]),
        updated_at=datetime.fromisoformat(row["updated_at"]),
        turn_count=row["turn_count"],
    )


def turn_of(row: sqlite3.Row, pieces: Pieces = ()) -> KeptTurn:
    """Return a turn; `pieces` is the text that came since its row was written."""
    pieces = list(pieces)
    return KeptTurn(
        id=row["id"],
        chat=row["chat"],
        state=row["state"],
        prompt=exact(row["prompt"]),
        thinking=whole(row, pieces, "thinking"),
        answer=whole(row, pieces, "answer"),
        facts=_facts_of(row),
        finish=row["finish"],
        cut=row["cut"],
        usage=_value_of(Usage, row["usage"]) or UNCOUNTED,
        timings=_value_of(Timings, row["timings"]) or Timings(),
        error=_value_of(FailureRecord, row["error"]),
        created_at=datetime.fromisoformat(row["created_at"]),
        updated_at=datetime.fromisoformat(row["updated_at"]),
    )


def whole(row: sqlite3.Row, pieces: Pieces, name: str) -> str:
    """Return a text of a turn with the pieces that came after it."""
    return "".join(exact(each[name]) for each in (row, *pieces))


def _facts_of(row: sqlite3.Row) -> PlanFacts:
    settings: dict[str, Any] = json.loads(row["settings"])
    return PlanFacts(
        model=exact(row["model"]),
        backend=exact(row["backend"]),
        device=exact(row["device"]),
        quant=exact(row["quant"]),
        context_tokens=row["context_tokens"],
        threads=row["threads"],
        sampling=_value_of(Sampling, json.dumps(settings["sampling"])) or Sampling(),
        **{name: settings[name] for name in SETTINGS},
    )


def _value_of(kind: type[Value], text: str | None) -> Value | None:
    """Read a value's fields; one that is not known here any more is passed over."""
    if text is None:
        return None
    given: dict[str, Any] = json.loads(text)
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})
