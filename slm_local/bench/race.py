"""Which way to run a model is fastest here? Every plan whose files are here runs the same loads, in turns.

A prefill-heavy load (a long prompt, one token) and a think-heavy one (a short prompt, many tokens), A B A B, so that
what else the machine does meets all alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import median

from slm_local.bench.passes import Pass, decode, random_prompt, read_prompt
from slm_local.bench.speeds import Bandwidth, Tell, busy_remarks, busy_share
from slm_local.engine import Choice, Engine
from slm_local.errors import DownloadFailed, Interrupted, SlmError
from slm_local.fit import usable_bytes
from slm_local.generation import Control
from slm_local.hardware import Hardware
from slm_local.measured import Measurement, remember_measurement
from slm_local.model import Plan
from slm_local.paths import paths
from slm_local.sanitize import shell_word
from slm_local.selector import does_not_fit

RACE_ROUNDS = 3

TURN_S = 1.0
"""How long a load should take the slowest plan."""

PROMPT_RANGE = (128, 512)
"""Tokens of the long prompt: fewer tell nothing of how a device reads many at once."""

DECODED_RANGE = (16, 128)

WARM_UP_PROMPT, WARM_UP_DECODED = 64, 8

LOAD_S, LOAD_BYTES_S = 2.0, 1e9
"""For the time that is foretold: what a child and its runtime take to start, and how fast weights come from disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """One turn of one plan."""

    reading: Pass
    thinking: Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Racer:
    """A plan in the race, and what came of it."""

    plan: Plan
    laps: tuple[Lap, ...]
    failure: SlmError | None
    """Why it dropped out."""
    ended_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def measurement(self) -> Measurement | None:
        """Return the medians of its laps; None where it dropped out."""
        if self.failure is not None or not self.laps:
            return None
        return Measurement(
            model=self.plan.spec.id,
            quant=self.plan.variant.quant,
            backend=self.plan.backend,
            device=self.plan.device,
            prefill_tps=median(lap.reading.prefill_tps for lap in self.laps),
            decode_tps=median(lap.thinking.decode_tps for lap in self.laps),
            first_token_s=median(lap.thinking.first_token_s for lap in self.laps),
            measured_at=self.ended_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """How a race went."""

    racers: tuple[Racer, ...]
    prompt_tokens: int
    decoded_tokens: int
    busy_share: float
    """Of the processor, what other programs took before it began."""
    remarks: tuple[str, ...]


def raceable(choice: Choice) -> tuple[Plan, ...]:
    """Return the plans that could race: those that run here, whose files are here and that fit."""
    return tuple(plan for plan in choice.plans if plan.runs and plan.variant.path is not None and plan.fits)


def expected_s(plans: Sequence[Plan]) -> float:
    """Return about how long a race takes; compiling for a device for the first time comes on top."""
    loads = sum(LOAD_S + (plan.variant.size_bytes or 0) / LOAD_BYTES_S for plan in plans)
    return loads + len(plans) * RACE_ROUNDS * 2 * TURN_S


def calibrate(choice: Choice, hardware: Hardware, *, control: Control | None = None, tell: Tell | None = None) -> Race:
    """Race a model's plans and keep what was measured, the machine's bandwidth too. Errors: those of `race`."""
    bandwidth = Bandwidth(hardware)
    bandwidth.measure()
    done = race(choice, hardware, control=control, tell=tell)
    for racer in done.racers:
        if racer.measurement is not None:
            remember_measurement(paths().cache, racer.measurement)
    return replace(done, remarks=(*bandwidth.remarks(), *done.remarks))


def race(
    choice: Choice,
    hardware: Hardware,
    *,
    rounds: int = RACE_ROUNDS,
    turn_s: float = TURN_S,
    control: Control | None = None,
    tell: Tell | None = None,
) -> Race:
    """Run every plan that can race; one that fails drops out. Blocks; keeps nothing.

    All are loaded at once where memory allows that, else each for its turn only. Errors: `DownloadFailed` and
    `DoesNotFit` where no plan can race, `Interrupted`, the first failure where all fail.
    """
    control, tell = control or Control(), tell or (lambda text: None)
    plans = raceable(choice)
    if not plans:
        raise _nothing_to_race(choice)
    busy = busy_share()
    stays = _fit_together(plans, hardware)
    entrants = [_Entrant(choice, plan, control, stays=stays) for plan in plans]
    try:
        prompt, decoded = _lengths(entrants, min(plan.context_tokens for plan in plans) // 2, turn_s, tell)
        for number in range(rounds):
            for entrant in entrants:
                entrant.run(f"round {number + 1} of {rounds}", prompt, decoded, 1000 * (number + 1), tell)
    finally:
        for entrant in entrants:
            entrant.close()
    failures = [entrant.failure for entrant in entrants if entrant.failure is not None]
    if len(failures) == len(entrants):
        raise failures[0]
    return Race(
        racers=tuple(entrant.racer for entrant in entrants),
        prompt_tokens=prompt,
        decoded_tokens=decoded,
        busy_share=busy,
        remarks=tuple(busy_remarks(busy)),
    )


class _Entrant:
    """A plan with its engine, its laps so far, and why it is out if it is."""

    def __init__(self, choice: Choice, plan: Plan, control: Control, *, stays: bool) -> None:
        self.failure: SlmError | None = None
        self.laps: list[Lap] = []
        self._choice, self._plan, self._control, self._stays = choice, plan, control, stays
        self._engine: Engine | None = None

    @property
    def racer(self) -> Racer:
        """Return what came of it; the first lap was to warm up."""
        return Racer(plan=self._plan, laps=tuple(self.laps[1:]), failure=self.failure)

    def run(self, what: str, prompt: int, decoded: int, seed: int, tell: Tell) -> None:
        """Take a turn, unless it is out; out it is when anything fails. Errors: `Interrupted`."""
        if self.failure is not None:
            return
        tell(f"{what} · {self._plan.variant.quant} · {self._plan.backend} on {self._plan.device}")
        try:
            self.laps.append(self._lap(prompt, decoded, seed))
        except Interrupted:
            raise
        except SlmError as error:
            self.failure = error
        finally:
            if self.failure is not None or not self._stays:
                self.close()

    def close(self) -> None:
        """End its child."""
        if self._engine is not None:
            self._engine.close()

    def _lap(self, prompt: int, decoded: int, seed: int) -> Lap:
        if self._engine is None:
            self._engine = Engine(replace(self._choice, plans=(self._plan,)))
        if self._engine.pid is None:
            self._engine.start(self._control)
            self._both(self._engine, min(WARM_UP_PROMPT, prompt), WARM_UP_DECODED, seed=1)  # done once after a load
        return self._both(self._engine, prompt, decoded, seed)

    def _both(self, engine: Engine, prompt: int, decoded: int, seed: int) -> Lap:
        reading = read_prompt(engine, random_prompt(engine, prompt, seed), self._control)
        return Lap(reading=reading, thinking=decode(engine, decoded, seed + 1, self._control))


def _nothing_to_race(choice: Choice) -> SlmError:
    here = [plan for plan in choice.plans if plan.variant.path is not None]
    if here:
        return does_not_fit(here[0])
    return DownloadFailed(f"{choice.spec.id} is not on this disk", hint=f"slm pull {shell_word(choice.reference)}")


def _fit_together(plans: Sequence[Plan], hardware: Hardware) -> bool:
    needed = [plan.memory_bytes for plan in plans]
    known = [each for each in needed if each is not None]
    return len(known) == len(needed) and sum(known) <= usable_bytes(hardware.free_ram_bytes)


def _lengths(entrants: Sequence[_Entrant], most: int, turn_s: float, tell: Tell) -> tuple[int, int]:
    """Load every plan and see how fast it is; return the tokens to read and to decode in a turn, for all alike."""
    for entrant in entrants:
        entrant.run("warming up", min(WARM_UP_PROMPT, most), WARM_UP_DECODED, 500, tell)
    warm = [lap for entrant in entrants for lap in entrant.laps]
    prompt = turn_s * min((lap.reading.prefill_tps for lap in warm), default=0.0)
    decoded = turn_s * min((lap.thinking.decode_tps for lap in warm), default=0.0)
    return min(_within(prompt, PROMPT_RANGE), most), min(_within(decoded, DECODED_RANGE), most)


def _within(value: float, bounds: tuple[int, int]) -> int:
    return round(min(max(value, bounds[0]), bounds[1]))
