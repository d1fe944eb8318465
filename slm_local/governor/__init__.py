"""Decides when thinking ends, and when a reply that goes round in circles does: pure, fed one piece at a time.

It knows tokens by number and text, the limits of a request, and the time it is told. What is put into the model's
mouth when thinking ends is made here, too; how it gets there is the driver's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from slm_local.generation import DEFAULT_BRIDGE, Cut, Finish, GenerationRequest, Piece, ReasoningTags
from slm_local.governor.loops import LoopGuard
from slm_local.reasoning import ReasoningParser, line_break

RESERVE_TOKENS = 512
RESERVE_PART_OF_CONTEXT = 8
RESERVE_PART_OF_LIMIT = 4
"""Of a limit of tokens, at most a quarter is kept for the answer."""
LOOP_TOKENS_THINKING = 96
LOOP_TOKENS_ANSWER = 192
"""An answer may repeat itself for longer: tables and code do."""

COUNTED_OTHERWISE = 2
"""So many tokens of the prompt, white space behind an opening tag, a server may count as thinking (llama-server)."""

NUDGE = "Answer:"
"""What a model is given that stopped behind the closing tag without a word; no part of the answer."""


@dataclass(frozen=True, slots=True)
class EndThinking:
    """Thinking has to end now, and the answer to begin."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class EndReply:
    """The reply has to end now."""

    finish: Finish


Verdict = EndThinking | EndReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What ends thinking in the model's place: a bridge, the closing tag, the answer's opening."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds the thinking of one reply; None: nothing."""

    think_tokens: int | None = None
    """Most tokens of thinking, tags and what is injected not counted."""
    think_s: float | None = None
    room_tokens: int | None = None
    """Most tokens, all of the reply's, before thinking has to end for the answer's sake."""
    room_cut: Cut = "context"
    """What takes the room."""
    can_close: bool = True
    """Whether the limit of tokens leaves room for a closing; else the reply ends with its thinking."""
    has_loop_guard: bool = True
    is_kept: bool = False
    """Whether the engine keeps to `think_tokens` itself: what it ends thinking with comes marked as injected."""

    @property
    def most_thinking(self) -> int | None:
        """Return the most tokens of thinking that there can be."""
        known = [each for each in (self.think_tokens, self.room_tokens) if each is not None]
        return min(known) if known else None


def closing_texts(tags: ReasoningTags, bridge: str | None) -> tuple[str, str]:
    """Return what ends thinking in the model's place: with the bridge, and without it where there is no room."""
    line = line_break(tags)
    tag = f"{line}{tags.close}{line}{line}{tags.answer_open}"
    return (DEFAULT_BRIDGE if bridge is None else bridge) + tag, tag


def closing_for(max_tokens: int | None, closings: tuple[Closing, ...]) -> Closing | None:
    """Return the first closing that leaves the answer its part of a limit of tokens; None: none does."""
    if max_tokens is None:
        return closings[0]
    room = max_tokens - max(1, max_tokens // RESERVE_PART_OF_LIMIT)
    return next((each for each in closings if each.tokens <= room), None)


def reserve_tokens(request: GenerationRequest, context_tokens: int) -> int:
    """Return how many tokens are kept for the answer: at least one."""
    if request.answer_reserve is not None:
        return max(1, request.answer_reserve)
    reserve = min(RESERVE_TOKENS, context_tokens // RESERVE_PART_OF_CONTEXT)
    if request.max_tokens is not None:
        reserve = min(reserve, request.max_tokens // RESERVE_PART_OF_LIMIT)
    return max(1, reserve)


def limits_for(
    request: GenerationRequest, closing: Closing | None, *, context_tokens: int, prompt_tokens: int | None
) -> Limits:
    """Work out the limits of a request that may think; below 0 `room_tokens` says that the prompt leaves too little.

    `closing` None: the limit of tokens is too small for any. `prompt_tokens` None: the engine does not count.
    """
    room: int | None = None
    cut: Cut = "context"
    kept = reserve_tokens(request, context_tokens) + closing.tokens if closing is not None else 0
    if prompt_tokens is not None:
        room = context_tokens - prompt_tokens - kept
    if request.max_tokens is not None:
        left = max(0, request.max_tokens - kept)
        if room is None or left <= room:
            room, cut = left, "max_tokens"
    return Limits(
        think_tokens=request.think_tokens,
        think_s=request.think_s,
        room_tokens=room,
        room_cut=cut,
        can_close=closing is not None,
        has_loop_guard=request.has_loop_guard,
    )


class Governor:
    """Watches one reply; its splitter takes every piece first."""

    def __init__(self, limits: Limits, parser: ReasoningParser) -> None:
        self.cut: Cut = "none"
        """Why thinking was ended before the model ended it."""
        self._limits = limits
        self._parser = parser
        self._generated = 0
        self._thinking_since_s: float | None = None
        self._is_asked = False
        self._has_settled = False
        self._is_ending = False
        """Whether thinking was told to end and the closing is on its way."""
        self._was_thinking = parser.in_thinking
        self._guard = self._new_guard()

    @property
    def is_thinking(self) -> bool:
        """Return whether it thinks, and was not told to end."""
        return self._parser.in_thinking and not self._is_ending

    def end_thinking(self) -> None:
        """Have thinking end as soon as there is any: the person wants the answer."""
        self._is_asked = True

    def settle(self) -> None:
        """Have thinking end, for its answer is known."""
        self._has_settled = True

    def feed(self, piece: Piece, now_s: float) -> None:
        """Take a piece that the splitter has taken."""
        self._generated += piece.count
        if piece.injected and self._was_thinking and not self._is_ending and self._is_kept_to():
            self.cut, self._is_ending = "budget", True
        if self._parser.in_thinking is not self._was_thinking:
            self._was_thinking = self._parser.in_thinking
            self._is_ending = False
            self._guard = self._new_guard()
        if self._was_thinking and self._thinking_since_s is None:
            self._thinking_since_s = now_s
        if self._limits.has_loop_guard and not piece.injected:
            self._guard.feed(piece.text, is_token=bool(piece.ids))

    def verdict(self, now_s: float) -> Verdict | None:
        """Say what has to end; to be asked before every step, also before the first."""
        if not self._parser.in_thinking:
            return EndReply("loop") if self._guard.is_found else None
        cut = None if self._is_ending else self._cut_now(now_s)
        if cut is None:
            return None
        self.cut, self._is_ending = cut, True
        if not self._limits.can_close:
            return EndReply("loop" if cut == "loop" else "length")
        return EndThinking(cut)

    def _cut_now(self, now_s: float) -> Cut | None:
        limits = self._limits
        if self._is_asked:
            return "user"
        if (
            limits.think_tokens is not None
            and not limits.is_kept
            and self._parser.thought_tokens >= limits.think_tokens
        ):
            return "budget"
        since_s = self._thinking_since_s
        if limits.think_s is not None and since_s is not None and now_s - since_s >= limits.think_s:
            return "time"
        if limits.can_close and limits.room_tokens is not None and self._generated >= limits.room_tokens:
            return limits.room_cut
        if self._guard.is_found:
            return "loop"
        return "converged" if self._has_settled else None

    def _is_kept_to(self) -> bool:
        """Return whether the engine has just kept to the limit of tokens by itself."""
        limits = self._limits
        most = limits.think_tokens
        return limits.is_kept and most is not None and self._parser.thought_tokens >= most - COUNTED_OTHERWISE

    def _new_guard(self) -> LoopGuard:
        return LoopGuard(LOOP_TOKENS_THINKING if self._was_thinking else LOOP_TOKENS_ANSWER)
