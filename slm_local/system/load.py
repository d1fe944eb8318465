"""How many cores other programs take and leave free, read off the system's own count of processor time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass

SAMPLE_S = 0.3
"""Shortest time between two readings: systems count in ticks of 10 to 16 ms."""

STALE_S = 3.0
"""A reading this old says nothing of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuReading:
    """Counts of seconds, of all cores that this process may use together."""

    at_s: float
    left_s: float
    """Spent by nobody, or by programs that give way to this one."""
    own_s: float
    """Spent by this process."""
    cores: int = 0


class FreeCores:
    """Says how many cores this process has for itself: those it uses and those that nobody uses."""

    def __init__(self) -> None:
        self._last = read_cpu()
        self._free: float | None = None

    def now(self) -> float | None:
        """Return it as of the last third of a second.

        None before that, after a while in which nobody asked, and where the system does not tell.
        """
        last = self._last
        if last is not None and time.monotonic() >= last.at_s + SAMPLE_S:
            self._last = reading = read_cpu()
            is_fresh = reading is not None and reading.at_s < last.at_s + STALE_S
            self._free = free_cores(last, reading) if reading is not None and is_fresh else None
        return self._free


class OtherPrograms:
    """Says how many cores are taken by programs other than this one and what it started."""

    def __init__(self) -> None:
        self._last = read_cpu()
        self._last_children_s = _children_s()

    def cores(self) -> float | None:
        """Return it as the mean since it was asked last; None where the system does not tell.

        Children that began or ended meanwhile count as others. Programs that give way to this one take none.
        """
        before, children_before_s = self._last, self._last_children_s
        self._last, self._last_children_s = after, children_after_s = read_cpu(), _children_s()
        if before is None or after is None or after.at_s <= before.at_s:
            return None
        ours = (children_after_s - children_before_s) / (after.at_s - before.at_s)
        return max(0.0, after.cores - free_cores(before, after) - ours)


def free_cores(before: CpuReading, after: CpuReading) -> float:
    """Return the cores that were free for this process between two readings."""
    return (after.left_s - before.left_s + after.own_s - before.own_s) / (after.at_s - before.at_s)


def read_cpu() -> CpuReading | None:
    """Read the counts as they are now, None where they are kept from us; that takes 0.1 ms on two cores."""
    import psutil

    try:
        per_core = psutil.cpu_times(percpu=True)
    except OSError:  # Android lets nobody read /proc/stat
        return None
    usable = _usable_cores(len(per_core))
    is_nice = sys.platform != "win32" and os.nice(0) > 0
    left = ("idle", "iowait") if is_nice else ("idle", "iowait", "nice")
    return CpuReading(
        at_s=time.monotonic(),
        left_s=sum(getattr(per_core[core], name, 0.0) for core in usable for name in left),
        own_s=time.process_time(),
        cores=len(usable),
    )


def _children_s() -> float:
    """Return the processor time of all living processes below this one."""
    import psutil

    spent_s = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            spent_s += times.user + times.system
    return spent_s


def _usable_cores(count: int) -> set[int]:
    cores = set(range(count))
    if sys.platform == "linux":
        cores &= os.sched_getaffinity(0)
    return cores
