"""How many prompt tokens to decode at a time: few, to show how far it is, but without losing speed."""

from __future__ import annotations

CHUNKS = (512, 256, 128, 64)
KEEP_OF_SPEED = 0.98
TRIES = 2
"""How often a size is tried; the faster one counts, for another program may have been in the way of the other."""
DEPTH_TOKENS = 2048
"""So deep, and at each doubling, the sizes are tried anew: attention over many cells is faster in large chunks."""


class ChunkTuner:
    """Finds the smallest chunk that keeps 0.98 of the largest chunk's speed, from the first long prompt.

    The first chunk of all is not counted: it pays for touching the weights.
    """

    def __init__(self, largest: int) -> None:
        self._sizes = [size for size in CHUNKS if size <= largest] or [largest]
        self._tps: dict[tuple[int, int], list[float]] = {}
        self._is_first = True

    def size_at(self, depth: int) -> int:
        """Return the chunk to decode next, behind so many tokens of its sequence."""
        band = _band(depth)
        if self._is_first:
            return self._sizes[0]
        for tries in range(1, TRIES + 1):
            for size in self._sizes:
                if len(self._tps.get((band, size), ())) < tries:
                    return size
        enough = KEEP_OF_SPEED * max(self._tps[band, self._sizes[0]])
        return min(size for size in self._sizes if max(self._tps[band, size]) >= enough)

    def record(self, depth: int, tokens: int, seconds: float) -> None:
        """Take note of a chunk that was decoded alone in `seconds`, behind `depth` tokens."""
        if self._is_first:
            self._is_first = False
        elif tokens == self.size_at(depth) and seconds > 0.0:
            tps = self._tps.setdefault((_band(depth), tokens), [])
            if len(tps) < TRIES:
                tps.append(tokens / seconds)


def _band(depth: int) -> int:
    return (depth // DEPTH_TOKENS).bit_length()
