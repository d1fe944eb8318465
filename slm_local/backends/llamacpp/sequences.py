"""What is in the KV cache, sequence by sequence, and which part of it a new prompt can use again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from slm_local.backends.base import shared_prefix
from slm_local.backends.llamacpp.vocabulary import TokenText
from slm_local.generation import Handle, Piece


@dataclass(slots=True)
class Slot:
    """One sequence id of the KV cache; `cells` is what the cache holds for it, `queue` what is still to decode."""

    sequence: int
    cells: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    prompt_left: int = 0
    """How much of `queue` is prompt; counts down to 0."""
    prompt_tokens: int = 0
    handle: Handle | None = None
    chain: Any = None
    text: TokenText = field(default_factory=TokenText)
    injected: list[Piece] = field(default_factory=list)
    """What an injection will show once its tokens, the last of `queue`, are decoded."""
    source: Any = None
    """Who guesses how the sequence goes on (`speculation.Source`), fed with every token of it; None: nobody."""
    ahead: list[int] = field(default_factory=list)
    """Drafted tokens that the cache holds beyond `cells`; verified one a step, or cut off."""
    row: int = 0
    """Row of the logits that were sampled last."""
    has_ended: bool = False
    """Whether the sequence came to an end and waits to be removed, or continued by an injection."""
    last_used: int = 0


class KvCache:
    """A unified KV cache of `tokens` cells shared by several sequences, with a ledger of what it holds.

    Recurrent and hybrid models refuse a partial removal and sliding windows forget early positions, so every reuse
    asks the cache itself: the return value of the removal and the smallest position still kept.
    """

    def __init__(self, library: Any, context: Any, *, tokens: int, sequences: int, window: int) -> None:
        self._lib = library
        self._memory = library.llama_get_memory(context)
        self._window = window
        self._clock = 0
        self.tokens = tokens
        self.slots = [Slot(sequence=i) for i in range(sequences)]

    def live(self) -> list[Slot]:
        """Return the slots that have something to decode."""
        return [slot for slot in self.slots if slot.handle is not None and not slot.has_ended]

    def take(self, prompt: Sequence[int]) -> tuple[Slot, int]:
        """Return a free slot and how many of the prompt's tokens it already holds.

        The slot's ledger and the cache are cut back to exactly these tokens; at least the prompt's last token is
        left to decode, for its logits. Raises IndexError when no slot is free.
        """
        free = [slot for slot in self.slots if slot.handle is None]
        slot = max(free, key=lambda s: (shared_prefix(s.cells, prompt), -len(s.cells), -s.last_used))
        keep = self.cut(slot, min(shared_prefix(slot.cells, prompt), len(prompt) - 1))
        self._clock += 1
        slot.last_used = self._clock
        self.make_room(len(prompt) - keep, spare=slot)
        return slot, keep

    def cut(self, slot: Slot, keep: int) -> int:
        """Cut a slot's cells back to `keep` tokens; return how many are really left: all of them or none."""
        if keep == 0 or not self._can_keep(slot, keep):
            self._lib.llama_memory_seq_rm(self._memory, slot.sequence, -1, -1)
            keep = 0
        del slot.cells[keep:]
        return keep

    def make_room(self, cells: int, *, spare: Slot | None = None) -> bool:
        """Empty idle slots, least recently used first, until `cells` cells are free; return whether they are."""
        idle = sorted((s for s in self.slots if s.handle is None and s is not spare), key=lambda s: s.last_used)
        while self.free_cells() < cells and idle:
            self.cut(idle.pop(0), 0)
        return self.free_cells() >= cells

    def empty_one(self) -> bool:
        """Empty the idle slot used longest ago; return False when there is none with cells."""
        idle = [slot for slot in self.slots if slot.handle is None and slot.cells]
        if not idle:
            return False
        self.cut(min(idle, key=lambda s: s.last_used), 0)
        return True

    def free_cells(self) -> int:
        """Return how many cells no sequence holds."""
        return self.tokens - sum(len(slot.cells) for slot in self.slots)

    def _can_keep(self, slot: Slot, keep: int) -> bool:
        if not self._lib.llama_memory_seq_rm(self._memory, slot.sequence, keep, -1):
            return False
        smallest = self._lib.llama_memory_seq_pos_min(self._memory, slot.sequence)
        largest = self._lib.llama_memory_seq_pos_max(self._memory, slot.sequence)
        return bool(largest == keep - 1 and 0 <= smallest <= max(0, keep - max(1, self._window)))
