"""Runs the samples: a thread for each, all over one open engine, their events in one queue; counts as they end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from slm_local.engine import Engine
from slm_local.errors import SlmError
from slm_local.generation import Control, Done, Finish, GenerationRequest, Reply
from slm_local.metrics import Collector
from slm_local.pump import Mailbox
from slm_local.samples.tally import Tally, vote_of
from slm_local.samples.values import Sample, SampleEvent, SampleMessage
from slm_local.samples.variety import seeded

STOP_WAIT_S = 15.0
"""Longest wait for samples that were told to stop; a child that does not answer is killed before that."""


def draw(
    engine: Engine,
    request: GenerationRequest,
    *,
    seeds: Sequence[int],
    stops_early: bool = False,
    control: Control | None = None,
) -> Iterator[SampleMessage]:
    """Answer a request once for each seed, all at once; yield what happens.

    After the events of a sample comes its `Sample`, and after each of these a `Vote`, the last one with its `ending`.
    With `stops_early` the rest is cancelled once the vote is decided. Cancelling `control` ends all,
    `control.end_thinking()` the thinking of all. Errors: as `Engine.stream`; the first one cancels the rest and is
    raised behind the last vote.
    """
    drawing = _Drawing(engine, request, seeds, control or Control())
    yield from drawing.run(stops_early=stops_early)


class _Drawing:
    """The samples under way."""

    def __init__(self, engine: Engine, request: GenerationRequest, seeds: Sequence[int], control: Control) -> None:
        self._engine, self._request, self._seeds, self._control = engine, request, seeds, control
        self._told: Mailbox[SampleEvent | Sample] = Mailbox()
        self._controls = [Control() for _ in seeds]
        for each in self._controls:
            control.on_cancel(each.cancel)
            control.on_end_thinking(each.end_thinking)

    def run(self, *, stops_early: bool) -> Iterator[SampleMessage]:
        """Yield all messages."""
        engine = self._engine
        engine.start(self._control)
        remembered, engine.remembers_speed = engine.remembers_speed, engine.remembers_speed and len(self._seeds) == 1
        threads = [
            threading.Thread(target=self._sample, args=(n,), name="slm-sample", daemon=True)
            for n in range(len(self._seeds))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._counted(stops_early=stops_early)
        finally:
            self._cancel()
            for thread in threads:
                thread.join(STOP_WAIT_S)
            engine.remembers_speed = remembered

    def _counted(self, *, stops_early: bool) -> Iterator[SampleMessage]:
        tally = Tally(len(self._seeds))
        failure: SlmError | None = None
        for message in self._told.read():
            yield message
            if isinstance(message, SampleEvent):
                continue
            tally.add(message)
            if not tally.is_decided:
                failure = failure or message.error
            is_going_on = failure is None and not self._control.cancelled
            if failure is not None or (stops_early and is_going_on and tally.decide()):
                self._cancel()
            if not tally.left:
                self._told.end()
            yield tally.vote()
        if failure is not None:
            raise failure

    def _cancel(self) -> None:
        for each in self._controls:
            each.cancel()

    def _sample(self, number: int) -> None:
        """Run one sample to its end, in a thread of its own."""
        collector, error = Collector(), None
        reply: Reply | None = None
        request, control = seeded(self._request, self._seeds[number]), self._controls[number]
        try:
            for event in () if control.cancelled else self._engine.stream(request, control):
                collector.feed(event)
                if isinstance(event, Done):
                    reply = event.reply
                else:
                    self._told.tell(SampleEvent(sample=number, event=event))
        except SlmError as failure:
            error = failure
        except BaseException as bug:  # for whoever reads the messages
            self._told.end(bug)
            return
        finish: Finish = "cancelled" if error is None else "error"
        reply = reply or collector.reply(finish)
        sample = Sample(number=number, seed=self._seeds[number], reply=reply, vote=vote_of(reply), error=error)
        self._told.tell(sample)
