"""`slm verify [MODEL]`: hashes what is kept again; with `--remote`, asks the Hub for what the registry names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.fetching import FetchView
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.download.course import Course
from slm_local.download.kept import KeptModel, kept_models, kept_of, known, resolved_kept
from slm_local.download.places import read_record
from slm_local.download.recheck import Finding, look_again, set_aside
from slm_local.errors import ModelBroken, UsageError
from slm_local.model import gigabytes
from slm_local.paths import paths
from slm_local.registry import Registry
from slm_local.sanitize import shell_word

DAMAGED_EXIT = ModelBroken.exit_code

IS_FAULT = frozenset({"damaged", "unreadable"})


def command(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False)] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="ask the Hub whether it has what the registry says; hash nothing")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="a JSON list, one object a file")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress; what is wrong only")] = False,
) -> int:
    """Hash the files that are here again; a damaged one is set aside, so that nothing runs it."""
    terminal: Terminal = context.obj
    registry = registry_here(terminal)
    if remote:
        from slm_local.cli.auditing import ask_hub

        return ask_hub(terminal, registry, model, is_json=json)
    folders = paths()
    kept = _wanted(registry, model, folders.models_dir)
    if not kept:
        terminal.say(f"nothing is kept in {folders.models_dir}", DIM)
    with FetchView(terminal, is_quiet=quiet) as view:
        course = Course("verifying", sum(each.size_bytes for each in kept), None if quiet else view.feed)
        found = [(each, finding) for each in kept for finding in look_again(each, folders.cache, course)]
    findings = [(each, _settled(terminal, finding)) for each, finding in found]
    if json:
        terminal.json([_values(*each) for each in findings])
    else:
        _show(terminal, [finding for _, finding in findings], folders.models_dir, is_quiet=quiet)
    faults = [each for each in findings if each[1].verdict in IS_FAULT]
    for line in dict.fromkeys(_repair(*each, folders.models_dir) for each in faults):
        terminal.hint(line)
    return DAMAGED_EXIT if faults else 0


def _wanted(registry: Registry, model: str | None, models_dir: Path) -> Sequence[KeptModel]:
    """Return what is to be looked at. `UsageError` where nothing of the model is slm's own."""
    if model is None:
        return known(kept_models(models_dir), registry.models, models_dir)
    resolved = resolved_kept(model, registry)
    kept = kept_of(resolved, registry.models, models_dir)
    quant = resolved.settings.get("quant")
    chosen = [each for each in kept if quant is None or each.quant.casefold() == quant.casefold()]
    if not chosen:
        raise UsageError(f"nothing of {model} was fetched by slm, so nothing is recorded of it", hint="slm ls")
    return chosen


def _settled(terminal: Terminal, finding: Finding) -> Finding:
    """Set a damaged file aside that was fetched, and return the finding with where it lies now."""
    if finding.verdict != "damaged" or read_record(finding.file.path) is None:
        return finding
    try:
        return replace(finding, file=set_aside(finding.file))
    except UsageError as error:
        terminal.say(error.message, YELLOW)
        return finding


def _values(kept: KeptModel, finding: Finding) -> dict[str, Any]:
    return {
        "model": kept.model,
        "quant": kept.quant,
        "path": str(finding.file.path),
        "size_bytes": finding.file.size_bytes,
        "sha256": finding.sha256,
        "verdict": finding.verdict,
        "remark": finding.remark,
    }


def _show(terminal: Terminal, findings: Sequence[Finding], models_dir: Path, *, is_quiet: bool) -> None:
    rows = [
        [each.verdict, gigabytes(each.file.size_bytes), str(each.file.path.relative_to(models_dir)), each.remark]
        for each in findings
        if each.verdict != "whole" or not is_quiet
    ]
    if rows:
        terminal.table(rows, head=("", "size", "file", ""))


def _repair(kept: KeptModel, finding: Finding, models_dir: Path) -> str:
    """Return what to type so that the model is whole again."""
    if finding.file.is_whole:  # it was put there by hand: only its owner can bring it back
        return f"slm rm {shell_word(str(finding.file.path))}"
    if kept.model is not None:
        return f"slm pull {kept.model} {'--checkpoint' if kept.is_checkpoint else f'--quant {kept.quant}'}"
    steps = finding.file.place.relative_to(models_dir).parts
    if kept.target.suffix.lower() == ".gguf":
        page = f"hf.co/{'/'.join(steps[:2])}/blob/main/{'/'.join(steps[2:])}"
        return f"slm pull {shell_word(page)}"
    return f"slm pull {shell_word('hf:' + '/'.join(steps[:2]))}{' --checkpoint' if kept.is_checkpoint else ''}"
