"""What `slm doctor` finds out: the machine, its engines, our folders, the Hub's settings, and what is wrong with them.

Settings that can't be read are problems here, not errors. The Hub's token is asked for and never kept.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from slm_local import __version__, system
from slm_local.config import Settings, load_settings
from slm_local.download.address import offline_variable
from slm_local.download.hub import Hub
from slm_local.errors import SlmError
from slm_local.hardware import ENGINE_PACKAGES, Hardware, Listing, Problem, probe, with_devices
from slm_local.hardware.problems import NAMES
from slm_local.installed import add_line
from slm_local.measured import engine_version
from slm_local.paths import Paths, paths
from slm_local.registry import load_registry
from slm_local.system import Accelerator

EXTRAS = {"convert": "optimum"}
"""Parts of slm that are no engine, and the package that tells whether one is installed."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """An engine that slm can use, as it is here."""

    engine: str
    name: str
    version: str | None
    """None where it is not installed, empty where the version can't be told."""
    runs: bool
    listing: Listing | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder of ours, or where it will be."""

    name: str
    path: Path
    exists: bool
    free_bytes: int | None
    """Of its disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """How the Hub would be asked."""

    endpoint: str | None
    """None where HF_ENDPOINT holds no address."""
    offline: str | None
    """What forbids the network; None where nothing does."""
    token: Literal["set", "not set", "not used", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that `slm doctor` shows."""

    hardware: Hardware
    cards: tuple[Accelerator, ...]
    engines: tuple[EngineState, ...]
    missing_extras: tuple[tuple[str, str], ...]
    """Each with the line that adds it."""
    folders: tuple[Folder, ...]
    hub: HubSettings
    problems: tuple[Problem, ...]

    @property
    def can_run(self) -> bool:
        """Return whether an engine runs here."""
        return bool(self.hardware.engines)

    def values(self) -> dict[str, Any]:
        """Return the JSON object that docs/cli.md lists."""
        machine = self.hardware
        return {
            "slm": __version__,
            "python": sys.version.partition(" ")[0],
            "can_run": self.can_run,
            "machine": {
                "os": machine.os,
                "vendor": machine.vendor or None,
                "cpu": machine.cpu_name,
                "performance_cores": machine.physical_cores,
                "efficiency_cores": machine.efficiency_cores,
                "logical_cores": machine.logical_cores,
                "instruction_sets": machine.instruction_sets,
                "total_ram_bytes": machine.total_ram_bytes,
                "free_ram_bytes": machine.free_ram_bytes,
                "read_gb_s": machine.read_gb_s,
                "power": machine.power,
                "cards": [asdict(each) for each in self.cards],
            },
            "engines": [_engine_values(each) for each in self.engines],
            "missing_extras": [{"extra": extra, "add_line": line} for extra, line in self.missing_extras],
            "folders": [{**asdict(each), "path": str(each.path)} for each in self.folders],
            "hub": asdict(self.hub),
            "problems": [asdict(each) for each in self.problems],
        }


def diagnose() -> Diagnosis:
    """Find out all of it; asks the runtimes anew, which takes seconds."""
    problems: list[Problem] = []
    folders = _tried(paths, problems)
    settings = Settings()
    if folders is not None:
        place = folders.config / "models.toml"
        settings = _tried(lambda: load_settings({}), problems) or settings
        _tried(lambda: load_registry(place), problems)
    hardware = with_devices(probe(), fresh=True)
    hub = _hub(settings.offline, problems)
    return Diagnosis(
        hardware=hardware,
        cards=system.accelerators(),
        engines=tuple(_state(engine, hardware) for engine in ENGINE_PACKAGES),
        missing_extras=tuple(
            (extra, add_line(extra)) for extra, package in EXTRAS.items() if find_spec(package) is None
        ),
        folders=_folders(folders) if folders is not None else (),
        hub=hub,
        problems=(*hardware.problems, *problems),
    )


def _tried(what: Callable[[], T], problems: list[Problem]) -> T | None:
    """Return what a call gives; an error of ours becomes a problem with its hint."""
    try:
        return what()
    except SlmError as error:
        problems.append(Problem(what=error.message, mend_line=error.hint))
        return None


def _state(engine: str, hardware: Hardware) -> EngineState:
    listing = next((each for each in hardware.listings if each.engine == engine), None)
    return EngineState(
        engine=engine,
        name=NAMES[engine],
        version=engine_version(engine) if listing is not None else None,
        runs=engine in hardware.engines,
        listing=listing,
    )


def _engine_values(state: EngineState) -> dict[str, Any]:
    listing = state.listing
    return {
        "engine": state.engine,
        "version": state.version,
        "installed": state.version is not None,
        "runs": state.runs,
        "failure": listing.failure if listing else None,
        "built_for": list(listing.built_for) if listing else [],
        "devices": [asdict(each) for each in listing.devices] if listing else [],
    }


def _folders(places: Paths) -> tuple[Folder, ...]:
    return tuple(_folder(each.name.removesuffix("_dir"), getattr(places, each.name)) for each in fields(places))


def _folder(name: str, path: Path) -> Folder:
    try:
        nearest = next(each for each in (path, *path.parents) if each.exists())
        free = shutil.disk_usage(nearest).free
    except (OSError, StopIteration):  # a drive that is not there
        free = None
    return Folder(name=name, path=path, exists=path.is_dir(), free_bytes=free)


def _hub(is_offline: bool, problems: list[Problem]) -> HubSettings:
    offline = "the setting offline" if is_offline else offline_variable()
    hub = _tried(lambda: Hub(offline=is_offline), problems)
    if hub is None or offline is not None:
        return HubSettings(endpoint=hub.endpoint if hub else None, offline=offline, token="not used")
    unread = len(problems)
    token = _tried(lambda: hub.token, problems)
    if len(problems) > unread:
        return HubSettings(endpoint=hub.endpoint, offline=None, token="unreadable")
    return HubSettings(endpoint=hub.endpoint, offline=None, token="set" if token else "not set")
