"""What the runtimes say of themselves: asked in a short-lived child each, kept until machine, driver or version change.

Native code runs in those children alone. One that dies, hangs or talks nonsense is a line in its `Listing`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from slm_local import system
from slm_local.errors import ConfigError
from slm_local.hardware.values import Device, DeviceKind, Listing
from slm_local.measured import engine_version
from slm_local.paths import make_folder

FILE = "runtimes.json"

KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)

FORMAT = 1
"""Goes up when what is kept means something else."""

LIMIT_S = 20.0
"""Longest wait for a runtime's devices: a CUDA driver that was never loaded takes five seconds on a slow disk."""

FAILURE_KEPT_S = 3600.0
"""A failure is kept so long: a driver that hangs is not waited for at every command, and what was only a moment's
lack of memory is forgotten."""

MOST_BYTES = 1 << 20
"""A longer answer is none."""

LISTING = "slm_local.hardware.listing"

ONE_BY_ONE: Mapping[str, tuple[DeviceKind, ...]] = {"openvino": ("cpu", "gpu", "npu")}
"""Kinds of devices that a runtime is asked for one by one when it broke on all: one driver may be at fault."""

VARIABLES = (
    *("LLAMA_CPP_LIB_PATH", "CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR"),
    *("ZE_AFFINITY_MASK", "OCL_ICD_VENDORS", "OCL_ICD_FILENAMES", "LD_LIBRARY_PATH"),
)
"""Variables that change what a runtime finds."""


def listings(
    engines: Iterable[str], machine: str, cache_dir: Path | None, *, fresh: bool = False
) -> tuple[Listing, ...]:
    """Return what each engine says of itself: what is kept when it is of the same circumstances, else asked anew.

    `machine` is `measured.machine_name`'s; without a cache folder nothing is kept. `fresh` asks in any case. Blocks at
    most `LIMIT_S` for all of them, twice that where one broke.
    """
    engines = sorted(engines)
    circumstances = _circumstances(engines, machine)
    kept = None if fresh or cache_dir is None else _kept(cache_dir / FILE, circumstances)
    if kept is None:
        kept = _ask_all(engines)
        if cache_dir is not None:
            _keep(cache_dir, circumstances, kept)
    return kept


def _circumstances(engines: list[str], machine: str) -> dict[str, Any]:
    """Return, as JSON gives it back, all that a listing depends on."""
    return {
        "format": FORMAT,
        "machine": machine,
        "engines": {engine: engine_version(engine) for engine in engines},
        "python": sys.version,
        "system": list(system.driver_marks()),
        "devices": [asdict(each) for each in system.accelerators()],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _kept(file: Path, circumstances: Mapping[str, Any]) -> tuple[Listing, ...] | None:
    """Read the listings that are kept; None where there are none, they are damaged or of other circumstances."""
    try:
        record = json.loads(file.read_bytes())
        if record["circumstances"] != circumstances:
            return None
        found = tuple(_listing(engine, record["listings"][engine]) for engine in circumstances["engines"])
        is_old = time.time() - file.stat().st_mtime > FAILURE_KEPT_S
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return None if is_old and any(each.failure for each in found) else found


def _keep(cache_dir: Path, circumstances: Mapping[str, Any], found: Iterable[Listing]) -> None:
    """Write the listings; where the folder can't be written nothing is kept: it is a cache."""
    record = {"circumstances": circumstances, "listings": {each.engine: _values(each) for each in found}}
    half_written = cache_dir / f"{FILE}.{os.getpid()}"
    with contextlib.suppress(OSError, ConfigError):
        make_folder(cache_dir)
        half_written.write_text(json.dumps(record), encoding="ascii")
        half_written.replace(cache_dir / FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A child that was asked, and until when it may answer."""

    engine: str
    child: subprocess.Popen[bytes]
    until: float


def _ask_all(engines: Iterable[str]) -> tuple[Listing, ...]:
    """Ask every runtime at once; one that broke is asked again, for one kind of device at a time."""
    found = _answers([(engine,) for engine in engines])
    return tuple(_retried(each) if each.failure and not each.is_illegal_instruction else each for each in found)


def _retried(broken: Listing) -> Listing:
    kinds = ONE_BY_ONE.get(broken.engine, ())
    again = dict(zip(kinds, _answers([(broken.engine, kind.upper()) for kind in kinds]), strict=True))
    if not again or again["cpu"].failure is not None:
        return broken
    return replace(
        broken,
        devices=tuple(device for each in again.values() for device in each.devices),
        broken_kinds=tuple(kind for kind, each in again.items() if each.failure is not None),
        libraries=again["cpu"].libraries,
    )


def _answers(questions: Sequence[Sequence[str]]) -> list[Listing]:
    """Start a child for each question, an engine and perhaps a device, and wait for their answers."""
    asked = [_ask(*question) for question in questions]
    try:
        return [each if isinstance(each, Listing) else _answer(each) for each in asked]
    finally:
        for each in asked:
            if isinstance(each, _Asked) and each.child.poll() is None:
                system.kill_tree(each.child)


def _ask(engine: str, *device: str) -> _Asked | Listing:
    root = str(Path(__file__).resolve().parents[2])
    environment = system.without_secrets(os.environ) | {"GGML_NO_BACKTRACE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", LISTING, engine, *device],  # -P: nothing in this folder passes for a runtime
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            **system.spawn_options(),
        )
    except OSError as error:
        return Listing(engine=engine, failure=f"no process could be started: {error}")
    return _Asked(engine=engine, child=child, until=time.monotonic() + LIMIT_S)


def _answer(asked: _Asked) -> Listing:
    """Wait for a child's answer; kill it, and what it started, at its limit. Its whole group is gone afterwards."""
    child = asked.child
    try:
        answer, _ = child.communicate(timeout=max(0.0, asked.until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Listing(engine=asked.engine, failure=f"it did not answer within {LIMIT_S:g} s")
    finally:
        system.kill_tree(child)
        assert child.stdout is not None
        child.stdout.close()
    if child.returncode != 0:
        return Listing(
            engine=asked.engine,
            failure=system.describe_exit(child.returncode),
            is_illegal_instruction=system.met_illegal_instruction(child.returncode),
        )
    try:
        if len(answer) > MOST_BYTES:
            raise ValueError("too long")
        return _listing(asked.engine, json.loads(answer))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Listing(engine=asked.engine, failure="its answer is not what it should be")


def _listing(engine: str, values: Mapping[str, Any]) -> Listing:
    """Make a listing of JSON values, the second GPU called `gpu.1`; `ValueError` and its like where they are none."""
    devices: list[Device] = []
    for each in values.get("devices", ()):
        count = sum(other.kind == each["kind"] for other in devices)
        devices.append(_device(engine, each, f"{each['kind']}.{count}" if count else each["kind"]))
    return Listing(
        engine=engine,
        devices=tuple(devices),
        failure=_text(values.get("failure")),
        is_illegal_instruction=values.get("is_illegal_instruction") is True,
        broken_kinds=tuple(_kind(each) for each in values.get("broken_kinds", ())),
        built_for=_texts(values.get("built_for", ())),
        libraries=frozenset(_texts(values.get("libraries", ()))),
    )


def _device(engine: str, values: Mapping[str, Any], name: str) -> Device:
    if not isinstance(values["description"], str):
        raise ValueError(values["description"])
    memory, integrated = values.get("memory_bytes"), values.get("integrated")
    if not isinstance(memory, int | None) or not isinstance(integrated, bool | None):
        raise ValueError(memory)
    return Device(
        name=name,
        kind=_kind(values["kind"]),
        description=values["description"],
        engine=engine,
        integrated=integrated,
        memory_bytes=memory,
        free_bytes=memory if integrated is False else None,
        driver=_text(values.get("driver")),
        architecture=_text(values.get("architecture")),
        capabilities=_texts(values.get("capabilities", ())),
    )


def _kind(value: Any) -> DeviceKind:
    for kind in KINDS:
        if value == kind:
            return kind
    raise ValueError(value)


def _text(value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError(value)
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
        raise ValueError(values)
    return tuple(values)


def _values(listing: Listing) -> dict[str, Any]:
    return {**asdict(listing), "libraries": sorted(listing.libraries)}
