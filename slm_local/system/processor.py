"""The processor: its name and maker, cores by kind, instruction sets, caches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from slm_local.system.files import number_in, text_in

PERFORMANCE_CORE_SHARE = 0.8
"""A core counts as a performance core from this share of the strongest one's capacity: favoured cores of one
kind differ by a few per cent, efficiency cores have half or less."""

MAKERS = {
    "GenuineIntel": "intel",
    "AuthenticAMD": "amd",
    "0x41": "arm",
    "0x4e": "nvidia",
    "0x51": "qualcomm",
    "0x61": "apple",
    "0xc0": "ampere",
    "Apple": "apple",
    "Intel": "intel",
    "Intel(R)": "intel",
    "AMD": "amd",
    "Qualcomm Technologies Inc": "qualcomm",
}
"""What systems call those who make processors: CPUID's vendor, Arm's implementer numbers (Linux: cputype.h), the
first word of a name on macOS."""

MACOS_FLAGS = {
    "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.f16c": "f16c",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.neon": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
"""What macOS's sysctl calls the flags that Linux lists."""

WINDOWS_FLAGS = {39: "avx", 40: "avx2", 41: "avx512f", 19: "asimd", 43: "asimddp"}
"""Numbers that `IsProcessorFeaturePresent` takes, by the flags that Linux lists. Source: its documentation."""


def physical_cores() -> int:
    """Return how many physical cores this process may use; performance cores only where the system tells them apart."""
    count = _cores()[0]
    if not count:
        import psutil

        count = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return count


def efficiency_cores() -> int:
    """Return how many physical cores are of a weaker kind; 0 also where the system does not tell them apart."""
    return _cores()[1]


def cpu_name() -> str:
    """Return the processor's name, as far as the system tells it."""
    import platform

    if sys.platform == "linux":
        names = _cpu_info("model name")
    elif sys.platform == "darwin":
        names = [_sysctl_text("machdep.cpu.brand_string")]
    elif sys.platform == "win32":
        names = [_windows_cpu_name(), platform.processor()]
    else:
        names = [platform.processor()]
    return next(filter(None, names), "") or platform.machine() or "unknown processor"


def cpu_vendor() -> str:
    """Return who made the processor, such as `intel`, `amd`, `apple`, `arm`; empty where the system does not say."""
    if sys.platform == "linux":
        told = next(iter(_cpu_info("vendor_id") or _cpu_info("CPU implementer")), "")
    elif sys.platform == "darwin":
        told = _sysctl_text("machdep.cpu.brand_string").partition(" ")[0]
    else:  # Windows: "Intel64 Family 6 Model 170 Stepping 4, GenuineIntel"
        told = os.environ.get("PROCESSOR_IDENTIFIER", "").rpartition(",")[2].strip()
    return MAKERS.get(told, "")


def cpu_flags() -> frozenset[str] | None:
    """Return the processor's feature flags, as Linux names them; None where the system does not list them.

    Only Linux lists all: macOS and Windows tell a few, so that what is missing there need not be missing.
    """
    found: frozenset[str] | None = None
    if sys.platform == "linux":
        lines = _cpu_info("flags") or _cpu_info("Features")
        found = frozenset(lines[0].split()) if lines else None
    elif sys.platform == "darwin":
        found = _macos_flags(_sysctl_text("hw.optional", names_too=True))
    elif sys.platform == "win32":
        found = _windows_flags()
    return found


def cache_bytes() -> int | None:
    """Return the size of the processor's last level caches together; None where the system does not say."""
    size = 0
    if sys.platform == "linux":
        size = _linux_cache_bytes(Path("/sys/devices/system/cpu"))
    elif sys.platform == "darwin":
        size = max(_sysctl("hw.l3cachesize"), _sysctl("hw.perflevel0.l2cachesize"))
    return size or None


def _cores() -> tuple[int, int]:
    """Count physical cores of the strongest kind and of the others; (0, 0) where the system does not say."""
    if sys.platform == "linux":
        count = _linux_cores(Path("/sys/devices"), os.sched_getaffinity(0))
    elif sys.platform == "darwin":
        count = _sysctl("hw.perflevel0.physicalcpu"), _sysctl("hw.perflevel1.physicalcpu")
    elif sys.platform == "win32":
        count = _windows_cores()
    else:
        count = 0, 0
    return count


def _linux_cores(devices: Path, usable: set[int]) -> tuple[int, int]:
    """Count distinct performance and efficiency cores among the logical processors `usable`.

    Hybrid Intel processors list theirs in cpu_core/cpus; others (Arm, newer kernels) give each a capacity.
    """
    strong = _cpu_list(devices / "cpu_core" / "cpus") & usable or usable
    capacity_of: dict[str, int] = {}
    weak: set[str] = set()
    for cpu in usable:
        folder = devices / "system" / "cpu" / f"cpu{cpu}"
        siblings = text_in(folder / "topology" / "thread_siblings_list")
        if not siblings:
            return 0, 0
        if cpu in strong:
            capacity_of[siblings] = number_in(folder / "cpu_capacity") or 0
        else:
            weak.add(siblings)
    strongest = max(capacity_of.values(), default=0)
    performance = sum(capacity >= PERFORMANCE_CORE_SHARE * strongest for capacity in capacity_of.values())
    return performance, len(capacity_of) - performance + len(weak - set(capacity_of))


def _core_classes(records: bytes) -> tuple[int, int]:
    """Count the cores of the highest efficiency class (Windows: the strongest) and of the others.

    `records` are SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX for RelationProcessorCore, one after the other: relationship
    and size as 4 bytes each, flags and efficiency class as one each.
    """
    classes: list[int] = []
    at = 0
    while at + 10 <= len(records):
        size = int.from_bytes(records[at + 4 : at + 8], "little")
        if size < 10:
            break
        classes.append(records[at + 9])
        at += size
    strongest = max(classes, default=0)
    performance = classes.count(strongest)
    return performance, len(classes) - performance


def _macos_flags(listed: str) -> frozenset[str] | None:
    """Read the lines `hw.optional.avx2_0: 1`; None where there are none."""
    values = dict(line.split(": ", 1) for line in listed.splitlines() if ": " in line)
    return frozenset(ours for theirs, ours in MACOS_FLAGS.items() if values.get(theirs) == "1") if values else None


if sys.platform == "win32":

    def _windows_cores() -> tuple[int, int]:
        import ctypes

        ask = ctypes.windll.kernel32.GetLogicalProcessorInformationEx
        size = ctypes.c_ulong()
        ask(0, None, ctypes.byref(size))
        records = ctypes.create_string_buffer(size.value)
        return _core_classes(records.raw) if ask(0, records, ctypes.byref(size)) else (0, 0)

    def _windows_flags() -> frozenset[str]:
        import ctypes

        has = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return frozenset(flag for number, flag in WINDOWS_FLAGS.items() if has(number))

    def _windows_cpu_name() -> str:
        import winreg

        try:
            with winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            ) as processor:
                return str(winreg.QueryValueEx(processor, "ProcessorNameString")[0]).strip()
        except OSError:
            return ""


def _linux_cache_bytes(processors: Path) -> int:
    """Add up the caches of the highest level, each once; 0 where none is listed."""
    size_of: dict[tuple[int, str], int] = {}
    for folder in processors.glob("cpu[0-9]*/cache/index[0-9]*"):
        level = number_in(folder / "level")
        try:
            size = (folder / "size").read_text().strip()
            sharing = (folder / "shared_cpu_list").read_text().strip()
        except OSError:
            continue
        if level is not None and size.endswith("K") and size[:-1].isdecimal():
            size_of[level, sharing] = int(size[:-1]) * 1024
    highest = max((level for level, _ in size_of), default=0)
    return sum(size for (level, _), size in size_of.items() if level == highest)


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


def _sysctl_text(name: str, *, names_too: bool = False) -> str:
    command = ["sysctl", name] if names_too else ["sysctl", "-n", name]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
        return answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
