"""`slm ls`: what is here, ours and other programs', and the user's own elsewhere; with `--all` the registry, too."""

from __future__ import annotations

from typing import Annotated

import typer

from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.forecast.listing import HEAD, rows_absent, rows_elsewhere, rows_here
from slm_local.hardware import probe
from slm_local.paths import paths
from slm_local.registry import load_registry


def command(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="the registry, too, newest and fitting first")] = False,
    json: Annotated[bool, typer.Option("--json", help="a JSON list, with more facts")] = False,
) -> int:
    """List the models that are here, other programs' too, and those of yours that run elsewhere.

    Fit and speed are foretold for this machine, not measured. No server is asked for anything.
    """
    terminal: Terminal = context.obj
    folders = paths()
    registry = load_registry(folders.config / "models.toml")
    for warning in registry.warnings:
        terminal.say(warning, YELLOW)
    hardware = probe()
    rows, remarks = rows_here(registry, hardware, folders, terminal.status)
    rows += rows_elsewhere(registry, hardware)
    if everything:
        here = {row.spec.id for row in rows}
        rows += rows_absent([spec for spec in registry.models if spec.id not in here], hardware)
    for remark in remarks:
        terminal.say(remark, DIM)
    if json:
        terminal.json([row.values() for row in rows])
        return 0
    cells = [row.cells() for row in rows]
    columns = len(HEAD) if any(line[-1] for line in cells) else len(HEAD) - 1
    terminal.table([line[:columns] for line in cells], head=HEAD[:columns])
    if any(row.by_file for row in rows):
        terminal.say("what has a file in the last column runs by that: slm run FILE", DIM)
    if not everything:
        terminal.say("slm ls --all lists what could be here", DIM)
    return 0
