"""Why a reply ended before its time, and what to do about it, in the words of the app."""

from __future__ import annotations

from collections.abc import Iterator

from slm_local.engine import Engine
from slm_local.generation import Reply, Started
from slm_local.notes import Note, endings, in_chat, lowered, outgrown


def notes_of(engine: Engine, reply: Reply, started: Started | None) -> Iterator[Note]:
    """Yield what is to be said of a reply; nothing for one that is whole."""
    think, context_tokens, limit = engine.thinking(), engine.plan.context_tokens, engine.settings.max_tokens
    longest = engine.facts.trained_context_tokens
    less = lowered(started, think, limit, longest) if started is not None and engine.spec.thinks else None
    toy = outgrown(engine.plan, reply)
    for note in (*([less] if less else []), *endings(reply, think, context_tokens, limit, longest)):
        yield Note(note.text, in_chat(note.hint) if note.hint and toy is None else None, note.is_warning)
    if toy is not None:
        yield Note(toy, "F4 chooses a larger model")
