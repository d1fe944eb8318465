"""`slm plan MODEL`: every way to run a model on this machine, ranked, from facts alone; nothing is fetched."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.options import SHOWN, EngineFlags, takes
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.config import Settings
from slm_local.engine import choose
from slm_local.forecast.plans import Forecast, forecast, machine_line
from slm_local.hardware import Hardware, measured_probe, probe
from slm_local.selector import does_not_fit
from slm_local.selector.sentences import download_reason, variant_reason
from slm_local.system import largest_program

INDENT = "   "


@takes(EngineFlags)
def command(
    context: typer.Context,
    flags: EngineFlags,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="a JSON list, best first", rich_help_panel=SHOWN)] = False,
) -> int:
    """Rank the ways to run a model here, with reasons, fit and expected speed; nothing is fetched or loaded.

    The first plan of all on a machine measures its memory for half a second; what was measured is kept.
    """
    terminal: Terminal = context.obj
    registry = registry_here(terminal)
    settings = flags.settings(registry.resolve(model).settings)
    measured_probe(lambda text: terminal.say(text, DIM))
    choice = choose(model, settings=settings, registry=registry)
    for note in choice.notes:
        terminal.say(note, DIM)
    hardware = probe(
        devices=any(plan.device not in ("cpu", "remote") for plan in choice.plans)
    )  # asked just now: it is remembered
    forecasts = [forecast(plan, hardware) for plan in choice.plans]
    if json:
        terminal.json([each.values() for each in forecasts])
        return 0
    terminal.paragraph(f"{choice.spec.id} on {machine_line(hardware)}", rest=INDENT)
    told: set[str] = set()
    for number, each in enumerate(forecasts, 1):
        terminal.line()
        _write(terminal, number, each, told)
        told |= {*each.plan.reasons, _route(each)} | _in_heading(forecasts, settings, hardware)
    if not forecasts[0].plan.fits:
        shortage = does_not_fit(forecasts[0].plan, largest_program())
        terminal.say(f"\n{shortage.message}", YELLOW)
        terminal.hint(shortage.hint or "slm ls --all")
    return 0


def _in_heading(forecasts: Iterable[Forecast], settings: Settings, hardware: Hardware) -> set[str]:
    """Return the reasons that say of a plan behind the best what its heading says."""
    plans = [each.plan for each in forecasts]
    variants = {variant_reason(plan.spec, plan.variant, settings, plan.backend) for plan in plans}
    return variants | {download_reason(plan.variant, hardware) for plan in plans}


def _write(terminal: Terminal, number: int, each: Forecast, told: Collection[str]) -> None:
    """Write a plan; of those behind the best why they are there, and what was not told of plans before.

    What an engine on a device is like and how its speed comes about, the first and the last reason, are told once.
    """
    plan = each.plan
    what = each.line() if plan.runs else "does not run here"
    terminal.paragraph(f"{number}. {plan.variant.quant} · {_route(each)} · {what}", rest=INDENT)
    lines = [f"not chosen: {plan.lost_because}"] if plan.lost_because is not None else []
    if plan.runs:
        reasons = plan.reasons[1:-1] if _route(each) in told else plan.reasons
        lines += [reason for reason in reasons if reason not in told]
    for line in lines:
        terminal.paragraph(line, first=INDENT, rest=INDENT + "  ")


def _route(each: Forecast) -> str:
    return f"{each.plan.backend} on {each.plan.device}"
