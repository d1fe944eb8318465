"""What the Hub's refusals mean, each as one error: shared by the requests for facts and those for bytes."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from slm_local.errors import DownloadFailed
from slm_local.sanitize import one_line

PULL = "slm pull MODEL"
"""What is to be typed again, where the caller does not say."""

LOGIN = "hf auth login"


def refusal(
    status: int, headers: Mapping[str, str], repo: str, endpoint: str, file: str | None = None, *, again: str = PULL
) -> DownloadFailed:
    """Return the error for an answer of the Hub that no further try would change; `again` asks once more, later."""
    code = headers.get("x-error-code")
    what = one_line(f"{repo}/{file}") if file else repo
    if code == "GatedRepo":
        return DownloadFailed(
            f"{repo} is gated: accept its licence at {endpoint}/{repo}, then log in or set HF_TOKEN", hint=LOGIN
        )
    if headers.get("x-error-message", "").startswith("Invalid credentials"):
        return DownloadFailed("the Hub refuses the token: it is wrong, expired or revoked", hint=LOGIN)
    if code == "RevisionNotFound":
        return DownloadFailed(f"{repo} has no such revision on the Hub", hint=f"slm show hf:{repo}")
    if code == "EntryNotFound" or (status == 404 and file):
        return DownloadFailed(f"the Hub has no file {what}", hint=f"slm show hf:{repo}")
    if code == "RepoNotFound" or status in (401, 404):
        return DownloadFailed(f"the Hub has no repository {repo}, or it is a private one", hint="slm ls --all")
    if status == 403:
        return DownloadFailed(f"the Hub refuses access to {what}: the token does not allow it", hint=LOGIN)
    if status == 429:
        return DownloadFailed("the Hub has had too many requests from here: wait some minutes", hint=again)
    return DownloadFailed(f"the Hub answers {status} for {what}", hint=again)


def more_room(again: str) -> str:
    """Return the hint for a disk without room; `again` is the line that goes on with the download."""
    return f"slm rm MODEL   or, onto another disk: {again if again.startswith('slm pull ') else PULL} --to DIR"


def unreachable(endpoint: str, error: Exception) -> DownloadFailed:
    """Return the error for a Hub that does not answer."""
    said = one_line(str(error)) or type(error).__name__
    return DownloadFailed(f"the Hub can't be reached at {urlsplit(endpoint).netloc}: {said}", hint="slm ls")
