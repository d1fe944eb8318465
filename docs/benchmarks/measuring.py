"""Measure pairs on a machine that may not be quiet, and keep every raw figure.

A round measures both sides one after the other; a goal is the median of its rounds' ratios, and it is met where both
quartiles stand on the right side. A round during which other programs took more than 5 % of a core is marked and
measured again, within bounds; how fast the clock ran before and after is only noted, for virtual machines change it by
a third within a second. Every record is appended to a file as it comes, so that a run that is stopped keeps what it
has. Linux only (/proc/stat).
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

MOST_FOREIGN = 0.05
"""Share of one core that other programs may take during a round."""

MOST_ROUNDS = 2
"""Rounds measured at most, for each that is wanted."""

CLOCK_LOOPS = 9
CLOCK_STEPS = 150_000

Figures = Mapping[str, float]
"""What a round measured, by name; the unit ends the name (`_s`, `_tps`, `_bytes`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """What a goal says: a number made of a round's figures, and where it should lie."""

    name: str
    of: Callable[[Figures], float]
    target: float | None
    """None: only stated."""
    side: Literal["least", "most"] = "least"
    unit: str = ""
    """Empty for a ratio."""

    def met(self, first: float, third: float) -> bool | None:
        """Tell whether both quartiles are on the right side; None where nothing is asked."""
        if self.target is None:
            return None
        return first >= self.target if self.side == "least" else third <= self.target

    @property
    def asked(self) -> str:
        """Return the target in words."""
        if self.target is None:
            return "stated"
        return f"{'≥' if self.side == 'least' else '≤'} {self.target:g}{self.unit and ' ' + self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and quartiles of some values."""

    median: float
    first: float
    third: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the machine has done up to a moment, in seconds of processor time, and how fast its clock runs."""

    at_s: float
    busy_s: float
    """All programs, kernel and hypervisor's steal together."""
    own_s: float
    """This process and all that it started, ended ones among them."""
    load: float
    clock_s: float
    """How long a fixed piece of work takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What else happened while a round was measured."""

    foreign_share: float
    """Of one core, by other programs."""
    clock_drift: float
    load_before: float
    load_after: float

    @property
    def is_quiet(self) -> bool:
        """Return whether the round counts."""
        return self.foreign_share <= MOST_FOREIGN


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round's figures and its noise."""

    figures: Figures
    noise: Noise


class NotHere(Exception):
    """This version of slm can't do what a goal measures."""


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles; those of a single value are the value. Raises ValueError without any."""
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Spread(median=values[0], first=values[0], third=values[0])
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, first=first, third=third)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def moment() -> Moment:
    """Look at the machine."""
    clock_s = min(_clock() for _ in range(CLOCK_LOOPS))
    times = psutil.cpu_times()
    busy_s = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # user has the guests' share
    return Moment(at_s=time.perf_counter(), busy_s=busy_s, own_s=_own_s(), load=os.getloadavg()[0], clock_s=clock_s)


def noise(before: Moment, after: Moment) -> Noise:
    """Return what happened between two moments."""
    foreign_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    wall_s = max(after.at_s - before.at_s, 1e-9)
    return Noise(
        foreign_share=max(0.0, foreign_s / wall_s),
        clock_drift=abs(after.clock_s / before.clock_s - 1),
        load_before=before.load,
        load_after=after.load,
    )


def chosen(rounds: Sequence[Round], count: int) -> list[Round]:
    """Return the quiet rounds; where they are too few, the least noisy of the others, too."""
    quiet = [each for each in rounds if each.noise.is_quiet]
    others = sorted((each for each in rounds if not each.noise.is_quiet), key=lambda each: each.noise.foreign_share)
    return [*quiet, *others][:count]


def _clock() -> float:
    begun = time.perf_counter()
    sum(range(CLOCK_STEPS))
    return time.perf_counter() - begun


def _own_s() -> float:
    spent = os.times()
    own_s = spent.user + spent.system + spent.children_user + spent.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            own_s += sum(child.cpu_times()[:4])  # its own, and that of its children that ended
    return own_s


class Report:
    """Measures rounds, prints them, appends them to a file, and keeps what came out."""

    def __init__(self, file: Path | None, rounds: int, tries: int = MOST_ROUNDS) -> None:
        """Begin; `tries`: rounds measured at most, for each that is wanted."""
        self.rounds = rounds
        self._tries = tries
        self.records: list[dict[str, Any]] = []
        self._file = file

    def record(self, kind: str, **content: object) -> None:
        """Keep a record, in the file, too."""
        entry = {"record": kind, **content}
        self.records.append(entry)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def measure(
        self,
        goal: str,
        model: str,
        ratios: Sequence[Ratio],
        take: Callable[[int], Figures],
        *,
        rounds: int | None = None,
    ) -> None:
        """Measure rounds until enough were quiet, `take` being told the number of each; print and keep the ratios.

        `take` measures both sides, one after the other.
        """
        wanted = rounds or self.rounds
        taken: list[Round] = []
        while len(taken) < self._tries * wanted and sum(each.noise.is_quiet for each in taken) < wanted:
            before = moment()
            figures = take(len(taken))
            taken.append(Round(figures=figures, noise=noise(before, moment())))
            self.record("round", goal=goal, model=model, figures=dict(figures), **asdict(taken[-1].noise))
            print(f"  {line(taken[-1], ratios)}", flush=True)
        counted = chosen(taken, wanted)
        for ratio in ratios:
            self.conclude(goal, model, ratio, counted)

    def without(self, goal: str, model: str, reason: str) -> None:
        """Say why a goal was not measured."""
        print(f"  not measured: {reason}", flush=True)
        self.record("not measured", goal=goal, model=model, reason=reason)

    def conclude(self, goal: str, model: str, ratio: Ratio, counted: Sequence[Round]) -> None:
        """Print and keep what the rounds that count come to."""
        found = spread([ratio.of(each.figures) for each in counted])
        marked = sum(not each.noise.is_quiet for each in counted)
        met = ratio.met(found.first, found.third)
        self.record(
            "ratio",
            goal=goal,
            model=model,
            name=ratio.name,
            **asdict(found),
            unit=ratio.unit,
            rounds=len(counted),
            marked=marked,
            asked=ratio.asked,
            is_met=met,
        )
        print(f"{model}: {conclusion(self.records[-1])}", flush=True)


def line(measured: Round, ratios: Iterable[Ratio]) -> str:
    """Return a round in a line."""
    figures = "  ".join(f"{name} {value:.5g}" for name, value in measured.figures.items())
    values = "  ".join(f"{ratio.name} {ratio.of(measured.figures):.3f}" for ratio in ratios)
    said = measured.noise
    mark = "" if said.is_quiet else "  NOT QUIET"
    state = f"others {said.foreign_share:.0%}, clock {said.clock_drift:.0%}, load {said.load_after:.1f}"
    return f"{figures} | {values} | {state}{mark}"


def conclusion(record: Mapping[str, Any]) -> str:
    """Return a ratio's record in a line."""
    verdict = {True: "met", False: "NOT met", None: ""}[record["is_met"]]
    marked = f", {record['marked']} of them not quiet" if record["marked"] else ""
    quartiles = f"{record['first']:.3f} to {record['third']:.3f}"
    unit = record["unit"] and " " + record["unit"]
    found = f"median {record['median']:.3f}{unit} (quartiles {quartiles}, {record['rounds']} rounds{marked})"
    return f"{record['name']}: {found}; asked {record['asked']} {verdict}"


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the newest ratio of each goal, model and name as a Markdown table."""
    newest: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for record in records:
        if record["record"] in ("ratio", "not measured"):
            key = (record["goal"], record["model"], record.get("name", ""))
            newest.pop(key, None)
            newest[key] = record
    rows = ["| goal | model | what | median | quartiles | asked | met |", "|---|---|---|---|---|---|---|"]
    for (goal, model, name), record in newest.items():
        if record["record"] == "not measured":
            rows.append(f"| {goal} | {model} | not measured: {record['reason']} | | | | |")
            continue
        verdict = {True: "yes", False: "no", None: ""}[record["is_met"]]
        noisy = f" ({record['marked']} of {record['rounds']} rounds not quiet)" if record["marked"] else ""
        unit = record["unit"] and " " + record["unit"]
        quartiles = f"{record['first']:.3f} to {record['third']:.3f}{noisy}"
        figures = f"{record['median']:.3f}{unit} | {quartiles} | {record['asked']} | {verdict}"
        rows.append(f"| {goal} | {model} | {name} | {figures} |")
    return "\n".join(rows)


def read_records(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file; a last line that was cut off is left out."""
    records = []
    for each in file.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            records.append(json.loads(each))
    return records
