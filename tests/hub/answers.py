"""What the stand-in for the Hub answers: from a parsed request to status, headers and bytes; it opens no socket."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub.misbehaviour import Fault, Route
from tests.hub.repository import Blob, Commit, Repository

if TYPE_CHECKING:
    from tests.hub.server import HubServer

EXPANDED_PAGE = 50
"""Entries of a page of a tree with `expand`; others have `HubServer.page_size`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request, taken apart."""

    method: str
    host: str
    target: str
    """Path and query as sent."""
    headers: Mapping[str, str] = field(repr=False)
    """By lower-case name."""
    body: str = ""
    route: Route = "other"
    repo: str = ""
    revision: str = "main"
    file: str = ""
    """Path in the repository, where the request names one."""

    @property
    def query(self) -> dict[str, list[str]]:
        """Return the query's values by name."""
        return parse_qs(urlsplit(self.target).query)

    @property
    def token(self) -> str | None:
        """Return the bearer token that was sent."""
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind.lower() == "bearer" else None


@dataclass(slots=True, kw_only=True)
class Answer:
    """What goes back."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def question(method: str, host: str, target: str, headers: Mapping[str, str], body: str) -> Question:
    """Find out what a request asks for."""
    asked = Question(method=method, host=host, target=target, headers=headers, body=body)
    parts = [unquote(part) for part in urlsplit(target).path.split("/")[1:]]
    match parts:
        case ["blobs", *_]:
            return replace(asked, route="cdn", file=asked.query.get("file", [""])[0])
        case ["api", "resolve-cache", "models", owner, name, revision, *path]:
            return replace(asked, route="cache", repo=f"{owner}/{name}", revision=revision, file="/".join(path))
        case ["api", "models", owner, name]:
            return replace(asked, route="info", repo=f"{owner}/{name}")
        case ["api", "models", owner, name, "revision", revision]:
            return replace(asked, route="info", repo=f"{owner}/{name}", revision=revision)
        case ["api", "models", owner, name, "auth-check"]:
            return replace(asked, route="auth", repo=f"{owner}/{name}")
        case ["api", "models", owner, name, "paths-info", revision]:
            return replace(asked, route="paths", repo=f"{owner}/{name}", revision=revision)
        case ["api", "models", owner, name, "tree", revision, *path]:
            return replace(asked, route="tree", repo=f"{owner}/{name}", revision=revision, file="/".join(path))
        case [owner, name, "resolve", revision, *path] if owner != "api":
            return replace(asked, route="resolve", repo=f"{owner}/{name}", revision=revision, file="/".join(path))
    return asked


def answer(hub: HubServer, asked: Question, fault: Fault) -> Answer:
    """Answer as the Hub would, or as the fault says."""
    if fault.location is not None:
        url = f"http://{asked.host}{asked.target}"
        made = Answer(status=302, headers={"Location": fault.location.format(url=url, path=asked.target)})
    elif fault.status is not None:
        made = Answer(status=fault.status, body=fault.body)
    else:
        made = _from_cdn(hub, asked, fault) if asked.route == "cdn" else _from_hub(hub, asked, fault)
    for name, value in fault.headers.items():
        if value is None:
            made.headers.pop(name, None)
        else:
            made.headers[name] = value
    return made


def _from_hub(hub: HubServer, asked: Question, fault: Fault) -> Answer:
    if asked.token is not None and asked.token not in hub.tokens:
        return refusal(401, None, "Invalid credentials in Authorization header")
    if asked.repo in hub.moved:
        return Answer(status=307, headers={"Location": asked.target.replace(asked.repo, hub.moved[asked.repo], 1)})
    repository = hub.repositories.get(asked.repo)
    granted = hub.tokens.get(asked.token or "", frozenset())
    if repository is None or (repository.private and asked.repo not in granted):
        status = 404 if asked.token else 401
        return refusal(status, "RepoNotFound", "Repository not found")
    gated = asked.route in ("resolve", "cache", "auth") and repository.gated and asked.repo not in granted
    if gated:
        told = "Access to model {0} is restricted. You must have access to it and be authenticated to access it."
        return refusal(403 if asked.token else 401, "GatedRepo", told.format(asked.repo))
    commit = repository.at(asked.revision)
    if commit is None:
        return refusal(404, "RevisionNotFound", f"Invalid rev id: {asked.revision}")
    return ROUTES[asked.route](hub, asked, repository, commit, fault)


def refusal(status: int, code: str | None, message: str) -> Answer:
    """Refuse as the Hub does: the reason in headers and body."""
    made = _json({"error": message})
    made.status = status
    made.headers["X-Error-Message"] = message
    if code:
        made.headers["X-Error-Code"] = code
    return made


def _json(value: object) -> Answer:
    return Answer(headers={"Content-Type": "application/json; charset=utf-8"}, body=json.dumps(value).encode())


def _info(hub: HubServer, asked: Question, repository: Repository, commit: Commit, fault: Fault) -> Answer:
    with_blobs = asked.query.get("blobs", ["false"])[0].lower() in ("true", "1")
    return _changed(_json(repository.info(commit, with_blobs=with_blobs, expand=asked.query.get("expand", []))), fault)


def _tree(hub: HubServer, asked: Question, repository: Repository, commit: Commit, fault: Fault) -> Answer:
    flags = {key: asked.query.get(key, ["false"])[0].lower() in ("true", "1") for key in ("recursive", "expand")}
    entries = commit.tree(asked.file, recursive=flags["recursive"], expanded=flags["expand"])
    if asked.file and not entries:
        return _no_entry(asked, commit)
    start = int(asked.query.get("cursor", ["0"])[0])
    end = start + (EXPANDED_PAGE if flags["expand"] else hub.page_size)
    made = _changed(_json(entries[start:end]), fault)
    if end < len(entries):
        path = urlsplit(asked.target).path
        query = f"recursive={flags['recursive']}&expand={flags['expand']}&cursor={end}"
        made.headers["Link"] = f'<{hub.url}{path}?{query}>; rel="next"'
    return made


def _paths(hub: HubServer, asked: Question, repository: Repository, commit: Commit, fault: Fault) -> Answer:
    form = parse_qs(asked.body)
    expanded = form.get("expand", ["false"])[0].lower() == "true"
    blobs = [commit.files[path] for path in form.get("paths", []) if path in commit.files]
    return _changed(_json([blob.entry(expanded=expanded) for blob in blobs]), fault)


def _auth(hub: HubServer, asked: Question, repository: Repository, commit: Commit, fault: Fault) -> Answer:
    return _json({})


def _resolve(hub: HubServer, asked: Question, repository: Repository, commit: Commit, fault: Fault) -> Answer:
    blob = commit.files.get(asked.file)
    if blob is None:
        return _no_entry(asked, commit)
    headers = {
        "X-Repo-Commit": commit.id,
        "X-Linked-Size": str(len(blob.content)),
        "X-Linked-ETag": f'"{blob.etag}"',
        "Accept-Ranges": "bytes",
    }
    if blob.is_large:
        headers["ETag"] = f'"{blob.etag}"'
        headers["Location"] = hub.signed_url(blob)
        return Answer(status=302, headers=headers)
    headers["Location"] = f"/api/resolve-cache/models/{repository.name}/{commit.id}/{quote(blob.path)}"
    return Answer(status=307, headers=headers)


def _cache(hub: HubServer, asked: Question, repository: Repository, commit: Commit, fault: Fault) -> Answer:
    blob = commit.files.get(asked.file)
    if blob is None:
        return _no_entry(asked, commit)
    made = _content(asked, blob, fault)
    made.headers["X-Repo-Commit"] = commit.id
    return made


def _other(hub: HubServer, asked: Question, repository: Repository, commit: Commit, fault: Fault) -> Answer:
    raise AssertionError(f"no repository belongs to {asked.target}")  # `_from_hub` refused it


def _from_cdn(hub: HubServer, asked: Question, fault: Fault) -> Answer:
    blob = hub.signed_blob(asked.query.get("Signature", [""])[0])
    if blob is None:
        told = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>'
        return Answer(status=403, headers={"Content-Type": "application/xml"}, body=told)
    return _content(asked, blob, fault)


def _no_entry(asked: Question, commit: Commit) -> Answer:
    made = refusal(404, "EntryNotFound", "Entry not found")
    made.headers["X-Repo-Commit"] = commit.id
    return made


def _content(asked: Question, blob: Blob, fault: Fault) -> Answer:
    """Answer with a file's bytes: all, or the range asked for.

    The Hub compresses small files for whoever accepts it, and then passes over Range.
    """
    content = fault.change(blob.content) if fault.change else blob.content
    made = Answer(headers={"Content-Type": "application/octet-stream", "ETag": f'"{blob.etag}"'})
    accepts_gzip = not blob.is_large and "gzip" in asked.headers.get("accept-encoding", "")
    if accepts_gzip or fault.gzips:
        made.headers |= {"ETag": f'W/"{blob.etag}"', "Content-Encoding": "gzip"}
        made.body = gzip.compress(content, mtime=0)
        return made
    made.headers["Accept-Ranges"] = "bytes"
    if asked.headers.get("if-match", made.headers["ETag"]) != made.headers["ETag"]:
        return Answer(status=412)
    is_other = asked.headers.get("if-range", made.headers["ETag"]) != made.headers["ETag"]
    ranged = None if fault.ignores_range or is_other else _range(asked, len(content))
    if ranged is None:
        made.body = content
        return made
    start, end = ranged[0] + fault.range_shift, ranged[1]
    if start >= len(content):
        return Answer(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
    made.status = 206
    made.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    made.body = content[start:end]
    return made


def _range(asked: Question, size: int) -> tuple[int, int] | None:
    """Return first byte and the one after the last that a Range header asks for; None without one."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.headers.get("range", ""))
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _changed(made: Answer, fault: Fault) -> Answer:
    if fault.change:
        made.body = fault.change(made.body)
    return made


ROUTES: Mapping[Route, Callable[[HubServer, Question, Repository, Commit, Fault], Answer]] = {
    "info": _info,
    "tree": _tree,
    "paths": _paths,
    "auth": _auth,
    "resolve": _resolve,
    "cache": _cache,
    "other": _other,
}
