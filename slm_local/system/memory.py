"""Memory: what there is, what is free within the limits set for this process, who holds it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_local.system.files import number_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that runs, all its processes together."""

    name: str
    held_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    pid: int
    parent: int
    program: str
    held_bytes: int


def own_peak_rss_bytes() -> int:
    """Return the most memory that this process has held at once."""
    if sys.platform == "darwin":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        peak = peak_rss_bytes(os.getpid()) or 0
    return peak


def peak_rss_bytes(pid: int) -> int | None:
    """Return the most memory that a process has held at once; None where it is gone or the system does not say.

    macOS says it of the asking process only (`own_peak_rss_bytes`).
    """
    peak: int | None = None
    if sys.platform == "linux":
        peak = _status_bytes(Path(f"/proc/{pid}/status"), "VmHWM")
    elif sys.platform == "win32":
        import psutil

        with contextlib.suppress(psutil.Error):
            peak = int(psutil.Process(pid).memory_info().peak_wset)
    return peak


def rss_bytes(pid: int) -> int | None:
    """Return the memory that a process holds now, pages of files included; None where it is gone."""
    held: int | None = None
    if sys.platform == "linux":
        held = _status_bytes(Path(f"/proc/{pid}/status"), "VmRSS")
    else:
        import psutil

        with contextlib.suppress(psutil.Error):
            held = int(psutil.Process(pid).memory_info().rss)
    return held


def taken_bytes(pid: int) -> int | None:
    """Return how much less `available_memory_bytes` is for a process; None where it is gone.

    On Linux pages of a file that it has mapped count as available, though it reads them all the time.
    """
    held = rss_bytes(pid)
    if held is not None and sys.platform == "linux":
        held -= _status_bytes(Path(f"/proc/{pid}/status"), "RssFile") or 0
    return held


def family_memory_bytes() -> int | None:
    """Return what this process and all that it started hold now; None where the system does not tell of all.

    Pages that are shared count by their share (Linux), elsewhere what is each process's alone counts.
    """
    import psutil

    held = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            info = process.memory_full_info()
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
        except psutil.Error:
            return None
        held += getattr(info, "pss", None) or info.uss
    return held


def total_memory_bytes() -> int:
    """Return the machine's memory, or the limit of this process's control group where that is less."""
    return min([_memory("MemTotal", "total"), *(limit for limit, _ in _memory_limits())])


def available_memory_bytes() -> int:
    """Return what could be used now without swapping, within the limits set for this process."""
    available = _memory("MemAvailable", "available")
    return max(0, min([available, *(limit - used for limit, used in _memory_limits())]))


def largest_program() -> Program | None:
    """Return the program that holds most memory now, this process and what it started apart; None if nobody tells.

    Takes some milliseconds: for when memory is short. Processes of one program count together, by what is theirs alone
    where the system says that (Linux, Windows). What belongs to others and may not be looked at is passed over.
    """
    held = _linux_processes(Path("/proc")) if sys.platform == "linux" else _processes()
    return _largest(held, os.getpid())


def _status_bytes(status: Path, key: str) -> int | None:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(key + ":")]
    return int(found[0]) * 1024 if found else None


def _memory(linux_key: str, psutil_field: str) -> int:
    """Read one figure of the machine's memory: on Linux without psutil, whose import would slow every command down."""
    if sys.platform == "linux":
        found = _status_bytes(Path("/proc/meminfo"), linux_key)
        if found is not None:
            return found
    import psutil

    return int(getattr(psutil.virtual_memory(), psutil_field))


def _largest(processes: Sequence[_Process], own_pid: int) -> Program | None:
    parent_of = {each.pid: each.parent for each in processes}

    def is_own(pid: int) -> bool:
        seen: set[int] = set()
        while pid != own_pid and pid in parent_of and pid not in seen:
            seen.add(pid)
            pid = parent_of[pid]
        return pid == own_pid

    held: Counter[str] = Counter()
    for each in processes:
        if not is_own(each.pid):
            held[each.program] += each.held_bytes
    return next((Program(name=name, held_bytes=size) for name, size in held.most_common(1) if size), None)


def _linux_processes(folder: Path) -> list[_Process]:
    found: list[_Process] = []
    for process in folder.glob("[0-9]*"):
        try:
            fields = dict(line.split(":", 1) for line in (process / "status").read_text(errors="replace").splitlines())
        except (OSError, ValueError):  # it ended meanwhile
            continue
        held = fields.get("RssAnon", "").split()
        if not held:  # the kernel's own
            continue
        name = fields["Name"].strip()
        with contextlib.suppress(OSError):  # of others only the name may be read
            name = Path(os.readlink(process / "exe").removesuffix(" (deleted)")).name
        found.append(
            _Process(pid=int(process.name), parent=int(fields["PPid"]), program=name, held_bytes=int(held[0]) * 1024)
        )
    return found


def _processes() -> list[_Process]:
    import psutil

    found: list[_Process] = []
    for process in psutil.process_iter(["pid", "ppid", "name", "memory_info"]):
        values = process.info
        if values["memory_info"] is not None and values["name"]:
            held = getattr(values["memory_info"], "private", values["memory_info"].rss)
            name = values["name"].removesuffix(".exe")
            found.append(_Process(pid=values["pid"], parent=values["ppid"] or 0, program=name, held_bytes=int(held)))
    return found


def _memory_limits() -> list[tuple[int, int]]:
    """Return (limit, used) in bytes for the address space and every control group that bounds this process."""
    limits: list[tuple[int, int]] = []
    if sys.platform != "win32":
        import resource

        address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
        if address_space != resource.RLIM_INFINITY:
            limits.append((address_space, 0))  # a child's own space begins at nothing
    if sys.platform == "linux":
        limits += _group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return limits


def _group_limits(membership: Path, root: Path) -> list[tuple[int, int]]:
    """Read the memory limits (cgroup v2) of the group in `membership` and of those above it."""
    try:
        own = [line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return []
    limits: list[tuple[int, int]] = []
    group = root / own[0].lstrip("/") if own else root
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        limit = number_in(folder / "memory.max")
        if limit is not None:
            limits.append((limit, (number_in(folder / "memory.current") or 0) - _reclaimable(folder / "memory.stat")))
    return limits


def _reclaimable(stat: Path) -> int:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
