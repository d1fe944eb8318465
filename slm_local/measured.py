"""What was measured on this machine, kept in a file of its cache folder: memory bandwidth, engines, plans, downloads.

Measuring takes half a second of every core, once a machine; engines and downloads are measured by the way, in use, and
plans when the person wants it. What another machine, driver or version of an engine measured, or what is damaged,
counts as not measured.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from slm_local import system
from slm_local.errors import ConfigError
from slm_local.generation import Reply
from slm_local.paths import make_folder

FILE = "measured.json"

PLAUSIBLE_GB_S = (0.5, 5000.0)
"""A figure outside is no machine's: the file is damaged, or the clock stood still."""

PLAUSIBLE_BYTES_S = (1.0, 1e11)
"""Of a download: slower is none, and no network of a laptop is faster."""

PLAUSIBLE_TPS = (1e-3, 1e8)
"""Tokens a second."""

PLAUSIBLE_S = (0.0, 1e5)

KEPT_MEASUREMENTS = 500
"""The oldest beyond so many are dropped."""

KEPT_RATES = 5
"""Replies of which an engine's median is taken: one that had to share the machine with a film must not tell of all."""

LEAST_TOKENS = 64
"""A shorter reply says more of its first tokens than of an engine's speed."""

DRAFTED_SHARE = 0.05
"""Tokens guessed ahead, as a share of those generated, up to which a reply's speed is that of decoding one by one: what
trials of guesses that fail may cost is less (`backends.llamacpp.drafting`)."""

CACHED_BYTES = 256 * 2**20
"""A model that reads less for a token lives in the processor's caches in part: bandwidth says nothing of its speed
(a 98 MB model ran at a third of what bandwidth allows)."""

ENGINE_WHEELS = {"llamacpp": ("llama_cpp", "llama_cpp_python"), "openvino": ("openvino_genai", "openvino_genai")}
"""The package of each engine, and the name of what is installed with it."""

KEPT_PROBES = 3
"""Probes of which the highest counts: each may have met another program, none reads faster than the memory does."""

PROBE_S = 0.5

ROUND_S = 0.05
"""How long a round should last: waking sixteen threads takes a third of a millisecond."""

LEAST_ROUNDS = 5
"""Rounds of which the median is taken, even where they last longer than the probe should."""

CACHES = 4
"""The probe reads so many times the processor's caches: less would measure them, not the memory."""

UNKNOWN_CACHE_BYTES = 128 * 2**20
"""Where the system does not tell: the largest cache that a processor for laptops and desktops has."""

PROBE_SHARE = 0.25
"""Largest share of the free memory that the probe may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of this machine by measuring; None and nothing where it was not measured."""

    read_gb_s: float | None = None
    """Memory bandwidth, 10^9 bytes a second, all cores reading: the most that the last probes or an engine reached."""
    probes: int = field(default=0, compare=False)
    """How often it was probed, up to `KEPT_PROBES`."""
    engine_shares: Mapping[str, float] = field(default_factory=dict)
    """Per engine, the share of that bandwidth at which it read weights and KV cache, as this version of it did last."""
    download_bytes_s: float | None = None
    """Speed of the last download."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How fast one way to run one model was in a race on this machine (`slm bench --calibrate`)."""

    model: str
    """The model's id."""
    quant: str
    backend: str
    device: str
    """As plans name it: `cpu`, `gpu`, `gpu.1`, `npu`."""
    prefill_tps: float
    """Tokens per second of a prompt of some hundred tokens, none of them in the KV cache."""
    decode_tps: float
    """Tokens per second behind a short prompt, as a long thought begins."""
    first_token_s: float
    """From the request to the first token of that short prompt, with the model loaded."""
    measured_at: str
    """ISO 8601, UTC."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return what tells it from other measurements: model, quantization, engine, device."""
        return (self.model, self.quant, self.backend, self.device)

    def seconds(self, prompt_tokens: int, decoded_tokens: int) -> float:
        """Return the time of a reply: its prompt read, its tokens decoded."""
        return prompt_tokens / self.prefill_tps + decoded_tokens / self.decode_tps


class NotMeasured(Exception):
    """The bandwidth can't be measured here now; the message says why."""


def load_measured(cache_dir: Path, machine: str | None = None) -> Measured:
    """Return what was measured on this machine (`machine_name`; None: the system is asked)."""
    kept = _kept(cache_dir, machine)
    readings = _readings(kept)
    download = _figure(kept.get("download_bytes_s"), PLAUSIBLE_BYTES_S)
    if not readings:
        return Measured(download_bytes_s=download)
    reached = {engine: median(rates) for engine, rates in _engine_rates(kept).items() if rates}
    most = max(*readings, *reached.values(), 0.0)  # a probe may have met a busy moment
    shares = {engine: gb_s / most for engine, gb_s in reached.items()}
    return Measured(read_gb_s=most, probes=len(readings), engine_shares=shares, download_bytes_s=download)


def remember(
    cache_dir: Path,
    *,
    read_gb_s: float | None = None,
    engine_gb_s: tuple[str, float] | None = None,
    download_bytes_s: float | None = None,
) -> None:
    """Keep what was just measured beside what was kept; a figure that can't be is passed over.

    `engine_gb_s` is an engine and the bandwidth at which it read during one reply. Where the folder can't be written
    nothing is kept: it is a cache. Of two processes that write at once the later one wins.
    """
    machine = _this_machine()
    kept = _kept(cache_dir, machine)
    rates = {engine: each for engine, each in _engine_rates(kept).items() if each}
    if engine_gb_s is not None and _figure(engine_gb_s[1], PLAUSIBLE_GB_S) is not None:
        engine, gb_s = engine_gb_s
        rates[engine] = [*rates.get(engine, []), gb_s][-KEPT_RATES:]
    record = {
        **kept,
        "machine": machine,
        "read_gb_s": [*_readings(kept), *([read_gb_s] if _figure(read_gb_s, PLAUSIBLE_GB_S) else [])][-KEPT_PROBES:],
        "engines": {engine: {"version": engine_version(engine), "gb_s": each} for engine, each in rates.items()},
        "download_bytes_s": _figure(download_bytes_s, PLAUSIBLE_BYTES_S) or kept.get("download_bytes_s"),
    }
    _keep(cache_dir, record)


def load_measurements(cache_dir: Path, machine: str | None = None) -> tuple[Measurement, ...]:
    """Return what races measured on this machine with the drivers and engines that are installed now.

    `machine` as `load_measured` takes it.
    """
    return tuple(_as_measurement(row) for row in _valid_rows(_kept(cache_dir, machine)))


def remember_measurement(cache_dir: Path, measurement: Measurement) -> None:
    """Keep how fast a plan was, in place of what was measured of it before; a figure that can't be is passed over."""
    machine = _this_machine()
    kept = _kept(cache_dir, machine)
    row = {
        **asdict(measurement),
        "version": engine_version(measurement.backend),
        "driver": _driver(measurement.device),
    }
    if not _is_valid(row):
        return
    others = [each for each in _valid_rows(kept) if _as_measurement(each).key != measurement.key]
    _keep(cache_dir, {**kept, "machine": machine, "plans": [*others, row][-KEPT_MEASUREMENTS:]})


def was_asked_to_measure(cache_dir: Path) -> bool:
    """Say whether the person was asked before if plans should be raced on this machine."""
    return _kept(cache_dir, None).get("asked_to_measure") is True


def remember_asked_to_measure(cache_dir: Path) -> None:
    """Keep that the person was asked."""
    machine = _this_machine()
    _keep(cache_dir, {**_kept(cache_dir, machine), "machine": machine, "asked_to_measure": True})


def remember_reply(
    cache_dir: Path, engine: str, reply: Reply, *, weights_bytes: int | None, kv_bytes_per_token: int | None
) -> None:
    """Keep the bandwidth at which an engine read during a reply, where the reply is `worth_remembering`.

    `weights_bytes` are those read for a token, as `fit.read_bytes_per_token` says; `kv_bytes_per_token` the shape's.
    """
    if worth_remembering(engine, reply, weights_bytes) and weights_bytes is not None:
        read = weights_bytes + mean_kv_bytes(reply, kv_bytes_per_token or 0)
        remember(cache_dir, engine_gb_s=(engine, reply.timings.decode_tps * read / 1e9))


def worth_remembering(engine: str, reply: Reply, weights_bytes: int | None) -> bool:
    """Say whether a reply tells how fast an engine reads memory.

    It does when it is long enough, its tokens were decoded one by one but for a few that were guessed ahead, and the
    model is too large for the processor's caches; a scripted or remote engine reads no memory here.
    """
    usage = reply.usage
    decoded = (usage.think_tokens or 0) + (usage.answer_tokens or 0)
    return (
        engine in ENGINE_WHEELS
        and decoded >= LEAST_TOKENS
        and not usage.injected_tokens
        and not usage.probe_tokens
        and (usage.drafted_tokens or 0) <= DRAFTED_SHARE * decoded
        and weights_bytes is not None
        and weights_bytes >= CACHED_BYTES
        and reply.timings.decode_tps > 0.0
    )


def mean_kv_bytes(reply: Reply, kv_bytes_per_token: int) -> float:
    """Return the bytes of KV cache that decoding a token of this reply read, on average."""
    decoded = (reply.usage.think_tokens or 0) + (reply.usage.answer_tokens or 0)
    return kv_bytes_per_token * ((reply.usage.prompt_tokens or 0) + decoded / 2)


def measure_read_gb_s(cores: int, free_bytes: int) -> float:
    """Read memory with every core for half a second; return the median bandwidth in 10^9 bytes a second.

    Each thread reads an array of its own, together at least four times the caches. Raises `NotMeasured` where numpy is
    missing, memory is short or the figure can't be.
    """
    size = CACHES * (system.cache_bytes() or UNKNOWN_CACHE_BYTES)
    if size > PROBE_SHARE * free_bytes:
        raise NotMeasured(f"a probe of {size / 1e9:.1f} GB is too much beside {free_bytes / 1e9:.1f} GB of free memory")
    if find_spec("numpy") is None:
        raise NotMeasured("numpy is not installed")
    try:
        measured = median(_rounds_gb_s(cores, size // cores))
    except MemoryError as error:
        raise NotMeasured("memory ran short") from error
    if _figure(measured, PLAUSIBLE_GB_S) is None:
        raise NotMeasured(f"{measured:.3g} GB/s is no machine's")
    return measured


def machine_name(cpu_name: str, cores: int, total_ram_bytes: int) -> str:
    """Return what a measurement is bound to; memory in whole GiB, for a kernel's own share of it varies."""
    return f"{cpu_name}, {cores} cores, {round(total_ram_bytes / 2**30)} GiB"


def engine_version(engine: str) -> str:
    """Return the version of an engine that is installed, empty where that can't be told; imports nothing.

    Read off the name of its dist-info folder: importlib.metadata would take longer than the rest of `slm ls`.
    """
    package, wheel = ENGINE_WHEELS.get(engine, ("", ""))
    spec = find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return ""
    found = sorted(Path(spec.origin).parents[1].glob(f"{wheel}-*.dist-info"))
    return found[-1].name.removesuffix(".dist-info").partition("-")[2] if found else ""


def _rounds_gb_s(cores: int, size: int) -> list[float]:
    """Return the bandwidth of each round in which every core read its `size` bytes as often as a round takes.

    The first round only shows how often that is.
    """
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier, BrokenBarrierError
    from time import perf_counter

    import numpy as np

    marks: list[float] = []
    passes = 1
    is_over = False

    def mark() -> None:  # run by one thread, when all have read and before any goes on
        nonlocal passes, is_over
        marks.append(perf_counter())
        if len(marks) == 2:
            passes = ceil(ROUND_S / (marks[1] - marks[0]))
        is_over = len(marks) > 1 + LEAST_ROUNDS and marks[-1] - marks[0] >= PROBE_S

    barrier = Barrier(cores, action=mark)

    def read() -> None:
        try:
            own = np.ones(max(1, size // 8), np.uint64)  # touched here first: in this core's memory
            barrier.wait()
            while not is_over:
                for _ in range(passes):
                    np.add.reduce(own)  # without the interpreter's lock
                barrier.wait()
        except BrokenBarrierError:
            return
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(cores) as pool:
        try:
            reading = [pool.submit(read) for _ in range(cores)]
        except RuntimeError as error:  # the system gives no more threads: those that wait would wait for ever
            barrier.abort()
            raise NotMeasured(str(error)) from error
        for each in reading:
            each.result()
    read_bytes = passes * cores * (size // 8) * 8
    return [read_bytes / (end - begin) / 1e9 for begin, end in pairwise(marks[1:])]


def _this_machine() -> str:
    return machine_name(system.cpu_name(), system.physical_cores(), system.total_memory_bytes())


def _kept(cache_dir: Path, machine: str | None) -> dict[str, Any]:
    """Read the file; empty where there is none, it is damaged or another machine's."""
    try:
        kept = json.loads((cache_dir / FILE).read_bytes())
        return kept if kept["machine"] == (machine or _this_machine()) else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _keep(cache_dir: Path, record: Mapping[str, Any]) -> None:
    half_written = cache_dir / f"{FILE}.{os.getpid()}"
    with contextlib.suppress(OSError, ConfigError):
        make_folder(cache_dir)
        half_written.write_text(json.dumps(record), encoding="ascii")
        half_written.replace(cache_dir / FILE)


def _driver(device: str) -> str:
    """Return what is another when a device or its driver is; the processor has none."""
    if device == "cpu":
        return ""
    cards = [f"{each.kind} {each.vendor} {each.device_id} {each.driver}" for each in system.accelerators()]
    return "; ".join([*system.driver_marks(), *cards])


def _valid_rows(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the plans' measurements that can be believed and hold for what is installed now, oldest first."""
    rows = kept.get("plans")
    found = [row for row in rows if isinstance(row, dict) and _is_valid(row)] if isinstance(rows, list) else []
    versions = {backend: engine_version(backend) for backend in {row["backend"] for row in found}}
    drivers = {device: _driver(device) for device in {row["device"] for row in found}}
    return [
        row
        for row in found
        if row.get("version") == versions[row["backend"]] and row.get("driver") == drivers[row["device"]]
    ]


def _is_valid(row: Mapping[str, Any]) -> bool:
    texts = all(isinstance(row.get(name), str) for name in ("model", "quant", "backend", "device", "measured_at"))
    rates = all(_figure(row.get(name), PLAUSIBLE_TPS) is not None for name in ("prefill_tps", "decode_tps"))
    return texts and rates and _figure(row.get("first_token_s"), PLAUSIBLE_S) is not None


def _as_measurement(row: Mapping[str, Any]) -> Measurement:
    return Measurement(**{each.name: row[each.name] for each in fields(Measurement)})


def _readings(kept: Mapping[str, Any]) -> list[float]:
    """Return the believable figures of the last probes."""
    read = kept.get("read_gb_s")
    found = [_figure(each, PLAUSIBLE_GB_S) for each in (read if isinstance(read, list) else [])]
    return [each for each in found if each is not None]


def _engine_rates(kept: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the believable rates of every engine whose version is still the one that reached them."""
    engines = kept.get("engines")
    rates: dict[str, list[float]] = {}
    for engine, each in engines.items() if isinstance(engines, dict) else ():
        if (
            isinstance(each, dict)
            and each.get("version") == engine_version(engine)
            and isinstance(each.get("gb_s"), list)
        ):
            found = [_figure(rate, PLAUSIBLE_GB_S) for rate in each["gb_s"]]
            rates[engine] = [rate for rate in found if rate is not None]
    return rates


def _figure(value: object, bounds: tuple[float, float]) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if bounds[0] <= value <= bounds[1] else None
