"""From the messages of several samples to a view: each sample at its own pace, Enter and Ctrl-C heard for all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from slm_local.cli.stream import Person, failure_of, heard, read_while
from slm_local.errors import SlmError
from slm_local.generation import AnswerDelta, Control, StreamEvent
from slm_local.pump import Pacer, Pump
from slm_local.samples import Ending, Sample, SampleEvent, SampleMessage, Vote
from slm_local.system import TypedLine


class SamplesView(Protocol):
    """Shows samples. All calls come from one thread."""

    frame_s: float
    """Time between two calls of `draw`."""

    def feed(self, sample: int, event: StreamEvent) -> None:
        """Take an event of a sample."""
        ...

    def end(self, sample: Sample) -> None:
        """Take a sample that ended, behind its last event."""
        ...

    def draw(self, vote: Vote | None, *, remark: str) -> None:
        """Show what came, how the votes stand (None: none ended), and beside it what can be done."""
        ...

    def close(self, outcome: Sampled) -> None:
        """Show the rest; called once, whatever happened."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What several samples came to, and what ended them before their time."""

    vote: Vote
    error: SlmError | None = None
    was_interrupted: bool = False
    typed: tuple[TypedLine, ...] = ()
    """Lines that were typed while they thought and are for whoever reads next."""


def watch(
    messages: Iterator[SampleMessage],
    view: SamplesView,
    control: Control,
    *,
    asked: int,
    pace: float | None = None,
    hears_keys: bool = False,
) -> Sampled:
    """Show samples to their end and say what they came to; keys and Ctrl-C are as for `play`, and mean all of them.

    `pace` is the tokens a second at which each is shown.
    """
    pump: Pump[SampleMessage] = Pump(messages, lambda message: None)
    with heard(control, listens=hears_keys) as person:
        watching = _Watching(pump, view, person, [_Lane(Pacer(pace)) for _ in range(asked)])
        read_while(pump, control, watching.show)
    error = failure_of(pump)
    ending: Ending = "stopped" if error is None else "failed"
    vote = watching.vote or Vote(asked=asked, samples=(), ballots=(), ending=ending)
    outcome = Sampled(vote=vote, error=error, was_interrupted=bool(person.presses), typed=tuple(person.typed))
    view.close(outcome)
    person.leave_if_pressed_twice()
    return outcome


@dataclass(slots=True)
class _Lane:
    """What came of one sample and is not shown yet."""

    pacer: Pacer
    waiting: deque[tuple[float, StreamEvent]] = field(default_factory=deque)
    end: Sample | None = None
    is_past_thinking: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.waiting and self.end is None


@dataclass(slots=True)
class _Watching:
    """Samples that are being shown."""

    pump: Pump[SampleMessage]
    view: SamplesView
    person: Person
    lanes: list[_Lane]
    vote: Vote | None = None

    def show(self) -> None:
        """Show them to their end, or to the second Ctrl-C."""
        while True:
            if self.pump.ended.is_set():
                time.sleep(self.view.frame_s)  # only the pacers hold events back now
            has_ended = self.pump.ended.wait(self.view.frame_s)
            self._sort()
            now_s = time.perf_counter()
            for number, lane in enumerate(self.lanes):
                self._show_due(number, lane, now_s)
            if all(lane.is_past_thinking for lane in self.lanes):
                self.person.stop_listening()
            self.view.draw(self.vote, remark=self.person.remark)
            if (has_ended and all(lane.is_empty for lane in self.lanes)) or len(self.person.presses) > 1:
                return

    def _sort(self) -> None:
        """Hand each sample what came of it."""
        while self.pump.waiting:
            at_s, message = self.pump.waiting.popleft()
            match message:
                case SampleEvent():
                    self.lanes[message.sample].waiting.append((at_s, message.event))
                case Sample():
                    self.lanes[message.number].end = message
                case Vote():
                    self.vote = message
                case _:
                    assert_never(message)

    def _show_due(self, number: int, lane: _Lane, now_s: float) -> None:
        if self.person.is_hurried:
            lane.pacer.tokens_per_s = None
        for _, event in lane.pacer.take(lane.waiting, now_s):
            lane.is_past_thinking = lane.is_past_thinking or isinstance(event, AnswerDelta)
            self.view.feed(number, event)
        if lane.end is not None and not lane.waiting:
            self.view.end(lane.end)
            lane.end, lane.is_past_thinking = None, True
