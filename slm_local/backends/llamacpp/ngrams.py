"""What a sequence may go on with, guessed from its own tokens: what stood behind the last stretch like its end.

Prompt lookup: a summary copies its text, an edit its code, an answer restates its thinking. Sources: Saxena, "Prompt
Lookup Decoding" (2023); Yang et al., "Inference with Reference" (arXiv:2304.04487).
"""

from __future__ import annotations

from collections.abc import Iterable

LENGTHS = (4, 3, 2)
"""Tokens of a stretch, the longest looked for first: the longer, the likelier goes it on the same way."""

READ_AT_ONCE = 256
"""Tokens of a prompt indexed a step (0.3 ms): an index of a long prompt must not delay its first token."""


class NgramIndex:
    """One sequence's tokens, and behind which place each stretch of them stood last; O(1) a token."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens = list(tokens)
        self._read = 0
        self._tables: tuple[tuple[int, dict[int, int]], ...] = tuple((length, {}) for length in LENGTHS)
        """By length: a stretch's hash (two stretches with the same one: a wrong guess, no wrong text) to a place."""
        self._length = self._place = 0
        """The longest stretch that ends where reading stands and was seen before, and the place behind it there."""

    def add(self, token: int) -> None:
        """Append a token that the sequence was given."""
        self._tokens.append(token)

    def match(self) -> int:
        """Return how many of the last tokens stood together before; 0: none, or the tokens are still being read."""
        end = min(len(self._tokens), self._read + READ_AT_ONCE)
        for place in range(self._read + 1, end + 1):
            self._note(place)
        self._read = end
        return self._length if end == len(self._tokens) else 0

    def draft(self, count: int) -> list[int]:
        """Return the `count` tokens behind where the tokens that `match` found stood before.

        At the sequence's end they begin anew: what repeats itself goes on repeating itself.
        """
        drafted = self._tokens[self._place : self._place + count]
        period = len(self._tokens) - self._place
        while len(drafted) < count:
            drafted.append(drafted[-period])
        return drafted

    def _note(self, place: int) -> None:
        """Look for the stretches that end before a place, then note that they do."""
        self._length = 0
        for length, places in self._tables:
            if place < length:
                continue
            key = hash(tuple(self._tokens[place - length : place]))
            seen = places.get(key)
            if seen is not None and not self._length:
                self._length, self._place = length, seen
            places[key] = place
