"""The Hub as huggingface_hub knows it: its address, the person's token, the files of a repository at one commit.

It fetches no file's bytes. Every error of the library becomes a `DownloadFailed` here, once.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import time
import warnings
from functools import cache
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from slm_local.download.address import OFFLINE_VARIABLES, endpoint_of, is_loopback, opened, unsetting, what_forbids
from slm_local.download.refusals import LOGIN, PULL, refusal, unreachable
from slm_local.download.values import PATIENCE, Patience, RemoteFile, RemoteRepo
from slm_local.errors import DownloadFailed
from slm_local.registry import checks
from slm_local.sanitize import one_line

MOST_REDIRECTS = 10

INFO_TIMEOUT_S = 10.0

INFO_TRIES = 3


class _Busy(Exception):
    """The Hub has a fault of its own that may be over soon."""

    def __init__(self, error: DownloadFailed) -> None:
        super().__init__(error.message)
        self.error = error


class Hub:
    """The Hub that HF_ENDPOINT names, or huggingface.co. Making one opens no socket and loads nothing."""

    def __init__(self, *, offline: bool = False, patience: Patience = PATIENCE, again: str = PULL) -> None:
        self._patience = patience
        self.again = again
        """The line that asks for the same once more, for hints."""
        self.no_network = what_forbids(offline)
        """What says that no socket may be opened; None where nothing does."""
        self.endpoint = endpoint_of(os.environ.get("HF_ENDPOINT", ""))

    @property
    def is_offline(self) -> bool:
        """Whether no socket may be opened: by the setting `offline` or HF_HUB_OFFLINE."""
        return self.no_network is not None

    @property
    def token(self) -> str | None:
        """Return the person's token for this Hub, from HF_TOKEN or `hf auth login`; None offline."""
        if self.is_offline:
            return None
        library = _library()
        if library.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            return None
        try:
            token = library.get_token()
        except (OSError, ValueError, RuntimeError, library.errors.HfHubHTTPError) as error:
            raise DownloadFailed(f"the token for the Hub can't be read: {type(error).__name__}", hint=LOGIN) from None
        if token is not None and not re.fullmatch(r"[!-~]+", token):  # the HTTP library would show it in its complaint
            raise DownloadFailed("the token for the Hub has characters in it that no token has", hint=LOGIN)
        return str(token) if token else None

    def check_online(self, what: str) -> None:
        """Raise `DownloadFailed` saying that `what` is not here, where no socket may be opened."""
        if self.no_network is not None:
            hint = unsetting(self.no_network) if self.no_network in OFFLINE_VARIABLES else self.again
            raise DownloadFailed(f"{what} is not here, and {self.no_network} allows no network", hint=hint)

    def repository(self, repo: str, revision: str | None = None) -> RemoteRepo:
        """Ask for a repository's files, with sizes and digests, at the commit that `revision` is now.

        Asks again, in a second or two, where the Hub has a fault of its own.
        """
        try:
            checks.repository(repo)
        except checks.Fault as fault:
            raise DownloadFailed(f"a Hub repository {fault.message}", hint="slm ls --all") from None
        self.check_online(repo)
        for wait_s in self._patience.waits_s[: INFO_TRIES - 1]:
            try:
                return self._ask(repo, revision)
            except _Busy:
                time.sleep(wait_s)
        try:
            return self._ask(repo, revision)
        except _Busy as fault:
            raise fault.error from fault

    def _ask(self, repo: str, revision: str | None) -> RemoteRepo:
        library, token = _library(), self.token
        http = _http_of(library)
        api = library.HfApi(endpoint=self.endpoint, library_name="slm-local")
        try:
            info = api.model_info(
                repo, revision=revision, files_metadata=True, timeout=INFO_TIMEOUT_S, token=token or False
            )
            return _described(repo, info)
        except library.errors.HfHubHTTPError as error:
            status = error.response.status_code
            meant = refusal(status, error.response.headers, repo, self.endpoint, again=self.again)
            raise (_Busy(meant) if status >= 500 else meant) from error
        except library.errors.OfflineModeIsEnabled as error:
            raise DownloadFailed(f"{repo} is not here: no network is allowed", hint="slm ls") from error
        except (http.HTTPError, http.InvalidURL) as error:
            raise unreachable(self.endpoint, error) from error
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DownloadFailed(
                f"{urlsplit(self.endpoint).netloc} answers, but not as a Hub does: is this network's login page open?",
                hint=self.again,
            ) from error

    def __repr__(self) -> str:
        return f"Hub({self.endpoint!r}, offline={self.is_offline})"


@cache
def _library() -> ModuleType:
    """Load huggingface_hub: no telemetry, nothing on the terminal, the system's certificates, at most 10 redirects."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = importlib.import_module("huggingface_hub")
        for part in ("constants", "errors"):
            importlib.import_module(f"huggingface_hub.{part}")
    library.constants.HF_HUB_DISABLE_TELEMETRY = True  # where something else had loaded it before
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it prints what the server sends as a warning
    http = _http_of(library)
    library.set_client_factory(lambda: _info_client(http))
    return library


def _http_of(library: ModuleType) -> ModuleType:
    """Return the HTTP package that the library's errors come from: httpx for 1.x, httpx2 for 2.x."""
    return importlib.import_module(library.errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])


def _info_client(http: ModuleType) -> Any:
    return opened(
        http,
        follow_redirects=True,
        max_redirects=MOST_REDIRECTS,
        limits=http.Limits(max_keepalive_connections=0),
        event_hooks={"request": [_refuse_plain]},
    )


def _refuse_plain(request: Any) -> None:
    is_plain_here = request.url.scheme == "http" and is_loopback(request.url.host)
    if request.url.scheme != "https" and not is_plain_here:
        host = one_line(request.url.host)
        raise DownloadFailed(f"the Hub leads to {host} without encryption: it is not followed", hint="slm doctor")


def _described(repo: str, info: Any) -> RemoteRepo:
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha):
        raise ValueError("no commit")
    return RemoteRepo(
        repo=repo,
        commit=info.sha,
        files=tuple(_file(each) for each in info.siblings or ()),
        gated=bool(info.gated),
        licence=_licence(info),
    )


def _file(sibling: Any) -> RemoteFile:
    large = sibling.lfs
    size = large.size if large else sibling.size
    digest, blob = (large.sha256 if large else None), (None if large else sibling.blob_id)
    if not isinstance(sibling.rfilename, str) or not isinstance(size, int) or size < 0:
        raise ValueError("a file without a name or a size")
    if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError("a digest that is none")
    if blob is not None and not re.fullmatch(r"[0-9a-f]{40}", blob):
        raise ValueError("a digest that is none")
    return RemoteFile(path=sibling.rfilename, size_bytes=size, sha256=digest, git_blob=blob)


def _licence(info: Any) -> str | None:
    card = getattr(info.card_data, "license", None) if info.card_data is not None else None
    tagged = [tag.partition(":")[2] for tag in info.tags or () if isinstance(tag, str) and tag.startswith("license:")]
    return card if isinstance(card, str) else next(iter(tagged), None)
