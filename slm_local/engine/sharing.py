"""Whether an engine that is open already is what somebody else asks for: settings that are fixed when it is loaded."""

from __future__ import annotations

from dataclasses import replace

from slm_local.config import Settings
from slm_local.engine import Engine, load_settings_of
from slm_local.engine.choice import Meaning

FIXED = (
    *("backend", "device", "prefer", "quant", "context_tokens", "threads", "template_file", "bridge", "speculation"),
    "offline",
)
"""Settings that decide how a model is opened; all others are those of a request, or of who shows it."""


def fixed_settings(settings: Settings) -> Settings:
    """Return what of the settings decides how a model is opened, all else as it comes."""
    return Settings(**{name: getattr(settings, name) for name in FIXED})


def refusal(engine: Engine, meaning: Meaning) -> str:
    """Say why an open engine can't answer for what was meant; empty where it can.

    What is not asked for may be as it is. Errors: `UsageError` for a template that can't be read.
    """
    plan, asked, own = engine.plan, meaning.settings, engine.settings
    if meaning.spec.id != plan.spec.id or plan.variant.path not in {each.path for each in meaning.here}:
        return f"it has {plan.spec.id} {plan.variant.quant} open, from another file"
    fixed: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("backend", asked.backend, ("auto", plan.backend)),
        ("device", asked.device, ("auto", plan.device.partition(".")[0])),
        ("quant", (asked.quant or "").casefold(), ("", plan.variant.quant.casefold())),
        ("ctx", asked.context_tokens, (None, own.context_tokens, plan.context_tokens)),
        ("threads", asked.threads, (None, own.threads, plan.threads)),
    )
    for name, wanted, fitting in fixed:
        if wanted not in fitting:
            return f"{plan.spec.id} is open there with another {name} than {wanted}"
    loaded = engine.load_settings
    wanted = load_settings_of(replace(plan, spec=meaning.spec), asked)
    if wanted.speculation:  # tokens may be guessed ahead, and need not
        wanted = replace(wanted, speculation=loaded.speculation)
    if wanted != loaded:
        return f"{plan.spec.id} is open there with another template, bridge or way to guess ahead"
    return ""
