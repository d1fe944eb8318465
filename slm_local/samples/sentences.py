"""What came of several samples, in the words that every front end shares."""

from __future__ import annotations

from slm_local.samples.values import Ballot, Vote
from slm_local.sanitize import one_line

ANSWER_CHARS = 40
"""So much of a final answer is shown where it stands for its voters."""


def short(answer: str) -> str:
    """Return a final answer as it stands in a line."""
    return one_line(answer, ANSWER_CHARS)


def outcome(vote: Vote) -> str:
    """Say how a vote went: "5 of 8 say 85; stopped after 6: decided at 0.96, 2 samples saved, about 300 tokens"."""
    parts = [_result(vote), _early(vote)]
    return "; ".join(part for part in parts if part)


def standing(vote: Vote) -> str:
    """Say how many samples gave which answer: "85 ×5 · 84 ×1 · 1 without an answer"."""
    counts = [f"{short(ballot.answer)} ×{ballot.count}" for ballot in vote.ballots]
    mute = len(vote.samples) - vote.votes - len(vote.cancelled)
    return " · ".join([*counts, *([f"{mute} without an answer"] if mute else [])])


def _result(vote: Vote) -> str:
    if not vote.ballots:
        ended = f"none of {vote.asked} samples" if vote.asked > 1 else "the sample never"
        return f"{ended} came to an answer"
    if vote.votes > 1 and vote.most == 1:
        return f"no two of {vote.votes} samples gave the same answer: the one that thought least is shown"
    leaders = [ballot for ballot in vote.ballots if ballot.count == vote.most]
    first, *others = (_says(ballot) for ballot in leaders)
    said = f"{vote.most} of {vote.asked} {first}"
    if not others:
        return said
    tied = ", ".join(f"{vote.most} {each}" for each in others)
    return f"a tie: {said}, {tied}; the answer of the one that thought least is shown"


def _says(ballot: Ballot) -> str:
    return f"{'says' if ballot.count == 1 else 'say'} {short(ballot.answer)}"


def _early(vote: Vote) -> str:
    """Say why it ended before all samples did, and what that saved."""
    saved = len(vote.cancelled)
    ended = len(vote.samples) - saved
    match vote.ending:
        case "likely":
            why = f"decided at {vote.probability:.2f}"
        case "certain":
            why = "the rest could change nothing"
        case "stopped":
            return f"stopped when {ended} of {vote.asked} had ended"
        case _:
            return ""
    if not saved:  # they ended by themselves before they could be stopped
        return ""
    samples = f"{saved} sample{'s' * (saved != 1)} saved"
    tokens = f", about {vote.saved_tokens:,} tokens" if vote.saved_tokens > 1 else ""
    return f"stopped after {ended}: {why}, {samples}{tokens}"
