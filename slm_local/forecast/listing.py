"""What `slm ls` and the picker list: one row a model's file or folder, where it is, what to type for it, what it takes.

Only headers are read, and those remembered; nothing is hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm_local.download.found import FoundModel, found_spec, look_around
from slm_local.download.kept import KeptModel, kept_models, known
from slm_local.download.places import partials
from slm_local.errors import ModelBroken
from slm_local.fit import Fit, predict
from slm_local.forecast.plans import nothing_here
from slm_local.gguf_header import checked_header
from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Variant
from slm_local.paths import Paths
from slm_local.registry import Registry, find_local, scan, spec_for_file, spec_for_folder
from slm_local.registry.local import parts_of, recorded, size_of
from slm_local.registry.recognise import plain_digest
from slm_local.sanitize import shell_word
from slm_local.selector import DEFAULT_CONTEXT_TOKENS, gigabytes
from slm_local.selector.sentences import rate

HEAD = ("model", "form", "size", "context", "fit", "speed", "", "where", "file")
"""The last may be long; it is left out where no row has anything for it."""

INSIDE, HERE, PARTIAL, ABSENT, ELSEWHERE = "inside slm", "here", "partial", "registry", "elsewhere"
"""Words for where a row's model is, besides another program's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the list."""

    spec: ModelSpec
    variant: Variant
    fit: Fit
    where: str
    reference: str
    """What to type for it; empty for a partial file that no repository is known of."""
    found: FoundModel | None = None
    problem: str | None = None
    """What is wrong with the file."""
    done_bytes: int | None = None
    """What is here of a partial download."""
    address: str | None = None
    """Where a model runs that runs elsewhere: `http(s)://host/v1#model`."""

    def values(self) -> dict[str, Any]:
        """Return the facts for programs."""
        spec, variant, fit, found = self.spec, self.variant, self.fit, self.found
        return {
            "model": spec.id,
            "name": spec.name,
            "aliases": list(spec.aliases),
            "quant": variant.quant,
            "kind": variant.kind,
            "size_bytes": variant.size_bytes,
            "parameters": spec.parameters,
            "context_tokens": spec.context_tokens,
            "thinks": spec.thinks,
            "licence": spec.licence,
            "released": spec.released,
            "embedded": spec.embedded,
            "verified": spec.verified and variant.verified,
            "here": variant.path is not None,
            "path": variant.path,
            "fit": fit.verdict,
            "memory_bytes": fit.total_bytes,
            "expected_decode_tps": fit.decode_tps,
            "origin": spec.origin,
            "where": self.where,
            "reference": self.reference,
            "found_as": found.name if found else None,
            "also": list(found.also) if found else [],
            "notes": list(found.notes) if found else [],
            "problem": self.problem,
            "done_bytes": self.done_bytes,
            "address": self.address,
        }

    def cells(self) -> list[str]:
        """Return what people are shown, in the columns of `HEAD`."""
        spec, variant, fit = self.spec, self.variant, self.fit
        return [
            self.name,
            variant.quant if variant.kind == "gguf" else f"{variant.kind} {variant.quant}".rstrip(),
            gigabytes(variant.size_bytes) if variant.size_bytes is not None else "" if self.address else "?",
            f"{spec.context_tokens:,}" if spec.context_tokens else self._unknown(),
            "broken" if self.problem is not None else self._fit(),
            f"{rate(fit.decode_tps)}/s" if fit.decode_tps is not None else "",
            "thinks" if spec.thinks else "",
            self._place(),
            "  ".join(each for each in (self.by_file, self._remark()) if each),
        ]

    @property
    def name(self) -> str:
        """Return what people call it: the registry's name, or the one that the program that keeps it uses."""
        return self.found.name if self.found and self.spec.origin == "file" else self.spec.id

    def line(self) -> str:
        """Say what people choose by: form, size, place, fit, speed, thinking, licence; or what is wrong."""
        if self.problem is not None:
            return f"broken: {self.problem}"
        spec, variant, fit = self.spec, self.variant, self.fit
        return " · ".join(
            each
            for each in (
                variant.quant if variant.kind == "gguf" else f"{variant.kind} {variant.quant}",
                gigabytes(variant.size_bytes) if variant.size_bytes is not None else "size not known",
                self._place().replace(ABSENT, "to fetch"),
                "fit not known" if fit.verdict == "Unknown" else fit.verdict,
                f"about {rate(fit.decode_tps)} tok/s" if fit.decode_tps is not None else "",
                "thinks" if spec.thinks else "",
                spec.licence or "",
            )
            if each
        )

    def _fit(self) -> str:
        if self.address is not None:
            return ""
        return self.fit.verdict if self.fit.verdict != "Unknown" else self._unknown()

    def _unknown(self) -> str:
        """Return what stands for a fact that is not known; nothing where it makes no difference."""
        return "" if self.problem is not None or self.variant.kind in ("checkpoint", "remote") else "?"

    @property
    def by_file(self) -> str:
        """Return the file that it runs by, as it is typed; empty where it has a name, or runs nowhere."""
        is_model = self.where != PARTIAL and self.variant.kind != "checkpoint"
        return shell_word(self.reference) if is_model and self.reference != self.spec.id else ""

    def _place(self) -> str:
        if self.done_bytes is not None:
            total = self.variant.size_bytes
            share = f"{self.done_bytes / total:.0%}" if total else gigabytes(self.done_bytes)
            return f"{share} is here"
        is_sure = self.problem is not None or self.address is not None or (self.spec.verified and self.variant.verified)
        return self.where if is_sure else f"{self.where}, second-hand"

    def _remark(self) -> str:
        """Return what is too long to stand before other columns."""
        if self.problem is not None or self.address is not None:
            return self.problem or self.address or ""
        original = " --checkpoint" if self.variant.kind == "checkpoint" else ""
        if self.done_bytes is not None:
            return f"slm pull {shell_word(self.reference)}{original} goes on" if self.reference else "not whole"
        return f"slm convert {shell_word(self.reference)} makes of it what runs" if original else ""


def rows_here(
    registry: Registry, hardware: Hardware, folders: Paths, on_status: Callable[[str], None]
) -> tuple[list[Row], tuple[str, ...]]:
    """Return what is on this disk, embedded models first, then ours, then other programs'; and remarks.

    `on_status` is told how far it is: a header that was never read takes a tenth of a second.
    """
    files = scan(folders.models_dir)
    rows = [_known(spec, variant, hardware, folders) for spec, variant in _by_name(registry, files)]
    listed = {row.variant.path for row in rows}
    for path in sorted(path for paths in files.values() for path in paths if str(path) not in listed):
        rows.append(_by_header(path, registry, hardware, folders))
    rows += [_original(each, registry, hardware) for each in _checkpoints(registry, folders.models_dir)]
    rows += [_partial(*each, registry, hardware, folders) for each in partials(folders.models_dir)]
    findings = look_around()
    ours = {_file_id(Path(row.variant.path)) for row in rows if row.variant.path is not None}
    others, runs_ours = [], {(row.spec.id, row.variant.quant) for row in rows}
    for number, each in enumerate(findings.models, 1):
        if each.file_id not in ours:
            on_status(f"reading headers: {number} of {len(findings.models)}")
            row = _found(each, registry, hardware, folders)
            is_second = (row.spec.id, row.variant.quant) in runs_ours  # by its name the other one would run
            others.append(replace(row, reference=str(each.path)) if is_second else row)
    return rows + sorted(others, key=lambda row: (row.problem is not None, row.spec.origin == "file")), findings.remarks


def rows_absent(models: Sequence[ModelSpec], hardware: Hardware) -> list[Row]:
    """Return one row a model, its first form: those that suit this machine (fit, new, thinking) first."""
    rows = [
        row_of(spec, spec.variants[0], hardware, where=ABSENT, reference=spec.id) for spec in models if spec.variants
    ]
    by_thinking = sorted(rows, key=lambda row: row.spec.thinks, reverse=True)
    newest = sorted(by_thinking, key=lambda row: row.spec.released or "", reverse=True)
    places = {"Tight": 1, "Unknown": 2, "Too large": 3}
    return sorted(newest, key=lambda row: places.get(row.fit.verdict, 0))


def rows_elsewhere(registry: Registry, hardware: Hardware) -> list[Row]:
    """Return the registry's models that run at a server; it is not asked whether it is there, nor what it has."""
    there = Variant(kind="remote", quant="")
    rows = []
    for spec, address in registry.elsewhere:
        row = row_of(spec, there, hardware, where=ELSEWHERE, reference=spec.id)
        rows.append(replace(row, fit=nothing_here(row.fit), address=address))
    return rows


def row_of(spec: ModelSpec, variant: Variant, hardware: Hardware, *, where: str, reference: str) -> Row:
    """Make a row, with the fit for the context that would be opened."""
    context = min(DEFAULT_CONTEXT_TOKENS, spec.context_tokens or DEFAULT_CONTEXT_TOKENS)
    fit = predict(spec, variant, context, hardware)
    return Row(spec=spec, variant=variant, fit=fit, where=where, reference=reference)


def _checkpoints(registry: Registry, models_dir: Path) -> Iterator[KeptModel]:
    """Give the original weights that lie here whole."""
    for kept in known(kept_models(models_dir), registry.models, models_dir):
        if kept.is_checkpoint and kept.is_whole:
            yield kept


def _original(kept: KeptModel, registry: Registry, hardware: Hardware) -> Row:
    """Make the row of original weights, which nothing runs: fit and speed are not foretold."""
    name = "/".join(kept.target.parts[-2:])
    spec = next((each for each in registry.models if each.id == kept.model), None)
    variant = Variant(kind="checkpoint", quant="original", path=str(kept.target), size_bytes=kept.size_bytes)
    row = row_of(
        spec or ModelSpec(id=name, name=name, origin="file"),
        variant,
        hardware,
        where=HERE,
        reference=spec.id if spec is not None else str(kept.target),
    )
    return replace(row, fit=replace(row.fit, verdict="Unknown", total_bytes=None, decode_tps=None))


def _by_name(registry: Registry, files: dict[str, list[Path]]) -> Iterator[tuple[ModelSpec, Variant]]:
    for spec in registry.models:
        for variant in find_local(spec, files):
            yield spec, variant


def _known(spec: ModelSpec, variant: Variant, hardware: Hardware, folders: Paths) -> Row:
    """Make the row of a registry model's file, with what its header says; embedded ones need not be asked."""
    where = INSIDE if spec.embedded and variant.kind == "gguf" else HERE  # not one that was converted here
    row = row_of(spec, variant, hardware, where=where, reference=spec.id)
    if spec.embedded or variant.kind != "gguf" or variant.path is None:
        return row
    try:
        header = checked_header(Path(variant.path), folders.cache)
    except ModelBroken as error:
        return replace(row, problem=_problem(error, variant.path))
    exact = replace(variant, decode_bytes=header.decode_bytes)
    full = replace(spec, shape=header.shape, context_tokens=spec.context_tokens or header.context_tokens)
    return row_of(full, exact, hardware, where=where, reference=spec.id)


def _by_header(path: Path, registry: Registry, hardware: Hardware, folders: Paths) -> Row:
    """Make the row of a file in our folder that no registry model's is called like."""
    if path.is_dir():
        return _by_config(path, registry, hardware)
    try:
        header = checked_header(path, folders.cache)
    except ModelBroken as error:
        row = _unread(str(path), path.stem, "gguf", hardware, HERE, size_bytes=path.stat().st_size)
        return replace(row, problem=_problem(error, str(path)))
    spec, _ = spec_for_file(header, registry.models, sha256=plain_digest(recorded(path).get("sha256")))
    return row_of(spec, spec.variants[0], hardware, where=HERE, reference=str(path))


def _by_config(folder: Path, registry: Registry, hardware: Hardware) -> Row:
    """Make the row of an OpenVINO folder in ours, with what its config.json says."""
    try:
        spec, _ = spec_for_folder(folder, registry.models)
    except ModelBroken as error:
        row = _unread(str(folder), folder.name, "openvino", hardware, HERE, size_bytes=size_of(folder))
        return replace(row, problem=_problem(error, str(folder)))
    return row_of(spec, spec.variants[0], hardware, where=HERE, reference=str(folder))


def _found(found: FoundModel, registry: Registry, hardware: Hardware, folders: Paths) -> Row:
    path = str(found.path)
    if found.kind == "openvino":
        return replace(_found_folder(found, registry, hardware), found=found)
    try:
        spec = found_spec(found, registry.models, folders.cache)
    except ModelBroken as error:
        row = _unread(path, found.name, "gguf", hardware, found.program, size_bytes=found.size_bytes)
        return replace(row, found=found, problem=_problem(error, path))
    reference = path if spec.origin == "file" else spec.id
    row = row_of(spec, spec.variants[0], hardware, where=found.program, reference=reference)
    return replace(row, found=found)


def _found_folder(found: FoundModel, registry: Registry, hardware: Hardware) -> Row:
    for spec in registry.models:
        for variant in spec.variants:
            if variant.kind == "openvino" and variant.repo == found.repo:
                here = replace(variant, path=str(found.path), size_bytes=found.size_bytes, size_is_exact=True)
                return row_of(spec, here, hardware, where=found.program, reference=spec.id)
    path = str(found.path)
    return _unread(path, found.name, "openvino", hardware, found.program, size_bytes=found.size_bytes)


def _partial(place: Path, done: int, total: int | None, registry: Registry, hardware: Hardware, folders: Paths) -> Row:
    """Make the row of a download that is not whole, with what takes it up again."""
    inside = place.relative_to(folders.models_dir).parts
    repo, file = "/".join(inside[:2]), "/".join(inside[2:])
    for spec in registry.models:
        for variant in spec.variants:
            if variant.repo == repo and _has_file(variant, file):
                again = spec.id if variant == spec.variants[0] else f"{spec.id}@quant={variant.quant}"
                whole = replace(variant, size_bytes=total)
                row = row_of(spec, whole, hardware, where=PARTIAL, reference=again)
                return replace(row, done_bytes=done)
        if spec.original_repo == repo and not file.lower().endswith(".gguf"):
            original = Variant(kind="checkpoint", quant="original", size_bytes=total)
            return replace(row_of(spec, original, hardware, where=PARTIAL, reference=spec.id), done_bytes=done)
    unknown = ModelSpec(id=place.name, name=place.name, origin="file")
    variant, again = Variant(kind="gguf", quant="", size_bytes=total), f"hf.co/{repo}/blob/main/{file}" if file else ""
    if file.endswith(".safetensors"):
        variant, again = replace(variant, kind="checkpoint", quant="original"), f"hf:{repo}"
    return replace(row_of(unknown, variant, hardware, where=PARTIAL, reference=again), done_bytes=done)


def _has_file(variant: Variant, file: str) -> bool:
    """Tell whether a file of the variant's repository is one of its own."""
    if variant.file is None:
        return not file.lower().endswith(".gguf")
    return any(part.as_posix() == file for part in parts_of(Path(variant.file)))


def _unread(path: str, name: str, kind: Any, hardware: Hardware, where: str, *, size_bytes: int | None = None) -> Row:
    spec = ModelSpec(id=name, name=name, origin="file")
    variant = Variant(kind=kind, quant="", path=path, size_bytes=size_bytes)
    return row_of(spec, variant, hardware, where=where, reference=path)


def _problem(error: ModelBroken, path: str) -> str:
    return error.message.removeprefix(f"{path} ")


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
