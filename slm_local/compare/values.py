"""What a comparison is asked and what it tells: values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from slm_local.errors import SlmError
from slm_local.generation import Reply, StreamEvent
from slm_local.metrics import Collector
from slm_local.model import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What every lane is asked, and the answer that is right, where one is known."""

    prompt: str
    expected: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatus:
    """What a lane does while no token comes: opening, downloading, loading, waiting for its turn."""

    lane: int
    text: str
    fraction: float | None = None
    """How far it is, 0 to 1, where that can be told."""
    is_remark: bool = False
    """Whether it is to be remembered, and not passed over by the next one: what was unloaded, what a file is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneEvent:
    """An event of one lane's reply to one prompt; both count from 0."""

    lane: int
    prompt: int
    event: StreamEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneResult:
    """What came of one lane and one prompt; the last that is told of the two."""

    lane: int
    prompt: int
    reference: str
    """The model as it was typed."""
    seed: int | None
    """None where the lane failed before it had settings."""
    plan: Plan | None = None
    """How it ran; None where the lane failed before that was known."""
    reply: Reply
    """As far as it came: `finish` is `cancelled` or `error` where that was not to its end."""
    error: SlmError | None = None
    total_s: float = 0.0
    """From the request to the last token, loading not counted."""
    joules: float | None = None
    """What the machine spent meanwhile; None where nothing tells (`no_joules` says why) or nothing ran."""
    no_joules: str = ""
    correct: bool | None = None
    """Whether the answer is the expected one by value; None where none is expected, and for a reply that was stopped
    or failed."""
    is_parallel: bool = False
    """Whether other lanes ran at the same time, so that no time here is the model's alone."""
    remarks: tuple[str, ...] = field(default=())
    """What is to be known of the figures."""

    @property
    def peak_rss_bytes(self) -> int:
        """Return the most memory the engine's process held until the reply's end; 0 where nothing tells.

        Lanes of one model share a process.
        """
        return self.reply.timings.peak_rss_bytes

    @property
    def think_s(self) -> float:
        """Return how long it thought: from the first token to the answer's first, or to the end without an answer."""
        timings, usage = self.reply.timings, self.reply.usage
        if not usage.think_tokens:
            return 0.0
        return timings.first_answer_s - timings.first_token_s if timings.first_answer_s else timings.decode_s

    @property
    def tokens(self) -> int | None:
        """Return every token generated, thinking and answer; None where the engine does not count."""
        usage = self.reply.usage
        return None if usage.think_tokens is None else usage.think_tokens + (usage.answer_tokens or 0)


CompareEvent = LaneStatus | LaneEvent | LaneResult


def nothing(finish: Literal["error", "cancelled"]) -> Reply:
    """Return the reply of a lane that never began."""
    return Collector().reply(finish)
