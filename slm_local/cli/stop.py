"""`slm stop [MODEL]`: closes what the user's server has open; what is under way there is ended first."""

from __future__ import annotations

from typing import Annotated

import typer

from slm_local.cli.render import DIM, Terminal
from slm_local.errors import UsageError
from slm_local.paths import paths
from slm_local.worker.attached import ask, read_server_file


def command(
    context: typer.Context, model: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False)] = None
) -> int:
    """Close a model that the server has open, by any of its names, or all of them.

    A server that was started in the background ends then; one of slm serve goes on, and opens what it is asked for.
    """
    terminal: Terminal = context.obj
    server = read_server_file(paths().server_file)
    answer = ask(server, {"op": "stop", "reference": model}) if server is not None else None
    if server is None or answer is None:
        if model is not None:
            raise UsageError(f"{model} is not open: no server of yours runs", hint="slm ps")
        terminal.say("no server of yours runs", DIM)
        return 0
    for name in answer["models"]:
        terminal.say(f"{name} was closed")
    if not answer["models"]:
        terminal.say("no model was open", DIM)
    if server.address is not None:
        terminal.say(f"the server goes on: {server.address}; Ctrl-C where it was started ends it", DIM)
    return 0
