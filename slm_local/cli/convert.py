"""`slm convert MODEL`: a model's original weights to OpenVINO IR, through optimum-intel's exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.fetching import FetchView, confirm
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.config import load_settings
from slm_local.convert import Checkpoint, Converted, ConvertProgress, convert, read_checkpoint, spec_of
from slm_local.convert.checkpoint import CONFIG
from slm_local.convert.export import (
    WEIGHTS,
    Weights,
    check_room,
    check_target,
    place_for,
    quant_of,
    require_exporter,
)
from slm_local.download.hub import Hub
from slm_local.engine import Meaning, mean
from slm_local.engine.supply import make_offer, take
from slm_local.errors import UsageError
from slm_local.model import ModelSpec, Variant
from slm_local.paths import paths
from slm_local.registry import Registry
from slm_local.sanitize import shell_word
from slm_local.selector import duration, gigabytes


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    weights: Annotated[
        str, typer.Option("--weights", metavar="|".join(WEIGHTS), help="how the weights are stored")
    ] = "int4",
    npu: Annotated[bool, typer.Option("--npu", help="as NPUs take it: int4, symmetric, channel-wise")] = False,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="the folder to make")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="don't ask")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress; warnings and errors only")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket: the weights are here")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object at the end")] = False,
) -> int:
    """Make an OpenVINO folder of a model or a checkpoint folder, load it once, and give its path on stdout."""
    terminal: Terminal = context.obj
    form, quant = _form(weights), quant_of(_form(weights), npu=npu)
    require_exporter()
    registry = registry_here(terminal)
    checkpoint, spec = _asked_for(model, registry)
    name = spec.id if spec is not None else checkpoint.name if checkpoint is not None else model
    target = Path(out).expanduser() if out else place_for(name, quant)
    check_target(target)
    if checkpoint is None:
        settings = load_settings({"offline": offline or None})
        meaning = mean(model, settings=settings, registry=registry)
        checkpoint = _fetched(terminal, meaning, form, target, is_agreed=yes, is_quiet=quiet)
    view = _View(terminal, is_quiet=quiet)
    made = convert(checkpoint, form, npu=npu, spec=spec, out=target, on_progress=view.feed)
    _tell(terminal, made, spec, checkpoint, is_quiet=quiet)
    if json:
        terminal.json(_values(made, spec))
    else:
        terminal.line(str(made.path))
    return 0


def _form(weights: str) -> Weights:
    found = next((each for each in WEIGHTS if each == weights), None)
    if found is None:
        raise UsageError(f"--weights is one of {', '.join(WEIGHTS)}, not {weights!r}", hint="--weights int4")
    return found


def _asked_for(model: str, registry: Registry) -> tuple[Checkpoint | None, ModelSpec | None]:
    """Return the checkpoint that is meant, None where it is to be fetched, and the registry model that it is."""
    folder = Path(model).expanduser()
    if (folder / CONFIG).is_file():
        checkpoint = read_checkpoint(folder)
        return checkpoint, spec_of(checkpoint, registry.models)
    resolved = registry.resolve(model)
    if resolved.kind != "registry" or resolved.spec is None:
        raise UsageError(
            f"{model} is no checkpoint: give a registry model, or a folder with {CONFIG} and .safetensors files",
            hint="slm ls --all",
        )
    if resolved.spec.original_repo is None:
        raise UsageError(f"no original weights are known for {resolved.spec.id}", hint="slm convert PATH/TO/CHECKPOINT")
    folder = paths().models_dir / resolved.spec.original_repo
    return (read_checkpoint(folder) if (folder / CONFIG).is_file() else None), resolved.spec


def _fetched(
    terminal: Terminal, meaning: Meaning, weights: Weights, target: Path, *, is_agreed: bool, is_quiet: bool
) -> Checkpoint:
    """Fetch a model's original weights, once memory and disk are known to do for what follows."""
    again = f"slm convert {shell_word(meaning.reference)}"
    hub = Hub(offline=meaning.settings.offline, again=again)
    variant = Variant(kind="checkpoint", quant="original", repo=meaning.spec.original_repo)
    offer = make_offer(meaning, variant, hub, runs_here=False)
    files = (each.remote for each in offer.order.files)
    weights_bytes = sum(each.size_bytes for each in files if each.path.endswith(".safetensors"))
    check_room(meaning.spec.id, weights_bytes, weights, target, coming_bytes=offer.order.missing_bytes)
    if offer.order.missing_bytes:
        confirm(terminal, offer, is_agreed=is_agreed, is_quiet=is_quiet)
    with FetchView(terminal, is_quiet=is_quiet) as view:
        fetched = take(offer, hub, on_fetch=view.feed, again=again)
    for warning in fetched.warnings:
        terminal.say(warning, YELLOW)
    return read_checkpoint(fetched.target)


class _View:
    """Shows what a conversion is at: a passing line on a terminal, a line a stage elsewhere."""

    def __init__(self, terminal: Terminal, *, is_quiet: bool) -> None:
        self._terminal = terminal
        self._is_quiet = is_quiet
        self._stage = ""

    def feed(self, progress: ConvertProgress) -> None:
        """Show a step."""
        if self._is_quiet:
            return
        share = f" · {progress.fraction:.0%}" if progress.fraction is not None else ""
        self._terminal.status(f"{progress.stage}{share} · {duration(progress.elapsed_s)}")
        if progress.stage != self._stage and not self._terminal.err_is_rich:
            self._terminal.say(progress.stage, DIM)
        self._stage = progress.stage


def _tell(
    terminal: Terminal, made: Converted, spec: ModelSpec | None, checkpoint: Checkpoint, *, is_quiet: bool
) -> None:
    for warning in made.warnings:
        terminal.say(warning, YELLOW)
    if is_quiet:
        return
    sizes = f"{gigabytes(made.before_bytes)} -> {gigabytes(made.after_bytes)}"
    terminal.say(f"{sizes} in {duration(made.took_s)}; it loads", DIM)
    is_ours = made.path.absolute().is_relative_to(paths().models_dir.absolute())
    reference = spec.id if spec is not None and is_ours else str(made.path)
    terminal.say(f'slm run {reference} --backend openvino "…"', DIM)
    if checkpoint.folder.absolute().is_relative_to(paths().models_dir.absolute()):
        terminal.say(f"the original weights stay; to remove them: slm rm {shell_word(str(checkpoint.folder))}", DIM)


def _values(made: Converted, spec: ModelSpec | None) -> dict[str, object]:
    return {
        "path": str(made.path),
        "model": spec.id if spec is not None else None,
        "quant": made.quant,
        "before_bytes": made.before_bytes,
        "after_bytes": made.after_bytes,
        "took_s": made.took_s,
        "settings": dict(made.settings) if made.settings is not None else None,
        "warnings": list(made.warnings),
    }
