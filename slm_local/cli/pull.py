"""`slm pull MODEL`: fetch a model, or bring what is here of it to an end; verified before it gets its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.fetching import FetchView, confirm
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.config import load_settings
from slm_local.download.carry import carry
from slm_local.download.hub import Hub
from slm_local.engine import Meaning, make_offer, mean, ranked, take
from slm_local.errors import DoesNotFit, EngineMissing, UsageError
from slm_local.hardware import measured_probe
from slm_local.model import Plan, Variant
from slm_local.paths import paths
from slm_local.selector import does_not_fit
from slm_local.system import largest_program


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    quant: Annotated[str | None, typer.Option("--quant", metavar="Q", help="the quantization, such as Q4_K_M")] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="into this folder, for a machine without network")
    ] = None,
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="the original weights, for a conversion")] = False,
    force: Annotated[bool, typer.Option("--force", help="even if it is too large, or another program has it")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="don't ask")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress; warnings and errors only")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket: say what is missing")] = False,
) -> int:
    """Fetch a model; what came is kept whatever happens and goes on at the next call. Its path goes to stdout."""
    terminal: Terminal = context.obj
    registry = registry_here(terminal)
    flags = {"quant": quant, "offline": offline or None}
    settings = load_settings(flags, reference_settings=registry.resolve(model).settings)
    meaning = mean(model, settings=settings, registry=registry)
    if not offline:
        measured_probe()  # so that the offer says how fast it will think
    pull = _Pull(terminal=terminal, meaning=meaning, is_agreed=yes, is_quiet=quiet, is_forced=force)
    for note in meaning.notes:
        pull.say(note)
    variant, plan = _checkpoint(meaning) if checkpoint else _wanted(meaning)
    path = pull.carry(variant, Path(to).expanduser()) if to else pull.fetch(variant, plan)
    terminal.line(str(path))
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pull:
    terminal: Terminal
    meaning: Meaning
    is_agreed: bool
    is_quiet: bool
    is_forced: bool

    def say(self, text: str) -> None:
        if not self.is_quiet:
            self.terminal.say(text, DIM)

    def fetch(self, variant: Variant, plan: Plan | None, folder: Path | None = None) -> Path:
        """Fetch a variant into a folder (None: ours) and return where it lies; one that need not be fetched stays."""
        hub = Hub(offline=self.meaning.settings.offline)
        if folder is None and variant.path is not None:
            is_ours = Path(variant.path).is_relative_to(paths().models_dir)
            if variant.repo is None or hub.is_offline or (not is_ours and not self.is_forced):
                self.say(f"{self.meaning.spec.id} {variant.quant} is here, nothing to fetch")
                return Path(variant.path)
        if plan is not None and not plan.fits and not self.is_forced:
            error = does_not_fit(plan, largest_program())
            raise DoesNotFit(error.message, hint=f"{error.hint}   or, all the same: --force")
        offer = make_offer(self.meaning, variant, hub, plan=plan, models_dir=folder)
        if offer.order.missing_bytes:
            confirm(self.terminal, offer, is_agreed=self.is_agreed, is_quiet=self.is_quiet)
        with FetchView(self.terminal, is_quiet=self.is_quiet) as view:
            fetched = take(offer, hub, on_fetch=view.feed)
        for warning in fetched.warnings:
            self.terminal.say(warning, YELLOW)
        self.say(f"{self.meaning.spec.id} {variant.quant} is here, whole and verified")
        return fetched.target

    def carry(self, variant: Variant, folder: Path) -> Path:
        """Bring a variant into a folder outside: copied where it is here, else fetched straight into it."""
        if variant.path is None:
            return self.fetch(variant, None, folder)
        with FetchView(self.terminal, is_quiet=self.is_quiet) as view:
            path = carry(variant, folder, view.feed)
        self.say(f"copied; on the other machine: slm import {folder}")
        return path


def _wanted(meaning: Meaning) -> tuple[Variant, Plan | None]:
    """Return the variant to fetch, and how it would run here; no plan where no engine here runs it."""
    quant, variants = meaning.settings.quant, meaning.spec.variants
    named = [each for each in variants if quant is not None and each.quant.casefold() == quant.casefold()]
    if named and all(each.kind != "gguf" for each in named):
        return named[0], None
    try:
        plan = ranked(meaning).plans[0]
    except EngineMissing:
        if not (named or variants):
            raise
        return (named or list(variants))[0], None
    return plan.variant, plan


def _checkpoint(meaning: Meaning) -> tuple[Variant, None]:
    spec = meaning.spec
    if spec.original_repo is None:
        raise UsageError(f"no original weights are known for {spec.id}", hint=f"slm show {spec.id}")
    return Variant(kind="checkpoint", quant="original", repo=spec.original_repo), None
