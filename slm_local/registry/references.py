"""Reads a model reference into its parts. It knows how references are written, not which models there are.

A reference is a name, a path to a `.gguf` file or an OpenVINO folder, `hf:owner/repo[:quant]` (also `hf.co/owner/repo`
and a page's address), `http(s)://host/v1#model-name`, or `scripted:FILE.jsonl`; `@key=value,flag` may hang on each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from slm_local.errors import UnknownModel, UsageError
from slm_local.model import ModelSpec
from slm_local.registry import checks
from slm_local.sanitize import shell_word

RefKind = Literal["registry", "path", "openvino", "hf", "url", "scripted"]

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")

HUB_HINT = "slm show hf:owner/repo:Q4_K_M"

SETTING = re.compile(r"[A-Za-z][A-Za-z_-]*(=[^,]*)?")

SHOWN_LENGTH = 80

OPENVINO_FILES = ("openvino_model.xml", "openvino_language_model.xml")
"""What the model's graph is called in a folder that optimum-intel exported; the second one in models that also see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a model reference names."""

    reference: str
    """As it was typed."""
    kind: RefKind
    spec: ModelSpec | None = None
    """None where a file's header or the Hub must be asked first."""
    path: str | None = None
    repo: str | None = None
    file: str | None = None
    """A file in `repo`, from a page's address."""
    revision: str | None = None
    quant: str | None = None
    url: str | None = None
    remote_model: str | None = None
    """The model's name at `url`."""
    key_env: str = ""
    """The variable with the key for `url`, where the entry names one."""
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What hung on the reference, as written; a flag such as `no-think` has the value ""."""
    notes: tuple[str, ...] = ()

    @property
    def lasting(self) -> str:
        """Return the reference as it means the same in every folder: a path in full."""
        if self.path is None or self.kind not in ("path", "openvino"):
            return self.reference
        written = self.reference.strip()
        name, _ = split_settings(written)
        return os.path.abspath(self.path) + written[len(name) :]


def split_settings(reference: str) -> tuple[str, Mapping[str, str]]:
    """Cut what hangs on a reference off it; an `@` inside a path or an address hangs nothing."""
    name, at, tail = reference.rpartition("@")
    parts = tail.split(",")
    if not at or not name or is_there(reference) or not all(SETTING.fullmatch(part) for part in parts):
        return reference, MappingProxyType({})
    pairs = (part.partition("=") for part in parts)
    return name, MappingProxyType({key: value for key, _, value in pairs})


def hub(reference: str, name: str, settings: Mapping[str, str]) -> Resolved | None:
    """Read a reference to the Hub: `hf:owner/repo[:quant]`, `hf.co/...`, or a page's address; None where it is none."""
    bare = re.sub(r"^https?://", "", name, flags=re.IGNORECASE)
    host, _, path = bare.partition("/")
    if host.lower() in HUB_HOSTS:
        return _hub_page(reference, path, settings)
    if not name.lower().startswith("hf:"):
        return None
    repo, _, quant = name[3:].partition(":")
    return Resolved(reference=reference, kind="hf", repo=_repo(repo), quant=quant or None, settings=settings)


def _hub_page(reference: str, path: str, settings: Mapping[str, str]) -> Resolved:
    """Read what follows the host: owner/repo[:quant], then tree, blob or resolve, a revision and a file."""
    from urllib.parse import unquote, urlsplit  # a millisecond that a plain name need not wait

    steps = [unquote(step) for step in urlsplit("//hub/" + path).path.strip("/").split("/") if step]
    repo, _, quant = "/".join(steps[:2]).partition(":")
    file = revision = None
    if len(steps) > 3 and steps[2] in ("blob", "resolve", "raw", "tree"):
        revision, file = steps[3], "/".join(steps[4:]) or None
    elif len(steps) > 2 and steps[2:] not in (["tree"], ["blob"]):
        raise UsageError(f"{reference} is no page of a model's repository", hint=HUB_HINT)
    try:
        file = checks.file_name(file) if file else None
    except checks.Fault as fault:
        raise UsageError(f"the file in {reference} {fault.message}", hint=HUB_HINT) from None
    return Resolved(
        reference=reference,
        kind="hf",
        repo=_repo(repo),
        quant=quant or None,
        file=file,
        revision=None if revision == "main" else revision,
        settings=settings,
    )


def is_repository(name: str) -> bool:
    """Tell whether a name is written as a Hub repository is."""
    try:
        checks.repository(name)
    except checks.Fault:
        return False
    return True


def _repo(name: str) -> str:
    try:
        return str(checks.repository(name))
    except checks.Fault as fault:
        raise UsageError(f"a Hub repository {fault.message}", hint=HUB_HINT) from None


def address(reference: str, name: str, settings: Mapping[str, str]) -> Resolved | None:
    """Read `http(s)://host/v1#model-name`; None where it is no address."""
    if not re.match(r"https?://", name, re.IGNORECASE):
        return None
    from urllib.parse import urlsplit

    url, _, model = name.partition("#")
    try:
        is_whole = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise UsageError(f"{url} is no address", hint="slm run http://localhost:8080/v1#model-name")
    if not model:
        raise UsageError(f"which model at {url}?", hint=f"slm run {shell_word(f'{url}#model-name')}")
    return Resolved(reference=reference, kind="url", url=url, remote_model=model, settings=settings)


def is_there(name: str) -> bool:
    """Tell whether a name is that of a file or folder; whole prompts, which may be too long for one, are not."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def looks_like_path(name: str) -> bool:
    """Tell whether a name is written as a path: a drive, a leading dot, slash or tilde, a backslash, `.gguf`."""
    return bool(re.match(r"[A-Za-z]:[\\/]|[./~\\]", name)) or "\\" in name or name.lower().endswith(".gguf")


def local(reference: str, name: str, settings: Mapping[str, str]) -> Resolved:
    """Read a path: a file, or an OpenVINO folder. `UnknownModel` for one that is not there and for any other folder."""
    if not is_there(name):
        raise UnknownModel(f"there is no file {shortened(name)}", hint="slm ls")
    path = Path(name).expanduser()
    if not path.is_dir():
        return Resolved(reference=reference, kind="path", path=str(path), settings=settings)
    if any((path / graph).is_file() for graph in OPENVINO_FILES):
        return Resolved(reference=reference, kind="openvino", path=str(path), settings=settings)
    inside = sorted(name for name in _names_in(path) if name.lower().endswith(".gguf"))
    if inside:
        raise UnknownModel(
            f"{name} is a folder; name a file in it: {', '.join(inside[:3])}", hint=f"slm run {path / inside[0]}"
        )
    raise UnknownModel(f"{name} is a folder, with neither a .gguf file nor {OPENVINO_FILES[0]} in it", hint="slm ls")


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def shortened(name: str) -> str:
    """Return a name as a message may carry it: a whole prompt may have been taken for one."""
    return name if len(name) <= SHOWN_LENGTH else name[: SHOWN_LENGTH - 1] + "…"
