"""The thread that opens and closes models: one at a time, so that each decision about memory holds until it is done."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from slm_local.engine import Engine, ranked
from slm_local.errors import Interrupted, SlmError
from slm_local.generation import Control
from slm_local.model import Plan
from slm_local.server.places import Place, Ticket, UnloadReason, is_cramped, state_of
from slm_local.system import taken_bytes

END_WAIT_S = 5.0
"""Longest wait for those that are at a model when all ends; an engine that does not answer is killed before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A model was opened or closed."""

    model: str
    what: Literal["load", "unload"]
    took_s: float
    reason: UnloadReason | None = None
    """Why it was closed."""


Report = Callable[[Change], None]


class Keeper:
    """Opens and closes models. Everything but `close` wants `changed`, the pool's own lock, held by its caller."""

    def __init__(self, changed: threading.Condition, is_attached: Callable[[Place], bool], report: Report) -> None:
        self.places: list[Place] = []
        """What is open or wanted, oldest first."""
        self._changed, self._is_attached, self._report = changed, is_attached, report
        self._ends_at_s: float | None = None
        self._thread = threading.Thread(target=self._keep, name="slm-keeper", daemon=True)
        self._thread.start()

    def may_go(self, ticket: Ticket) -> bool:
        """Tell whether it is a ticket's turn: a model waits, too, for which another one has to make room."""
        place = ticket.place
        if place.engine is None or place.leaves is not None or place.free_places < 1:
            return False
        if not place.queue or place.queue[0] is not ticket:
            return False
        blocked = (other.queue[0].number for other in self.places if other.is_blocked and other.queue)
        return ticket.number < min(blocked, default=ticket.number + 1)

    def forget(self, ticket: Ticket) -> None:
        """Take a ticket out of its queue, where it still is there; a load for which nobody waits is ended."""
        place = ticket.place
        if ticket in place.queue:
            place.queue.remove(ticket)
        if place.engine is None and not place.queue:
            place.load_control.cancel()
            if not place.is_loading and place in self.places:
                self.places.remove(place)
        self._changed.notify_all()

    def dismiss(self, place: Place, reason: UnloadReason) -> None:
        """Have a model closed, and whatever is at it or waits for it cancelled."""
        place.leaves = reason
        for ticket in (*place.queue, *place.live):
            ticket.control.cancel()
        self._changed.notify_all()

    def unblock(self) -> None:
        """Have a model that lacked room tried again: something changed."""
        for place in self.places:
            place.was_tried = False
        self._changed.notify_all()

    def close(self) -> None:
        """End the thread, once all models are closed; blocks, and wants the lock not held."""
        with self._changed:
            self._ends_at_s = time.monotonic() + END_WAIT_S
            self._changed.notify_all()
        self._thread.join()

    def _keep(self) -> None:
        while (task := self._next()) is not None:
            act, place = task
            act(place)

    def _next(self) -> tuple[Callable[[Place], None], Place] | None:
        """Wait for something to do; None when all is over."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                is_late = self._ends_at_s is not None and now_s >= self._ends_at_s
                for place in self.places:
                    if place.engine is not None and self._expires_in_s(place, now_s) <= 0.0:
                        place.leaves = place.leaves or "idle"
                    if place.leaves is not None and place.engine is not None and (not place.live or is_late):
                        return self._unload, place
                wanted = [each for each in self.places if each.is_wanted]
                if wanted:
                    place = min(wanted, key=lambda each: each.queue[0].number)
                    place.is_loading = True
                    return self._load, place
                if self._ends_at_s is not None and (not self.places or is_late):
                    return None
                self._changed.wait(self._until_next(now_s))

    def _expires_in_s(self, place: Place, now_s: float) -> float:
        is_kept = place.leaves is not None or self._is_attached(place)
        return math.inf if is_kept else place.expires_in_s(now_s)

    def _until_next(self, now_s: float) -> float:
        """Return for how long nothing is to be done unless something changes."""
        waits = [self._expires_in_s(place, now_s) for place in self.places if place.engine is not None]
        if self._ends_at_s is not None:
            waits.append(self._ends_at_s - now_s)
        return max(0.0, min([threading.TIMEOUT_MAX, *waits]))

    def _load(self, place: Place) -> None:
        try:
            self._open(place)
        except Interrupted:
            pass  # nobody waits any more; who came meanwhile has it tried again
        except SlmError as error:
            self._fail(place, error)
        except Exception as error:
            traceback.print_exc()
            self._fail(place, SlmError(f"a bug of slm: {type(error).__name__}: {error}"))
        finally:
            with self._changed:
                place.is_loading, place.status = False, ""
                place.is_blocked &= place.engine is None
                if place.engine is None and not place.queue and place in self.places:
                    self.places.remove(place)
                self._changed.notify_all()

    def _open(self, place: Place) -> None:
        begun_s = time.monotonic()
        with self._changed:
            place.load_control = control = Control()
            if not place.queue or self._is_joined(place):
                return
        choice = ranked(place.meaning, held_bytes=self._held_bytes())
        plan = choice.plans[0]
        lacks_room = plan.variant.path is not None and (not plan.fits or is_cramped(plan))
        if lacks_room and self._has_to_wait(place, plan):
            return
        file_state = state_of(plan.variant.path)  # before it is read: what changes meanwhile is seen
        engine = Engine(choice, on_status=lambda text: self._tell(place, text))
        try:
            engine.start(control)
        except BaseException:
            engine.close()
            raise
        self._report(Change(model=plan.spec.id, what="load", took_s=time.monotonic() - begun_s))
        with self._changed:  # who sees it open sees that it was told
            place.engine, place.used_s = engine, time.monotonic()
            place.file_state = file_state

    def _is_joined(self, place: Place) -> bool:
        """Have those who wait for a model wait for another place, where what is open there by now serves them."""
        for other in self.places:
            if other is not place and other.engine is not None and not other.leaves and other.serves(place.meaning):
                for ticket in place.queue:
                    ticket.place = other
                other.queue = deque(sorted((*other.queue, *place.queue), key=lambda each: each.number))
                place.queue.clear()
                return True
        return False

    def _has_to_wait(self, place: Place, plan: Plan) -> bool:
        """Have the model closed that was idle longest, or wait for one to be idle; return whether either is done.

        For a model that would not fit if all others were closed nothing is done, and for one that would only have a
        short context none is closed with which a client goes on.
        """
        is_vital = not plan.fits
        with self._changed:
            number = place.queue[0].number if place.queue else 0
            others = [each for each in self.places if each is not place and each.engine is not None]
            gain = sum(each.engine.plan.memory_bytes or 0 for each in others if each.engine is not None)
            if is_vital and (plan.short_bytes or 0) > gain:
                return False
            idle = [each for each in others if not each.live and not (each.queue and each.queue[0].number < number)]
            victims = [each for each in idle if is_vital or not self._is_attached(each)]
            if victims:
                victim = min(victims, key=lambda each: (self._is_attached(each), each.used_s))
                victim.leaves = victim.leaves or "memory"
            elif is_vital and others:
                place.is_blocked = place.was_tried = True
            return bool(victims) or place.was_tried

    def _held_bytes(self) -> int:
        """Return what open models will take of the memory that counts as available now.

        That is what was foretold of each, less what its process has taken out of it: a mapped file has taken nothing.
        """
        with self._changed:
            engines = [each.engine for each in self.places if each.engine is not None]
        held = 0
        for engine in engines:
            needed = engine.plan.memory_bytes if engine.plan.device == "cpu" else None
            taken = taken_bytes(engine.pid) if engine.pid is not None else None
            if needed is not None and taken is not None:
                held += max(0, needed - taken)
        return held

    def _unload(self, place: Place) -> None:
        begun_s = time.monotonic()
        assert place.engine is not None
        reason, model = place.leaves, place.engine.plan.spec.id
        place.engine.close()
        self._report(Change(model=model, what="unload", took_s=time.monotonic() - begun_s, reason=reason))
        with self._changed:
            place.engine = None
            place.makers.clear()
            if reason in ("memory", "changed") and place.queue:
                place.leaves = None
            else:
                self.places.remove(place)
            self.unblock()

    def _fail(self, place: Place, error: SlmError) -> None:
        with self._changed:
            for ticket in place.queue:
                ticket.failure = error
            place.queue.clear()
            self._changed.notify_all()

    def _tell(self, place: Place, text: str) -> None:
        with self._changed:
            place.status = text
            self._changed.notify_all()
