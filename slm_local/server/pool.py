"""Models kept open for whoever asks next: opened when they are wanted, closed when nobody has wanted them for a while.

Requests for a model are let in in the order in which they came, as many at once as its engine takes. One thread opens
and closes models, so that what is decided about memory holds. It knows no socket and no HTTP.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from slm_local.config import Settings
from slm_local.engine import Engine, Meaning, mean
from slm_local.errors import Interrupted, ServerBusy, UsageError, error_of
from slm_local.generation import Control
from slm_local.model import Plan
from slm_local.registry import Registry
from slm_local.sanitize import shell_word
from slm_local.server.keeper import Change, Keeper, Report
from slm_local.server.places import Key, Place, Ticket
from slm_local.system import rss_bytes

DEFAULT_KEEP_ALIVE_S = 300.0
DEFAULT_QUEUE_LIMIT = 64
LEAVE_S = 5.0
"""Longest wait for models to be closed that nobody is at."""

ENDING = "the server is ending"

Status = Callable[[str], None]

__all__ = ["DEFAULT_KEEP_ALIVE_S", "DEFAULT_QUEUE_LIMIT", "Attachment", "Change", "Lease", "Pool", "Report", "Running"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A model that is open, or on its way to be."""

    reference: str
    """By which it was asked for first."""
    model: str
    """The id of its spec."""
    plan: Plan | None
    """How it runs; None while it is loading."""
    pid: int | None
    memory_bytes: int | None
    """What its process holds now; None where there is none, or where the system does not say."""
    live: int
    """Requests at it now."""
    waiting: int
    """Requests that wait for a place, or for the model to be open."""
    attached: int
    """Clients that go on with it now and then."""
    idle_s: float
    """Seconds since it was needed last; 0 while it is."""
    expires_s: float | None
    """Seconds after which it is closed if nobody comes; None: not by itself."""


class Lease:
    """A request's place at an open model. A context manager that gives it back."""

    def __init__(self, pool: Pool, ticket: Ticket, maker: Engine) -> None:
        assert ticket.place.engine is not None
        self.engine = ticket.place.engine
        """The open model, which others use at the same time."""
        self.maker = maker
        """Makes requests with the settings of this lease (`request`, `thinking`, `sampling`); it is never started."""
        self._pool, self._ticket = pool, ticket

    def keep(self, keep_alive_s: float) -> None:
        """Have the model stay open for so long after its last use, from now on; infinity: for ever."""
        with self._pool._changed:
            self._ticket.place.keep_alive_s = keep_alive_s
            self._pool._changed.notify_all()

    def release(self) -> None:
        """Give the place back; more than once does no harm."""
        self._pool._release(self._ticket)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Attachment:
    """A client that goes on with one model: between its requests the model is not closed for being idle."""

    def __init__(self, pool: Pool, key: Key, lease: Lease) -> None:
        self.key = key
        self.engine = lease.engine
        """What the newest lease had: it may be closed, where memory was short meanwhile."""
        self.maker = lease.maker
        self._pool = pool

    def lease(self, control: Control | None = None) -> Lease:
        """Wait for a place. Errors: as `Pool.lease`."""
        lease = self._pool.lease(*self.key, control)
        self.engine, self.maker = lease.engine, lease.maker
        return lease

    def close(self) -> None:
        """Let go of the model."""
        self._pool._detach(self)


class Pool:
    """All open models of a process. Any thread may call it; `close` ends it."""

    def __init__(
        self,
        registry: Callable[[], Registry],
        settings: Callable[[Mapping[str, str]], Settings],
        *,
        keep_alive_s: float | None = DEFAULT_KEEP_ALIVE_S,
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
        report: Report | None = None,
    ) -> None:
        """Begin with no model open.

        `registry` is asked when a model is to be opened, `settings` what applies to a reference that has settings of
        its own, as `EngineFlags.settings`. `keep_alive_s`: 0 closes a model as soon as it is idle, None never.
        `report` is told of models opened and closed, by the thread that does it.
        """
        self._registry, self._settings = registry, settings
        self._keep_alive_s = math.inf if keep_alive_s is None else keep_alive_s
        self._queue_limit = queue_limit
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._attached: set[Attachment] = set()
        self._keeper = Keeper(self._changed, self._is_attached, report or (lambda change: None))
        self._places = self._keeper.places
        self._is_closed = self._is_leaving = False

    def lease(
        self,
        reference: str,
        settings: Settings | None = None,
        control: Control | None = None,
        *,
        on_status: Status | None = None,
    ) -> Lease:
        """Return a place at a model, which is opened first where it is not; blocks until it is this request's turn.

        `settings` None are those of the pool under what hangs on the reference. `on_status` is told how a load goes
        on. Errors: `UnknownModel`, `UsageError`, `DownloadFailed` for what is not here, `DoesNotFit`, `ModelBroken`,
        `EngineMissing`, `WorkerCrashed`; `ServerBusy` where too many wait; `Interrupted` when `control` was cancelled.
        """
        control = control or Control()
        ticket = self._enqueued((reference, settings), control)
        control.on_cancel(self._wake)
        try:
            return self._admitted(ticket, on_status or (lambda text: None))
        finally:
            with self._changed:
                self._keeper.forget(ticket)

    def attach(
        self,
        reference: str,
        settings: Settings | None = None,
        control: Control | None = None,
        *,
        on_status: Status | None = None,
        keep_alive_s: float | None = None,
    ) -> Attachment:
        """Open a model for a client that goes on with it; blocks. Errors: as `lease`.

        `keep_alive_s` is how long it stays open after its last use from now on; None: as it is.
        """
        with self.lease(reference, settings, control, on_status=on_status) as lease, self._changed:
            if self._is_leaving:
                raise ServerBusy(ENDING)
            attachment = Attachment(self, (reference, settings), lease)
            self._attached.add(attachment)
            if keep_alive_s is not None:
                lease.keep(keep_alive_s)
        return attachment

    def running(self) -> tuple[Running, ...]:
        """Return what is open or on its way, oldest first; of what died only what is wanted again."""
        with self._changed:
            return tuple(self._running(each) for each in self._places if each.live or each.queue or not each.has_died)

    def stop(self, reference: str | None = None) -> tuple[str, ...]:
        """Close a model, or all; what is at it is cancelled first. Return the ids of those closed; blocks.

        Errors: `UsageError` where no such model is open.
        """
        with self._changed:
            chosen = [place for place in self._places if reference is None or _is_named(place, reference)]
            if reference is not None and not chosen:
                raise UsageError(f"{reference} is not open", hint="slm ps")
            return self._closed(chosen)

    def free(self, target: str) -> tuple[str, ...]:
        """Close what has a model's file or folder open, for it is to go; return the ids of those closed; blocks.

        Errors: `UsageError` where somebody is at it.
        """
        with self._changed:
            chosen = [place for place in self._places if place.has_open(target)]
            for place in chosen:
                if place.live or place.queue or self._is_attached(place):
                    name = place.meaning.spec.id
                    raise UsageError(f"{name} is in use in the server", hint=f"slm stop {shell_word(name)}")
            return self._closed(chosen)

    def _closed(self, chosen: Sequence[Place]) -> tuple[str, ...]:
        """Close models and wait until they are; wants the lock held. Return their ids."""
        for place in chosen:
            self._keeper.dismiss(place, "asked")
        self._changed.wait_for(lambda: not any(place in self._places for place in chosen) or self._is_closed)
        return tuple(place.meaning.spec.id for place in chosen)

    def leave(self) -> None:
        """From now on keep nothing open but what a request is at or waits for; blocks until the rest is closed.

        Clients that go on with a model don't keep it open any more, and no other may begin to.
        """
        with self._changed:
            self._is_leaving, self._keep_alive_s = True, 0.0
            self._attached.clear()
            for place in self._places:
                place.keep_alive_s = 0.0
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(place.live or place.queue for place in self._places), LEAVE_S)

    def close(self) -> None:
        """Cancel everything and close all models; blocks. A lease that is asked for later is refused."""
        with self._changed:
            self._is_closed = True
            for place in self._places:
                self._keeper.dismiss(place, "end")
        self._keeper.close()

    def _enqueued(self, key: Key, control: Control) -> Ticket:
        with self._changed:
            known = (each for each in self._places if key in each.known and not each.is_outdated)
            meaning = next((each.known[key] for each in known), None)
        meaning = meaning or self._mean(*key)  # may take a while: not under the lock
        with self._changed:
            if self._is_closed:
                raise ServerBusy(ENDING)
            place = self._place_for(key, meaning)
            if len(place.queue) - max(0, place.free_places) >= self._queue_limit:
                raise ServerBusy(f"{len(place.queue)} requests wait for {meaning.spec.id} already", hint="slm ps")
            ticket = Ticket(number=next(self._numbers), control=control, key=key, meaning=meaning, place=place)
            place.queue.append(ticket)
            self._changed.notify_all()
        return ticket

    def _mean(self, reference: str, settings: Settings | None) -> Meaning:
        registry = self._registry()
        if settings is None:
            settings = self._settings(registry.resolve(reference).settings)
        return mean(reference, settings=settings, registry=registry)

    def _place_for(self, key: Key, meaning: Meaning) -> Place:
        """Return the place of a model that serves, open or on its way; else a new one. Errors: `UsageError`."""
        for place in self._places:
            if place.leaves is None and (key in place.known or place.serves(meaning)):
                if not place.is_outdated:
                    return place
                place.leaves = "changed"
        place = Place(meaning=meaning, keep_alive_s=self._keep_alive_s)
        self._places.append(place)
        return place

    def _admitted(self, ticket: Ticket, on_status: Status) -> Lease:
        """Wait for a ticket's turn and return its lease; tell how a load goes on, without holding anybody up."""
        told = ""
        while True:
            with self._changed:
                while not (is_its_turn := self._keeper.may_go(ticket)) and ticket.place.status == told:
                    _check(ticket)
                    self._changed.wait()
                _check(ticket)
                place = ticket.place
                if is_its_turn:
                    place.queue.popleft()
                    place.live.add(ticket)
                    self._changed.notify_all()
                    place.learn(ticket.key, ticket.meaning)
                    return Lease(self, ticket, place.maker(ticket.key))
                told = place.status
            on_status(told)

    def _release(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in ticket.place.live:
                ticket.place.live.remove(ticket)
                ticket.place.used_s = time.monotonic()
                self._keeper.unblock()

    def _detach(self, attachment: Attachment) -> None:
        with self._changed:
            if attachment in self._attached:
                self._attached.remove(attachment)
                for place in self._places:
                    if attachment.engine is place.engine:
                        place.used_s = time.monotonic()
                self._changed.notify_all()

    def _is_attached(self, place: Place) -> bool:
        return self._attached_to(place) > 0

    def _attached_to(self, place: Place) -> int:
        return sum(each.engine is place.engine for each in self._attached)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _running(self, place: Place) -> Running:
        engine, is_needed = None if place.has_died else place.engine, bool(place.live or place.queue)
        pid = engine.pid if engine is not None else None
        now_s = time.monotonic()
        stays_s = math.inf if self._attached_to(place) else place.expires_in_s(now_s)
        return Running(
            reference=place.meaning.reference,
            model=place.meaning.spec.id,
            plan=engine.plan if engine is not None else None,
            pid=pid,
            memory_bytes=rss_bytes(pid) if pid is not None else None,
            live=len(place.live),
            waiting=len(place.queue),
            attached=self._attached_to(place),
            idle_s=0.0 if is_needed else now_s - place.used_s,
            expires_s=None if math.isinf(stays_s) else stays_s,
        )


def _check(ticket: Ticket) -> None:
    """Raise why a ticket won't have its turn, if it won't."""
    if ticket.control.cancelled:
        raise Interrupted(f"stopped while it waited for {ticket.place.meaning.spec.id}")
    if ticket.failure is not None:
        raise error_of(ticket.failure.record())


def _is_named(place: Place, reference: str) -> bool:
    """Tell whether a model is meant by a reference, whatever settings hang on either."""
    meaning = place.meaning
    names = {meaning.spec.id, *meaning.spec.aliases, meaning.reference, meaning.reference.rpartition("@")[0]}
    return reference.casefold() in {name.casefold() for name in names}
