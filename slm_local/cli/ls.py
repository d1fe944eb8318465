"""`slm ls`: the models that are here; with `--all` those of the registry, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.fit import Fit, predict
from slm_local.hardware import Hardware, probe
from slm_local.model import ModelSpec, Variant
from slm_local.paths import paths
from slm_local.registry import Registry, find_local, load_registry, scan
from slm_local.selector import DEFAULT_CONTEXT_TOKENS, gigabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    spec: ModelSpec
    variant: Variant
    fit: Fit

    def values(self) -> dict[str, Any]:
        spec, variant, fit = self.spec, self.variant, self.fit
        return {
            "model": spec.id,
            "name": spec.name,
            "aliases": list(spec.aliases),
            "quant": variant.quant,
            "kind": variant.kind,
            "size_bytes": variant.size_bytes,
            "parameters": spec.parameters,
            "context_tokens": spec.context_tokens,
            "thinks": spec.thinks,
            "licence": spec.licence,
            "released": spec.released,
            "embedded": spec.embedded,
            "verified": spec.verified and variant.verified,
            "here": variant.path is not None,
            "path": variant.path,
            "fit": fit.verdict,
            "memory_bytes": fit.total_bytes,
            "expected_decode_tps": fit.decode_tps,
            "origin": spec.origin,
        }

    def cells(self) -> list[str]:
        spec, variant, fit = self.spec, self.variant, self.fit
        where = "inside slm" if spec.embedded else "here" if variant.path else "registry"
        return [
            spec.id,
            variant.quant if variant.kind == "gguf" else f"{variant.kind} {variant.quant}",
            gigabytes(variant.size_bytes) if variant.size_bytes is not None else "?",
            f"{spec.context_tokens:,}" if spec.context_tokens else "?",
            fit.verdict if fit.verdict != "Unknown" else "?",
            f"{fit.decode_tps:.0f}/s" if fit.decode_tps is not None else "",
            "thinks" if spec.thinks else "",
            where if spec.verified and variant.verified else f"{where}, second-hand",
        ]


HEAD = ("model", "form", "size", "context", "fit", "speed", "", "where")


def command(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="the registry, too, newest and fitting first")] = False,
    json: Annotated[bool, typer.Option("--json", help="a JSON list, with more facts")] = False,
) -> int:
    """List the models that are here; fit and speed are foretold for this machine, not measured."""
    terminal: Terminal = context.obj
    registry = load_registry(paths().config / "models.toml")
    for warning in registry.warnings:
        terminal.say(warning, YELLOW)
    hardware = probe()
    rows = _here(registry, hardware)
    if everything:
        here = {row.spec.id for row in rows}
        rows += _absent([spec for spec in registry.models if spec.id not in here], hardware)
    if json:
        terminal.json([row.values() for row in rows])
        return 0
    terminal.table([row.cells() for row in rows], head=HEAD)
    if not everything:
        terminal.say("slm ls --all lists what could be here", DIM)
    return 0


def _here(registry: Registry, hardware: Hardware) -> list[_Row]:
    files = scan(paths().models_dir)
    rows = [_row(spec, variant, hardware) for spec in registry.models for variant in find_local(spec, files)]
    known = {row.variant.path for row in rows}
    for path in sorted(path for each in files.values() for path in each if str(path) not in known):
        variant = Variant(kind="gguf", quant="", path=str(path), size_bytes=path.stat().st_size)
        rows.append(_row(ModelSpec(id=str(path), name=path.stem, origin="file"), variant, hardware))
    return rows


def _absent(specs: list[ModelSpec], hardware: Hardware) -> list[_Row]:
    """Return one row a model, its first form: those that fit, newest first, then the others."""
    rows = [_row(spec, spec.variants[0], hardware) for spec in specs if spec.variants]
    newest = sorted(rows, key=lambda row: row.spec.released or "", reverse=True)
    return sorted(newest, key=lambda row: (row.fit.verdict == "Too large", row.fit.verdict == "Unknown"))


def _row(spec: ModelSpec, variant: Variant, hardware: Hardware) -> _Row:
    context = min(DEFAULT_CONTEXT_TOKENS, spec.context_tokens or DEFAULT_CONTEXT_TOKENS)
    return _Row(spec=spec, variant=variant, fit=predict(spec, variant, context, hardware))
