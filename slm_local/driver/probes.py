"""Probes: what a model would answer if its thinking were closed now, tried beside the thinking, which goes on.

A probe is a fork of a turn's sequence, decoded greedily in the same steps and thrown away when it has said its answer.
Nothing of it reaches thinking, answer or history, and no request waits for one: it takes no request's place, begins
only while no prompt is read, and gives its room in the context back when a request wants it. When to try, and what
follows from the answers, is the governor's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slm_local.backends.base import Backend
from slm_local.driver.turn import Turn
from slm_local.generation import Handle, Piece, Sampling
from slm_local.governor import Closing
from slm_local.governor.convergence import answer_of, is_answered

MOST_TOKENS = 24
"""An answer longer than this is no short one; a number, a name or a boxed fraction takes 5 to 15."""


@dataclass(slots=True, eq=False)
class _Probe:
    turn: Turn
    handle: Handle
    given: Closing
    text: str = ""
    tokens: int = 0


class Probes:
    """The live probes of all turns; at most one a turn."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._live: dict[int, _Probe] = {}
        """By handle."""

    def tend(self, turns: Mapping[int, Turn], context_tokens: int) -> None:
        """Drop the probes whose thinking is over or whose room is needed; begin those that are due. Before a step."""
        for probe in list(self._live.values()):
            if not probe.turn.is_thinking:
                self._drop(probe)
        if self._live and self._taken_tokens(turns) > context_tokens:
            self.drop_all()
        if any(turn.is_reading for turn in turns.values()):
            return  # a probe's own reading would hold up theirs
        for turn in turns.values():
            given = turn.due_probe() if all(probe.turn is not turn for probe in self._live.values()) else None
            if given is not None and self._taken_tokens(turns) + given.tokens + MOST_TOKENS <= context_tokens:
                self._begin(turn, given)

    def take(self, piece: Piece) -> bool:
        """Take a piece; return False for one that is no probe's."""
        probe = self._live.get(piece.handle.id)
        if probe is None:
            return False
        read = 0 if probe.tokens else probe.given.tokens
        probe.turn.count_probe(read + piece.count)
        probe.tokens += piece.count
        probe.text += piece.text
        is_whole = piece.end == "stop" or is_answered(probe.text)
        if is_whole or piece.end is not None or probe.tokens >= MOST_TOKENS:
            self._drop(probe)
            probe.turn.take_probe(answer_of(probe.text) if is_whole else None)
        return True

    def drop(self, turn: Turn) -> None:
        """Drop a turn's probe, if it has one."""
        for probe in [each for each in self._live.values() if each.turn is turn]:
            self._drop(probe)

    def drop_all(self) -> None:
        """Drop every probe."""
        for probe in list(self._live.values()):
            self._drop(probe)

    def _begin(self, turn: Turn, given: Closing) -> None:
        handle = self._backend.fork(turn.handle, given.text, Sampling())
        if handle is not None:
            turn.begin_probe()
            self._live[handle.id] = _Probe(turn, handle, given)

    def _drop(self, probe: _Probe) -> None:
        del self._live[probe.handle.id]
        self._backend.remove(probe.handle)

    def _taken_tokens(self, turns: Mapping[int, Turn]) -> int:
        """Return how much of the context turns and probes will have taken when the probes are done."""
        probes = sum(probe.given.tokens + MOST_TOKENS for probe in self._live.values())
        return sum(turn.held_tokens + MOST_TOKENS for turn in turns.values()) + probes
