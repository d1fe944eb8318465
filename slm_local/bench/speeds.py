"""How fast is a model here, and how near is that to what this machine's memory allows?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from slm_local.bench.busy import BusyCost, busy_cost, cost_remarks
from slm_local.bench.curves import Batch, Depth, measure_batches, measure_depths
from slm_local.bench.passes import SHORT_PROMPT_TOKENS, decode, random_prompt, read_prompt
from slm_local.bench.turns import LaterTurn, measure_later_turn
from slm_local.engine import Engine
from slm_local.errors import ConfigError, Interrupted, PromptTooLong, SlmError, WorkerCrashed
from slm_local.fit import device_of, read_bytes_per_token
from slm_local.generation import Control
from slm_local.hardware import Hardware
from slm_local.measured import CACHED_BYTES, NotMeasured, load_measured, measure_read_gb_s, remember
from slm_local.metrics import Energy, EnergyMeter
from slm_local.model import Plan
from slm_local.paths import paths
from slm_local.system import OtherPrograms, family_memory_bytes

PROMPT_TOKENS = 512
"""As llama-bench's pp512."""

DECODED_TOKENS = 128
"""As llama-bench's tg128."""

ROUNDS = 3

BUSY_PROBE_S = 0.3

BUSY_SHARE = 0.1
"""Where other programs take more of the processor than this, its figures are lower than they could be."""

UNSTEADY_SHARE = 0.15
"""Bandwidth that differs by more between begin and end: the machine got hot, or busy."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure that was measured several times."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One measurement of everything, beginning with no model loaded."""

    load_s: float
    cold_s: float
    """First token of a prompt of `PROMPT_TOKENS`, loading included: the first in a new process."""
    warm_s: float
    """First token of the same prompt again, which the KV cache holds."""
    prefill_tps: float
    decode_tps: float
    others_cores: float | None
    """Cores that other programs took while it read and decoded; None where the system does not tell."""
    energy: Energy
    """Spent while it decoded."""
    energy_tokens: int
    """Tokens decoded meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is measured once, with the model of the last round: how speed changes with what it has to do."""

    depths: tuple[Depth, ...]
    batches: tuple[Batch, ...]
    later_turn: LaterTurn | None
    memory_bytes: int | None
    """Held by all our processes at the end; None where the system does not tell."""
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What memory bandwidth allows; None where a fact is missing or something else bounds the speed."""

    read_gb_s: float | None
    """10^9 bytes a second, as measured before and after."""
    bytes_per_token: int | None
    """Weights and KV cache that a decoded token read, on average."""
    decode_tps: float | None
    share: float | None
    """Of `decode_tps`, what was reached."""
    remark: str | None
    """Why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """How fast one plan is."""

    plan: Plan
    prompt_tokens: int
    decoded_tokens: int
    rounds: tuple[Round, ...]
    shape: Shape
    limit: Limit
    busy_share: float
    """Of the processor, what other programs took at the busiest moment between the rounds."""
    remarks: tuple[str, ...]

    def spread(self, name: str) -> Spread:
        """Return the median and the extremes of a figure of the rounds."""
        return spread([getattr(each, name) for each in self.rounds])

    @property
    def busy_cost(self) -> BusyCost:
        """Return what other programs took during the rounds, and what that cost."""
        return busy_cost([(each.others_cores, each.decode_tps) for each in self.rounds])

    @property
    def tokens_per_joule(self) -> float | None:
        """Return the tokens decoded for a joule of the whole machine; None where nothing tells it."""
        joules = [each.energy.joules for each in self.rounds]
        known = [each for each in joules if each is not None]
        spent = sum(known)
        return sum(each.energy_tokens for each in self.rounds) / spent if len(known) == len(joules) and spent else None


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the extremes."""
    return Spread(median=median(values), low=min(values), high=max(values))


def bench(
    engine: Engine,
    hardware: Hardware,
    *,
    rounds: int = ROUNDS,
    deepest: int | None = None,
    control: Control | None = None,
    tell: Tell | None = None,
) -> Bench:
    """Measure an engine's plan; the model is loaded anew in every round, and closed at the end. Blocks.

    `deepest`: the deepest context to decode at, in tokens; None: the deepest that is read soon.
    Refreshes the bandwidth that is kept of this machine. Errors: those of `Engine.stream`, `Interrupted`.
    """
    control, tell = control or Control(), tell or (lambda text: None)
    engine.close()
    bandwidth = Bandwidth(hardware)
    tell("measuring the memory")
    bandwidth.measure()
    prompt = min(PROMPT_TOKENS, engine.plan.context_tokens // 2)
    decoded = min(DECODED_TOKENS, engine.plan.context_tokens // 2)
    done: list[Round] = []
    busy: list[float] = []
    for number in range(rounds):
        busy.append(busy_share())
        done.append(_round(engine, prompt, decoded, number, control, _prefixed(tell, number, rounds)))
        if number < rounds - 1:
            engine.close()
    shape = _shape(engine, deepest, median(each.prefill_tps for each in done), control, tell)
    engine.close()
    bandwidth.measure()
    speed = median(each.decode_tps for each in done)
    cost = busy_cost([(each.others_cores, each.decode_tps) for each in done])
    remarks = [*shape.remarks, *bandwidth.remarks(), *(cost_remarks(cost) or busy_remarks(max(busy)))]
    return Bench(
        plan=engine.plan,
        prompt_tokens=prompt,
        decoded_tokens=decoded,
        rounds=tuple(done),
        shape=shape,
        limit=limit_of(engine.plan, hardware, bandwidth.read_gb_s, speed, decoded),
        busy_share=max(busy),
        remarks=tuple(remarks),
    )


def limit_of(plan: Plan, hardware: Hardware, read_gb_s: float | None, decode_tps: float, decoded_tokens: int) -> Limit:
    """Compare a decode speed with the machine's memory bandwidth over the bytes read for a token; pure."""
    weights = read_bytes_per_token(plan.spec, plan.variant)
    per_token = plan.spec.shape.kv_bytes_per_token() or 0
    read = None if weights is None else weights + per_token * (SHORT_PROMPT_TOKENS + decoded_tokens // 2)
    remark = None
    device = device_of(hardware, plan.backend, plan.device)
    if plan.device == "remote":
        remark = "it runs elsewhere"
    elif device is not None and device.integrated is False:
        remark = f"{plan.device} has memory of its own, whose bandwidth is not measured"
    elif read is None or weights is None:
        remark = "the bytes read for a token are not known"
    elif weights < CACHED_BYTES:
        remark = "a model this small lives in the processor's caches: memory does not bound it"
    elif read_gb_s is None:
        remark = "memory bandwidth could not be measured"
    tps = None if remark or read is None or read_gb_s is None else read_gb_s * 1e9 / read
    return Limit(
        read_gb_s=read_gb_s,
        bytes_per_token=read,
        decode_tps=tps,
        share=None if tps is None else decode_tps / tps,
        remark=remark,
    )


def busy_share() -> float:
    """Return the share of the processor that is taken now; blocks for `BUSY_PROBE_S`. Ask while no model computes."""
    import psutil

    return psutil.cpu_percent(interval=BUSY_PROBE_S) / 100.0


def busy_remarks(share: float) -> list[str]:
    """Say what other programs do to the figures, if they do."""
    if share <= BUSY_SHARE:
        return []
    return [f"other programs take {share:.0%} of the processor: the figures are lower than they could be"]


class Bandwidth:
    """The machine's memory bandwidth, measured once or more and kept."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._measured: list[float] = []
        self._refusals: list[str] = []

    @property
    def read_gb_s(self) -> float | None:
        """Return the highest of what was measured and what an engine reached; None where nothing could be measured."""
        if not self._measured:
            return None
        kept = None
        with suppress(ConfigError):  # no home to keep it in: the caller meets that by itself
            kept = load_measured(paths().cache).read_gb_s
        return max(*self._measured, kept or 0.0)

    def measure(self) -> None:
        """Measure for half a second, and keep it. Ask while no model is loaded."""
        try:
            gb_s = measure_read_gb_s(self._hardware.physical_cores, self._hardware.free_ram_bytes)
        except NotMeasured as reason:
            self._refusals.append(str(reason))
            return
        self._measured.append(gb_s)
        with suppress(ConfigError):
            remember(paths().cache, read_gb_s=max(self._measured))

    def remarks(self) -> list[str]:
        """Say what is to be known of the measuring."""
        if self._refusals:
            return [f"memory bandwidth was not measured: {self._refusals[0]}"]
        low, high = min(self._measured), max(self._measured)
        if high - low <= UNSTEADY_SHARE * high:
            return []
        return [f"memory was read at {self._measured[0]:.0f} GB/s before and {self._measured[-1]:.0f} GB/s after"]


def _round(engine: Engine, prompt_tokens: int, decoded: int, number: int, control: Control, tell: Tell) -> Round:
    tell("loading")
    engine.start(control)
    load_s = engine.load_s
    others = OtherPrograms()
    tell(f"reading {prompt_tokens} tokens")
    first = random_prompt(engine, prompt_tokens, seed=1000 * number)
    cold = read_prompt(engine, first, control)
    warm = read_prompt(engine, first, control)
    prefill = read_prompt(engine, random_prompt(engine, prompt_tokens, seed=1000 * number + 1), control)
    tell(f"decoding {decoded} tokens")
    is_here = engine.plan.device != "remote"
    meter = EnergyMeter()
    meter.start()
    try:
        decoding = decode(engine, decoded, 1000 * number + 2, control)
    finally:
        energy = meter.stop()
    if not is_here:
        energy = Energy(joules=None, reason="what runs elsewhere spends its energy there")
    return Round(
        load_s=load_s,
        cold_s=load_s + cold.first_token_s,
        warm_s=warm.first_token_s,
        prefill_tps=prefill.prefill_tps,
        decode_tps=decoding.decode_tps,
        others_cores=others.cores() if is_here else None,
        energy=energy,
        energy_tokens=decoding.decoded_tokens,
    )


def _shape(engine: Engine, deepest: int | None, prefill_tps: float, control: Control, tell: Tell) -> Shape:
    tell("decoding in deeper contexts")
    depths, remarks = measure_depths(engine, deepest, prefill_tps, control)
    tell("decoding several sequences at once")
    batches = measure_batches(engine, control)
    if not batches:
        remarks = [*remarks, "several sequences at once were not measured: too few tokens came one by one"]
    tell("holding a conversation")
    turn, refusal = _later_turn(engine, control)
    return Shape(
        depths=depths,
        batches=batches,
        later_turn=turn,
        memory_bytes=family_memory_bytes() if engine.plan.device != "remote" else None,
        remarks=(*remarks, *refusal),
    )


def _later_turn(engine: Engine, control: Control) -> tuple[LaterTurn | None, list[str]]:
    """Return the turn, or why there is none: not every model has a template, nor every context room for it."""
    try:
        return measure_later_turn(engine, control), []
    except (Interrupted, WorkerCrashed):
        raise
    except PromptTooLong:
        return None, ["a later turn was not measured: the context is too short for a conversation"]
    except SlmError as error:
        return None, [f"a later turn was not measured: {error.message}"]


def _prefixed(tell: Tell, number: int, rounds: int) -> Tell:
    return lambda text: tell(f"round {number + 1} of {rounds} · {text}")
