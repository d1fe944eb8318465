"""`slm import DIR`: takes models from a folder or a stick, verified, into the models folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.fetching import FetchView
from slm_local.cli.render import Terminal
from slm_local.download.carry import Carried, deliver
from slm_local.download.fetch import RESERVE_BYTES
from slm_local.download.importing import cargo_in
from slm_local.errors import DownloadFailed
from slm_local.model import gigabytes
from slm_local.paths import make_folder, paths
from slm_local.sanitize import shell_word


def command(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", show_default=False)],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress; what was refused only")] = False,
) -> int:
    """Copy the models of a folder to where slm keeps its own; each is verified, and nothing is written over."""
    terminal: Terminal = context.obj
    registry = registry_here(terminal)
    folders = paths()
    source = Path(os.path.abspath(Path(folder).expanduser()))
    cargo = cargo_in(source, folders.models_dir, registry.models, folders.cache)
    make_folder(folders.models_dir)
    with FetchView(terminal, is_quiet=quiet) as view:
        carried = deliver(cargo.parcels, folders.models_dir, RESERVE_BYTES, None if quiet else view.feed)
    results = [*cargo.refused, *carried]
    rows = [_cells(each, source, folders.models_dir) for each in results if each.outcome == "refused" or not quiet]
    if rows:
        terminal.table(rows, head=("", "size", "file", ""))
    for each in results:
        if each.outcome == "refused" and each.place is not None and os.path.lexists(each.place):
            terminal.hint(f"slm rm {shell_word(str(each.place))}")
    return DownloadFailed.exit_code if any(each.outcome == "refused" for each in results) else 0


def _cells(carried: Carried, source: Path, models_dir: Path) -> list[str]:
    is_in = carried.place is not None and carried.outcome != "refused"
    shown = carried.place.relative_to(models_dir) if is_in and carried.place else carried.source.relative_to(source)
    outcome = {"copied": "copied", "here": "is here", "refused": "refused"}[carried.outcome]
    return [outcome, gigabytes(carried.size_bytes), str(shown), carried.remark]
