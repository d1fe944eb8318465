"""What differs between Windows, macOS and Linux: process groups, signals, ways to die, memory, cores, file rights.

Here and nowhere else: a test finds names that only one system has in any other file. It knows no model and no runtime.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

KILL_WAIT_S = 5.0
"""Longest wait for a killed process to be gone; one inside a system call takes a while."""

PERFORMANCE_CORE_SHARE = 0.8
"""A core counts as a performance core from this share of the strongest one's capacity: favoured cores of one
kind differ by a few per cent, efficiency cores have half or less."""

NTSTATUS = {
    0xC0000005: "access violation",
    0xC0000017: "out of memory",
    0xC000001D: "illegal instruction: this processor lacks one that the engine was built for",
    0xC0000094: "integer divided by zero",
    0xC00000FD: "stack overflow",
    0xC000012D: "out of memory: the commitment limit is reached",
    0xC0000135: "a DLL was not found",
    0xC000013A: "stopped by Ctrl-C",
    0xC0000142: "a DLL failed to start",
    0xC0000374: "heap corruption",
    0xC0000409: "aborted: stack buffer overrun or fail-fast",
}
"""Exit codes of Windows processes that died. Source: [MS-ERREF] 2.3.1."""

SIGNAL_REMARKS = {
    "SIGKILL": "likely out of memory",
    "SIGILL": "this processor lacks an instruction that the engine was built for",
    "SIGABRT": "the engine gave up",
}


class SpawnOptions(TypedDict, total=False):
    """Arguments of `subprocess.Popen` that give a child a process group of its own."""

    start_new_session: bool
    creationflags: int


def spawn_options() -> SpawnOptions:
    """Return what gives a child its own process group, so that Ctrl-C misses it and `kill_tree` gets all of it."""
    if sys.platform == "win32":
        options = SpawnOptions(creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW)
    else:
        options = SpawnOptions(start_new_session=True)
    return options


def kill_tree(process: subprocess.Popen[bytes]) -> bool:
    """Kill a child started with `spawn_options` and all it started; return whether the child is gone.

    Blocks at most `KILL_WAIT_S`. The child's own children die even when it is already dead (not on Windows).
    """
    if sys.platform == "win32":
        _kill_descendants(process.pid)
        process.kill()
    else:
        _kill_group(process)
    try:
        process.wait(KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def ignore_interrupts() -> None:
    """Have this process pass over Ctrl-C; for a child whose parent decides. Main thread only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def restrict_core_dumps() -> None:
    """Have no core file written when this process dies: it would hold prompts."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def describe_exit(returncode: int) -> str:
    """Say how a process ended, from what `Popen.wait` returned."""
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            return f"killed by signal {-returncode}"
        remark = f", {SIGNAL_REMARKS[name]}" if name in SIGNAL_REMARKS else ""
        return f"killed by signal {name} ({-returncode}){remark}"
    if returncode >= 0xC0000000:
        return f"died with 0x{returncode:08X} ({NTSTATUS.get(returncode, 'unknown status')})"
    return f"exited with status {returncode}"


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


def total_memory_bytes() -> int:
    """Return the machine's memory, or the limit of this process's control group where that is less."""
    return min([_memory("MemTotal", "total"), *(limit for limit, _ in _memory_limits())])


def available_memory_bytes() -> int:
    """Return what could be used now without swapping, within the limits set for this process."""
    available = _memory("MemAvailable", "available")
    return max(0, min([available, *(limit - used for limit, used in _memory_limits())]))


def physical_cores() -> int:
    """Return how many physical cores this process may use; performance cores only where the system tells them apart."""
    if sys.platform == "linux":
        count = _linux_cores(Path("/sys/devices"), os.sched_getaffinity(0))
    elif sys.platform == "darwin":
        count = _sysctl("hw.perflevel0.physicalcpu")
    else:
        count = 0
    if not count:
        import psutil

        count = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return count


def cpu_name() -> str:
    """Return the processor's name, as far as the system tells it."""
    import platform

    if sys.platform == "linux":
        names = _cpu_info("model name")
    elif sys.platform == "darwin":
        names = [_sysctl_text("machdep.cpu.brand_string")]
    else:
        names = [platform.processor()]
    return next(filter(None, names), "") or platform.machine() or "unknown processor"


def cpu_flags() -> frozenset[str] | None:
    """Return the processor's feature flags, as Linux names them; None where the system does not list them."""
    found: frozenset[str] | None = None
    if sys.platform == "linux":
        lines = _cpu_info("flags") or _cpu_info("Features")
        found = frozenset(lines[0].split()) if lines else None
    return found


def lock_down_file(path: Path) -> None:
    """Let only its owner read and write a file.

    On Windows nothing is to be done: files below LocalAppData inherit rights of the owner alone.
    """
    if sys.platform != "win32":
        path.chmod(0o600)


def _kill_descendants(pid: int) -> None:
    import psutil

    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for each in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


if sys.platform != "win32":

    def _kill_group(process: subprocess.Popen[bytes]) -> None:
        try:
            leads_group = os.getpgid(process.pid) == process.pid and process.returncode is None
        except ProcessLookupError:  # reaped: what it started may still hold the group, which keeps its number taken
            leads_group = True
        if not leads_group:
            process.kill()
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            process.kill()


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
        limit = _number(folder / "memory.max")
        if limit is not None:
            limits.append((limit, (_number(folder / "memory.current") or 0) - _reclaimable(folder / "memory.stat")))
    return limits


def _reclaimable(stat: Path) -> int:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _linux_cores(devices: Path, usable: set[int]) -> int:
    """Count distinct performance cores among the logical processors `usable`; 0 where the system does not say.

    Hybrid Intel processors list theirs in cpu_core/cpus; others (Arm, newer kernels) give each a capacity.
    """
    strong = _cpu_list(devices / "cpu_core" / "cpus") & usable or usable
    capacity_of: dict[str, int] = {}
    for cpu in strong:
        folder = devices / "system" / "cpu" / f"cpu{cpu}"
        try:
            siblings = (folder / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            return 0
        capacity_of[siblings] = _number(folder / "cpu_capacity") or 0
    strongest = max(capacity_of.values(), default=0)
    return sum(capacity >= PERFORMANCE_CORE_SHARE * strongest for capacity in capacity_of.values())


def _cpu_list(file: Path) -> set[int]:
    """Read a list such as `0-3,8`."""
    try:
        ranges = [part.partition("-") for part in file.read_text().strip().split(",") if part]
    except OSError:
        return set()
    return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _cpu_info(key: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key]


def _sysctl(name: str) -> int:
    try:
        return int(_sysctl_text(name))
    except ValueError:
        return 0


def _sysctl_text(name: str) -> str:
    try:
        answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=2, check=True)
        return answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
