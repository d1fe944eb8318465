"""`slm plan MODEL`: every way to run a model on this machine, ranked, from facts alone."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.options import EngineFlags, takes
from slm_local.cli.render import DIM, Terminal
from slm_local.engine import choose
from slm_local.model import Plan


@takes(EngineFlags)
def command(
    context: typer.Context,
    flags: EngineFlags,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="a JSON list, best first")] = False,
) -> int:
    """Rank the ways to run a model here, with reasons, fit and expected speed; nothing is fetched or loaded."""
    terminal: Terminal = context.obj
    registry = registry_here(terminal)
    settings = flags.settings(registry.resolve(model).settings)
    choice = choose(model, settings=settings, registry=registry)
    for note in choice.notes:
        terminal.say(note, DIM)
    if json:
        terminal.json([plan_values(plan) for plan in choice.plans])
        return 0
    for number, plan in enumerate(choice.plans, 1):
        fits = "fits" if plan.fits else "does not fit"
        where = "" if plan.variant.path else " · not here"
        terminal.line(
            f"{number}. {plan.spec.id} {plan.variant.quant} · {plan.backend} on {plan.device} · {fits}{where}"
        )
        for reason in plan.reasons:
            terminal.line(f"     {reason}")
    return 0


def plan_values(plan: Plan) -> dict[str, Any]:
    """Return a plan as the JSON object that docs/cli.md lists."""
    return {
        "model": plan.spec.id,
        "quant": plan.variant.quant,
        "backend": plan.backend,
        "device": plan.device,
        "context_tokens": plan.context_tokens,
        "threads": plan.threads,
        "memory_bytes": plan.memory_bytes,
        "free_ram_bytes": plan.free_ram_bytes,
        "fits": plan.fits,
        "expected_decode_tps": plan.expected_decode_tps,
        "here": plan.variant.path is not None,
        "path": plan.variant.path,
        "repo": plan.variant.repo,
        "file": plan.variant.file,
        "size_bytes": plan.variant.size_bytes,
        "reasons": list(plan.reasons),
    }
