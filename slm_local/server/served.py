"""Which models the server answers for, and what clients call them.

Those named on the command line and no other; with none named, all that are on this disk. No name that comes over HTTP
is ever taken for a path, an address or a repository.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from slm_local.config import Settings
from slm_local.engine import mean, template_given
from slm_local.errors import ModelBroken, SlmError, UnknownModel, UsageError
from slm_local.forecast.listing import Row, rows_here
from slm_local.gguf_header import checked_header
from slm_local.hardware import probe
from slm_local.model import ModelSpec, Variant
from slm_local.paths import paths
from slm_local.registry import Registry
from slm_local.registry.folders import chat_template
from slm_local.registry.references import split_settings
from slm_local.template import ChatTemplate
from slm_local.toolcalls import family_of

SettingsOf = Callable[[Mapping[str, str]], Settings]
"""Returns what applies to a reference, given what hangs on it."""

SHOWN_NAMES = 12
KEPT_TEMPLATES = 16
"""More models than any laptop serves at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that clients may ask for."""

    name: str
    reference: str
    spec: ModelSpec
    variant: Variant | None
    """The form that was found first; None where it is not known before it is opened."""
    settings: Settings | None = None
    """None: the pool's."""
    given_template: str | None = None
    """The chat template that was put in place of its own."""

    @property
    def names(self) -> frozenset[str]:
        """Return what it may be called, in lower case."""
        plain = split_settings(self.reference)[0] == self.reference
        others = (self.spec.id, *self.spec.aliases) if plain else ()
        return frozenset(each.casefold() for each in (self.name, self.reference, *others))

    @property
    def created(self) -> int:
        """Return when its file was written, in seconds since 1970; 0 where that is not known."""
        try:
            return int(Path(self.variant.path).stat().st_mtime) if self.variant and self.variant.path else 0
        except OSError:
            return 0

    def template(self) -> str | None:
        """Return the chat template it runs with; None where that is not known before it is open. Reads its header."""
        variant = self.variant
        own = self.given_template or self.spec.template
        if own is not None or variant is None or variant.path is None or variant.kind == "remote":
            return own
        try:
            if variant.kind == "gguf":
                return checked_header(Path(variant.path), paths().cache).chat_template
            return chat_template(Path(variant.path))
        except (SlmError, OSError):
            return None


class Catalogue:
    """The models that are served. Any thread may ask."""

    def __init__(self, registry: Callable[[], Registry], named: Sequence[Served] = ()) -> None:
        self._registry = registry
        self._named = tuple(named)
        self._lock = threading.Lock()
        self._here: tuple[Served, ...] = ()

    def models(self) -> tuple[Served, ...]:
        """Return all, the default first; looks at the disk where none was named."""
        if self._named:
            return self._named
        with self._lock:
            self._here = _all_here(self._registry())
            return self._here

    def known(self, name: str | None) -> Served | None:
        """Return the model of a name without looking anywhere; None: it was not met yet, or is not served.

        A name of None is that of the model that was named first.
        """
        if name is None:
            return self._named[0] if self._named else None
        return next((each for each in self._named or self._here if name.casefold() in each.names), None)

    def find(self, name: str | None) -> Served:
        """Return the model of a name, looking at the disk for it. Errors: `UnknownModel`, `UsageError` for None."""
        self.models()
        found = self.known(name)
        if found is not None:
            return found
        names = [each.name for each in self.models()]
        listed = ", ".join(names[:SHOWN_NAMES]) + (f" and {len(names) - SHOWN_NAMES} more" * (len(names) > SHOWN_NAMES))
        if name is None:
            raise UsageError(f"which model? There are: {listed}", hint='"model": "..."')
        raise UnknownModel(f"no model {name[:80]!r} is served here; there are: {listed}", hint="GET /v1/models")


@lru_cache(KEPT_TEMPLATES)
def can_call_tools(template: str) -> bool:
    """Say whether a model with this chat template is served with tools.

    It need not be open, so its template is rendered here, in the sandbox: some tens of milliseconds, the last results
    kept.
    """
    try:
        family_of(ChatTemplate(template, bos_text="", eos_text="", control_texts=(), tags=None))
    except (UsageError, ModelBroken):
        return False
    return True


def named_models(references: Sequence[str], settings_of: SettingsOf, registry: Registry) -> tuple[Served, ...]:
    """Return what references on the command line mean. Errors: those of `mean`; `UsageError` for two of one name."""
    served: list[Served] = []
    for reference in references:
        settings = settings_of(registry.resolve(reference).settings)
        meaning = mean(reference, settings=settings, registry=registry)
        one = Served(
            name=_name(reference, meaning.spec),
            reference=meaning.reference,
            spec=meaning.spec,
            variant=meaning.here[0] if meaning.here else None,
            given_template=template_given(settings, meaning.spec),
        )
        if any(one.names & other.names for other in served):
            raise UsageError(f"{one.name} is named twice", hint="give each model once, or hang other settings on it")
        served.append(one)
    return tuple(served)


def _name(reference: str, spec: ModelSpec) -> str:
    """Return what clients call a model: its id, or a file's name, with what hangs on the reference."""
    base, _ = split_settings(reference.strip())
    bare = spec.id if not set(spec.id) & set("/\\") else spec.name
    return bare + reference.strip()[len(base) :]


def _all_here(registry: Registry) -> tuple[Served, ...]:
    rows, _ = rows_here(registry, probe(), paths(), lambda text: None)
    served: dict[str, Served] = {}
    for row in rows:
        if not _runs(row):
            continue
        name = row.spec.id if row.reference == row.spec.id else row.name
        if name.casefold() in served:
            name = f"{name}:{row.variant.quant}"
        one = Served(name=name, reference=row.reference, spec=row.spec, variant=row.variant)
        served.setdefault(name.casefold(), one)
    return tuple(served.values())


def _runs(row: Row) -> bool:
    is_whole = row.problem is None and row.done_bytes is None and row.variant.path is not None
    return is_whole and row.variant.kind != "checkpoint"
