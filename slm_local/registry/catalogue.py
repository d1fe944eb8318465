"""The models known here, by name; resolves model references."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from slm_local.errors import UnknownModel, UsageError
from slm_local.generation import ReasoningTags, ThinkControl
from slm_local.model import ModelSpec, Variant
from slm_local.registry import references
from slm_local.registry.checks import Fault
from slm_local.registry.entries import Built, Entries
from slm_local.registry.references import Resolved
from slm_local.registry.source import read
from slm_local.sanitize import shell_word

PACKAGE = Path(__file__).resolve().parents[1]

REINSTALL = "pip install --force-reinstall slm-local"

CLOSE_NAMES = 3

SCRIPTED_SWITCH = "SLM_SCRIPTED"


class Registry:
    """Every model that is known by a name."""

    def __init__(self, built: Sequence[Built], warnings: Sequence[str] = ()) -> None:
        self.models: tuple[ModelSpec, ...] = tuple(each.spec for each in built)
        self.warnings: tuple[str, ...] = tuple(warnings)
        """What was passed over in the user's file."""
        self._by_name = _names(built)
        self._remotes = {each.spec.id: (each.remote, each.key_env) for each in built if each.remote is not None}

    def get(self, name: str) -> ModelSpec | None:
        """Return the model of that id or alias, in whatever case it is written; None where there is none."""
        return self._by_name.get(name.casefold())

    @property
    def elsewhere(self) -> Sequence[tuple[ModelSpec, str]]:
        """Return the models that run at a server, with their addresses: `http(s)://host/v1#model`."""
        return [(spec, self._remotes[spec.id][0]) for spec in self.models if spec.id in self._remotes]

    def resolve(self, reference: str, *, environment: Mapping[str, str] | None = None) -> Resolved:
        """Say what a model reference names (see `references`); nothing is fetched.

        Errors: `UnknownModel` with the nearest names; `UsageError` for a path that is not there and for what is no
        reference at all.
        """
        environment = os.environ if environment is None else environment
        name, settings = references.split_settings(reference.strip())
        if not name:
            raise UsageError("the model has no name", hint="slm ls")
        if name.lower().startswith("scripted:"):
            return _scripted(reference, name[len("scripted:") :], settings, environment)
        remote = references.hub(reference, name, settings)
        if remote is not None:
            return self._with_hub_spec(remote)
        if known := self.get(name):
            return self._known(reference, known, settings)
        elsewhere = references.address(reference, name, settings)
        if elsewhere is not None:
            return elsewhere
        if references.looks_like_path(name) or references.is_there(name):
            return references.local(reference, name, settings)
        raise self._unknown(name)

    def _known(self, reference: str, spec: ModelSpec, settings: Mapping[str, str]) -> Resolved:
        if spec.id in self._remotes:
            remote, key_env = self._remotes[spec.id]
            found = references.address(reference, remote, settings)
            assert found is not None
            return replace(found, spec=spec, key_env=key_env)
        return Resolved(reference=reference, kind="registry", spec=spec, settings=settings)

    def _with_hub_spec(self, remote: Resolved) -> Resolved:
        """Give a Hub reference the registry's spec where one names that repository and file or quantization."""
        for model in self.models:
            fitting = tuple(each for each in model.variants if each.repo == remote.repo and _asked_for(each, remote))
            if fitting:
                note = f"{remote.repo} is {model.id} in the registry: its facts apply"
                return replace(remote, spec=replace(model, variants=fitting), notes=(note,))
        return remote

    def _unknown(self, name: str) -> UnknownModel:
        if references.is_repository(name):
            hint = f"slm run hf:{name}"
            return UnknownModel(f"there is no file {name}; a Hub repository is written hf:{name}", hint=hint)
        ids = {each.casefold(): model.id for model in self.models for each in (model.id, *model.aliases)}
        close = get_close_matches(name.casefold()[: references.SHOWN_LENGTH], ids, 2 * CLOSE_NAMES, 0.5)
        near = list(dict.fromkeys(ids[each] for each in close))[:CLOSE_NAMES]
        tail = f"; near it: {', '.join(near)}" if near else ""
        return UnknownModel(f"no model is named {references.shortened(name)!r}{tail}", hint="slm ls --all")


def load_registry(user_file: Path | None = None) -> Registry:
    """Read the package's models.toml and, over it, the user's own where it exists.

    `ConfigError` names file, line, model and key; `load_registry()` still works when only the user's is broken.
    """
    own = read(_shipped_file(), "models.toml", REINSTALL)
    user = None
    if user_file is not None and user_file.exists():
        user = read(user_file, str(user_file), f"mv {shell_word(str(user_file))} {shell_word(f'{user_file}.off')}")
    entries = Entries(own, user)
    built = list(entries.build())
    return Registry(built, entries.warnings)


def _shipped_file() -> Path:
    """Find models.toml: inside the package as installed, beside it in a checkout."""
    inside = PACKAGE / "models.toml"
    return inside if inside.exists() else PACKAGE.parent / "models.toml"


def _names(built: Sequence[Built]) -> dict[str, ModelSpec]:
    """Index models by id and alias; `ConfigError` for a name that two of them claim."""
    by_name: dict[str, ModelSpec] = {}
    claims: list[tuple[Built, str, tuple[str, ...]]] = [(each, each.spec.id, ()) for each in built]
    claims += [(each, alias, ("aliases",)) for each in built for alias in each.spec.aliases]
    for each, name, path in claims:
        other = by_name.setdefault(name.casefold(), each.spec)
        if other is not each.spec:
            culprit = each if each.spec.origin != "registry" else next(one for one in built if one.spec is other)
            rival = other if culprit is each else each.spec
            fault = Fault(f"names {name!r}, which is taken by {rival.id}", path if culprit is each else ())
            raise culprit.source.error(culprit.spec.id, fault)
    return by_name


def _asked_for(variant: Variant, remote: Resolved) -> bool:
    if remote.file is not None:
        return variant.file == remote.file
    return remote.quant is None or variant.quant.casefold() == remote.quant.casefold()


def _scripted(reference: str, file: str, settings: Mapping[str, str], environment: Mapping[str, str]) -> Resolved:
    if environment.get(SCRIPTED_SWITCH) != "1":
        raise UsageError("scripted models are for tests", hint=f"{SCRIPTED_SWITCH}=1 slm run {reference}")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no script {file}", hint="slm run scripted:FILE.jsonl")
    spec = ModelSpec(
        id=f"scripted:{file}",
        name=path.stem,
        family="scripted",
        tags=ReasoningTags(open="<think>", close="</think>"),
        think=ThinkControl(switch="enable_thinking"),
        variants=(Variant(kind="gguf", quant="none", path=str(path), size_bytes=path.stat().st_size),),
        origin="file",
    )
    return Resolved(reference=reference, kind="scripted", spec=spec, path=str(path), settings=settings)
