"""Drafts for the sequence that generates alone: who guesses them, how long they are, what becomes of them.

A draft is decoded behind the token that is due, in the same batch. Its rows are sampled one a step, each only when the
row before it gave what was drafted: the sampler's chain (penalties, draws) sees exactly the tokens that are handed out,
in their order, and what was decoded beyond them is nothing but cells to cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from slm_local.backends.llamacpp.drafting import WIDTHS, Drafting
from slm_local.backends.llamacpp.ngrams import NgramIndex
from slm_local.backends.llamacpp.sequences import Slot

MOST_ROWS = max(WIDTHS)


class Source(Protocol):
    """Who guesses how one sequence goes on."""

    def add(self, token: int) -> None:
        """Take note of the sequence's next token."""
        ...

    def match(self) -> int:
        """Return how many of the last tokens a guess builds on; 0: there is none."""
        ...

    def draft(self, count: int) -> list[int]:
        """Return the next `count` tokens, as guessed from what `match` found."""
        ...


class Chooser(Protocol):
    """Who decides how many rows a decode has; `Drafting` says what each is told."""

    def begin(self) -> None:
        """Take note that another sequence begins."""
        ...

    def rows(self, matched: int, most: int) -> int:
        """Return the rows of the next decode; 1: no draft."""
        ...

    def stepped(self, rows: int, seconds: float) -> None:
        """Take note of a decode."""
        ...

    def judged(self, matched: int, place: int, *, is_kept: bool) -> None:
        """Take note of a drafted token's fate."""
        ...


class Speculation:
    """Drafts of one loaded model. At most one sequence has a draft under way."""

    def __init__(
        self, source_of: Callable[[Sequence[int]], Source] = NgramIndex, chooser: Chooser | None = None
    ) -> None:
        self.chooser: Chooser = chooser or Drafting()
        self.source_of = source_of
        self._matched = self._place = 0

    def begin(self, slot: Slot, prompt: Sequence[int]) -> None:
        """Begin to guess for a sequence."""
        slot.source = self.source_of(prompt)
        self.chooser.begin()

    def draft(self, slot: Slot, most_rows: int) -> list[int]:
        """Return the tokens to decode behind the one that is due; none where that does not pay."""
        source: Source | None = slot.source
        if source is None:
            return []
        self._matched, self._place = source.match(), 0
        rows = self.chooser.rows(self._matched, min(most_rows, MOST_ROWS)) if self._matched else 1
        return source.draft(rows - 1) if rows > 1 else []

    def judged(self, *, is_kept: bool) -> None:
        """Take note of the fate of the draft's next token."""
        self.chooser.judged(self._matched, self._place, is_kept=is_kept)
        self._place += 1


def can_roll_back(library: Any, model: Any) -> bool:
    """Return whether the model's cache can take tokens back; the state of recurrent and hybrid models can't."""
    return not (library.llama_model_is_recurrent(model) or library.llama_model_is_hybrid(model))
