"""Whether a server keeps to a limit of thinking that it was given, token by token.

Some pass such a field over in silence (llama-server, for a template in which it finds no thinking), others count a
token of the prompt, too, and nothing tells beforehand. So text that may be what ends thinking is held back until it is
seen to be that: a token or two at a time, or the whole bridge.
"""

from __future__ import annotations

from dataclasses import replace

from slm_local.generation import Piece, ReasoningTags, ThinkState
from slm_local.reasoning import ReasoningParser


class Watch:
    """Watches one reply's thinking. `closing` is what ends it: the bridge, white space, the tag."""

    def __init__(self, most: int, tags: ReasoningTags, state: ThinkState, closing: str) -> None:
        self._most = most
        self._close = tags.close
        self._parser = ReasoningParser(tags, state=state)
        at = closing.index(tags.close)
        line = len(closing[:at]) - len(closing[:at].rstrip("\n"))
        self._endings = (closing, closing[at - line :], closing[at:])
        self._held: list[Piece] = []

    def took(self, piece: Piece) -> None:
        """Take note of a piece that was handed out."""
        self._parser.feed(piece.text, piece.count, injected=piece.injected)

    def drop(self) -> None:
        """Forget what is held back: something else goes on in its place."""
        self._held = []

    def released(self, piece: Piece) -> tuple[list[Piece], bool]:
        """Return what may be handed out now, and whether thinking has to be ended behind it.

        What the server ended thinking with is marked as injected.
        """
        if piece.end is not None or piece.injected or not self._parser.in_thinking:
            held, self._held = self._held, []
            return [*held, piece], False
        self._held.append(piece)
        text = "".join(each.text for each in self._held)
        if self._close in text and any(text.startswith(ending.rstrip()) for ending in self._endings):
            held, self._held = self._held, []
            if text.startswith(self._endings[0].rstrip()):
                return _marked(held), False
            if (
                self._left() <= 0
            ):  # ended as vLLM does, by the tag alone: the model is to read the bridge that was asked for
                return [], True
            return held, False
        free: list[Piece] = []
        while self._held and not self._may_end("".join(each.text for each in self._held)):
            free.append(self._held.pop(0))
        return self._within(free)

    def _may_end(self, text: str) -> bool:
        return any(ending.startswith(text) for ending in self._endings)

    def _left(self) -> int:
        return self._most - self._parser.thought_tokens

    def _within(self, pieces: list[Piece]) -> tuple[list[Piece], bool]:
        """Return the pieces that the limit has room for, and whether it had none for the rest."""
        left = self._left()
        for at, piece in enumerate(pieces):
            if left < max(1, piece.count):  # rather less than more, where several tokens come at once
                return pieces[:at], True
            left -= piece.count
        return pieces, False


def _marked(pieces: list[Piece]) -> list[Piece]:
    return [replace(each, injected=True) for each in pieces]
