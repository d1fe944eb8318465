"""What this machine is: processor, memory now free, devices, installed engines. No runtime is imported to find out."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from slm_local import system
from slm_local.errors import ConfigError
from slm_local.paths import paths

DeviceKind = Literal["cpu", "gpu", "npu"]

ENGINE_PACKAGES = {"llamacpp": "llama_cpp"}
"""The package that each engine needs."""

KERNEL_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "sve"),
)
"""Processor flags that llama.cpp's CPU kernels differ by. Source: ggml's CPU feature detection."""

BANDWIDTH_FILE = "bandwidth.json"
"""In the cache folder, `{"read_gb_s": 46.6}`: the memory bandwidth that was measured on this machine."""

PLAUSIBLE_GB_S = (0.5, 5000.0)
"""A figure outside is no machine's: the file is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something that a model can run on."""

    name: str
    """As flags name it."""
    kind: DeviceKind
    description: str


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
    """Those of `KERNEL_FLAGS` that it has; None where the system does not say."""
    total_ram_bytes: int
    free_ram_bytes: int
    """What could be used without swapping, within the limits set for this process."""
    devices: tuple[Device, ...]
    engines: frozenset[str]
    """Engines that are installed."""
    read_gb_s: float | None = None
    """Memory bandwidth that was measured on this machine (10^9 bytes a second); None: never measured."""


def probe() -> Hardware:
    """Ask the system what this machine is; takes a few milliseconds, measures and runs nothing."""
    name = system.cpu_name()
    flags = system.cpu_flags()
    return Hardware(
        os=sys.platform,
        cpu_name=name,
        physical_cores=system.physical_cores(),
        logical_cores=os.cpu_count() or 1,
        instruction_sets=None if flags is None else tuple(flag for flag in KERNEL_FLAGS if flag in flags),
        total_ram_bytes=system.total_memory_bytes(),
        free_ram_bytes=system.available_memory_bytes(),
        devices=(Device(name="cpu", kind="cpu", description=name),),
        engines=frozenset(engine for engine, package in ENGINE_PACKAGES.items() if find_spec(package) is not None),
        read_gb_s=measured_read_gb_s(),
    )


def measured_read_gb_s() -> float | None:
    """Return the memory bandwidth that was measured on this machine; None without a measurement that can be read."""
    try:
        figure = json.loads((paths().cache / BANDWIDTH_FILE).read_text(encoding="utf-8"))["read_gb_s"]
        is_plausible = PLAUSIBLE_GB_S[0] <= figure <= PLAUSIBLE_GB_S[1]
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None
    return float(figure) if is_plausible else None
