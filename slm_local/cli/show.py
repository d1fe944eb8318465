"""`slm show MODEL`: what the registry or the file itself says of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from slm_local.cli.answering import registry_here
from slm_local.cli.options import MACHINE, SHOWN
from slm_local.cli.render import DIM, Terminal
from slm_local.config import load_settings
from slm_local.engine import Meaning, mean, ranked
from slm_local.errors import SlmError, UsageError
from slm_local.fit import KV_BYTES_PER_VALUE, training_flops
from slm_local.forecast.thinking import thinking_words
from slm_local.generation import Message, ReasoningTags, ThinkControl
from slm_local.gguf_header import GgufHeader, checked_header
from slm_local.handover import ENGINES, EngineName, handover
from slm_local.model import ModelSpec, Scores, Variant
from slm_local.paths import paths
from slm_local.registry.local import checkpoint_here
from slm_local.sanitize import one_line, shell_word
from slm_local.selector import gigabytes
from slm_local.template import ChatTemplate, prompt_for

COMPUTE_TOKENS = 4096
"""Tokens for which the DeepSeekMoE paper gives its compute."""

INDENT = 14

PROMPT_STATES = {
    "open": "opens thinking",
    "closed": "closes thinking",
    "unopened": "leaves it to the model whether it thinks",
}


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    verbose: Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="digests, what thinking costs here, training compute", rich_help_panel=SHOWN
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="open no socket: only what is here", rich_help_panel=MACHINE)
    ] = False,
    serve_with: Annotated[
        str | None,
        typer.Option(
            "--serve-with",
            metavar="ENGINE",
            help="the command for vllm, ovms or llama-server",
            rich_help_panel=SHOWN,
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="one JSON object with every fact", rich_help_panel=SHOWN)
    ] = False,
) -> int:
    """Show what is known about a model: origin, size, forms, sampling, how it thinks; nothing is fetched or loaded."""
    engine = _engine(serve_with) if serve_with is not None else None
    terminal: Terminal = context.obj
    registry = registry_here(terminal)
    resolved = registry.resolve(model)
    here: tuple[Variant, ...] = ()
    costs: list[tuple[str, str]] = []
    if engine is not None and resolved.kind == "url":
        raise UsageError(f"{model} runs elsewhere already, at {resolved.url}", hint=f"slm run {shell_word(model)}")
    if resolved.kind == "url" and resolved.spec is not None:
        spec = resolved.spec
    else:
        settings = load_settings({"offline": offline or None}, reference_settings=resolved.settings)
        meaning = mean(model, settings=settings, registry=registry)
        spec, here = meaning.spec, meaning.here
        for note in meaning.notes:
            terminal.say(note, DIM)
        if engine is not None:
            return _serve_with(terminal, engine, meaning, as_json=json)
        costs = _costs(meaning) if verbose and spec.thinks and not json else []
    if json:
        terminal.json(_values(spec, here))
        return 0
    rows = [*_facts(spec), *_thinking(spec, here), *costs, *_remarks(spec), *(_compute(spec) if verbose else ())]
    for name, value in rows:
        _write(terminal, name, value)
    for variant in _with_places(spec, here):
        terminal.line()
        for name, value in _form(variant, shows_digests=verbose):
            _write(terminal, name, value)
    return 0


def _engine(name: str) -> EngineName:
    """Return the engine that was named. Errors: `UsageError`."""
    for engine in ENGINES:
        if name.lower() == engine:
            return engine
    raise UsageError(f"--serve-with takes {', '.join(ENGINES)}, not {name}", hint="--serve-with vllm")


def _serve_with(terminal: Terminal, engine: EngineName, meaning: Meaning, *, as_json: bool) -> int:
    """Write the command by which another engine serves the model to stdout, and what else is to be known to stderr."""
    settings = meaning.settings
    other = handover(engine, meaning.spec, meaning.here, context_tokens=settings.context_tokens, quant=settings.quant)
    if as_json:
        words = [word for part in other.parts for word in part]
        values = {"engine": engine, "command": words, "address": other.address, "model": other.model}
        terminal.json({**values, "remarks": list(other.remarks)})
        return 0
    terminal.write(other.command + "\n")
    for remark in other.remarks:
        terminal.say(f"note: {remark}", DIM)
    terminal.hint(f"once it runs: slm run {shell_word(f'{other.address}#{other.model}')}")
    return 0


def count(parameters: int | None) -> str:
    """Return a number of parameters as people say it: 8.0B, 135M."""
    if parameters is None:
        return "unknown"
    return f"{parameters / 1e9:.1f}B" if parameters >= 10**9 else f"{parameters / 1e6:.1f}M"


def score_text(scores: Scores) -> str:
    """Return published figures with their source."""
    return f"{', '.join(f'{each.name} {each.value}' for each in scores.figures)} ({scores.source})"


def _values(spec: ModelSpec, here: Sequence[Variant]) -> dict[str, Any]:
    scores = spec.scores and {"source": spec.scores.source} | {each.name: each.value for each in spec.scores.figures}
    return {
        **asdict(spec),
        "scores": scores,
        "thinks": spec.thinks,
        "training_flops_4096": training_flops(spec, COMPUTE_TOKENS),
        "here": [each.path for each in here],
    }


def _write(terminal: Terminal, name: str, value: str) -> None:
    heading = f"{one_line(name, INDENT)}:" if name else ""
    terminal.paragraph(value, first=f"{heading:<{INDENT}}", rest=" " * INDENT)


def _facts(spec: ModelSpec) -> list[tuple[str, str]]:
    gated = ", asks for an accepted licence" if spec.gated else ""
    active = f", {count(spec.active_parameters)} active for a token" if spec.active_parameters else ""
    shape = {name: value for name, value in asdict(spec.shape).items() if value is not None}
    per_token = spec.shape.kv_bytes_per_token(KV_BYTES_PER_VALUE)
    cache = f", {per_token / 1024:g} KiB of memory each" if per_token else ""
    rows = [
        ("model", spec.id),
        ("name", spec.name),
        ("aliases", ", ".join(spec.aliases)),
        ("family", spec.family),
        ("licence", f"{spec.licence or 'not known'}{gated}"),
        ("source", _source(spec)),
        ("released", spec.released or ""),
        ("parameters", f"{count(spec.parameters)}{active}" if spec.parameters else ""),
        ("architecture", spec.architecture or ""),
        ("shape", ", ".join(f"{name} {value}" for name, value in shape.items())),
        ("context", f"{spec.context_tokens:,} tokens{cache}" if spec.context_tokens else ""),
        ("sampling", _sampling(asdict(spec.sampling))),
        ("no think", _sampling(asdict(spec.sampling_no_think)) if spec.sampling_no_think else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _source(spec: ModelSpec) -> str:
    there = checkpoint_here(spec.original_repo, paths().models_dir) if spec.original_repo else None
    return f"{spec.original_repo or ''}{f', its original weights are in {there}' if there else ''}"


def _remarks(spec: ModelSpec) -> list[tuple[str, str]]:
    rows = [
        ("system", spec.system or ""),
        *(
            [("system", "a system prompt goes to the head of the first prompt: its makers advise against one")]
            if spec.advises_against_system
            else []
        ),
        ("scores", score_text(spec.scores) if spec.scores else ""),
        ("known from", spec.origin if spec.verified else f"{spec.origin}, second-hand"),
        *(("note", note) for note in spec.notes),
    ]
    return [(name, value) for name, value in rows if value]


def _sampling(values: dict[str, float | int | None]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None) or "none advised"


def _thinking(spec: ModelSpec, here: Sequence[Variant]) -> list[tuple[str, str]]:
    """Say how the model thinks, how that is switched, and what the chat template does that lies here."""
    if spec.tags is None:
        return [("thinks", "no")]
    control = spec.think or ThinkControl()
    ways = [
        *([f"the template's variable {control.switch}"] if control.switch else []),
        *([f"the word {control.off_word} in the system text"] if control.off_word else []),
        *(["an empty block in the prompt"] if control.off_block and not (control.switch or control.off_word) else []),
    ]
    rows = [("thinks", f"between {spec.tags.open} and {spec.tags.close}")]
    if spec.tags.force_open:
        rows.append(("", "slm opens it in the prompt, for the model tends to skip it"))
    if spec.thinking.word:
        rows.append(("", f"--think {spec.thinking.word} where nobody asks for anything else"))
    rows.append(("", f"switched off by {' or '.join(ways)}" if ways else "can't be switched off"))
    place = next((each.path for each in here if each.kind == "gguf" and each.path), None)
    if place is not None and spec.family != "scripted":
        rows.append(("", _template_line(checked_header(Path(place), paths().cache), spec, control, spec.tags)))
    return rows


def _costs(meaning: Meaning) -> list[tuple[str, str]]:
    """Say what can be asked of its thinking, with what that costs on this machine; nothing where it can't run here."""
    try:
        words = thinking_words(ranked(meaning).plans[0])
    except SlmError as error:
        return [("--think", error.message)]
    return [("--think" if number == 0 else "", line) for number, line in enumerate(words)]


def _template_line(header: GgufHeader, spec: ModelSpec, control: ThinkControl, tags: ReasoningTags) -> str:
    """Render a prompt with the template in use, and say what it does with thinking."""
    whose, source = ("entry", spec.template) if spec.template is not None else ("file", header.chat_template)
    if source is None:
        return "the file has no chat template: --template FILE"
    texts = (header.bos_text, header.eos_text)
    try:
        template = ChatTemplate(source, bos_text=texts[0], eos_text=texts[1], control_texts=texts, tags=tags)
        asked = [Message(role="user", content="?")]
        prompt = prompt_for(template, asked, "auto", control, tags, adds_bos=False)
    except SlmError as error:
        return error.message
    return f"with the {whose}'s chat template the prompt {PROMPT_STATES[prompt.think_state]}"


def _compute(spec: ModelSpec) -> list[tuple[str, str]]:
    flops = training_flops(spec, COMPUTE_TOKENS)
    if flops is None:
        return [("compute", "not known: it takes layers, width and vocabulary, and of a mixture its active_ffn")]
    return [
        ("compute", f"{flops / 1e12:.2f} TFLOPs for {COMPUTE_TOKENS:,} tokens"),
        ("", "training, idealised as in the DeepSeekMoE paper; reading as many takes about a third"),
    ]


def _with_places(spec: ModelSpec, here: Sequence[Variant]) -> list[Variant]:
    """Return every form, those that are here first."""
    known = {(each.repo, each.file, each.quant) for each in here}
    return [*here, *(each for each in spec.variants if (each.repo, each.file, each.quant) not in known)]


def _form(variant: Variant, *, shows_digests: bool) -> list[tuple[str, str]]:
    size = "size not known"
    if variant.size_bytes is not None:
        size = f"{'' if variant.size_is_exact else 'about '}{gigabytes(variant.size_bytes)}"
    remarks = [
        *([variant.kind] if variant.kind != "gguf" else []),
        *([f"for the {variant.device.upper()}"] if variant.device else []),
        *(["known second-hand only"] if not variant.verified else []),
    ]
    rows = [
        (variant.quant or "form", ", ".join([size, *remarks])),
        ("", variant.repo or ""),
        ("", variant.file or "" if variant.repo else ""),
        ("here", variant.path or ""),
        ("revision", variant.revision or "" if shows_digests else ""),
        ("sha256", variant.sha256 or "" if shows_digests else ""),
    ]
    return [(name, value) for name, value in rows if value]
