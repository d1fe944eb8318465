"""Whether the Hub still has what the registry says: every repository and file, with the stated size and digest.

What a maintainer runs before a release. A repository is asked for once; one that can't be reached is said so and does
not end the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slm_local.download.hub import Hub
from slm_local.download.order import order_at
from slm_local.download.values import RemoteRepo
from slm_local.errors import DownloadFailed
from slm_local.model import ModelSpec, Variant
from slm_local.registry.recognise import ROUNDED_SIZE

NOT_THERE = frozenset({401, 404})
"""How the Hub answers for a repository that does not exist, or not for us."""

FAILURES_IN_A_ROW = 3
"""After so many repositories without an answer the others are not asked: there is no network, or too many requests."""

Outcome = Literal["same", "differs", "missing", "unreached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What the Hub says of one line of the registry: a variant, or a model's original repository."""

    model: str
    quant: str | None
    """None for the original repository."""
    repo: str
    file: str | None
    outcome: Outcome
    remark: str = ""
    size_bytes: int | None = None
    """As the Hub has it, all files together."""
    sha256: str | None = None
    """As the Hub has it, of a single file."""


def audit(
    models: Sequence[ModelSpec], hub: Hub, models_dir: Path, on_status: Callable[[str], None]
) -> Iterator[Audited]:
    """Give one result for every repository and file that the registry names. `DownloadFailed` offline."""
    hub.check_online("what the Hub says of the registry")
    asked = _Asked(hub, on_status)
    for spec in models:
        if spec.original_repo is not None:
            yield _original(spec, spec.original_repo, asked)
        for variant in spec.variants:
            if variant.repo is not None:
                yield _variant(spec, variant, variant.repo, asked, models_dir)


class _Asked:
    """What the Hub answered, by repository and revision; asks each once."""

    def __init__(self, hub: Hub, on_status: Callable[[str], None]) -> None:
        self._hub = hub
        self._on_status = on_status
        self._answers: dict[tuple[str, str | None], RemoteRepo | DownloadFailed] = {}
        self._failures = 0

    def repository(self, repo: str, revision: str | None) -> RemoteRepo | DownloadFailed:
        """Return the Hub's answer, which may be an error."""
        if (repo, revision) not in self._answers:
            self._answers[repo, revision] = self._ask(repo, revision)
        return self._answers[repo, revision]

    def _ask(self, repo: str, revision: str | None) -> RemoteRepo | DownloadFailed:
        if self._failures == FAILURES_IN_A_ROW:
            return DownloadFailed(f"not asked: the Hub gave no answer {FAILURES_IN_A_ROW} times in a row")
        self._on_status(f"asking about {repo}")
        try:
            found = self._hub.repository(repo, revision)
        except DownloadFailed as error:
            self._failures = 0 if _is_absence(error) else self._failures + 1
            return error
        self._failures = 0
        return found


def _is_absence(error: DownloadFailed) -> bool:
    response = getattr(error.__cause__, "response", None)
    return getattr(response, "status_code", None) in NOT_THERE


def _unanswered(model: str, quant: str | None, repo: str, file: str | None, error: DownloadFailed) -> Audited:
    outcome: Outcome = "missing" if _is_absence(error) else "unreached"
    return Audited(model=model, quant=quant, repo=repo, file=file, outcome=outcome, remark=error.message)


def _original(spec: ModelSpec, repo: str, asked: _Asked) -> Audited:
    found = asked.repository(repo, None)
    if isinstance(found, DownloadFailed):
        return _unanswered(spec.id, None, repo, None, found)
    if spec.gated is not None and spec.gated != found.gated:
        said = {True: "is gated", False: "is not gated"}
        remark = f"{said[found.gated]}; the registry says that it {said[spec.gated]}"
        return Audited(model=spec.id, quant=None, repo=repo, file=None, outcome="differs", remark=remark)
    return Audited(model=spec.id, quant=None, repo=repo, file=None, outcome="same")


def _variant(spec: ModelSpec, variant: Variant, repo: str, asked: _Asked, models_dir: Path) -> Audited:
    found = asked.repository(repo, variant.revision)
    if isinstance(found, DownloadFailed):
        return _unanswered(spec.id, variant.quant, repo, variant.file, found)
    try:
        order = order_at(found, variant, models_dir)
    except DownloadFailed as error:
        return Audited(
            model=spec.id, quant=variant.quant, repo=repo, file=variant.file, outcome="missing", remark=error.message
        )
    sha256 = order.files[0].remote.sha256 if len(order.files) == 1 else None
    differences = [each for each in (_size(variant, order.total_bytes), _digest(variant, sha256)) if each]
    return Audited(
        model=spec.id,
        quant=variant.quant,
        repo=repo,
        file=variant.file,
        outcome="differs" if differences else "same",
        remark="; ".join(differences),
        size_bytes=order.total_bytes,
        sha256=sha256,
    )


def _size(variant: Variant, there: int) -> str:
    """Say how the size differs from the registry's, which is rounded for some files and for all folders."""
    if variant.size_bytes is None:
        return ""
    allowed = 0.0 if variant.size_is_exact and variant.file is not None else ROUNDED_SIZE
    if abs(there - variant.size_bytes) <= allowed * variant.size_bytes:
        return ""
    return f"has {there:,} bytes; the registry says {variant.size_bytes:,}"


def _digest(variant: Variant, there: str | None) -> str:
    if variant.sha256 is None or there is None or variant.sha256 == there:
        return ""
    return f"has the sha256 {there}; the registry says {variant.sha256}"
