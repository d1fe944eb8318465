"""What a Hub reference stands for: which form of the model, and its facts from the header, before any download.

Of a GGUF repository the files are listed, one form is chosen and its header alone is read, by range, once; what lies
in the models folder already needs no network. It fetches no model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slm_local.config import Settings
from slm_local.download.hub import Hub
from slm_local.download.places import Record, place_of, read_record
from slm_local.download.quants import Form, choose_quant, forms
from slm_local.download.ranged import remote_header
from slm_local.download.values import RemoteFile, RemoteRepo
from slm_local.errors import DownloadFailed, ModelBroken, UsageError
from slm_local.gguf_header import GgufHeader, checked_header
from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Variant, gigabytes
from slm_local.registry import Resolved, find_local, spec_for_file
from slm_local.registry.local import is_own
from slm_local.registry.references import OPENVINO_FILES
from slm_local.sanitize import one_line, shell_word

OPENVINO_KIND = re.compile(r"(?<![a-z0-9])(int4|int8|nf4|fp16|fp32|bf16)(?![a-z0-9])", re.IGNORECASE)
"""What the weights of an OpenVINO folder are, in its repository's name."""

OPENVINO_SUFFIXES = (".xml", ".bin", ".json", ".jinja", ".model", ".txt")

CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What of a repository is wanted; None leaves it to us."""

    repo: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None

    @property
    def reference(self) -> str:
        """Return a reference that says the same."""
        if self.file is not None or self.revision is not None:
            page = f"hf.co/{self.repo}/{'blob' if self.file else 'tree'}/{one_line(self.revision or 'main')}"
            return f"{page}/{one_line(self.file)}" if self.file else page
        return f"hf:{self.repo}:{self.quant}" if self.quant else f"hf:{self.repo}"


def fill(
    resolved: Resolved,
    hub: Hub,
    hardware: Hardware,
    settings: Settings,
    models: Sequence[ModelSpec],
    cache_dir: Path,
    models_dir: Path,
) -> tuple[ModelSpec, tuple[str, ...]]:
    """Return the spec that a Hub reference stands for, with the one variant to run, and remarks.

    What lies in the models folder is taken from there, with its path; all else asks the Hub. Errors: `DownloadFailed`
    for a repository or file that is not there, and offline for what is not here; `UsageError` for a quantization that
    the repository does not have; `ModelBroken`.
    """
    assert resolved.repo is not None
    wish = Wish(
        repo=resolved.repo,
        quant=resolved.quant or settings.quant,
        file=resolved.file,
        revision=resolved.revision,
    )
    if resolved.spec is not None and (known := _of_registry(resolved.spec, wish)):
        return known, ()
    if here := _here(wish, hub, hardware, models, cache_dir, models_dir):
        return here
    hub.check_online(wish.reference)
    repo = hub.repository(wish.repo, wish.revision)
    found = forms(repo.files)
    if not found:
        return _without_gguf(repo, wish, models)
    form, why = choose_quant(found, wish.quant, hardware, repo.repo, file=wish.file)
    for file in form.files:
        place_of(models_dir, repo.repo, file.path)  # refuses a name that could not be fetched
    header = remote_header(repo, form.files[0], hub, cache_dir)
    spec, line = spec_for_file(header, models, sha256=form.files[0].sha256)
    spec, variant = replace(spec, licence=spec.licence or repo.licence), _variant(form, header, repo)
    chosen = f"{repo.repo}: {variant.quant} ({gigabytes(form.size_bytes)}), {why}"
    return _named(spec, variant, wish, found, models), (chosen, line)


def _of_registry(spec: ModelSpec, wish: Wish) -> ModelSpec | None:
    """Return the registry's model for a wish; None where it has no such quantization, and the Hub must be asked."""
    fitting = [each for each in spec.variants if wish.quant is None or each.quant.casefold() == wish.quant.casefold()]
    if wish.revision is not None:
        fitting = [replace(each, revision=wish.revision) for each in fitting]
    return replace(spec, variants=tuple(fitting)) if fitting else None


def _here(
    wish: Wish, hub: Hub, hardware: Hardware, models: Sequence[ModelSpec], cache_dir: Path, models_dir: Path
) -> tuple[ModelSpec, tuple[str, ...]] | None:
    """Return what a wish stands for among the files of its repository that lie in the models folder.

    A broken file counts as not here where the Hub may be asked, which brings it anew. `ModelBroken` offline, and for a
    file of the size that is recorded, which has to be verified first.
    """
    folder = place_of(models_dir, wish.repo, "any").parent
    records = _kept(wish, folder, Path(os.path.realpath(models_dir)))
    found = forms(RemoteFile(path=path, size_bytes=(folder / path).stat().st_size) for path in records)
    try:
        form = choose_quant(found, wish.quant, hardware, wish.repo, file=wish.file)[0] if found else None
    except (UsageError, DownloadFailed):
        form = None  # the repository may have it
    if form is None:
        return _folder_here(wish, folder, models_dir)
    record = records[form.path]
    try:
        header = checked_header(folder / form.path, cache_dir)
    except ModelBroken as error:
        looks_fetched = record is not None and record.size_bytes == form.files[0].size_bytes
        if hub.is_offline or looks_fetched:
            raise ModelBroken(error.message, hint=f"slm verify {shell_word(wish.reference)}") from error
        return None
    spec, line = spec_for_file(header, models, sha256=record.sha256 if record else None)
    variant = replace(
        spec.variants[0],
        quant=form.quant or header.quant,
        repo=wish.repo,
        file=form.path,
        revision=record.commit if record else None,
    )
    return _named(spec, variant, wish, found, models), (f"{wish.repo}: {variant.quant} is here", line)


def _folder_here(wish: Wish, folder: Path, models_dir: Path) -> tuple[ModelSpec, tuple[str, ...]] | None:
    """Return the spec of an OpenVINO folder that lies in the models folder whole, where a wish may mean it."""
    spec = _openvino_spec(wish.repo)
    if wish.file is not None or wish.revision is not None or not (folder / OPENVINO_FILES[0]).is_file():
        return None
    here = find_local(spec, models_dir)
    if not here or (wish.quant or here[0].quant).casefold() != here[0].quant:
        return None
    return replace(spec, variants=here), (f"{wish.repo}, an OpenVINO folder, is here",)


def _kept(wish: Wish, folder: Path, root: Path) -> dict[str, Record | None]:
    """Return the GGUF files of a repository that lie in its folder, by path, each with its record.

    With a revision, only those that are recorded as of that commit.
    """
    found: dict[str, Record | None] = {}
    for place in sorted(folder.rglob("*")):
        if place.name.lower().endswith(".gguf") and is_own(place, root):
            record = read_record(place)
            if wish.revision is None or (record is not None and record.commit == wish.revision):
                found[place.relative_to(folder).as_posix()] = record
    return found


def _variant(form: Form, header: GgufHeader, repo: RemoteRepo) -> Variant:
    return Variant(
        kind="gguf",
        quant=form.quant or header.quant,
        repo=repo.repo,
        file=form.path,
        revision=repo.commit,
        size_bytes=form.size_bytes,
        sha256=form.files[0].sha256 if form.parts == 1 else None,
        decode_bytes=header.decode_bytes,
    )


def _named(
    spec: ModelSpec, variant: Variant, wish: Wish, found: Sequence[Form], models: Sequence[ModelSpec]
) -> ModelSpec:
    """Return the spec with that variant alone; a model that is in no registry is named by a reference to it."""
    if any((model.id, model.name) == (spec.id, spec.name) for model in models):
        return replace(spec, variants=(variant,))
    is_one = [form.quant for form in found].count(variant.quant) == 1
    exact = replace(wish, quant=variant.quant, file=None if is_one and wish.revision is None else variant.file)
    return replace(spec, id=exact.reference, variants=(variant,))


def _without_gguf(repo: RemoteRepo, wish: Wish, models: Sequence[ModelSpec]) -> tuple[ModelSpec, tuple[str, ...]]:
    """Return the spec of an OpenVINO folder. Errors: `DownloadFailed` for a repository without anything to run."""
    names = {each.path for each in repo.files}
    if wish.file is None and not names.isdisjoint(OPENVINO_FILES):
        spec = _openvino_spec(repo.repo, repo)
        quant = spec.variants[0].quant
        if wish.quant is not None and wish.quant.casefold() != quant:
            raise UsageError(
                f"{repo.repo} has no {one_line(wish.quant, 80)}; there is {quant}", hint=f"slm show {spec.id}"
            )
        return spec, (f"{repo.repo} is an OpenVINO folder ({quant})",)
    known = next((model for model in models if repo.repo == model.original_repo), None)
    hint = f"slm show {known.id}" if known is not None else "slm ls --all"
    if any(name.lower().endswith(CHECKPOINT_SUFFIXES) for name in names):
        other = (
            f"the registry knows one: {known.id}"
            if known is not None
            else f"look for {repo.repo.partition('/')[2]}-GGUF"
        )
        raise DownloadFailed(f"{repo.repo} is an original checkpoint, with no GGUF file to run: {other}", hint=hint)
    raise DownloadFailed(f"{repo.repo} has neither a GGUF file nor an OpenVINO model", hint=hint)


def _openvino_spec(name: str, repo: RemoteRepo | None = None) -> ModelSpec:
    """Return what a repository's listing says of an OpenVINO folder; its name says how it is quantized."""
    kind = OPENVINO_KIND.search(name)
    needed = [each for each in repo.files if each.path.endswith(OPENVINO_SUFFIXES)] if repo is not None else []
    variant = Variant(
        kind="openvino",
        quant=kind[0].lower() if kind else "openvino",
        repo=name,
        revision=repo.commit if repo is not None else None,
        size_bytes=sum(each.size_bytes for each in needed) or None,
        size_is_exact=False,
    )
    return ModelSpec(
        id=f"hf:{name}",
        name=name.partition("/")[2],
        licence=repo.licence if repo is not None else None,
        variants=(variant,),
        origin="file",
    )
