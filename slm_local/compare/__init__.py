"""One prompt through several models, or several settings of one: each with its own thinking, answer and measures.

One after the other, since models that share a machine falsify each other's speed; at once when asked. It shows
nothing: it yields what happens, lane by lane.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from slm_local.compare.conductor import Conductor, Wishes
from slm_local.compare.values import CompareEvent, LaneEvent, LaneResult, LaneStatus, Question
from slm_local.compare.verdict import Interval, Verdict, paired_difference, verdicts
from slm_local.config import Settings, draw_seed
from slm_local.engine.supply import Confirm, OnFetch
from slm_local.generation import Control
from slm_local.pump import Mailbox
from slm_local.registry import Registry

if TYPE_CHECKING:
    from slm_local.store import Store

__all__ = [
    "CompareEvent",
    "Interval",
    "LaneEvent",
    "LaneResult",
    "LaneStatus",
    "Question",
    "Verdict",
    "compare",
    "paired_difference",
    "verdicts",
]

STOP_WAIT_S = 15.0
"""Longest wait for lanes that were told to stop; a child that does not answer is killed before that."""


def compare(
    references: Sequence[str],
    prompts: Sequence[Question],
    *,
    settings_for: Callable[[str], Settings],
    registry: Registry,
    seed: int | None = None,
    parallel: bool = False,
    control: Control | None = None,
    confirm: Confirm | None = None,
    on_fetch: OnFetch | None = None,
    store: Store | None = None,
) -> Iterator[CompareEvent]:
    """Ask every lane every prompt; yield what happens, at the end of each reply its `LaneResult`.

    A lane that fails yields results with its error, the others go on. `seed` None draws one; a lane whose settings
    have one keeps it. Cancelling `control` ends the replies under way, and every prompt that any lane began has a
    result of each lane then, `cancelled` where it did not run; `control.end_thinking()` ends the thinking of the
    replies under way, each time it is called. `confirm` and `on_fetch` are called from other threads. With a `store`
    every reply is kept in the history.

    Raises at once, before anything is loaded: `UsageError` (and `UnknownModel`, `ConfigError`) for any lane;
    `DoesNotFit` with `parallel` where all together need more memory than there is.
    """
    control = control or Control()
    told: Mailbox[CompareEvent] = Mailbox()
    wishes = Wishes(
        references=tuple(references),
        questions=tuple(prompts),
        settings_for=settings_for,
        registry=registry,
        seed=draw_seed() if seed is None else seed,
        is_parallel=parallel,
        confirm=confirm,
        on_fetch=on_fetch,
        store=store,
    )
    conductor = Conductor(wishes, control, told.tell)

    def conduct() -> None:
        try:
            conductor.run()
            told.end()
        except BaseException as error:  # for whoever reads the events
            told.end(error)

    thread = threading.Thread(target=conduct, name="compare", daemon=True)
    thread.start()
    try:
        yield from told.read()
    finally:
        if thread.is_alive():
            control.cancel()
            thread.join(STOP_WAIT_S)
