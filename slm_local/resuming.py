"""The KV states of a conversation: found when it is taken up, saved when it is left.

What is in a state, and whether it may be used, is the engine's business; where it lies, the store's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_local.engine import Engine
from slm_local.errors import SlmError
from slm_local.generation import Message, StateMoved, Thinking
from slm_local.store import States

LEAST_CHAT_TOKENS = 64
LEAST_START_TOKENS = 1000
"""What is shorter is read again in a moment. What is longer is written in a small part of the time that reading it has
just taken, on any machine: so nobody has to foresee whether it will be asked for again."""

Waiting = Callable[[float], None]
"""Is told the seconds waited, some times a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """What a conversation is when it is left, or as far as its beginning goes."""

    chat: int
    messages: Sequence[Message]
    """The last is the next prompt as far as it is known."""
    think: Thinking
    is_start: bool = False
    """Whether it is not the conversation that is kept, but what its first prompt begins with."""


class Resuming:
    """Finds and keeps the states of one conversation. `states` None: nothing of it is kept."""

    def __init__(self, states: States | None) -> None:
        self._states = states if states is not None and states.are_kept else None
        self._place: Path | None = None
        """The state to be restored."""
        self._is_start_restored = False
        self._kept: Sequence[Message] = ()

    def look_for_chat(self, chat: int) -> None:
        """Have a kept chat's state restored, where there is one."""
        if self._states is not None and (place := self._states.of_chat(chat)).exists():
            self._place = place

    def look_for_start(self, engine: Engine, messages: Sequence[Message]) -> None:
        """Have the state of a first prompt's beginning restored, where one was kept."""
        if self._states is not None:
            self._place = self._states.started_with(_key(engine, messages))

    def restoring(self, engine: Engine) -> Callable[[], StateMoved] | None:
        """Return what restores the state that was found, once, and blocks; None where there is none."""
        place, self._place = self._place, None
        states = self._states
        if place is None or states is None or not engine.keeps_states:
            return None

        def restore() -> StateMoved:
            moved = engine.restore_state(place)
            if moved.is_refused:
                place.unlink(missing_ok=True)
            elif moved.tokens:
                states.used(place)
                self._is_start_restored = True
            return moved

        return restore

    def keep(self, engine: Engine, leaving: Leaving, on_wait: Waiting) -> str:
        """Save the state of what is left, unless it is kept as it is; return why not, empty where it was.

        It blocks. Ctrl-C ends it, and the engine with it; it fails in no other way.
        """
        is_kept = self._is_start_restored if leaving.is_start else self._kept == leaving.messages
        if self._states is None or not engine.keeps_states or is_kept:
            return ""
        place, least = self._states.of_chat(leaving.chat), LEAST_CHAT_TOKENS
        if leaving.is_start:
            place, least = self._states.of_start(_key(engine, leaving.messages), leaving.chat), LEAST_START_TOKENS
        try:
            with self._states.writing(place) as (part, most_bytes):
                moved = engine.save_state(
                    part,
                    leaving.messages,
                    think=leaving.think,
                    least_tokens=least,
                    most_bytes=most_bytes,
                    on_wait=on_wait,
                )
        except (OSError, SlmError) as error:
            return str(error)
        if moved.tokens:
            self._kept = leaving.messages
        return moved.note


def _key(engine: Engine, messages: Sequence[Message]) -> str:
    """Return the name for a beginning with a model."""
    text = "\0".join((engine.reference, *(f"{message.role} {message.content}" for message in messages)))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
