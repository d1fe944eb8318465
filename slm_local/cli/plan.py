"""`slm plan MODEL`: every way to run a model on this machine, ranked, from facts alone; nothing is fetched."""

from __future__ import annotations

from typing import Annotated

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.forecast import Forecast, forecast, machine_line
from slm_local.cli.options import SHOWN, EngineFlags, takes
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.engine import choose
from slm_local.hardware import measured_probe
from slm_local.selector import does_not_fit
from slm_local.system import largest_program

INDENT = "     "


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
    hardware = measured_probe(lambda text: terminal.say(text, DIM))
    choice = choose(model, settings=settings, registry=registry)
    for note in choice.notes:
        terminal.say(note, DIM)
    forecasts = [forecast(plan, hardware) for plan in choice.plans]
    if json:
        terminal.json([each.values() for each in forecasts])
        return 0
    terminal.line(f"{choice.spec.id} on {machine_line(hardware)}")
    for number, each in enumerate(forecasts, 1):
        terminal.line()
        _write(terminal, number, each, forecasts[0])
    if not forecasts[0].plan.fits:
        shortage = does_not_fit(forecasts[0].plan, largest_program())
        terminal.say(f"\n{shortage.message}", YELLOW)
        terminal.hint(shortage.hint or "slm ls --all")
    return 0


def _write(terminal: Terminal, number: int, each: Forecast, best: Forecast) -> None:
    """Write a plan; of those behind the best only what differs from it."""
    plan = each.plan
    terminal.line(f"{number}. {plan.variant.quant} · {plan.backend} on {plan.device} · {each.line()}")
    for reason in plan.reasons:
        if each is not best and reason in best.plan.reasons:
            continue
        terminal.paragraph(reason, first=INDENT, rest=INDENT + "  ")
