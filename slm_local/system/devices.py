"""Graphics cards and NPUs as the system knows them, their drivers and who may use them; and where the power comes from.

It asks no runtime: what those can use is another matter (`slm_local.hardware`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slm_local.system.files import text_in

Power = Literal["mains", "battery"]

PCI_MAKERS = {0x8086: "intel", 0x10DE: "nvidia", 0x1002: "amd", 0x1022: "amd", 0x106B: "apple", 0x17CB: "qualcomm"}

PCI_DISPLAY, PCI_ACCELERATOR = 0x03, 0x12
"""Base classes of PCI devices: display controllers, processing accelerators. Source: PCI Code and ID Assignment."""

SUPPLIES_MAINS = frozenset({"Mains", "USB", "Wireless"})
"""Types of power supplies on Linux that are no battery. Source: Linux, Documentation/ABI/testing/sysfs-class-power."""

OPENCL_VENDORS = Path("/etc/OpenCL/vendors")
"""Where OpenCL drivers are registered on Linux: a file each, which names the driver's library."""

DRIVER_LIBRARIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "linux": {
        "opencl": ("libOpenCL.so.1",),
        "level_zero": ("libze_loader.so.1",),
        "npu": ("libze_intel_npu.so.1", "libze_intel_vpu.so.1"),
    },
    "win32": {"opencl": ("OpenCL.dll",), "level_zero": ("ze_loader.dll",)},
}
"""Libraries of drivers that OpenVINO loads, by what they are for and under each name they have had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A graphics card or an NPU that is in this machine, whether or not anything can use it."""

    kind: Literal["gpu", "npu"]
    vendor: str
    """`intel`, `nvidia`, ..., else its PCI number."""
    device_id: str
    """Its PCI number, such as `0x7d55`."""
    driver: str | None = None
    """The kernel's driver (Linux: its name, Windows: its version); None: it has none."""
    node: str | None = None
    """The file by which programs reach it (Linux); None where the driver made none."""
    access: Literal["open", "denied", "absent"] | None = None
    """Whether this process may open it; `absent`: it is not there (a container). None: there are no such files here."""
    group: str | None = None
    """Those who may open it."""
    is_member: bool = False
    """Whether the user is in that group, be it only from the next login on."""


def accelerators() -> tuple[Accelerator, ...]:
    """Return the graphics cards and NPUs on this machine's PCI buses; none on macOS, which has other ways."""
    if sys.platform == "linux":
        found = tuple(_linux_accelerators(Path("/sys/bus/pci/devices"), Path("/dev")))
    elif sys.platform == "win32":
        found = tuple(_windows_accelerators())
    else:
        found = ()
    return found


def driver_marks() -> tuple[str, ...]:
    """Return what is another when the system or a driver is another; devices apart (`accelerators`)."""
    if sys.platform == "win32":
        version = sys.getwindowsversion()
        marks = [f"{version.major}.{version.minor}.{version.build}"]
    else:
        marks = [os.uname().release]
    if sys.platform == "linux":
        libraries = _changed_ns(Path("/etc/ld.so.cache"))  # written whenever a library is installed
        named = [Path("/sys/module/nvidia/version"), *_vendor_files(OPENCL_VENDORS)]
        marks += [f"libraries {libraries}", *(f"{file} {text_in(file)[:200]}" for file in named)]
    return tuple(marks)


def opencl_drivers() -> tuple[str, ...]:
    """Return the libraries that are registered as OpenCL drivers; empty where the system keeps no such list."""
    return tuple(text_in(file) for file in _vendor_files(OPENCL_VENDORS)) if sys.platform == "linux" else ()


def has_npu_firmware() -> bool:
    """Return whether firmware for an Intel NPU lies where Linux looks for it; true on other systems, whose drivers
    bring it along.
    """
    if sys.platform != "linux":
        return True
    folders = (Path("/lib/firmware/updates/intel/vpu"), Path("/lib/firmware/intel/vpu"))
    return any(any(folder.glob("*.bin*")) for folder in folders)


def distributions() -> tuple[str, ...]:
    """Return the names of this Linux and of those that it is made from, nearest first, such as `ubuntu`, `debian`."""
    import platform

    try:
        release = platform.freedesktop_os_release() if sys.platform == "linux" else {}
    except OSError:
        release = {}
    return tuple(name for key in ("ID", "ID_LIKE") for name in release.get(key, "").split())


def power_source() -> Power | None:
    """Return where the power comes from; None where the system does not say, as on most desktops."""
    if sys.platform == "linux":
        found = linux_power(Path("/sys/class/power_supply"))
    else:
        found = _told_power()
    return found


def _told_power() -> Power | None:
    import psutil

    battery = psutil.sensors_battery()
    is_plugged = battery.power_plugged if battery is not None else None
    return None if is_plugged is None else "mains" if is_plugged else "battery"


def _linux_accelerators(buses: Path, nodes: Path) -> Iterator[Accelerator]:
    for folder in sorted(buses.glob("*")):
        kind = _kind(_hex(folder / "class") >> 16)
        if kind is None:
            continue
        node = next(iter(sorted(folder.glob("drm/renderD*" if kind == "gpu" else "accel/accel*"))), None)
        place = None if node is None else nodes / ("dri" if kind == "gpu" else "accel") / node.name
        access, group, is_member = _access(place)
        vendor = _hex(folder / "vendor")
        driver = folder / "driver"
        yield Accelerator(
            kind=kind,
            vendor=PCI_MAKERS.get(vendor, hex(vendor)),
            device_id=text_in(folder / "device"),
            driver=driver.resolve().name if driver.exists() else None,
            node=None if place is None else str(place),
            access=access,
            group=group,
            is_member=is_member,
        )


def _access(node: Path | None) -> tuple[Literal["open", "denied", "absent"] | None, str | None, bool]:
    """Return whether a device may be opened, by which group, and whether the user is listed in that."""
    if node is None or sys.platform == "win32":
        return None, None, False
    try:
        owner = node.stat().st_gid
    except OSError:
        return "absent", None, False
    group, is_member = _group(owner)
    return ("open" if os.access(node, os.R_OK | os.W_OK) else "denied"), group, is_member


def linux_power(supplies: Path) -> Power | None:
    """Read Linux's list of power supplies."""
    is_plugged, charging = False, set[str]()
    for supply in supplies.glob("*"):
        kind = text_in(supply / "type")
        if kind in SUPPLIES_MAINS:
            is_plugged = is_plugged or text_in(supply / "online") not in ("", "0")
        elif is_own_battery(supply):
            charging.add(text_in(supply / "status"))
    if "Discharging" in charging and not is_plugged:
        return "battery"
    return "mains" if is_plugged or charging else None


def is_own_battery(supply: Path) -> bool:
    """Tell whether a power supply of Linux is a battery of this machine, and not one of a mouse or a headset."""
    return text_in(supply / "type") == "Battery" and text_in(supply / "scope") != "Device"


def _kind(base_class: int) -> Literal["gpu", "npu"] | None:
    kinds: dict[int, Literal["gpu", "npu"]] = {PCI_DISPLAY: "gpu", PCI_ACCELERATOR: "npu"}
    return kinds.get(base_class)


def _hex(file: Path) -> int:
    try:
        return int(text_in(file), 16)
    except ValueError:
        return 0


def _changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _vendor_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.icd"))


if sys.platform != "win32":

    def _group(number: int) -> tuple[str, bool]:
        """Return a group's name, and whether the user is listed in it."""
        import grp
        import pwd

        try:
            group = grp.getgrgid(number)
            return group.gr_name, pwd.getpwuid(os.getuid()).pw_name in group.gr_mem
        except KeyError:
            return str(number), False


if sys.platform == "win32":
    PCI_DEVICES = r"SYSTEM\CurrentControlSet\Enum\PCI"
    DRIVERS = r"SYSTEM\CurrentControlSet\Control\Class"

    def _windows_accelerators() -> Iterator[Accelerator]:
        """Read the devices that Windows has met on PCI, and the versions of their drivers."""
        for name in _keys(PCI_DEVICES):  # VEN_8086&DEV_7D55&SUBSYS_...
            numbers = dict(part.split("_", 1) for part in name.split("&") if "_" in part)
            for instance in _keys(rf"{PCI_DEVICES}\{name}")[:1]:
                place = rf"{PCI_DEVICES}\{name}\{instance}"
                kind = _windows_kind(_value(place, "CompatibleIDs"))
                if kind is None:
                    continue
                driver = _value(place, "Driver")
                vendor = int(numbers.get("VEN", "0"), 16)
                yield Accelerator(
                    kind=kind,
                    vendor=PCI_MAKERS.get(vendor, hex(vendor)),
                    device_id=f"0x{numbers.get('DEV', '0').lower()}",
                    driver=str(_value(rf"{DRIVERS}\{driver}", "DriverVersion")) if driver else None,
                )

    def _keys(place: str) -> list[str]:
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                return [winreg.EnumKey(key, at) for at in range(winreg.QueryInfoKey(key)[0])]
        except OSError:
            return []

    def _value(place: str, name: str) -> object:
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                return winreg.QueryValueEx(key, name)[0]
        except OSError:
            return None


def _windows_kind(compatible: object) -> Literal["gpu", "npu"] | None:
    """Read the base class off the names that a driver may ask for, such as `PCI\\CC_0300`."""
    names = compatible if isinstance(compatible, list) else []
    classes = [str(each).partition("CC_")[2][:2] for each in names if "CC_" in str(each)]
    return _kind(int(classes[0], 16)) if classes else None
