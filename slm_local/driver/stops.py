"""Stop strings: where an answer ends that must not go on, whatever the pieces it comes in."""

from __future__ import annotations


class StopText:
    """Cuts a text at the first of several strings, whatever its chunks; the string itself is not part of it."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self.held = ""
        """What was fed and may yet turn out to begin a stop string."""
        self.found = False

    def feed(self, text: str) -> str:
        """Return the text that is certain not to belong to a stop string."""
        if not self._stops:
            return text
        if self.found:
            return ""
        window = self.held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := window.find(stop)) >= 0]
        if ends:  # the one that is complete first, so that chunks make no difference
            self.found, self.held = True, ""
            return window[: min(ends)[1]]
        keep = self._hold_back(window)
        self.held = window[len(window) - keep :] if keep else ""
        return window[: len(window) - keep]

    def flush(self) -> str:
        """Return what was held back."""
        rest, self.held = self.held, ""
        return rest

    def _hold_back(self, window: str) -> int:
        """Return how many characters at the end could begin a stop string."""
        for size in range(min(self._hold, len(window)), 0, -1):
            if any(stop.startswith(window[-size:]) for stop in self._stops):
                return size
        return 0
