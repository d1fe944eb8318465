"""How many cores other programs leave free, read off the system's own count of processor time."""

from __future__ import annotations

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
    )


def _usable_cores(count: int) -> set[int]:
    cores = set(range(count))
    if sys.platform == "linux":
        cores &= os.sched_getaffinity(0)
    return cores
