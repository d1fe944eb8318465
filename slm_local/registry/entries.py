"""Turns the tables of registry files into model specs: checks, what a user's file overrides, base entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_local.generation import ReasoningTags, ThinkControl, Thinking
from slm_local.model import ModelSpec, SamplingDefaults, Score, Scores, Shape, Variant
from slm_local.registry import checks, form
from slm_local.registry.checks import Fault, Schema
from slm_local.registry.source import Source

WEIGHTS = Path(__file__).resolve().parents[1] / "tiny" / "weights"
"""Where the embedded models lie."""

Meant = dict[str, Any]
"""An entry's keys after their checks."""

MERGED = frozenset({"shape", "sampling", "sampling_no_think", "tags", "think"})
"""Tables of which an overriding entry changes single keys; everything else it replaces."""

NOT_INHERITED = frozenset({"name", "aliases", "embedded", "remote", "key_env"})
"""What stays with the model that others go on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An entry as a spec, and where it was written."""

    spec: ModelSpec
    source: Source
    remote: str | None = None
    """Address of a model that runs elsewhere."""
    key_env: str = ""
    """The variable with the key for it, where one is named."""


class Entries:
    """The entries of the package's file and of a user's, the latter on top of the former."""

    def __init__(self, own: Source, user: Source | None) -> None:
        self.warnings: list[str] = []
        self._own = {model: _meant(own, model, {**form.ENTRY, **form.OWN_ONLY}) for model in own.entries}
        self._sources: dict[str, Source] = dict.fromkeys(self._own, own)
        self._user: dict[str, Meant] = {}
        if user is not None:
            schema = {**form.ENTRY, **form.USER_ONLY}
            for model in user.entries:
                self.warnings += _drop_unknown(user, model, schema)
                self._user[model] = _meant(user, model, schema)
                self._sources[model] = user

    def build(self) -> Iterator[Built]:
        """Yield every entry, those of the package first; `ConfigError` for one that is not whole."""
        for model, source in self._sources.items():
            meant, place_of = self._merged(model, ())
            try:
                spec = _spec(model, meant, place_of)
            except Fault as fault:
                raise source.error(model, fault) from None
            if "key_env" in meant and "remote" not in meant:
                raise source.error(model, Fault("is for a model that runs elsewhere: it has no remote", ("key_env",)))
            yield Built(spec=spec, source=source, remote=meant.get("remote"), key_env=meant.get("key_env", ""))

    def _merged(self, model: str, seen: tuple[str, ...]) -> tuple[Meant, str]:
        """Return an entry over what it overrides or goes on from, and its origin."""
        source = self._sources[model]
        if model not in self._user:
            return self._own[model], "registry"
        entry = self._user[model]
        base = self._named(entry["base"]) if "base" in entry else None
        if base in (*seen, model):
            raise source.error(model, Fault("goes round in a circle", ("base",)))
        if "base" in entry and base is None:
            raise source.error(model, Fault(f"names no entry: {entry['base']!r}", ("base",)))
        if base is not None:
            inherited, _ = self._merged(base, (*seen, model))
            below = {key: value for key, value in inherited.items() if key not in NOT_INHERITED}
            if "remote" in entry:
                below.pop("variants", None)  # it runs elsewhere, in a form that its server tells
            elif inherited.get("embedded"):
                below["variants"] = tuple({**each, "path": _embedded_path(each)} for each in inherited["variants"])
        else:
            below = self._own.get(model, {})
        return _over(below, entry), source.name

    def _named(self, name: str) -> str | None:
        wanted = name.casefold()
        for model in self._sources:
            entry = {**self._own.get(model, {}), **self._user.get(model, {})}
            if wanted in (model.casefold(), *(alias.casefold() for alias in entry.get("aliases", ()))):
                return model
        return None


def _meant(source: Source, model: str, schema: Schema) -> Meant:
    try:
        return checks.checked(source.entries[model], schema)
    except Fault as fault:
        raise source.error(model, fault) from None


def _drop_unknown(source: Source, model: str, schema: Schema) -> list[str]:
    """Take the unknown keys out of a user's entry and return a warning for each."""
    try:
        unknown = checks.unknown_keys(source.entries[model], schema)
    except Fault as fault:
        raise source.error(model, fault) from None
    warnings = []
    for path, message in unknown:
        warnings.append(f"{source.error(model, Fault(message, path)).message}; it is passed over")
        holder: Any = source.entries[model]
        for step in path[:-1]:
            holder = holder[step]
        del holder[path[-1]]
    return warnings


def _over(below: Mapping[str, Any], entry: Meant) -> Meant:
    merged = dict(below)
    for key, value in entry.items():
        merged[key] = {**merged.get(key, {}), **value} if key in MERGED else value
    return merged


def _spec(model: str, meant: Meant, origin: str) -> ModelSpec:
    if not meant.get("variants") and "remote" not in meant:
        raise Fault("has no variants: name a file, or the entry it goes on from (base)")
    if (meant.get("active_parameters") or 0) > meant.get("parameters", float("inf")):
        raise Fault("is more than all parameters", ("active_parameters",))
    is_embedded = meant.get("embedded", False)
    tags = _tags(meant["tags"]) if "tags" in meant else None
    plain = {"family", "licence", "gated", "original_repo", "parameters", "active_parameters", "architecture"}
    plain |= {
        "active_ffn",
        "context_tokens",
        "template",
        "bridge",
        "system",
        "advises_against_system",
        "verified",
        "refusal",
        "released",
        "notes",
        "aliases",
    }
    think = dict(meant.get("think", {}))
    return ModelSpec(
        id=model,
        name=meant.get("name", model),
        thinking=think.pop("default", Thinking()),
        shape=Shape(**meant.get("shape", {})),
        sampling=SamplingDefaults(**meant.get("sampling", {})),
        sampling_no_think=SamplingDefaults(**meant["sampling_no_think"]) if "sampling_no_think" in meant else None,
        tags=tags,
        think=ThinkControl(**think) if tags is not None else None,
        variants=tuple(_variant(each, at, is_embedded) for at, each in enumerate(meant.get("variants", ()))),
        scores=_scores(meant["scores"]) if "scores" in meant else None,
        embedded=is_embedded,
        origin=origin,
        **{key: value for key, value in meant.items() if key in plain},
    )


def _tags(table: Meant) -> ReasoningTags:
    for key in ("open", "close"):
        if key not in table:
            raise Fault(f"lacks its key '{key}'", ("tags",))
    if table["open"] == table["close"]:
        raise Fault("must differ from the opening tag", ("tags", "close"))
    return ReasoningTags(**table)


def _scores(table: Meant) -> Scores:
    figures = tuple(Score(name=name, value=value) for name, value in table.items() if name != "source")
    return Scores(source=table["source"], figures=figures)


def _variant(table: Meant, position: int, is_embedded: bool) -> Variant:
    kind = table.get("kind", "gguf")
    in_place = is_embedded or "path" in table
    in_repository = [] if in_place else ["repo"]
    required = ["quant", *in_repository, *(["file"] if kind == "gguf" and "path" not in table else [])]
    for key in required:
        if key not in table:
            raise Fault(f"lacks its key '{key}'", ("variants", position))
    if kind == "openvino" and "file" in table:
        raise Fault("does not belong to a folder", ("variants", position, "file"))
    if "size" in table and "size_bytes" in table:
        raise Fault("says twice what size_bytes says", ("variants", position, "size"))
    given = {key: value for key, value in table.items() if key not in ("size", "kind")}
    if "size" in table:
        given |= {"size_bytes": table["size"], "size_is_exact": False}
    if is_embedded:
        given["path"] = _embedded_path(table)
    elif "path" in table:
        given["path"] = str(Path(table["path"]).expanduser())
    return Variant(kind=kind, **given)


def _embedded_path(variant: Meant) -> str:
    return str(WEIGHTS / str(variant["file"]))
