"""One model of the pool: who waits for it, who is at it, how long it stays. No locks here, and no threads."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from slm_local.config import Settings
from slm_local.engine import Choice, Engine, Meaning
from slm_local.engine.sharing import fixed_settings, refusal
from slm_local.errors import SlmError
from slm_local.generation import Control
from slm_local.model import Plan
from slm_local.registry.local import files_of

UnloadReason = Literal["idle", "memory", "changed", "asked", "end"]
"""Why a model was closed: nobody asked for it, another one needed the room, its file is another now, a person said so,
all ended."""

FileState = tuple[tuple[str, int, int, int], ...]
"""Of each file its path, number, size in bytes and time of its last change; nothing where one is missing."""

Key = tuple[str, Settings | None]
"""What was asked for: a reference, and settings where it brought its own."""

KNOWN_WAYS = 64
"""So many ways to ask for one model are remembered."""


@dataclass(slots=True, kw_only=True, eq=False)
class Place:
    """A model that is open, or is to be opened."""

    meaning: Meaning
    keep_alive_s: float
    """How long it stays open though nobody asks for it; infinity: for ever."""
    engine: Engine | None = None
    """None while it is not open."""
    queue: deque[Ticket] = field(default_factory=deque)
    live: set[Ticket] = field(default_factory=set)
    known: dict[Key, Meaning] = field(default_factory=dict)
    """Every way in which it was asked for."""
    makers: dict[Key, Engine] = field(default_factory=dict)
    """For each of them what makes requests with its settings, once it was needed."""
    used_s: float = field(default_factory=time.monotonic)
    """When it was needed last, by `time.monotonic`."""
    status: str = ""
    """How far its load is."""
    load_control: Control = field(default_factory=Control)
    file_state: FileState = ()
    """What its files were when it was opened."""
    leaves: UnloadReason | None = None
    """Why it is being closed, if it is: nothing begins there any more."""
    is_loading: bool = False
    is_blocked: bool = False
    """Whether it can't be opened before another one has nobody at it; then nobody who came later overtakes it."""
    was_tried: bool = False
    """Whether nothing has changed since that was found."""

    @property
    def free_places(self) -> int:
        """Return how many more requests may run at once; one is let in to a model that is still to be opened."""
        return 1 if self.engine is None else self.engine.facts.sequences - len(self.live)

    @property
    def is_wanted(self) -> bool:
        """Return whether it is to be opened now."""
        return bool(self.engine is None and self.queue and not self.leaves and not self.was_tried)

    def expires_in_s(self, now_s: float) -> float:
        """Return for how long it stays if nobody comes; infinity where somebody is there or waits."""
        return math.inf if self.live or self.queue else max(0.0, self.used_s + self.keep_alive_s - now_s)

    @property
    def has_died(self) -> bool:
        """Return whether its engine's process is gone though nobody closed it; the next request starts another."""
        return self.engine is not None and self.leaves is None and self.engine.running is None

    @property
    def is_outdated(self) -> bool:
        """Return whether a file of an open model has changed since, or is gone."""
        return self.engine is not None and self.file_state != state_of(self.engine.plan.variant.path)

    def has_open(self, target: str) -> bool:
        """Tell whether it has a file or folder open; while it is loading, whether it may."""
        paths = (
            [self.engine.plan.variant.path] if self.engine is not None else [each.path for each in self.meaning.here]
        )
        return any(path is not None and os.path.realpath(path) == os.path.realpath(target) for path in paths)

    def serves(self, meaning: Meaning) -> bool:
        """Tell whether it is what a meaning asks for, or will be. Errors: `UsageError`."""
        if self.engine is not None:
            return not refusal(self.engine, meaning)
        own = self.meaning
        is_same_model = (own.spec, own.here) == (meaning.spec, meaning.here)
        return is_same_model and fixed_settings(own.settings) == fixed_settings(meaning.settings)

    def learn(self, key: Key, meaning: Meaning) -> None:
        """Remember a way in which it is asked for; the oldest ones are forgotten."""
        while key not in self.known and len(self.known) >= KNOWN_WAYS:
            oldest = next(iter(self.known))
            del self.known[oldest]
            self.makers.pop(oldest, None)
        self.known[key] = meaning

    def maker(self, key: Key) -> Engine:
        """Return what makes requests with the settings asked for: the engine, or one that is never started."""
        assert self.engine is not None
        meaning = self.known[key]
        if key not in self.makers:
            self.makers[key] = self.engine if meaning.settings == self.engine.settings else self._maker(meaning)
        return self.makers[key]

    def _maker(self, meaning: Meaning) -> Engine:
        assert self.engine is not None
        plan = replace(self.engine.plan, spec=meaning.spec)
        known = {each.name: getattr(meaning, each.name) for each in fields(Meaning)}
        return Engine(Choice(**known, plans=(plan,)))


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A request that waits for its turn, or has it."""

    number: int
    """Counts upwards over all models: who came first."""
    control: Control
    key: Key
    meaning: Meaning
    place: Place
    failure: SlmError | None = None
    """Why it will never have its turn."""


def is_cramped(plan: Plan) -> bool:
    """Tell whether a plan's context is as short as it is for want of memory."""
    return plan.largest_context_tokens == plan.context_tokens < (plan.spec.context_tokens or math.inf)


def state_of(path: str | None) -> FileState:
    """Return what changes with the files of a model, given its file, the first of its parts or its folder."""
    try:
        found = [(str(file), file.stat()) for file in files_of(Path(path))] if path else []
    except (OSError, ValueError):
        return ()
    return tuple((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found)
