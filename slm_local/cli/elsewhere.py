"""What to say of a model that slm does not keep: where it is instead, and how to remove it there."""

from __future__ import annotations

import os

from slm_local.download.found import FoundModel, found_models, found_variants
from slm_local.errors import UsageError
from slm_local.paths import paths
from slm_local.registry import Registry, Resolved
from slm_local.sanitize import shell_word

IN_PROGRAMS = {"LM Studio": "My Models", "Jan": "Settings, Model Providers"}
"""Where programs with windows show their models, to be removed there."""

PLACES = {"Hub cache": "the Hub's cache"}
"""What is no program's name, as a sentence has it."""


def not_kept(resolved: Resolved, registry: Registry) -> UsageError:
    """Return the error for a model that is not among slm's own files: nothing of it is touched."""
    name = resolved.reference
    if resolved.kind == "url":
        return UsageError(f"{name} runs elsewhere: nothing of it is on this disk", hint="slm ls")
    own = {os.path.realpath(str(each.path)) for spec in registry.models for each in spec.variants if each.path}
    is_embedded = resolved.spec is not None and resolved.spec.embedded
    if is_embedded or (resolved.path is not None and os.path.realpath(resolved.path) in own):
        return UsageError(f"{name} is a part of slm itself and goes with it", hint="pip uninstall slm-local")
    found = _found(resolved, registry)
    if found is not None:
        whose = PLACES.get(found.program, found.program)
        return UsageError(f"{name} is a model of {whose}, which slm never changes", hint=_removal(found))
    if resolved.path is not None:
        return UsageError(f"{name} lies outside {paths().models_dir} and is not slm's to touch", hint="slm ls")
    return UsageError(f"nothing of {name} is here", hint="slm ls")


def _found(resolved: Resolved, registry: Registry) -> FoundModel | None:
    """Return another program's copy of the model, where there is one."""
    everything = found_models()
    if resolved.path is not None:
        places = {os.path.realpath(resolved.path)}
    elif resolved.spec is not None:
        variants = found_variants(resolved.spec, registry.models, everything, paths().cache)
        places = {os.path.realpath(str(each.path)) for each in variants}
    else:
        return next((each for each in everything if each.repo is not None and each.repo == resolved.repo), None)
    return next((each for each in everything if os.path.realpath(each.path) in places), None)


def _removal(found: FoundModel) -> str:
    if found.program == "ollama":
        return f"ollama rm {shell_word(found.name)}"
    if found.program == "Hub cache" and found.repo is not None:
        return f"hf cache rm {shell_word(f'model/{found.repo}')}"
    if found.program in IN_PROGRAMS:
        return f"in {found.program}: {IN_PROGRAMS[found.program]}, remove {found.name}"
    return f"rm {shell_word(str(found.path))}"  # PowerShell knows rm, too
