"""How much of a prompt to read in one step, and how much of it has been read before."""

from __future__ import annotations

from collections.abc import Sequence

from slm_local.backends.base import shared_prefix

MOST_SECONDS = 0.5
"""A step holds the interpreter and can't be aborted: a chunk is predicted to take at most so long."""

LEAST_TOKENS = 32
"""Nor fewer than this, which is also a block of the KV cache on the processor: smaller ones cost more."""

MOST_GROWTH = 4
"""A chunk is at most so many times the one before: a prediction from few tokens is rough."""


class ChunkSize:
    """Predicts from the chunk before how many tokens fit in `MOST_SECONDS`; a multiple of `LEAST_TOKENS`."""

    def __init__(self, most: int) -> None:
        self._most = max(LEAST_TOKENS, most // LEAST_TOKENS * LEAST_TOKENS)
        self.size = LEAST_TOKENS
        """The chunk to read next."""

    def record(self, tokens: int, seconds: float) -> None:
        """Take note that a step with so many tokens of a prompt took so long; a short rest of one says little."""
        if 2 * tokens < self.size and seconds <= MOST_SECONDS:
            return
        predicted = tokens / max(seconds, 1e-6) * MOST_SECONDS
        allowed = min(predicted, max(self.size, tokens) * MOST_GROWTH, self._most)
        self.size = max(LEAST_TOKENS, int(allowed) // LEAST_TOKENS * LEAST_TOKENS)


class Ledger:
    """The texts that the runtime's prefix cache should still hold: as many tokens as it has room for, oldest out.

    It decides only where the first chunk of a prompt ends. The runtime does not tell what it found in its cache, so
    nothing here is ever reported as cached.
    """

    def __init__(self, room_tokens: int) -> None:
        self._room = room_tokens
        self._texts: list[list[int]] = []

    def remember(self, ids: Sequence[int]) -> None:
        """Take note of a text whose KV cache was computed; those that it continues are one with it."""
        self._texts = [text for text in self._texts if shared_prefix(text, ids) < len(text)]
        self._texts.append(list(ids))
        while len(self._texts) > 1 and sum(map(len, self._texts)) > self._room:
            del self._texts[0]

    def known(self, ids: Sequence[int]) -> int:
        """Return how many leading tokens were computed before; never the last one, which is wanted for its logits."""
        return min(max((shared_prefix(text, ids) for text in self._texts), default=0), len(ids) - 1)
