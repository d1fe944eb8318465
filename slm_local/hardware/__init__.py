"""What this machine is: processor, memory now free, devices, installed engines. No runtime is imported to find out.

What a runtime alone knows, its devices, comes from a short-lived child (`runtimes`, `listing`); what is missing or
broken and the line that mends it from `problems`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec

from slm_local import system
from slm_local.errors import ConfigError
from slm_local.hardware.problems import find_problems, lacking
from slm_local.hardware.runtimes import listings
from slm_local.hardware.values import Device, DeviceKind, Hardware, Listing, Problem
from slm_local.measured import (
    KEPT_PROBES,
    Measured,
    NotMeasured,
    load_measured,
    machine_name,
    measure_read_gb_s,
    remember,
)
from slm_local.paths import paths

__all__ = [
    "ENGINE_PACKAGES",
    "KERNEL_FLAGS",
    "Device",
    "DeviceKind",
    "Hardware",
    "Listing",
    "Problem",
    "measured_probe",
    "probe",
    "with_devices",
]

ENGINE_PACKAGES = {"llamacpp": "llama_cpp", "openvino": "openvino_genai"}
"""The package that each engine needs."""

KERNEL_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "sve"),
)
"""Processor flags that llama.cpp's CPU kernels differ by. Source: ggml's CPU feature detection."""


def probe(*, devices: bool = False) -> Hardware:
    """Ask the system what this machine is, and what was measured on it; takes a few milliseconds, measures nothing.

    With `devices` it is `with_devices` of that.
    """
    name, cores, total = system.cpu_name(), system.physical_cores(), system.total_memory_bytes()
    flags = system.cpu_flags()
    measured = _measured(machine_name(name, cores, total))
    found = Hardware(
        os=sys.platform,
        cpu_name=name,
        vendor=system.cpu_vendor(),
        physical_cores=cores,
        efficiency_cores=system.efficiency_cores(),
        logical_cores=os.cpu_count() or 1,
        instruction_sets=None if flags is None else tuple(flag for flag in KERNEL_FLAGS if flag in flags),
        total_ram_bytes=total,
        free_ram_bytes=system.available_memory_bytes(),
        power=system.power_source(),
        devices=(Device(name="cpu", kind="cpu", description=name),),
        engines=frozenset(engine for engine, package in ENGINE_PACKAGES.items() if find_spec(package) is not None),
        read_gb_s=measured.read_gb_s,
        engine_shares=measured.engine_shares,
        download_bytes_s=measured.download_bytes_s,
    )
    return with_devices(found) if devices else found


def with_devices(hardware: Hardware, *, fresh: bool = False) -> Hardware:
    """Return a machine with the devices that its runtimes list, what is wrong with it, and only the engines that run.

    Starts a child a runtime, seconds at worst, when machine, drivers or versions are others than when they were last
    asked, or with `fresh`; else reads what they said then.
    """
    try:
        cache = paths().cache
    except ConfigError:  # no home to keep it in: the caller meets that by itself
        cache = None
    machine = machine_name(hardware.cpu_name, hardware.physical_cores, hardware.total_ram_bytes)
    said = listings(hardware.engines, machine, cache, fresh=fresh)
    others = tuple(device for each in said for device in each.devices if device.kind != "cpu")
    asked = replace(
        hardware,
        devices=(*(each for each in hardware.devices if each.kind == "cpu"), *others),
        listings=said,
    )
    running = frozenset(each.engine for each in said if each.devices and not lacking(each, asked))
    return replace(asked, engines=running, problems=find_problems(asked))


def measured_probe(tell: Callable[[str], None] | None = None, *, devices: bool = False) -> Hardware:
    """Return `probe`'s answer, its memory bandwidth measured first: half a second, three times in all on a machine.

    Loads numpy then: not for commands that must answer at once. `tell` gets one line when a measurement was made, or
    could not be.
    """
    found = probe(devices=devices)
    known = _measured(machine_name(found.cpu_name, found.physical_cores, found.total_ram_bytes))
    if known.probes >= KEPT_PROBES:
        return found
    tell = tell if tell is not None and known.probes == 0 else (lambda text: None)
    try:
        gb_s = measure_read_gb_s(found.physical_cores, found.free_ram_bytes)
    except NotMeasured as reason:
        tell(f"memory bandwidth is not measured: {reason}")
        return found
    tell(f"measured: this machine's memory is read at {gb_s:.0f} GB/s")
    with suppress(ConfigError):  # no home to keep it in: the caller meets that by itself
        remember(paths().cache, read_gb_s=gb_s)
    return replace(found, read_gb_s=max(gb_s, found.read_gb_s or 0.0))


def _measured(machine: str) -> Measured:
    try:
        return load_measured(paths().cache, machine)
    except ConfigError:
        return Measured()
