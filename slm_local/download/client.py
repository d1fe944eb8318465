"""One request for a file's bytes: over httpx, from the resolve address, redirects followed by our own rules.

The token goes to the Hub's own origin only; encryption is never given up on the way; a body that is compressed is
refused. Whether another try may help is told apart here: `TryAgain` or `DownloadFailed`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from slm_local import __version__
from slm_local.download.address import is_loopback, opened
from slm_local.download.hub import MOST_REDIRECTS, Hub
from slm_local.download.refusals import refusal, unreachable
from slm_local.download.values import PATIENCE, Patience
from slm_local.errors import DownloadFailed
from slm_local.sanitize import one_line

if TYPE_CHECKING:
    import httpx

REDIRECTS = frozenset({301, 302, 303, 307, 308})

LATER = frozenset({408, 425, 429})
"""Refusals that are for now only, besides all of 5xx."""

HEADER_TRIES = 3
"""Tries for a range that is asked for while a person waits for a plan."""

HEADER_WAIT_S = 5.0
"""The most that a server's own `Retry-After` is waited for then: nothing is shown meanwhile."""


class TryAgain(Exception):
    """This try ended without all of it; another may go on. `wait_s`: what the server asks to wait."""

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: 200, 206 or 416, and what it says of the file."""

    response: httpx.Response
    commit: str | None
    etag: str | None
    """Of the file, as the Hub itself states it; else of the bytes, as their server does. Without quotes."""

    @property
    def status(self) -> int:
        """Return the status."""
        return self.response.status_code


@contextmanager
def open_client(patience: Patience = PATIENCE) -> Iterator[httpx.Client]:
    """Give an HTTP client that goes through the environment's proxies."""
    import httpx

    with opened(
        httpx,
        headers={"User-Agent": f"slm-local/{__version__}", "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(patience.stall_s, connect=patience.connect_s),
        limits=httpx.Limits(max_keepalive_connections=0),
    ) as client:
        yield client


def address_of(hub: Hub, repo: str, commit: str, file: str) -> str:
    """Return the address that leads to a file's bytes; what it leads to is good for some minutes only."""
    return f"{hub.endpoint}/{quote(repo)}/resolve/{commit}/{quote(file, errors='surrogatepass')}"


@contextmanager
def asking(
    client: httpx.Client, hub: Hub, repo: str, commit: str, file: str, headers: Mapping[str, str]
) -> Iterator[Answer]:
    """Send a GET and give its answer, body unread; `TryAgain` or `DownloadFailed` where there are no bytes in it."""
    import httpx

    url = address_of(hub, repo, commit, file)
    said: dict[str, str] = {}
    try:
        for _ in range(MOST_REDIRECTS + 1):
            request = client.build_request("GET", url, headers=_headers(hub, url, headers))
            response = client.send(request, stream=True)
            try:
                if response.status_code not in REDIRECTS:
                    _check(response, hub, repo, file)
                    yield _answer(response, said)
                    return
                said = {**response.headers, **said}
                url = _next(url, response, hub)
            finally:
                response.close()
    except httpx.ConnectTimeout as error:
        raise TryAgain(f"no connection within {client.timeout.connect:.0f} s") from error
    except httpx.TimeoutException as error:
        raise TryAgain(f"nothing came for {client.timeout.read:.0f} s") from error
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # no further try mends it
            raise unreachable(hub.endpoint, error) from error
        broke = "no connection" if isinstance(error, httpx.ConnectError) else "the connection broke"
        raise TryAgain(f"{broke}: {one_line(str(error)) or type(error).__name__}") from error
    except httpx.InvalidURL as error:
        raise DownloadFailed(f"the Hub leads from {file} to something that is no address", hint=hub.again) from error
    raise DownloadFailed(f"the Hub leads from {file} to one address after another, more than 10", hint=hub.again)


def ranged_bytes(
    hub: Hub, repo: str, commit: str, file: str, start: int, end: int, patience: Patience = PATIENCE
) -> bytes:
    """Return bytes `start` to `end` (not included) of a file; fewer at its end, `DownloadFailed` where none come."""
    hub.check_online(f"{repo}/{file}")
    with open_client(patience) as client:
        for wait_s in (*patience.waits_s[: HEADER_TRIES - 1], None):
            try:
                return _range(client, hub, repo, commit, file, start, end)
            except TryAgain as fault:
                if wait_s is None or (fault.wait_s or 0.0) > HEADER_WAIT_S:
                    raise DownloadFailed(
                        f"the header of {file} can't be read: {fault.reason}", hint=hub.again
                    ) from fault
                time.sleep(min(fault.wait_s or wait_s, patience.longest_wait_s))
    raise AssertionError("every try returned or raised")


def _range(client: httpx.Client, hub: Hub, repo: str, commit: str, file: str, start: int, end: int) -> bytes:
    with asking(client, hub, repo, commit, file, {"Range": f"bytes={start}-{end - 1}"}) as answer:
        if answer.status == 416:
            raise DownloadFailed(f"{file} ends before byte {start:,}", hint=f"slm show hf:{repo}")
        told = answer.response.headers.get("content-range", "")
        if answer.status == 206 and not told.startswith(f"bytes {start}-"):
            raise TryAgain("the server sends another part of the file than was asked for")
        skipped = start if answer.status == 200 else 0  # the server passed over the range
        found = bytearray()
        for chunk in answer.response.iter_raw():
            found += chunk
            if len(found) >= skipped + end - start:
                break
        if len(found) <= skipped:
            raise TryAgain(f"only {len(found):,} bytes came")
    return bytes(found[skipped : skipped + end - start])


def _headers(hub: Hub, url: str, headers: Mapping[str, str]) -> httpx.Headers:
    import httpx

    made = httpx.Headers(headers)  # its repr hides the token
    if _origin(url) == _origin(hub.endpoint) and (token := hub.token):
        made["Authorization"] = f"Bearer {token}"
    return made


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _next(url: str, response: httpx.Response, hub: Hub) -> str:
    """Return where a redirect leads; plain http is followed on this machine only, and never after https."""
    location = response.headers.get("location")
    if not location:
        raise TryAgain(f"{response.url.host} leads on without an address")
    old = urlsplit(url)
    try:
        target = urljoin(url, str(location))
        new = urlsplit(target)
        is_whole = bool(new.hostname) and new.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise DownloadFailed(f"{old.hostname} leads to what is no address", hint=hub.again)  # a secret may be in it
    if new.scheme != "https" and not (new.scheme == old.scheme == "http" and is_loopback(new.hostname)):
        raise DownloadFailed(
            f"{old.hostname} leads to {one_line(f'{new.scheme}://{new.hostname}')}, without encryption: "
            "it is not followed",
            hint="slm doctor",
        )
    return target


def _check(response: httpx.Response, hub: Hub, repo: str, file: str) -> None:
    status, host = response.status_code, response.url.host
    if status in (200, 206, 416):
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise DownloadFailed(
                f"{host} sends {file} compressed, which was not asked for and is not read", hint=hub.again
            )
        if response.headers.get("content-type", "").lower().startswith("text/html"):  # no model's file is a page
            raise DownloadFailed(
                f"{host} sends a web page in place of {file}: is this network's login page open?", hint=hub.again
            )
        return
    is_hubs_own = _origin(str(response.url)) == _origin(hub.endpoint)
    if status in LATER or status >= 500 or status < 400 or not is_hubs_own:  # elsewhere a signed address has expired
        wait_s = _retry_after(response.headers.get("retry-after", ""))
        wish = f" and asks to wait {wait_s:.0f} s" if wait_s is not None else ""
        raise TryAgain(f"{host} answers {status}{wish}", wait_s=wait_s)
    raise refusal(status, response.headers, repo, hub.endpoint, file, again=hub.again)


def _retry_after(value: str) -> float | None:
    from email.utils import parsedate_to_datetime

    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _answer(response: httpx.Response, said: Mapping[str, str]) -> Answer:
    every = {**response.headers, **said}
    etag = every.get("x-linked-etag") or response.headers.get("etag")
    return Answer(
        response=response,
        commit=every.get("x-repo-commit"),
        etag=etag.removeprefix("W/").strip('"') if etag else None,
    )
