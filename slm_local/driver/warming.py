"""What the next prompt will begin with, whatever is typed next: found by asking with several things typed.

It knows renderings and tokens, but no backend, and reads nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from slm_local.backends.base import shared_prefix
from slm_local.generation import GenerationRequest, Handle

STAND_INS = ("x", "\n\nx", " x", "1", "?")
"""What may stand for the next message. A tokenizer joins its first characters with what comes before in ways that
differ between letters, line ends, spaces, digits and signs."""

FORESEEN_TOKENS = 1
"""So many of the last tokens that all stand-ins share are left out: what is typed may join with them in a way that no
stand-in shows, as `user` with `name`."""


@dataclass(slots=True, kw_only=True)
class Warming:
    """A prompt's beginning that is being read."""

    request_id: int
    handle: Handle
    held_tokens: int | None
    """How much of it the KV cache holds; None where the runtime does not say."""

    @property
    def is_whole(self) -> bool:
        """Return whether there is nothing left to read."""
        return self.held_tokens == self.handle.prompt_tokens


def common_start(
    request: GenerationRequest,
    token_ids: Callable[[GenerationRequest], Sequence[int]],
    goes_on: Callable[[], bool],
) -> tuple[int, ...]:
    """Return the tokens with which every prompt begins that goes on with `request`, whose last message is unfinished.

    That message holds what is known of it, which may be nothing. Empty when `goes_on` says no meanwhile, or nothing
    is shared. Errors: those of `token_ids`.
    """
    *before, last = request.messages
    renderings: list[Sequence[int]] = []
    for stand_in in STAND_INS:
        if not goes_on():
            return ()
        asked = replace(last, content=last.content + stand_in)
        renderings.append(token_ids(replace(request, messages=(*before, asked))))
    shared = min(shared_prefix(one, other) for one, other in pairwise(renderings))
    return tuple(renderings[0][: max(0, shared - FORESEEN_TOKENS)])
