"""Which model, when none was named: three that suit this machine, those that are here first, the embedded one last."""

from __future__ import annotations

import sys

from slm_local.cli.render import Terminal
from slm_local.errors import UsageError
from slm_local.hardware import probe
from slm_local.model import ModelSpec
from slm_local.paths import paths
from slm_local.registry import Registry, find_local, scan
from slm_local.selector import gigabytes, suggest

OFFERS = 3


def chosen_model(terminal: Terminal, registry: Registry) -> str:
    """Ask the person for a model and return its reference. `UsageError` where nobody can be asked, or none is taken."""
    hint = "slm chat tiny-reasoner"
    if sys.stdin is None or not sys.stdin.isatty() or not terminal.err_is_terminal:
        raise UsageError("which model?", hint=hint)
    offers = _offers(registry)
    for number, (spec, remark) in enumerate(offers, 1):
        terminal.say(f"  {number}  {spec.id:<32}{remark}")
    while True:
        terminal.talk("a number, or any model by its name: ")
        try:
            typed = input().strip()
        except EOFError:
            raise UsageError("no model was chosen", hint=hint) from None
        if typed.isascii() and typed.isdigit() and 1 <= int(typed) <= len(offers):
            return offers[int(typed) - 1][0].id
        if typed and not typed.isdigit():
            return typed


def _offers(registry: Registry) -> list[tuple[ModelSpec, str]]:
    files = scan(paths().models_dir)
    present = [spec for spec in registry.models if not spec.embedded and find_local(spec, files)]
    suited = suggest(registry.models, probe(), len(registry.models))
    known = [*suited, *(spec for spec in present if spec not in suited)]
    ordered = sorted(known, key=lambda spec: spec not in present)
    embedded = [spec for spec in registry.models if spec.embedded][:1]
    offers = [(spec, _remark(spec, spec in present)) for spec in ordered[: OFFERS - len(embedded)]]
    return [*offers, *((spec, "inside slm: sums, weighing and word problems only") for spec in embedded)]


def _remark(spec: ModelSpec, is_here: bool) -> str:
    size = next((each.size_bytes for each in spec.variants if each.kind == "gguf"), None)
    parts = [gigabytes(size) if size is not None else "size unknown", "here" if is_here else "not here yet"]
    return " · ".join(parts)
