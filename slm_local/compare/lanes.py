"""Lanes and the engines they share: which are one model opened one way, what each lacks, what all need at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slm_local.compare.values import LaneStatus
from slm_local.config import Settings
from slm_local.download.values import FetchProgress
from slm_local.engine import Choice, Engine, choose
from slm_local.engine.supply import Confirm, OnFetch, supplied
from slm_local.errors import DoesNotFit, Interrupted, SlmError, UsageError
from slm_local.fit import usable_bytes
from slm_local.generation import Control
from slm_local.hardware import probe
from slm_local.model import Plan
from slm_local.paths import paths
from slm_local.registry import Registry
from slm_local.selector import does_not_fit, gigabytes
from slm_local.system import largest_program

Tell = Callable[[LaneStatus], None]


@dataclass(slots=True, kw_only=True)
class Lane:
    """One reference: how it is to run, and what went wrong with it as a whole, if anything did."""

    number: int
    reference: str
    settings: Settings
    choice: Choice | None = None
    maker: Engine | None = None
    """Makes this lane's requests; it is the group's engine for one lane of a group and never started for the others."""
    error: SlmError | None = None

    @property
    def plan(self) -> Plan | None:
        """Return how it runs, or would."""
        return self.choice.plans[0] if self.choice is not None else None

    @property
    def is_here(self) -> bool:
        """Return whether its files are on this disk."""
        return self.plan is not None and self.plan.variant.path is not None


@dataclass(slots=True, kw_only=True)
class Group:
    """Lanes that share an open model."""

    lanes: list[Lane]
    engine: Engine | None = None
    load_s: float = 0.0
    """How long its load took; 0 once that was told of a reply."""


def prepare(number: int, reference: str, settings: Settings, seed: int, registry: Registry) -> Lane:
    """Find out how a lane would run here, its seed the common one unless it has its own.

    Errors: `UsageError`; any other is the lane's.
    """
    sampling = settings.sampling
    if sampling.seed is None:
        settings = replace(settings, sampling=replace(sampling, seed=seed))
    lane = Lane(number=number, reference=reference, settings=settings)
    try:
        lane.choice = choose(reference, settings=settings, registry=registry)
        if not lane.choice.plans[0].fits and not paths().server_file.exists():  # a server may have it open
            lane.error = does_not_fit(lane.choice.plans[0], largest_program())
    except UsageError:
        raise
    except SlmError as error:
        lane.error = error
    return lane


def grouped(lanes: Sequence[Lane]) -> list[Group]:
    """Return the lanes that can run, those that can share an engine together, in the order of their first ones."""
    groups: dict[tuple[object, ...], Group] = {}
    for lane in lanes:
        if lane.error is None and lane.choice is not None:
            groups.setdefault(_load_key(lane.choice), Group(lanes=[])).lanes.append(lane)
    return list(groups.values())


def _load_key(choice: Choice) -> tuple[object, ...]:
    """Return what two lanes have in common that may share an engine.

    The context counts as it was asked for: what is chosen for it follows the memory free at that moment.
    """
    plan, settings = choice.plans[0], choice.settings
    form = plan.variant
    return (
        *(choice.spec.id, form.kind, form.quant, form.path or (form.repo, form.file)),
        *(plan.backend, plan.device, plan.threads, settings.context_tokens, settings.template_file, settings.bridge),
        settings.speculation,
    )


def needed_together(groups: Sequence[Group]) -> tuple[int | None, int]:
    """Return the memory that all need at once (None where that is not known of each) and what can be used now."""
    needed = [group.lanes[0].plan.memory_bytes if group.lanes[0].plan is not None else None for group in groups]
    known = [each for each in needed if each is not None]
    total = sum(known) if len(known) == len(needed) else None
    return total, usable_bytes(probe().free_ram_bytes)


def check_together(groups: Sequence[Group]) -> None:
    """Raise `DoesNotFit` where all groups together are known to need more memory than there is."""
    total, usable = needed_together(groups)
    if total is not None and total > usable:
        raise DoesNotFit(
            f"at once they need {gigabytes(total)}, and {gigabytes(usable)} can be used",
            hint="without --parallel they run one after the other",
        )


class Supply:
    """Fetches what lanes lack, one download after another, in threads of its own, after each was agreed to."""

    def __init__(
        self,
        groups: Sequence[Group],
        control: Control,
        tell: Tell,
        *,
        confirm: Confirm | None = None,
        on_fetch: OnFetch | None = None,
    ) -> None:
        self._control, self._tell, self._confirm, self._on_fetch = control, tell, confirm, on_fetch
        self._changed = threading.Condition()
        self._waits: list[Group] = []
        self._ready: list[Group] = []
        before: threading.Event | None = None
        for group in groups:
            if group.lanes[0].is_here:
                self._ready.append(group)
                continue
            self._waits.append(group)
            agreed, ended = threading.Event(), threading.Event()
            arguments = (group, before, agreed, ended)
            threading.Thread(target=self._fetch, args=arguments, name="compare-fetch", daemon=True).start()
            agreed.wait()  # the next question comes when this one was answered
            before = ended

    @property
    def is_fetching(self) -> bool:
        """Return whether anything is on its way now."""
        return bool(self._waits)

    def next(self) -> Group | None:
        """Return a group whose files are here or failed to come, waiting for one if need be; None when all are out."""
        with self._changed:
            while not self._ready and self._waits:
                self._changed.wait()
            return self._ready.pop(0) if self._ready else None

    def _fetch(
        self, group: Group, before: threading.Event | None, agreed: threading.Event, ended: threading.Event
    ) -> None:
        lane = group.lanes[0]
        assert lane.choice is not None

        def ask(offer: object) -> None:
            if self._confirm is not None:
                self._confirm(offer)  # type: ignore[arg-type]
            agreed.set()
            if before is not None:
                before.wait()

        try:
            if self._control.cancelled:
                raise Interrupted("stopped before it was fetched")
            lane.choice = supplied(lane.choice, confirm=ask, on_fetch=self._progress_of(lane), control=self._control)
        except SlmError as error:
            lane.error = error
        except KeyboardInterrupt:  # Ctrl-C in place of an answer to the question
            self._control.cancel()
        except Exception as error:
            lane.error = SlmError(f"a bug of slm: {type(error).__name__}: {error}")
        finally:
            agreed.set()
            ended.set()
            with self._changed:
                self._waits.remove(group)
                self._ready.append(group)
                self._changed.notify_all()

    def _progress_of(self, lane: Lane) -> OnFetch:
        def feed(progress: FetchProgress) -> None:
            share = progress.done_bytes / progress.total_bytes if progress.total_bytes else None
            self._tell(LaneStatus(lane=lane.number, text=progress.message or progress.stage, fraction=share))
            if self._on_fetch is not None:
                self._on_fetch(progress)

        return feed
