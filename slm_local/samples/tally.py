"""Counts votes: which samples gave an answer, which of the answers are the same by value, how that stands."""

from __future__ import annotations

from slm_local.answers import final_answer, same_answer
from slm_local.generation import Reply
from slm_local.samples.stopping import Decision, decision
from slm_local.samples.values import Ballot, Ending, Sample, Vote, thought


def vote_of(reply: Reply) -> str | None:
    """Return the final answer of a reply that came to its end; None for any other.

    An answer that was cut off is no vote: the last number in it may be half a number.
    """
    return final_answer(reply.answer) if reply.finish == "stop" else None


class Tally:
    """The samples of one vote as they end."""

    def __init__(self, asked: int) -> None:
        self._asked = asked
        self._samples: list[Sample] = []
        self._groups: list[list[Sample]] = []
        self._decision: Decision | None = None

    @property
    def left(self) -> int:
        """Return how many samples have not ended."""
        return self._asked - len(self._samples)

    def add(self, sample: Sample) -> None:
        """Count a sample that ended; comparing answers that are more than numbers may take seconds."""
        self._samples.append(sample)
        if sample.vote is None:
            return
        for group in self._groups:
            if same_answer(group[0].vote or "", sample.vote):
                group.append(sample)
                return
        self._groups.append([sample])

    @property
    def is_decided(self) -> bool:
        """Return whether what is left need not be waited for; once that is so it stays so."""
        return self._decision is not None

    def decide(self) -> bool:
        """Tell whether it is decided now."""
        if self._decision is None:
            counts = sorted((len(group) for group in self._groups), reverse=True)
            leader, second = (*counts, 0, 0)[:2]
            self._decision = decision(leader, second, self.left)
        return self.is_decided

    def vote(self) -> Vote:
        """Return how it stands."""
        groups = sorted(self._groups, key=lambda group: (-len(group), min(thought(each) for each in group)))
        return Vote(
            asked=self._asked,
            samples=tuple(sorted(self._samples, key=lambda each: each.number)),
            ballots=tuple(_ballot(group) for group in groups),
            ending=self._ending(),
            probability=self._decision.probability if self._decision is not None and not self._is_whole else None,
        )

    @property
    def _is_whole(self) -> bool:
        """Whether all ended by themselves, also where the last ones were told to stop."""
        return not self.left and all(each.reply.finish not in ("cancelled", "error") for each in self._samples)

    def _ending(self) -> Ending | None:
        if self._is_whole:
            return "all"
        if self._decision is not None:
            return self._decision.why
        if any(each.error is not None for each in self._samples):
            return "failed"
        if any(each.reply.finish == "cancelled" for each in self._samples):
            return "stopped"
        return None


def _ballot(group: list[Sample]) -> Ballot:
    speaker = min(group, key=thought)
    return Ballot(answer=speaker.vote or "", samples=tuple(sorted(each.number for each in group)))
