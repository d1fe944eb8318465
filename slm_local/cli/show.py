"""`slm show MODEL`: what the registry or the file itself says of a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.render import DIM, Terminal
from slm_local.engine import choose
from slm_local.model import ModelSpec, Variant
from slm_local.paths import paths
from slm_local.registry import find_local
from slm_local.selector import gigabytes


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="one JSON object with every fact")] = False,
) -> int:
    """Show what is known about a model: origin, size, forms, sampling, how it thinks; nothing is fetched or loaded."""
    terminal: Terminal = context.obj
    registry = registry_here(terminal)
    spec = registry.resolve(model).spec
    if spec is None:
        choice = choose(model, registry=registry)
        spec = choice.spec
        for note in choice.notes:
            terminal.say(note, DIM)
    here = find_local(spec, paths().models_dir)
    if json:
        terminal.json({**asdict(spec), "thinks": spec.thinks, "here": [each.path for each in here]})
        return 0
    for name, value in _facts(spec):
        terminal.line(f"{name + ':':<14}{value}")
    places = {(each.repo, each.file, each.quant): each.path for each in here}
    rows = [_cells(each, places.get((each.repo, each.file, each.quant))) for each in spec.variants]
    if rows:
        terminal.line()
        terminal.table(rows, head=("form", "size", "file", "where"))
    return 0


def _facts(spec: ModelSpec) -> list[tuple[str, Any]]:
    gated = {True: ", asks for an accepted licence", False: "", None: ""}[spec.gated]
    active = f", {count(spec.active_parameters)} active" if spec.active_parameters else ""
    shape = {name: value for name, value in asdict(spec.shape).items() if value is not None}
    rows: list[tuple[str, Any]] = [
        ("model", spec.id),
        ("name", spec.name),
        ("aliases", ", ".join(spec.aliases)),
        ("family", spec.family),
        ("licence", f"{spec.licence}{gated}" if spec.licence else ""),
        ("source", spec.original_repo),
        ("released", spec.released),
        ("parameters", f"{count(spec.parameters)}{active}" if spec.parameters else ""),
        ("architecture", spec.architecture),
        ("shape", ", ".join(f"{name} {value}" for name, value in shape.items())),
        ("context", f"{spec.context_tokens:,} tokens" if spec.context_tokens else ""),
        ("sampling", _sampling(asdict(spec.sampling))),
        ("no think", _sampling(asdict(spec.sampling_no_think)) if spec.sampling_no_think else ""),
        ("thinks", f"between {spec.tags.open} and {spec.tags.close}" if spec.tags else "no"),
        ("system", spec.system),
        ("known from", spec.origin if spec.verified else f"{spec.origin}, second-hand"),
        *(("note", note) for note in spec.notes),
    ]
    return [(name, value) for name, value in rows if value]


def _sampling(values: dict[str, float | int | None]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None) or "none advised"


def count(parameters: int | None) -> str:
    """Return a number of parameters as people say it: 8.0B, 135M."""
    if parameters is None:
        return "unknown"
    return f"{parameters / 1e9:.1f}B" if parameters >= 10**9 else f"{parameters / 1e6:.1f}M"


def _cells(variant: Variant, path: str | None) -> list[str]:
    size = "?" if variant.size_bytes is None else gigabytes(variant.size_bytes)
    source = "/".join(part for part in (variant.repo, variant.file) if part)
    kind = variant.quant if variant.kind == "gguf" else f"{variant.kind} {variant.quant}"
    second = "" if variant.verified else "second-hand"
    return [kind, size, source, path or second]
