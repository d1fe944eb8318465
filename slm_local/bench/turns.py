"""How long does a person wait for the first token of a later turn: at once, and after having read the answer?

A conversation of turns in plain words through the model's own template, as the chat sends it: thinking is not part of
the history. What the model says does not matter; the history goes on with a fixed answer in its place, so that all
models read the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from slm_local.bench.passes import Pass, timed
from slm_local.engine import Engine
from slm_local.generation import Control, Message

TURNS = 3
"""The turn that is measured."""

REPLY_TOKENS = 32

WARM_LIMIT_S = 120.0
"""Longest wait for the reading between two turns."""

QUESTION = "The keeper of lighthouse {} counts the ships that pass. What does he write down about them in the evening?"
ANSWER = (
    "He writes down how many ships passed lighthouse {}, under which flag, from where the wind blew and how far. " * 4
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterTurn:
    """The first token of a turn of a conversation."""

    turn: int
    prompt_tokens: int
    """All that the turn's prompt holds, the history among them."""
    first_token_s: float
    """When it is asked at once."""
    read_first_token_s: float | None
    """When the answer was read before, and the history in the cache meanwhile; None where nothing is read then."""
    read_cached_tokens: int | None
    """What the cache held of the prompt in that case."""


def measure_later_turn(engine: Engine, control: Control) -> LaterTurn:
    """Hold two conversations, one in haste, one with time to read. Errors: those of `Engine.stream`, `Interrupted`."""
    engine.start(control)
    hasty = _converse(engine, 1, control, reads=False)
    assert hasty is not None
    read = _converse(engine, 2, control, reads=True)
    return LaterTurn(
        turn=TURNS,
        prompt_tokens=hasty.prompt_tokens,
        first_token_s=hasty.first_token_s,
        read_first_token_s=read.first_token_s if read else None,
        read_cached_tokens=read.cached_tokens if read else None,
    )


def _converse(engine: Engine, number: int, control: Control, *, reads: bool) -> Pass | None:
    """Return the last turn of a conversation like no other, None where its history was not read in advance."""
    history: tuple[Message, ...] = ()
    for turn in range(TURNS):
        name = f"{number}-{turn}"
        asked = (*history, Message(role="user", content=QUESTION.format(name)))
        taken = timed(engine, engine.request(asked, max_tokens=REPLY_TOKENS), control)
        history = (*asked, Message(role="assistant", content=ANSWER.format(*[name] * 4)))
        if reads and turn < TURNS - 1:
            warming = engine.prepare((*history, Message(role="user", content="")))
            if warming is None or not warming.wait(WARM_LIMIT_S) or warming.note:
                return None
    return taken
