"""What differs between Windows, macOS and Linux: processes, signals, sleep, memory, processor, devices, file rights.

Here and nowhere else: a test finds names that only one system has in any other room. It knows no model and no runtime.
"""

from slm_local.system.awake import kept_awake
from slm_local.system.devices import (
    DRIVER_LIBRARIES,
    Accelerator,
    Power,
    accelerators,
    distributions,
    driver_marks,
    has_npu_firmware,
    opencl_drivers,
    power_source,
)
from slm_local.system.ending import LEAVE_LIMIT_S, ToldToEnd, told_to_end, unwind
from slm_local.system.energy import EnergyCounter, EnergyReading, read_energy
from slm_local.system.files import lock_down_file
from slm_local.system.keys import TypedLine, TypedLines, can_type_lines, signalled
from slm_local.system.load import FreeCores, OtherPrograms
from slm_local.system.memory import (
    Program,
    available_memory_bytes,
    family_memory_bytes,
    largest_program,
    own_peak_rss_bytes,
    peak_rss_bytes,
    rss_bytes,
    taken_bytes,
    total_memory_bytes,
)
from slm_local.system.processes import (
    KILL_WAIT_S,
    SpawnOptions,
    describe_exit,
    ignore_interrupts,
    kill_tree,
    met_illegal_instruction,
    restrict_core_dumps,
    spawn_options,
    without_secrets,
)
from slm_local.system.processor import (
    cache_bytes,
    cpu_flags,
    cpu_name,
    cpu_vendor,
    efficiency_cores,
    physical_cores,
)
from slm_local.system.saving import is_saving_power
from slm_local.system.sending import bound_sends

__all__ = [
    "DRIVER_LIBRARIES",
    "KILL_WAIT_S",
    "LEAVE_LIMIT_S",
    "Accelerator",
    "EnergyCounter",
    "EnergyReading",
    "FreeCores",
    "OtherPrograms",
    "Power",
    "Program",
    "SpawnOptions",
    "ToldToEnd",
    "TypedLine",
    "TypedLines",
    "accelerators",
    "available_memory_bytes",
    "bound_sends",
    "cache_bytes",
    "can_type_lines",
    "cpu_flags",
    "cpu_name",
    "cpu_vendor",
    "describe_exit",
    "distributions",
    "driver_marks",
    "efficiency_cores",
    "family_memory_bytes",
    "has_npu_firmware",
    "ignore_interrupts",
    "is_saving_power",
    "kept_awake",
    "kill_tree",
    "largest_program",
    "lock_down_file",
    "met_illegal_instruction",
    "opencl_drivers",
    "own_peak_rss_bytes",
    "peak_rss_bytes",
    "physical_cores",
    "power_source",
    "read_energy",
    "restrict_core_dumps",
    "rss_bytes",
    "signalled",
    "spawn_options",
    "taken_bytes",
    "told_to_end",
    "total_memory_bytes",
    "unwind",
    "without_secrets",
]
