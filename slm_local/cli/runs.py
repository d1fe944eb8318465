"""Runs of `slm bench` that were kept: one is added, all are listed, a new one stands beside an old one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from slm_local import __version__, system
from slm_local.bench import Run, append_run, load_runs, run_asked
from slm_local.cli.curves import number
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.errors import ConfigError
from slm_local.measured import machine_name
from slm_local.paths import paths

SPREADS = ("load_s", "first_token_cold_s", "first_token_warm_s", "prefill_tps", "decode_tps")
SINGLE = ("memory_bytes", "tokens_per_joule", "read_gb_s")
SETTINGS = ("model", "quant", "backend", "engine_version", "device", "threads", "context_tokens", "prompt_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure of two runs."""

    name: str
    """As the JSON object calls it; the unit ends it."""
    then: float
    now: float

    @property
    def ratio(self) -> float:
        """Return now over then."""
        return self.now / self.then


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A new run beside a kept one."""

    run: Run
    ratios: tuple[Ratio, ...]
    differences: tuple[str, ...]
    """What is not the same, so that the ratios tell of that, too."""


def this_machine() -> str:
    """Return what runs are bound to."""
    return machine_name(system.cpu_name(), system.physical_cores(), system.total_memory_bytes())


def keep_run(terminal: Terminal, values: Mapping[str, Any]) -> int | None:
    """Keep a run and return its number; where that can't be the person is told, and has the figures anyway."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        return append_run(paths().data, at=at, slm=__version__, machine=this_machine(), figures=values)
    except ConfigError as error:
        terminal.say(error.message, YELLOW)
        return None


def run_to_compare(asked: str, model: str) -> Run:
    """Return the run that was asked for. Errors: `UsageError`, `ConfigError`."""
    return run_asked(load_runs(paths().data), asked, machine=this_machine(), model=model)


def compared(run: Run, values: Mapping[str, Any]) -> Comparison:
    """Put new figures beside those of a run, as far as both have them."""
    now = dict(_figures(values))
    both = [(name, then, now[name]) for name, then in _figures(run.figures) if name in now]
    differences = [
        f"{name}: {run.figures.get(name)} then, {values.get(name)} now"
        for name in SETTINGS
        if run.figures.get(name) != values.get(name)
    ]
    if run.machine != this_machine():
        differences.insert(0, f"machine: {run.machine} then, {this_machine()} now")
    return Comparison(
        run=run,
        ratios=tuple(Ratio(name=name, then=then, now=new) for name, then, new in both),
        differences=tuple(differences),
    )


def calm_remark(values: Mapping[str, Any]) -> list[str]:
    """Say what other programs cost where no round was calm, by the last kept run that had calm ones; else nothing."""
    busy, decode = values.get("busy"), _part(values.get("decode_tps"), "median")
    if not _part(busy, "busy_rounds") or _part(busy, "calm_decode_tps") is not None:
        return []
    with suppress(ConfigError):  # told of where the run is kept
        for run in reversed(load_runs(paths().data).runs):
            calm = _part(run.figures.get("busy"), "calm_decode_tps")
            same = run.machine == this_machine() and all(run.figures.get(each) == values.get(each) for each in SETTINGS)
            if same and isinstance(calm, int | float) and calm > 0 and isinstance(decode, int | float):
                return [f"calm rounds of run {run.number} decoded {number(calm)} tok/s: {_lost(1 - decode / calm)}"]
    return []


def comparison_values(done: Comparison) -> dict[str, Any]:
    """Return the JSON object that docs/cli.md lists."""
    ratios = [{"name": each.name, "then": each.then, "now": each.now, "ratio": each.ratio} for each in done.ratios]
    return {"run": done.run.number, "at": done.run.at, "ratios": ratios, "differences": list(done.differences)}


def write_comparison(terminal: Terminal, done: Comparison) -> None:
    """Write the ratios to an old run, and what else differs."""
    terminal.line()
    rows = [(each.name, _amount(each.then), _amount(each.now), f"{each.ratio:.2f}") for each in done.ratios]
    terminal.table(rows, head=(f"beside run {done.run.number}", f"then, {done.run.at[:10]}", "now", "now ÷ then"))
    for difference in done.differences:
        terminal.say(difference, YELLOW)


def list_runs(terminal: Terminal, model: str | None, *, json: bool) -> int:
    """List the kept runs, of one model where its id is given; newest last."""
    kept = load_runs(paths().data)
    shown = [run for run in kept.runs if model is None or run.figures.get("model") == model]
    if json:
        terminal.json([_values(run) for run in shown])
    elif shown:
        terminal.table([_row(run) for run in shown], head=("run", "when (UTC)", "model", "engine", "prefill", "decode"))
    else:
        terminal.say("nothing was measured yet: slm bench tiny-reasoner", DIM)
    if kept.unread:
        terminal.say(f"{kept.unread} lines of the history can't be read (damaged, or a newer slm's)", YELLOW)
    return 0


def _values(run: Run) -> dict[str, Any]:
    return {"run": run.number, "at": run.at, "slm": run.slm, "machine": run.machine, "figures": dict(run.figures)}


def _row(run: Run) -> Sequence[str]:
    figures = dict(_figures(run.figures))
    name = f"{run.figures.get('model')} {run.figures.get('quant')}"
    engine = f"{run.figures.get('backend')} on {run.figures.get('device')}"
    speeds = [figures.get(each) for each in ("prefill_tps", "decode_tps")]
    shown = ["-" if each is None else f"{number(each)} tok/s" for each in speeds]
    return (str(run.number), run.at[:16].replace("T", " "), name, engine, *shown)


def _figures(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield what can be compared, by name; what is missing or no number above zero is passed over."""
    found: list[tuple[str, object]] = [(name, _part(values.get(name), "median")) for name in SPREADS]
    found += [
        (f"decode_tps at depth {_part(each, 'depth_tokens')}", _part(each, "decode_tps"))
        for each in _list(values.get("depths"))
    ]
    found += [
        (f"step_s, {_part(each, 'sequences')} at once", _part(each, "step_s")) for each in _list(values.get("batches"))
    ]
    found += [
        (f"later turn, {name}", _part(values.get("later_turn"), name))
        for name in ("first_token_s", "read_first_token_s")
    ]
    found += [(name, values.get(name)) for name in SINGLE]
    for name, value in found:
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            yield name, float(value)


def _lost(share: float) -> str:
    return f"being busy cost {share:.0%}" if share > 0 else "being busy cost nothing"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _part(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _amount(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:,.0f}" if value >= 10_000 else f"{value:,.1f}"
