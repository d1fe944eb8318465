"""What several samples of one prompt tell while they come, and what they come to: values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slm_local.errors import SlmError
from slm_local.generation import Reply, StreamEvent

Ending = Literal["all", "likely", "certain", "stopped", "failed"]
"""Why no more is sampled: all ended; the leader will most probably stay it, or can't be overtaken; a cancel; an
error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleEvent:
    """An event of one sample's reply; samples count from 0."""

    sample: int
    event: StreamEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample that ended; the last that is told of it."""

    number: int
    seed: int
    reply: Reply
    """As far as it came: `finish` is `cancelled` or `error` where that was not to its end."""
    vote: str | None = None
    """Its final answer as it is written there; None where it came to none, or its answer was cut off."""
    error: SlmError | None = None

    @property
    def tokens(self) -> int:
        """Return every token generated, thinking and answer; 0 where the engine does not count."""
        return (self.reply.usage.think_tokens or 0) + (self.reply.usage.answer_tokens or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """An answer and the samples that gave it, by value."""

    answer: str
    """As the one of them wrote it that thought least."""
    samples: tuple[int, ...]

    @property
    def count(self) -> int:
        """Return how many votes it has."""
        return len(self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """How the votes stand; told anew after every sample, the last one is what it came to."""

    asked: int
    """How many samples were asked for."""
    samples: tuple[Sample, ...]
    """Those that ended, in the order of their numbers."""
    ballots: tuple[Ballot, ...]
    """Most votes first; at a tie the one that thought least first."""
    ending: Ending | None = None
    """None while samples are to come that count."""
    probability: float | None = None
    """Where it was decided early: that the leader stays the one that most samples give."""

    @property
    def winner(self) -> Sample | None:
        """Return the sample that speaks for the leading answer: the one of it that thought least; None without a vote.

        At a tie it is the one of all leading answers that thought least, as in short-m@k (Hassid et al., arXiv
        2505.17813): the shorter of two thoughts is more often the right one.
        """
        leaders = {number for ballot in self.ballots if ballot.count == self.most for number in ballot.samples}
        return min((each for each in self.samples if each.number in leaders), key=thought, default=None)

    @property
    def most(self) -> int:
        """Return the votes of the leading answer."""
        return self.ballots[0].count if self.ballots else 0

    @property
    def is_tied(self) -> bool:
        """Return whether more than one answer has the most votes."""
        return sum(ballot.count == self.most for ballot in self.ballots) > 1

    @property
    def votes(self) -> int:
        """Return how many samples gave an answer."""
        return sum(ballot.count for ballot in self.ballots)

    @property
    def cancelled(self) -> tuple[Sample, ...]:
        """Return the samples that were stopped before their end."""
        return tuple(each for each in self.samples if each.reply.finish == "cancelled")

    @property
    def saved_tokens(self) -> int:
        """Estimate the tokens that stopped samples did not write: what a whole one takes on average, less theirs."""
        whole = [each.tokens for each in self.samples if each.vote is not None]
        mean = sum(whole) / len(whole) if whole else 0.0
        return round(sum(max(0.0, mean - each.tokens) for each in self.cancelled))


SampleMessage = SampleEvent | Sample | Vote


def thought(sample: Sample) -> tuple[int, int]:
    """Return how much a sample thought, in characters, as a key to sort by; its number decides between equals."""
    return len(sample.reply.thinking), sample.number
