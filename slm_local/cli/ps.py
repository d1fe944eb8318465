"""`slm ps`: the models that the user's server has open, who is at them, and how long they stay."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from slm_local.cli.render import DIM, Terminal
from slm_local.model import gigabytes
from slm_local.notes import time_words
from slm_local.paths import paths
from slm_local.worker.attached import ServerFile, ask, read_server_file

HEAD = ("MODEL", "QUANT", "ENGINE", "CONTEXT", "MEMORY", "NOW", "CLOSES")


def command(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="one JSON object, with more")] = False,
) -> int:
    """List what the server has open: the one that `slm serve` or `slm run --keep-alive` started."""
    terminal: Terminal = context.obj
    server = read_server_file(paths().server_file)
    answer = ask(server, {"op": "ps"}) if server is not None else None
    if server is None or answer is None:
        if json:
            terminal.json({"server": None, "models": []})
        else:
            terminal.say("no server of yours runs", DIM)
            terminal.hint("slm run MODEL --keep-alive 10m   or: slm serve MODEL")
        return 0
    models: tuple[dict[str, Any], ...] = answer["models"]
    if json:
        about = {"pid": server.pid, "address": server.address, "version": server.version}
        terminal.json({"server": about, "models": list(models)})
        return 0
    terminal.say(_server_line(server), DIM)
    if models:
        terminal.table([_cells(each) for each in models], head=HEAD)
    else:
        terminal.say("it has no model open", DIM)
    return 0


def _server_line(server: ServerFile) -> str:
    return f"server: process {server.pid}, {server.address or 'for slm run, chat and compare'}"


def _cells(model: dict[str, Any]) -> tuple[str, ...]:
    memory, context = model["memory_bytes"], model["context_tokens"]
    return (
        model["model"],
        model["quant"] or "",
        f"{model['backend']} on {model['device']}" if model["backend"] else "",
        f"{context:,}" if context is not None else "",
        gigabytes(memory) if memory is not None else "",
        _now(model),
        _closes(model),
    )


def _now(model: dict[str, Any]) -> str:
    """Say what goes on with a model."""
    if model["state"] == "loading":
        return "loading"
    parts = [(model["live"], "answering"), (model["waiting"], "waiting"), (model["attached"], "attached")]
    return ", ".join(f"{count} {word}" for count, word in parts if count) or f"idle for {time_words(model['idle_s'])}"


def _closes(model: dict[str, Any]) -> str:
    """Say when a model is closed if nobody comes."""
    if model["expires_s"] is not None:
        return f"in {time_words(model['expires_s'])}"
    return "" if model["state"] == "loading" else "not while in use" if model["is_needed"] else "never"
