"""The plain ways to show several samples: on a pipe, on a terminal without escapes, as JSON, as JSON lines.

The columns of a terminal are in `columns`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from slm_local.cli.render import DIM, Terminal
from slm_local.cli.views import PIPE_FRAME_S, Subject, delta_values, reply_object
from slm_local.cli.watching import Sampled
from slm_local.errors import SlmError
from slm_local.generation import Started, StreamEvent
from slm_local.samples import Sample, Vote
from slm_local.samples.sentences import short, standing
from slm_local.sanitize import visible

NOTHING = Vote(asked=0, samples=(), ballots=(), ending="failed")
"""The vote of samples that were never begun."""


def samples_object(subject: Subject, vote: Vote, error: SlmError | None = None) -> dict[str, Any]:
    """Return the JSON object of several samples, with its exact text."""
    values = {**outcome_object(vote), "samples": [sample_object(subject, each) for each in vote.samples]}
    return values if error is None else {**values, "error": asdict(error.record())}


def outcome_object(vote: Vote) -> dict[str, Any]:
    """Return what several samples came to as JSON values, without the samples."""
    winner = vote.winner
    votes = [{"answer": each.answer, "count": each.count, "samples": list(each.samples)} for each in vote.ballots]
    return {
        "answer": winner.reply.answer if winner is not None else None,
        "winner": winner.number if winner is not None else None,
        "tied": vote.is_tied,
        "votes": votes,
        "asked": vote.asked,
        "ending": vote.ending,
        "probability": vote.probability,
        "saved": {"samples": len(vote.cancelled), "tokens": vote.saved_tokens},
    }


def votes_line(vote: Vote, error: SlmError | None = None) -> dict[str, Any]:
    """Return the last of the JSON lines: what several samples came to."""
    failed = {} if error is None else {"error": asdict(error.record())}
    return {"event": "votes", **outcome_object(vote), **failed}


def sample_object(subject: Subject, sample: Sample) -> dict[str, Any]:
    """Return a sample as JSON values: those of a reply, its number, its seed and its vote."""
    own = {"sample": sample.number, "seed": sample.seed, "vote": sample.vote}
    return {**own, **reply_object(subject, sample.reply, sample.error)}


class PlainSamples:
    """Answers on stdout, thinking on stderr once a sample is whole: of several at once nothing could be read."""

    frame_s = PIPE_FRAME_S

    def __init__(
        self, terminal: Terminal, *, asked: int, votes: bool, shows_thinking: bool, is_quiet: bool = False
    ) -> None:
        """With `votes` stdout gets the winner's answer alone, else each, in the order of their numbers."""
        self._terminal, self._asked, self._votes = terminal, asked, votes
        self._shows_thinking, self._is_quiet = shows_thinking and not is_quiet, is_quiet
        self._ended: dict[int, Sample] = {}
        self._written = 0

    def feed(self, sample: int, event: StreamEvent) -> None:
        """Do nothing: a sample is shown when it is whole."""

    def end(self, sample: Sample) -> None:
        """Show a sample's thinking, and the answers whose turn it is."""
        self._ended[sample.number] = sample
        if not self._is_quiet and (sample.reply.thinking or sample.reply.answer):
            self._say(sample)
        while not self._votes and self._written in self._ended:
            self._write(self._ended[self._written])

    def draw(self, vote: Vote | None, *, remark: str) -> None:
        """Show in passing how the votes stand."""
        if vote is not None and not self._is_quiet:
            self._terminal.status(f"{len(vote.samples)} of {self._asked} samples · {standing(vote)} · {remark}")

    def close(self, outcome: Sampled) -> None:
        """Write the winner's answer, or those that are there of samples that were waited for in vain."""
        winner = outcome.vote.winner
        if self._votes and winner is not None:
            self._line(winner.reply.answer)
        for number in () if self._votes else sorted(each for each in self._ended if each >= self._written):
            self._write(self._ended[number])

    def _say(self, sample: Sample) -> None:
        title = f"sample {sample.number + 1} of {self._asked}"
        if self._shows_thinking and sample.reply.thinking:
            self._terminal.say(f"── thinking · {title} ──", DIM)
            self._terminal.say(sample.reply.thinking.rstrip("\n"), DIM)
        self._terminal.say(f"{title}: {short(sample.vote) if sample.vote is not None else sample.reply.finish}", DIM)

    def _write(self, sample: Sample) -> None:
        """Write an answer under its title: of several each must be known for what it is."""
        self._written = sample.number + 1
        self._terminal.line(f"── sample {sample.number + 1} of {self._asked} ──")
        if sample.reply.answer:
            self._line(sample.reply.answer)
        self._terminal.line()

    def _line(self, answer: str) -> None:
        self._terminal.write(visible(answer).rstrip("\n") + "\n")


class JsonSamples:
    """One object when all is done."""

    frame_s = PIPE_FRAME_S

    def __init__(self, terminal: Terminal, subject: Subject) -> None:
        self._terminal, self._subject = terminal, subject

    def feed(self, sample: int, event: StreamEvent) -> None:
        """Do nothing: the outcome holds it all."""

    def end(self, sample: Sample) -> None:
        """Do nothing."""

    def draw(self, vote: Vote | None, *, remark: str) -> None:
        """Do nothing."""

    def close(self, outcome: Sampled) -> None:
        """Write the object."""
        self._terminal.json(samples_object(self._subject, outcome.vote, outcome.error))


class JsonLinesSamples:
    """One event a line with its sample's number, how it went last."""

    frame_s = PIPE_FRAME_S

    def __init__(self, terminal: Terminal, subject: Subject) -> None:
        self._terminal, self._subject = terminal, subject

    def feed(self, sample: int, event: StreamEvent) -> None:
        """Write an event with text, and the first."""
        if isinstance(event, Started):
            self._write("started", {"sample": sample, **self._subject.values(), **asdict(event)})
        elif (values := delta_values(event)) is not None:
            self._write(values[0], {"sample": sample, **values[1]})

    def end(self, sample: Sample) -> None:
        """Write a sample's last line."""
        self._write("done" if sample.error is None else "error", sample_object(self._subject, sample))

    def draw(self, vote: Vote | None, *, remark: str) -> None:
        """Do nothing."""

    def close(self, outcome: Sampled) -> None:
        """Write the last line."""
        self._terminal.json(votes_line(outcome.vote, outcome.error), is_line=True)

    def _write(self, event: str, values: dict[str, Any]) -> None:
        self._terminal.json({"event": event, **values}, is_line=True)
