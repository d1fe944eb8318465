"""`slm verify --remote`: a table of what the Hub has otherwise than the registry says; run before a release."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from slm_local.cli.render import DIM, Terminal
from slm_local.config import load_settings
from slm_local.download.audit import Outcome, audit
from slm_local.download.hub import Hub
from slm_local.errors import DownloadFailed, UsageError
from slm_local.paths import paths
from slm_local.registry import Registry
from slm_local.sanitize import shell_word

WORDS: dict[Outcome, str] = {
    "same": "as the registry says",
    "differs": "different",
    "missing": "missing",
    "unreached": "without an answer",
}


def ask_hub(terminal: Terminal, registry: Registry, model: str | None, *, is_json: bool) -> int:
    """Ask for everything that the registry names, or what it names of one model; exit code 3 where anything differs."""
    specs = registry.models
    if model is not None:
        spec = registry.resolve(model).spec
        if spec is None:
            raise UsageError(f"{model} is not in the registry", hint="slm verify --remote")
        specs = (spec,)
        if not any(each for each in (spec.original_repo, *(variant.repo for variant in spec.variants))):
            terminal.say(f"no repository is known of {spec.id}" + ": it is a part of slm itself" * spec.embedded, DIM)
    again = f"slm verify {shell_word(model)} --remote" if model is not None else "slm verify --remote"
    hub = Hub(offline=load_settings({}).offline, again=again)
    results = list(audit(specs, hub, paths().models_dir, terminal.status))
    others = [each for each in results if each.outcome != "same"]
    if is_json:
        terminal.json([asdict(each) for each in results])
    elif others:
        rows = [
            [each.outcome, each.model, each.quant or "original", f"{each.repo}/{each.file or ''}", each.remark]
            for each in others
        ]
        terminal.table(rows, head=("", "model", "form", "on the Hub", ""))
    counts = Counter(each.outcome for each in results)
    summary = ", ".join(f"{counts[outcome]} {words}" for outcome, words in WORDS.items() if counts[outcome])
    if summary:
        terminal.say(summary, DIM)
    return DownloadFailed.exit_code if others else 0
