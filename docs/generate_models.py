"""Write docs/models.md from models.toml: `python docs/generate_models.py`. A test holds the two together."""

from __future__ import annotations

from pathlib import Path

from slm_local.fit import KV_BYTES_PER_VALUE
from slm_local.model import ModelSpec, SamplingDefaults, Variant
from slm_local.registry import load_registry

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Models

*Written by `docs/generate_models.py` from `models.toml`; change that file, not this one.*

Any of these names is a MODEL on the command line: an id or an alias, in whatever case. `slm ls --all` shows the same
list with what fits this machine, `slm plan MODEL` every way to run one here, and `slm show MODEL` its facts. A file
that is not listed runs, too: `slm run PATH/TO/FILE.gguf`.

A name of your own, or another default for one of these, goes into `models.toml` in the config folder:

```toml
[models.maths]
base = "r1-8b"
system = "Give the final answer in \\\\boxed{}."
sampling = { temperature = 0.5 }
think = "5m"              # as --think takes it; what is asked on the command line comes first
bridge = " Time is up."   # what is put before the closing tag when thinking is ended for it: keep it short

[models."qwen3-4b"]
sampling = { top_k = 40 }

[models.mine]             # any file on this disk, with what it can't say of itself
variants = [{ quant = "Q4_K_M", path = "/home/me/models/mine.gguf" }]
tags = { open = "<think>", close = "</think>", force_open = true }   # force_open: every prompt opens the thinking
```

A size with ≈ is as rounded as its source gave it. A repository or file with (?) is known second-hand only. Memory for
the context is that of an f16 KV cache.
"""

SCORES_HEAD = """## Published scores

As their sources print them; they were not measured here.
"""


def generate() -> str:
    """Return the page."""
    models = load_registry().models
    parts = [HEAD, "## All of them\n", _overview(models), SCORES_HEAD, *_scores(models), "## One by one\n"]
    return "\n".join([*parts, *(_model(spec) for spec in models)])


def _overview(models: tuple[ModelSpec, ...]) -> str:
    rows = [
        [
            f"[{spec.id}](#{_anchor(spec.id)})" + ("" if spec.verified else " (?)"),
            ", ".join(f"`{alias}`" for alias in spec.aliases),
            _billions(spec.parameters)
            + (f", {_billions(spec.active_parameters)} active" if spec.active_parameters else ""),
            _default_file(spec),
            f"{spec.context_tokens:,}" if spec.context_tokens else "?",
            "yes" if spec.thinks else "",
            spec.licence or "?",
        ]
        for spec in models
    ]
    return _table(["id", "also", "parameters", "default file, size", "context", "thinks", "licence"], rows)


def _default_file(spec: ModelSpec) -> str:
    if spec.embedded:
        return f"in the package, {_size(spec.variants[0])}"
    variant = next((each for each in spec.variants if each.kind == "gguf"), None)
    return "OpenVINO only" if variant is None else f"{variant.quant}, {_size(variant)}"


def _scores(models: tuple[ModelSpec, ...]) -> list[str]:
    """Return a table for every set of columns that sources share."""
    by_columns: dict[tuple[str, ...], list[list[str]]] = {}
    for spec in models:
        if spec.scores is not None:
            row = [f"`{spec.id}`", *(str(each.value) for each in spec.scores.figures), spec.scores.source]
            by_columns.setdefault(tuple(each.name for each in spec.scores.figures), []).append(row)
    return [_table(["model", *columns, "source"], rows) for columns, rows in by_columns.items()]


def _model(spec: ModelSpec) -> str:
    facts = [f"**{spec.name}**"]
    if spec.original_repo:
        gate = {True: ", gated", False: "", None: ""}[spec.gated]
        facts.append(f"original `{spec.original_repo}`{gate}")
    if spec.context_tokens:
        facts.append(f"context {spec.context_tokens:,} tokens")
    per_token = spec.shape.kv_bytes_per_token(KV_BYTES_PER_VALUE)
    if per_token:
        facts.append(f"{per_token / 1024:g} KiB of memory a token")
    facts.append(f"sampling: {_sampling(spec.sampling)}")
    if spec.sampling_no_think:
        facts.append(f"with thinking off: {_sampling(spec.sampling_no_think)}")
    if spec.tags:
        facts.append(f"thinks between `{spec.tags.open}` and `{spec.tags.close}`{_control(spec)}")
    if spec.advises_against_system:
        facts.append("a system prompt is put at the head of the first prompt, for its makers advise against one")
    rows = [[each.kind, each.quant, _size(each), _place(each), (each.sha256 or "")[:12]] for each in spec.variants]
    notes = "".join(f"\n- {note}" for note in spec.notes)
    table = _table(["kind", "quantization", "size", "where", "sha256"], rows)
    return f"### {spec.id}\n\n{'; '.join(facts)}.\n{notes + chr(10) if notes else ''}\n{table}"


def _control(spec: ModelSpec) -> str:
    if spec.think is None:
        return ""
    ways = []
    if spec.think.switch:
        ways.append(f"switched by `{spec.think.switch}`")
    if spec.think.off_word:
        ways.append(f"off by `{spec.think.off_word}`")
    if spec.tags is not None and spec.tags.force_open:
        ways.append("opened in the prompt, for it tends to skip it")
    if not spec.think.off_block:
        ways.append("can't be switched off")
    return f" ({', '.join(ways)})" if ways else ""


def _sampling(sampling: SamplingDefaults) -> str:
    names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty")
    given = [f"{name} {value:g}" for name in names if (value := getattr(sampling, name)) is not None]
    return ", ".join(given) or "greedy"


def _place(variant: Variant) -> str:
    doubt = "" if variant.verified else " (?)"
    if variant.repo is None:
        return "inside the package"
    npu = f", for the {variant.device.upper()}" if variant.device else ""
    return f"`{variant.repo}`" + (f" `{variant.file}`" if variant.file else "") + npu + doubt


def _size(variant: Variant) -> str:
    size = Path(variant.path).stat().st_size if variant.path else variant.size_bytes
    if size is None:
        return "?"
    about = "" if variant.size_is_exact else "≈ "
    return f"{about}{size / 1e9:.2f} GB" if size >= 10**7 else f"{about}{size / 1e6:.1f} MB"


def _billions(parameters: int | None) -> str:
    if parameters is None:
        return "?"
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def _anchor(name: str) -> str:
    """Return the anchor that Markdown viewers give to a heading."""
    return "".join(each for each in name.lower() if each.isalnum() or each in "-_")


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    (ROOT / "docs" / "models.md").write_text(generate(), encoding="utf-8")
