"""How many prompt tokens to decode at a time: few, for progress and stopping, but without losing speed."""

from __future__ import annotations

CHUNKS = (512, 256, 128, 64)
KEEP_OF_SPEED = 0.98


class ChunkTuner:
    """Finds the smallest chunk that keeps 0.98 of the largest chunk's speed, from the first long prompt.

    The first chunk of all is not counted: it pays for touching the weights.
    """

    def __init__(self, largest: int) -> None:
        self._sizes = [size for size in CHUNKS if size <= largest] or [largest]
        self._tps: dict[int, float] = {}
        self._is_first = True
        self.seconds = 0.0
        """How long the last chunk took."""

    @property
    def size(self) -> int:
        """Return the chunk to decode next."""
        if self._is_first:
            return self._sizes[0]
        for size in self._sizes:
            if size not in self._tps:
                return size
        enough = KEEP_OF_SPEED * self._tps[self._sizes[0]]
        return min(size for size in self._sizes if self._tps[size] >= enough)

    def record(self, tokens: int, seconds: float) -> None:
        """Take note of a chunk that was decoded alone in `seconds`."""
        self.seconds = seconds
        if self._is_first:
            self._is_first = False
        elif tokens == self.size and tokens not in self._tps and seconds > 0.0:
            self._tps[tokens] = tokens / seconds
