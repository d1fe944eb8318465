"""What the stand-in for the Hub holds: repositories, their commits and files, and how the Hub's API tells of them.

Names are kept as they were given, hostile ones too: whoever asks must judge them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

Gate = Literal[False, "auto", "manual"]
Json = dict[str, object]

LARGE_SUFFIXES = frozenset({".gguf", ".bin", ".safetensors", ".model", ".onnx", ".zip"})
"""What a new repository's .gitattributes gives to LFS; the Hub asks it of anything over 10 MiB, too."""
LARGE_BYTES = 10 << 20

BORN = "2026-01-02T03:04:05.000Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A file's bytes with the digests that the Hub states."""

    path: str
    content: bytes = field(repr=False)
    sha256: str
    git_blob: str
    is_large: bool

    @property
    def etag(self) -> str:
        """Return what the Hub states of the file: its digest if large, else its name in git."""
        return self.sha256 if self.is_large else self.git_blob

    @property
    def pointer(self) -> bytes:
        """Return the text that git keeps in place of a large file."""
        size = len(self.content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    def sibling(self, *, with_blobs: bool) -> Json:
        """Return the file as `siblings` of a model's info lists it."""
        if not with_blobs:
            return {"rfilename": self.path}
        told: Json = {"rfilename": self.path, "blobId": self.git_blob, "size": len(self.content)}
        if self.is_large:
            told["lfs"] = {"sha256": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return told

    def entry(self, *, expanded: bool) -> Json:
        """Return the file as a tree lists it."""
        told: Json = {"type": "file", "path": self.path, "oid": self.git_blob, "size": len(self.content)}
        if self.is_large:
            told["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        if expanded:
            told["lastCommit"] = {"id": "0" * 40, "title": "Upload", "date": BORN}
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A repository's files at one time."""

    id: str
    files: Mapping[str, Blob]

    def tree(self, folder: str, *, recursive: bool, expanded: bool) -> list[Json]:
        """List a folder: files and folders directly in it, or all below it."""
        top = PurePosixPath(folder)
        inside = [blob for path, blob in self.files.items() if folder == "" or path.startswith(folder + "/")]
        shown = [blob for blob in inside if recursive or PurePosixPath(blob.path).parent == top]
        folders = {str(parent) for blob in inside for parent in PurePosixPath(blob.path).parents if parent != top}
        listed = sorted(each for each in folders - {".", "/"} if recursive or PurePosixPath(each).parent == top)
        told: list[Json] = [{"type": "directory", "path": each, "oid": "1" * 40, "size": 0} for each in listed]
        return told + [blob.entry(expanded=expanded) for blob in shown]


@dataclass(slots=True, kw_only=True)
class Repository:
    """A model's repository with its history, newest commit last."""

    name: str
    gated: Gate = False
    private: bool = False
    licence: str | None = "apache-2.0"
    commits: list[Commit] = field(default_factory=list)

    def push(self, files: Mapping[str, bytes], commit: str | None = None) -> Commit:
        """Add a commit that holds exactly these files."""
        blobs = {path: blob_of(path, content) for path, content in files.items()}
        made = Commit(id=commit or self._commit_id(blobs.values()), files=blobs)
        self.commits.append(made)
        return made

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a revision: `main` or a commit's id."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.id == revision), None)

    def info(self, commit: Commit, *, with_blobs: bool, expand: list[str]) -> Json:
        """Return the model's info; with `expand`, only what was asked for."""
        tags = ["gguf", "region:us"] + ([f"license:{self.licence}"] if self.licence else [])
        told: Json = {
            "author": self.name.split("/")[0],
            "sha": commit.id,
            "lastModified": BORN,
            "createdAt": BORN,
            "private": self.private,
            "gated": self.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": tags,
            "siblings": [blob.sibling(with_blobs=with_blobs) for blob in commit.files.values()],
        }
        if self.licence:
            told["cardData"] = {"license": self.licence}
        if expand:
            told = {key: value for key, value in told.items() if key in expand}
        return {"_id": "0" * 24, "id": self.name, "modelId": self.name, **told}

    def _commit_id(self, blobs: Iterable[Blob]) -> str:
        text = "".join([self.name, str(len(self.commits)), *(blob.path + blob.sha256 for blob in blobs)])
        return hashlib.sha1(text.encode(errors="surrogatepass")).hexdigest()


def blob_of(path: str, content: bytes) -> Blob:
    """Hash a file as the Hub does."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return Blob(
        path=path,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        git_blob=git,
        is_large=PurePosixPath(path).suffix in LARGE_SUFFIXES or len(content) > LARGE_BYTES,
    )
