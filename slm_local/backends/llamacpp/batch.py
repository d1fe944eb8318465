"""What one decode computes: which tokens of which sequences, row by row, and whose logits are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slm_local.backends.llamacpp.sequences import Slot


@dataclass(frozen=True, slots=True)
class Share:
    """What a batch takes of a sequence."""

    slot: Slot
    taken: int
    """So many tokens of its queue."""
    first_row: int
    row: int
    """That of the logits to sample from; -1 where there are none yet."""


class Batch:
    """A batch of llama.cpp's, of `most_rows` rows, each a token of one sequence; `most_outputs` may have logits."""

    def __init__(self, library: Any, most_rows: int, most_outputs: int) -> None:
        self._lib = library
        self.most_rows = most_rows
        self._most_outputs = most_outputs
        self.native: Any = library.llama_batch_init(most_rows, 0, 1)
        for row in range(most_rows):
            self.native.n_seq_id[row] = 1

    @property
    def rows(self) -> int:
        """Return how many rows are written."""
        return int(self.native.n_tokens)

    def fill(self, live: Sequence[Slot], chunk_at: Callable[[int], int]) -> list[Share]:
        """Write the next token of each sequence that generates and a chunk of those that read; return the shares.

        `chunk_at` tells how long a chunk may be behind so many tokens; short prompts share one, but for one whose
        tokens are scored. A sequence's part ends where another waits for it to end, so that all go on together from
        there.
        """
        self.native.n_tokens = read = 0
        is_scored = False
        shares: list[Share] = []
        for slot in sorted(live, key=lambda s: min(len(each.queue) for each in (s, *s.waiters))):
            waiting = len(slot.queue)
            if slot.donor is not None or (waiting > 1 and read and (is_scored or slot.prompt_scores is not None)):
                continue  # it waits
            ends = [each.goal - len(slot.cells) for each in slot.waiters]
            most = min(chunk_at(len(slot.cells)) - read, self.most_rows - self.rows, *ends)
            if slot.prompt_scores is not None:
                most = min(most, self._most_outputs - len(shares))
            take = waiting if waiting == 1 else min(waiting, most)
            if take <= 0:
                continue
            read += take if waiting > 1 else 0
            is_scored |= slot.prompt_scores is not None
            first = self.rows
            self._write(slot, slot.queue[:take], len(slot.cells))
            for row in range(first, self.rows):
                self.native.logits[row] = slot.prompt_scores is not None
            is_sampled = take == waiting and not slot.is_read_only
            self.native.logits[self.rows - 1] = is_sampled or slot.prompt_scores is not None
            shares.append(Share(slot, take, first, self.rows - 1 if is_sampled else -1))
        return shares

    def add_draft(self, slot: Slot) -> None:
        """Write what was drafted for a sequence behind its only row, with logits for each."""
        begin = self.rows
        self._write(slot, slot.ahead, len(slot.cells) + 1)
        for row in range(begin, self.rows):
            self.native.logits[row] = 1

    def _write(self, slot: Slot, tokens: Sequence[int], position: int) -> None:
        batch, begin = self.native, self.rows
        for index, token in enumerate(tokens):
            batch.token[begin + index] = token
            batch.pos[begin + index] = position + index
            batch.seq_id[begin + index][0] = slot.sequence
            batch.logits[begin + index] = 0
        batch.n_tokens = begin + len(tokens)

    def free(self) -> None:
        """Give its memory back."""
        self._lib.llama_batch_free(self.native)
