"""What a machine, its devices and its runtimes are: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from slm_local.system import Power

DeviceKind = Literal["cpu", "gpu", "npu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something that a model can run on."""

    name: str
    """As flags name it: `cpu`, `gpu`, `gpu.1`, `npu`; a runtime's second device of a kind is `.1`, as it counts."""
    kind: DeviceKind
    description: str
    engine: str | None = None
    """The engine that can use it; None: the processor, which every engine can."""
    integrated: bool | None = None
    """Whether it shares the machine's memory; None where that is not told."""
    memory_bytes: int | None = None
    """What it can address, be it the machine's or its own."""
    free_bytes: int | None = None
    """What is free of memory of its own, taken to be all of it; None: it shares the machine's."""
    driver: str | None = None
    architecture: str | None = None
    """As OpenVINO names it; of llama.cpp's devices the backend that serves it, such as `CUDA`, `Vulkan`, `Metal`."""
    capabilities: tuple[str, ...] = ()
    """What it computes in, as OpenVINO lists it: `FP16`, `INT8`, `BF16`, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a runtime said of itself when it was asked in a process of its own."""

    engine: str
    devices: tuple[Device, ...] = ()
    """The processor among them; none where it does not run here."""
    failure: str | None = None
    """How it died, hung or refused, in words. With devices beside it: it did so at others (`broken_kinds`)."""
    broken_kinds: tuple[DeviceKind, ...] = ()
    """Kinds of devices at which it broke, where it can be used without them."""
    is_illegal_instruction: bool = False
    """Whether it died of an instruction that this processor lacks."""
    built_for: tuple[str, ...] = ()
    """Instruction sets that llama.cpp's build uses, as it names them."""
    libraries: frozenset[str] = frozenset()
    """Drivers' libraries that load here, of `system.DRIVER_LIBRARIES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is missing or broken, and what mends it."""

    what: str
    mend_line: str | None
    """A line to type; None where nothing mends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """This machine, as it is now."""

    os: str
    """`linux`, `darwin`, `win32`, ..."""
    cpu_name: str
    physical_cores: int
    """Performance cores only, where the system tells them apart."""
    logical_cores: int
    instruction_sets: tuple[str, ...] | None
    """Those of `KERNEL_FLAGS` that it has; None where the system does not say. Only Linux tells all of them."""
    total_ram_bytes: int
    free_ram_bytes: int
    """What could be used without swapping, within the limits set for this process."""
    devices: tuple[Device, ...]
    """The processor, and what the runtimes listed once they were asked."""
    engines: frozenset[str]
    """Engines that are installed; once they were asked, those of them that run here."""
    vendor: str = ""
    """Who made the processor: `intel`, `amd`, `apple`, `arm`, ...; empty where the system does not say."""
    efficiency_cores: int = 0
    """Cores of the weaker kinds; 0 also where the system does not tell them apart."""
    power: Power | None = None
    """Where the power comes from; None where the system does not say."""
    listings: tuple[Listing, ...] = ()
    """What the runtimes said of themselves; empty until they were asked."""
    problems: tuple[Problem, ...] = ()
    """What is missing or broken; empty until the runtimes were asked."""
    read_gb_s: float | None = None
    """Memory bandwidth that was measured on this machine (10^9 bytes a second); None: never measured."""
    engine_shares: Mapping[str, float] = field(default_factory=dict)
    """Per engine, the share of that bandwidth at which it read the weights when last measured here."""
    download_bytes_s: float | None = None
    """Speed of the last download."""
