"""Idle sequences outside of the KV cache: their states in main memory, where they are in nobody's way.

Each token computed looks at all cells of a unified cache, those of idle sequences too. A state is copied out and back
at gigabytes a second, a thousand times faster than its tokens are read anew; llama.cpp's server does the same with its
idle slots.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slm_local.backends.base import shared_prefix
from slm_local.system import available_memory_bytes

SHARE_OF_MEMORY = 8
"""All states together take at most an eighth of what would be available without them, and as much as the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Shelved:
    """The state of a sequence that held `cells`, `prompt_tokens` of them a prompt."""

    cells: list[int]
    prompt_tokens: int
    state: Any
    """A ctypes array of bytes."""

    @property
    def size(self) -> int:
        """Return the state's bytes."""
        return ctypes.sizeof(self.state)


class Shelf:
    """States of sequences, the one put away last at the end; the oldest are dropped where there is no room for all."""

    def __init__(
        self,
        library: Any,
        context: Any,
        *,
        tokens: int,
        available_bytes: Callable[[], int] = available_memory_bytes,
    ) -> None:
        """Begin empty, with room for as many tokens as the KV cache has, where memory allows it.

        `available_bytes` tells what could be used now without swapping.
        """
        self._lib = library
        self._context = context
        self._tokens = tokens
        self._available = available_bytes
        self.states: list[Shelved] = []

    def put(self, sequence: int, cells: list[int], prompt_tokens: int) -> bool:
        """Copy a sequence's state; return whether there was memory for it."""
        size = int(self._lib.llama_state_seq_get_size(self._context, sequence))
        held = sum(each.size for each in self.states)
        left_bytes, left_tokens = (self._available() + held) // SHARE_OF_MEMORY - size, self._tokens - len(cells)
        if left_bytes < 0:
            return False
        others = [each for each in self.states if each.cells != cells[: len(each.cells)]]
        self.states = []
        for other in reversed(others):
            left_bytes, left_tokens = left_bytes - other.size, left_tokens - len(other.cells)
            if min(left_bytes, left_tokens) < 0:
                break
            self.states.insert(0, other)
        state = (ctypes.c_uint8 * size)()
        if self._lib.llama_state_seq_get_data(self._context, state, size, sequence) != size:
            return False
        self.states.append(Shelved(list(cells), prompt_tokens, state))
        return True

    def longest(self, prompt: Sequence[int]) -> Shelved | None:
        """Return the state that begins most like a prompt; None where none does at all."""
        best = max(self.states, key=lambda each: shared_prefix(each.cells, prompt), default=None)
        return best if best is not None and shared_prefix(best.cells, prompt) else None

    def copy_into(self, sequence: int, shelved: Shelved) -> bool:
        """Copy a state into an empty sequence; return whether llama.cpp took it."""
        return bool(
            self._lib.llama_state_seq_set_data(self._context, shelved.state, shelved.size, sequence) == shelved.size
        )

    def repack(self, memory: Any, sequences: Sequence[int]) -> Sequence[int] | None:
        """Copy all that the cache holds out and back, sequence by sequence; return those that did not come back.

        `sequences` are those that hold something. None: nothing was changed, for there is no memory for the copies.
        """
        sizes = [int(self._lib.llama_state_seq_get_size(self._context, each)) for each in sequences]
        if sum(sizes) > self._available() // SHARE_OF_MEMORY:
            return None
        states = [(ctypes.c_uint8 * size)() for size in sizes]
        for sequence, state, size in zip(sequences, states, sizes, strict=True):
            if self._lib.llama_state_seq_get_data(self._context, state, size, sequence) != size:
                return None
        self._lib.llama_memory_clear(memory, False)
        return [
            sequence
            for sequence, state, size in zip(sequences, states, sizes, strict=True)
            if self._lib.llama_state_seq_set_data(self._context, state, size, sequence) != size
        ]

    def drop(self, shelved: Shelved) -> None:
        """Forget a state, if it is still held."""
        self.states = [each for each in self.states if each is not shelved]
