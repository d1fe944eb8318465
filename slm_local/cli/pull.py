"""`slm pull MODEL`: fetch a model, or bring what is here of it to an end; verified before it gets its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.fetching import FetchView, confirm
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.config import Settings, load_settings
from slm_local.download.carry import carry
from slm_local.download.hub import Hub
from slm_local.engine import Meaning, mean, ranked
from slm_local.engine.supply import make_offer, take
from slm_local.errors import DoesNotFit, EngineMissing, UsageError
from slm_local.forecast.offers import title_of
from slm_local.hardware import measured_probe
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.paths import paths
from slm_local.registry import Resolved
from slm_local.registry.local import checkpoint_here
from slm_local.sanitize import shell_word
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
    resolved = registry.resolve(model)
    flags = {"quant": quant, "offline": offline or None}
    if resolved.kind == "url":
        raise UsageError(f"{model} runs elsewhere: there is nothing to fetch", hint=f"slm run {shell_word(model)}")
    settings = load_settings(flags, reference_settings=resolved.settings)
    meaning = _checkpoint(resolved, settings) if checkpoint else mean(model, settings=settings, registry=registry)
    if not settings.offline:
        measured_probe()  # so that the offer says how fast it will think
    pull = _Pull(terminal=terminal, meaning=meaning, is_agreed=yes, is_quiet=quiet, is_forced=force)
    for note in meaning.notes:
        pull.say(note)
    variant, plan = (
        (meaning.here[0] if meaning.here else meaning.spec.variants[0], None) if checkpoint else _wanted(meaning)
    )
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
        title = title_of(self.meaning.spec, variant)
        hub = Hub(offline=self.meaning.settings.offline, again=self._again())
        if folder is None and variant.path is not None:
            is_ours = Path(variant.path).is_relative_to(paths().models_dir)
            if variant.repo is None or hub.is_offline or (not is_ours and not self.is_forced):
                self.say(f"{title} is here, nothing to fetch")
                return Path(variant.path)
        self._refuse_too_large(plan)
        runs_here = folder is None and variant.kind != "checkpoint"
        offer = make_offer(self.meaning, variant, hub, runs_here=runs_here, models_dir=folder)
        self._refuse_too_large(offer.plan)
        if offer.order.missing_bytes:
            confirm(self.terminal, offer, is_agreed=self.is_agreed, is_quiet=self.is_quiet)
        with FetchView(self.terminal, is_quiet=self.is_quiet) as view:
            fetched = take(offer, hub, on_fetch=view.feed, again=self._again())
        for warning in fetched.warnings:
            self.terminal.say(warning, YELLOW)
        if fetched.received_bytes:
            self.say(f"{title} is here, whole and verified")
        else:
            self.say(f"{title} is here, nothing to fetch · slm verify hashes it again")
        if folder is not None:
            self.say(f"on the other machine: slm import {shell_word(str(folder))}")
        return fetched.target

    def _again(self) -> str:
        is_checkpoint = self.meaning.spec.variants and self.meaning.spec.variants[0].kind == "checkpoint"
        return f"slm pull {shell_word(self.meaning.reference)}{' --checkpoint' if is_checkpoint else ''}"

    def _refuse_too_large(self, plan: Plan | None) -> None:
        if plan is None or plan.fits or self.is_forced:
            return
        line = self._again()
        smaller = f"{line} --quant {plan.fitting_quant}   or, all the same: " if plan.fitting_quant else ""
        raise DoesNotFit(does_not_fit(plan, largest_program()).message, hint=f"{smaller}{line} --force")

    def carry(self, variant: Variant, folder: Path) -> Path:
        """Bring a variant into a folder outside: copied where it is here, else fetched straight into it."""
        if variant.path is None:
            return self.fetch(variant, None, folder)
        with FetchView(self.terminal, is_quiet=self.is_quiet) as view:
            path = carry(variant, folder, view.feed)
        self.say(f"copied; on the other machine: slm import {shell_word(str(folder))}")
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


def _checkpoint(resolved: Resolved, settings: Settings) -> Meaning:
    """Return the original weights of what a reference names, as its only variant. Errors: `UsageError`."""
    spec = resolved.spec or ModelSpec(id=resolved.reference, name=resolved.reference, origin="hub")
    repo = resolved.repo if resolved.kind == "hf" else spec.original_repo
    if repo is None:
        raise UsageError(f"no original weights are known for {spec.id}", hint=f"slm show {shell_word(spec.id)}")
    variant = Variant(kind="checkpoint", quant="original", repo=repo, revision=resolved.revision)
    there = checkpoint_here(repo, paths().models_dir)
    return Meaning(
        reference=resolved.reference,
        spec=replace(spec, variants=(variant,)),
        settings=settings,
        here=(replace(variant, path=str(there)),) if there is not None else (),
        notes=(),
    )
