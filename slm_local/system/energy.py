"""What the machine spends: the processor's energy counters where they may be read, else the battery's discharge.

Readings only: what they amount to over a time is `metrics`' business. Nothing is ever estimated; where nothing can be
read the reading says why.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from slm_local.system.devices import is_own_battery, linux_power
from slm_local.system.files import number_in, text_in

POWERCAP = Path("/sys/class/powercap")
SUPPLIES = Path("/sys/class/power_supply")

PACKAGE = re.compile(r"intel-rapl:\d+")
"""Zones of whole packages. Below them are their parts, already counted in them; `psys` beside them and the same
packages once more behind `intel-rapl-mmio` would count twice. AMD's processors have the same names. Source: Linux,
Documentation/power/powercap/powercap.rst."""

MICRO = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyCounter:
    """A counter that runs up with what is spent, and starts anew behind its range."""

    name: str
    microjoules: int
    range_microjoules: int
    """0 where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReading:
    """One look at what the machine spends."""

    counters: tuple[EnergyCounter, ...] = ()
    """The processor's packages; empty where they can't be read."""
    battery_w: float | None = None
    """What the batteries give now; None but on battery."""
    stored_j: float | None = None
    """What is left in the batteries; None but on battery."""
    reason: str = ""
    """Why there is nothing to read."""


def read_energy() -> EnergyReading:
    """Read the energy counters, else the battery."""
    if sys.platform == "linux":
        reading = _linux_reading(POWERCAP, SUPPLIES)
    elif sys.platform == "darwin":
        reading = EnergyReading(reason="macOS tells energy to the administrator only (powermetrics)")
    else:
        reading = EnergyReading(reason="Windows has no energy counter that a program may read")
    return reading


def _linux_reading(powercap: Path, supplies: Path) -> EnergyReading:
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if PACKAGE.fullmatch(zone.name)]
    packages = [zone for zone in zones if text_in(zone / "name").startswith("package")]
    counters = [_counter(zone) for zone in packages]
    readable = tuple(each for each in counters if each is not None)
    if readable and len(readable) == len(packages):
        return EnergyReading(counters=readable)
    battery = _battery(supplies) if linux_power(supplies) == "battery" else None
    if battery is not None:
        return battery
    if packages:
        return EnergyReading(reason=f"the energy counters in {powercap} may be read by root only")
    return EnergyReading(reason="this machine shows no energy counter, and it is not on battery")


def _counter(zone: Path) -> EnergyCounter | None:
    spent = number_in(zone / "energy_uj")
    if spent is None:
        return None
    whole = number_in(zone / "max_energy_range_uj") or 0
    return EnergyCounter(name=text_in(zone / "name"), microjoules=spent, range_microjoules=whole)


def _battery(supplies: Path) -> EnergyReading | None:
    """Add up the machine's batteries that discharge; None where one of them tells neither power nor charge."""
    watts: list[float | None] = []
    stored: list[float | None] = []
    for supply in sorted(supplies.glob("*")):
        if is_own_battery(supply) and text_in(supply / "status") == "Discharging":
            watts.append(_watts(supply))
            left = number_in(supply / "energy_now")
            stored.append(None if left is None else left * MICRO * 3600)
    total_w = _sum(watts)
    total_j = _sum(stored)
    return None if total_w is None and total_j is None else EnergyReading(battery_w=total_w, stored_j=total_j)


def _watts(supply: Path) -> float | None:
    """Return what a battery gives; some drivers write a discharge as a negative number. Zero is no reading."""
    power = number_in(supply / "power_now")
    current, voltage = number_in(supply / "current_now"), number_in(supply / "voltage_now")
    if power:
        return abs(power) * MICRO
    return abs(current) * MICRO * voltage * MICRO if current and voltage else None


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None
