"""Remember checked headers, so that a second start or `slm ls` does not read them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from slm_local.errors import ConfigError
from slm_local.gguf_header.facts import GgufHeader, read_header
from slm_local.model import SamplingDefaults, Shape
from slm_local.paths import make_folder
from slm_local.system import lock_down_file

FORMAT = 2
"""Raised when facts or checks change; what was written in another format is read anew."""

Identity = tuple[str, *tuple[str | int, ...]]
"""Which file, by path or address, and then what changes when the file does."""


def checked_header(path: Path, cache_dir: Path, *, allow_vocab_only: bool = False) -> GgufHeader:
    """Return `read_header(path)`, from the cache where the file is still the same.

    The same means: path, size, time of change and inode. A cache that is damaged or can't be written does no harm.
    A split model is read each time, for its other parts may have gone. Raises as `read_header` does.
    """
    try:
        found = path.resolve().stat()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return read_header(path, allow_vocab_only=allow_vocab_only)  # which says what is wrong
    identity = (str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino)
    header = recall(cache_dir, identity)
    if header is None or (header.vocab_only and not allow_vocab_only):
        header = read_header(path, allow_vocab_only=allow_vocab_only)
        if header.split_count == 1:
            keep(cache_dir, identity, header)
    return replace(header, path=str(path))


def recall(cache_dir: Path, identity: Identity) -> GgufHeader | None:
    """Return a remembered header; None where there is none for this file as it is now, or it is damaged."""
    try:
        record = json.loads(_place(cache_dir, identity).read_bytes())
        body = record["header"]
        if record["format"] != FORMAT or record["file"] != list(identity) or record["sha256"] != _digest(body):
            return None
        shape, sampling = Shape(**body.pop("shape")), SamplingDefaults(**body.pop("sampling"))
        return GgufHeader(shape=shape, sampling=sampling, think_tokens=tuple(body.pop("think_tokens")), **body)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def keep(cache_dir: Path, identity: Identity, header: GgufHeader) -> None:
    """Remember a header, in place of that of the same file as it was before."""
    file = _place(cache_dir, identity)
    body: dict[str, Any] = asdict(header)
    record = {"format": FORMAT, "file": identity, "sha256": _digest(body), "header": body}
    half_written = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError, ConfigError):  # only a cache: where it can't be written it is not needed either
        make_folder(file.parent)
        half_written.write_text(json.dumps(record), encoding="ascii")
        lock_down_file(half_written)
        half_written.replace(file)


def _place(cache_dir: Path, identity: Identity) -> Path:
    return cache_dir / "headers" / f"{hashlib.sha256(os.fsencode(identity[0])).hexdigest()}.json"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()
