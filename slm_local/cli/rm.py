"""`slm rm MODEL`: removes what was fetched, after saying what goes; what is not slm's own is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.render import DIM, Terminal, can_ask
from slm_local.download.kept import KeptModel, kept_of, remove, resolved_kept
from slm_local.errors import Interrupted, UsageError
from slm_local.model import gigabytes
from slm_local.paths import paths
from slm_local.sanitize import shell_word
from slm_local.worker.attached import ask, read_server_file


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    quant: Annotated[str | None, typer.Option("--quant", metavar="Q", help="only this quantization")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all quantizations that are here")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="don't ask")] = False,
) -> int:
    """Remove a model's files, finished or not, and say how many bytes that freed."""
    terminal: Terminal = context.obj
    registry = registry_here(terminal)
    resolved = resolved_kept(model, registry)
    models_dir = paths().models_dir
    kept = kept_of(resolved, registry.models, models_dir)
    if not kept:
        from slm_local.cli.elsewhere import not_kept

        raise not_kept(resolved, registry)
    is_asked = not yes and can_ask(terminal)
    chosen = _of_quant(model, kept, quant or resolved.settings.get("quant"))
    if len(chosen) > 1 and not everything and quant is None:
        chosen = _picked(terminal, chosen, models_dir) if is_asked else _unpicked(model, chosen)
    elif is_asked:
        _confirm(terminal, chosen, models_dir)
    elif not yes:
        total = gigabytes(sum(each.size_bytes for each in chosen))
        raise UsageError(f"removing {model} ({total}) is not asked about here", hint=f"slm rm {shell_word(model)} -y")
    _free_in_server(terminal, chosen)
    freed = sum(remove(each, models_dir) for each in chosen)
    for each in chosen:
        terminal.line(f"removed {_place(each, models_dir)}")
    terminal.line(f"{freed:,} bytes freed ({gigabytes(freed)})")
    return 0


def _free_in_server(terminal: Terminal, chosen: Sequence[KeptModel]) -> None:
    """Have the user's server close what it has open of that; `UsageError` where somebody is at it there."""
    server = read_server_file(paths().server_file)
    if server is None:
        return
    for each in chosen:
        whole = any(file.is_whole for file in each.files)  # what is partial is open nowhere
        answer = ask(server, {"op": "free", "target": str(each.target)}) if whole else None
        for name in answer["models"] if answer is not None else ():
            terminal.say(f"{name} was closed in the server", DIM)


def _of_quant(model: str, kept: Sequence[KeptModel], quant: str | None) -> Sequence[KeptModel]:
    if quant is None:
        return kept
    chosen = [each for each in kept if each.quant.casefold() == quant.casefold()]
    if not chosen:
        raise UsageError(f"{model} is not here as {quant}; it is as {_listed(kept)}", hint=_hint(model, kept[0]))
    return chosen


def _unpicked(model: str, kept: Sequence[KeptModel]) -> Sequence[KeptModel]:
    raise UsageError(f"{model} is here as {_listed(kept)}: which one?", hint=f"{_hint(model, kept[0])}   or --all")


def _picked(terminal: Terminal, kept: Sequence[KeptModel], models_dir: Path) -> Sequence[KeptModel]:
    """Have the person choose one or all of several; `Interrupted` where they choose none."""
    for number, each in enumerate(kept, 1):
        terminal.say(f"  {number}  {_line(each, models_dir)}")
    typed = _typed(terminal, "remove which? a number, or all; Enter: none ")
    if typed == "all":
        return kept
    if typed.isascii() and typed.isdigit() and 1 <= int(typed) <= len(kept):
        return [kept[int(typed) - 1]]
    raise Interrupted("nothing was removed", hint="slm ls")


def _typed(terminal: Terminal, question: str) -> str:
    terminal.talk(question)
    try:
        return input().strip()
    except EOFError:
        return ""


def _confirm(terminal: Terminal, chosen: Sequence[KeptModel], models_dir: Path) -> None:
    for each in chosen:
        terminal.say(f"  {_line(each, models_dir)}")
    if _typed(terminal, f"remove {'it' if len(chosen) == 1 else 'them'}? y, Enter: no ").lower() not in ("y", "yes"):
        raise Interrupted("nothing was removed", hint="slm ls")


def _line(kept: KeptModel, models_dir: Path) -> str:
    files = f" · {len(kept.files)} files" if len(kept.files) > 1 else ""
    state = "" if kept.is_whole else " · not whole"
    return f"{kept.quant or 'model':<10} {gigabytes(kept.size_bytes):>8}  {_place(kept, models_dir)}{files}{state}"


def _place(kept: KeptModel, models_dir: Path) -> str:
    only = kept.files[0].path if len(kept.files) == 1 else kept.target
    return str(only.relative_to(models_dir))


def _listed(kept: Sequence[KeptModel]) -> str:
    return ", ".join(f"{each.quant or each.target.name} ({gigabytes(each.size_bytes)})" for each in kept)


def _hint(model: str, kept: KeptModel) -> str:
    if kept.quant:
        return f"slm rm {shell_word(model)} --quant {shell_word(kept.quant)}"
    return f"slm rm {shell_word(str(kept.target))}"
