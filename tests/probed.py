"""A scripted backend whose forks say what they are told to: probes beside a scripted thought."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

from slm_local.backends.scripted import ScriptedBackend
from slm_local.generation import Control, Handle, Piece, Sampling, Update
from tests.governed import Row

IDEA: Row = {"text": "idea {n} leads to {n}{n} and {n}1, so.\n", "times": 400}
"""A line of thought a token: a probe may begin behind any."""

ANSWERED = (" **42", "**.")


class ForkingBackend(ScriptedBackend):
    """Plays a script for requests, and for each fork one of `says`, token by token; the last one again and again."""

    capabilities = ScriptedBackend.capabilities | {"fork"}

    def __init__(self, *says: Sequence[str], places: int = 8) -> None:
        super().__init__()
        self._places = places
        self.given: list[str] = []
        """What forks were begun with."""
        self.asked = self.removed = 0
        self._says: Iterator[Sequence[str]] = chain(says, repeat(says[-1] if says else ANSWERED))
        self._forks: dict[int, deque[str]] = {}
        self._fork_handles: dict[int, Handle] = {}

    @property
    def live_forks(self) -> int:
        return len(self._forks)

    def fork(self, handle: Handle, text: str, sampling: Sampling) -> Handle | None:
        assert handle.id in self._live
        assert sampling == Sampling(), "probes are greedy"
        self.asked += 1
        if len(self._forks) >= self._places:
            return None
        self._handles += 1
        fork = Handle(id=self._handles, prompt_tokens=1, cached_tokens=0)
        self.given.append(text)
        self._fork_handles[fork.id], self._forks[fork.id] = fork, deque(next(self._says))
        return fork

    def step(self, control: Control) -> list[Update]:
        updates = super().step(control)
        for number, tokens in self._forks.items():
            text = tokens.popleft() if tokens else ""
            end = None if text or tokens else "stop"
            updates.append(Piece(handle=self._fork_handles[number], text=text, ids=(7,), end=end))  # type: ignore[arg-type]
        return updates

    def remove(self, handle: Handle) -> None:
        if self._forks.pop(handle.id, None) is None:
            super().remove(handle)
        else:
            self.removed += 1
