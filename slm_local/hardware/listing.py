"""The short-lived child that asks one runtime for its devices: `python -m slm_local.hardware.listing ENGINE [DEVICE]`.

It writes one JSON object to stdout. With a DEVICE it asks OpenVINO for that alone. A runtime that kills its process on
this machine kills this one, and the parent says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import platform
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from slm_local.system import DRIVER_LIBRARIES, ignore_interrupts, restrict_core_dumps

OPENVINO_FACTS = {
    "FULL_DEVICE_NAME": "description",
    "DEVICE_ARCHITECTURE": "architecture",
    "GPU_DEVICE_TOTAL_MEM_SIZE": "memory_bytes",
    "NPU_DEVICE_TOTAL_MEM_SIZE": "memory_bytes",
    "NPU_DRIVER_VERSION": "driver",
}
"""Properties that are asked for, and what each is called here; one that a device lacks is left out."""

GGML_KINDS = {0: "cpu", 1: "gpu", 2: "gpu"}
"""`ggml_backend_dev_type`: CPU, GPU, IGPU; accelerators of the CPU and devices made of others run no model by
themselves. Source: ggml-backend.h."""

GGML_INTEGRATED = 2

METAL = "MTL"
"""llama.cpp's backend for Apple's GPUs, which it does not call integrated though on Apple silicon they are."""

GGML_LIBRARIES = ("ggml.dll", "ggml-base.dll", "libggml.dll", "libggml-base.dll")
"""On Windows a library does not give out what those that it loaded hold: they are asked one by one."""


def openvino_devices(only: str | None) -> dict[str, Any]:
    """Return OpenVINO's devices (or the one that is asked for), and which libraries of drivers load."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would write into the home and ask the network
    import openvino

    core = openvino.Core()
    if only is None:
        names = core.available_devices
    else:
        names = [only] if _property(core, only, "FULL_DEVICE_NAME") is not None else []
    devices = [_openvino_device(core, name) for name in names]
    importlib.import_module("openvino_genai")  # what generates: it must load, too
    return {"devices": [each for each in devices if each], "libraries": _libraries()}


def _openvino_device(core: Any, name: str) -> dict[str, Any]:
    kind = name.partition(".")[0].lower()
    if kind not in ("cpu", "gpu", "npu"):
        return {}
    facts: dict[str, Any] = {"kind": kind, "description": name}
    for key, ours in OPENVINO_FACTS.items():
        value = _property(core, name, key)
        if value is not None:
            facts[ours] = int(value) if ours == "memory_bytes" else str(value).strip()
    facts["capabilities"] = [str(each) for each in _property(core, name, "OPTIMIZATION_CAPABILITIES") or ()]
    if kind != "cpu":
        facts["integrated"] = "INTEGRATED" in str(_property(core, name, "DEVICE_TYPE")).upper()
    return facts


def _property(core: Any, device: str, key: str) -> Any:
    try:
        return core.get_property(device, key)
    except RuntimeError:  # this device does not have it
        return None


def _libraries() -> list[str]:
    found = []
    for purpose, names in DRIVER_LIBRARIES.get(sys.platform, {}).items():
        for name in names:
            try:
                ctypes.CDLL(name)
            except OSError:
                continue
            found.append(purpose)
            break
    return found


def llamacpp_devices(only: str | None) -> dict[str, Any]:
    """Return what llama.cpp's build uses of the processor, and its devices; it can't be asked for one alone."""
    del only
    library = _bindings()
    library.llama_backend_init()
    features = library.llama_print_system_info().decode("ascii", "replace")
    fields = [part.rpartition(":")[2].split("=") for part in features.split("|")]
    used = [each[0].strip() for each in fields if len(each) == 2 and each[1].strip() not in ("", "0")]
    ggml = _ggml(library)
    devices = [_ggml_device(ggml, index) for index in range(ggml("ggml_backend_dev_count", ctypes.c_size_t)())]
    return {"devices": [each for each in devices if each], "built_for": used}


def _bindings() -> Any:
    """Import `llama_cpp.llama_cpp` without its package's `__init__`, as the backend does."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("llama_cpp is not installed")
    shell = types.ModuleType("llama_cpp")
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = shell
    return importlib.import_module("llama_cpp.llama_cpp")


def _ggml(library: Any) -> Callable[..., Any]:
    """Return what gives a function of ggml by its name, with the type of what it returns and of what it takes."""

    def function(name: str, result: Any, *arguments: Any) -> Any:
        for holder in _holders(library):
            if hasattr(holder, name):
                found = getattr(holder, name)
                found.restype, found.argtypes = result, list(arguments)
                return found
        raise OSError(f"this build of llama.cpp has no {name}")

    return function


def _holders(library: Any) -> Iterator[Any]:
    yield library._lib
    for name in GGML_LIBRARIES if sys.platform == "win32" else ():
        with contextlib.suppress(OSError):
            yield ctypes.CDLL(name)


def _ggml_device(ggml: Callable[..., Any], index: int) -> dict[str, Any]:
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    device = ggml("ggml_backend_dev_get", pointer, ctypes.c_size_t)(index)
    kind = ggml("ggml_backend_dev_type", ctypes.c_int, pointer)(device)
    if kind not in GGML_KINDS:
        return {}
    registry = ggml("ggml_backend_dev_backend_reg", pointer, pointer)(device)
    facts: dict[str, Any] = {
        "kind": GGML_KINDS[kind],
        "description": ggml("ggml_backend_dev_description", text, pointer)(device).decode("utf-8", "replace").strip(),
        "architecture": ggml("ggml_backend_reg_name", text, pointer)(registry).decode("utf-8", "replace"),
    }
    if facts["kind"] == "gpu":
        size = ctypes.POINTER(ctypes.c_size_t)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml("ggml_backend_dev_memory", None, pointer, size, size)(device, ctypes.byref(free), ctypes.byref(total))
        is_apple = facts["architecture"] == METAL and platform.machine() == "arm64"
        facts["integrated"], facts["memory_bytes"] = kind == GGML_INTEGRATED or is_apple, total.value
    return facts


RUNTIMES: Mapping[str, Callable[[str | None], dict[str, Any]]] = {
    "openvino": openvino_devices,
    "llamacpp": llamacpp_devices,
}


def main(arguments: Sequence[str]) -> int:
    """Print what a runtime says of this machine; status 0 also when it says no, with its words."""
    engine, *only = arguments
    out = os.dup(1)
    os.dup2(2, 1)  # what native code prints is no JSON
    try:
        found = RUNTIMES[engine](only[0] if only else None)
    except Exception as error:  # whatever it is: the parent tells it
        found = {"failure": f"{type(error).__name__}: {error}"}
    os.write(out, json.dumps(found).encode())
    return 0


if __name__ == "__main__":
    ignore_interrupts()
    restrict_core_dumps()
    sys.exit(main(sys.argv[1:]))
