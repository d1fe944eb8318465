"""Whether the person asked the machine to save power: then nothing is computed that nobody has asked for yet."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

from slm_local.system.files import text_in

SYS = Path("/sys")

ASK_LIMIT_S = 2.0
"""Longest wait for macOS' own tool to answer."""


def is_saving_power() -> bool:
    """Tell whether a power saving mode is on; False where the system does not say. May take 50 ms, on macOS."""
    if sys.platform == "linux":
        found = linux_saves_power(SYS)
    elif sys.platform == "darwin":
        found = mac_saves_power(_told_by_pmset())
    else:
        found = _windows_saves_power()
    return found


def linux_saves_power(root: Path) -> bool:
    """Read what the desktops' power-saver profile sets: the firmware's profile, else the processor's preference.

    Source: Linux, Documentation/ABI/testing/sysfs-platform_profile and admin-guide/pm/intel_pstate.rst.
    """
    preference = "devices/system/cpu/cpufreq/policy0/energy_performance_preference"
    return text_in(root / "firmware/acpi/platform_profile") == "low-power" or text_in(root / preference) == "power"


def mac_saves_power(settings: str) -> bool:
    """Read the list that `pmset -g` prints: a name and a number a line."""
    return any(line.split()[:2] == ["lowpowermode", "1"] for line in settings.splitlines())


def _told_by_pmset() -> str:
    try:
        done = subprocess.run(["pmset", "-g"], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


class _PowerStatus(ctypes.Structure):
    """SYSTEM_POWER_STATUS of winbase.h."""

    _fields_ = (
        ("line", ctypes.c_ubyte),
        ("battery", ctypes.c_ubyte),
        ("percent", ctypes.c_ubyte),
        ("system_status", ctypes.c_ubyte),
        ("left_s", ctypes.c_uint32),
        ("full_s", ctypes.c_uint32),
    )


def _windows_saves_power() -> bool:
    """Ask whether battery saver is on (SystemStatusFlag, Windows 10 and newer)."""
    is_saving = False
    if sys.platform == "win32":
        status = _PowerStatus()
        is_told = ctypes.windll.kernel32.GetSystemPowerStatus(ctypes.byref(status))
        is_saving = bool(is_told) and status.system_status == 1
    return is_saving
