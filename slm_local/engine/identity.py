"""Which model file it is, told without reading gigabytes: for what is kept of a model's work."""

from __future__ import annotations

import hashlib
from pathlib import Path

from slm_local.registry.local import recorded
from slm_local.registry.recognise import plain_digest, stated_digest

HEADER_BYTES = 2**16


def file_identity(path: Path) -> str:
    """Return a text that is another for any other model file; blocks for a read of 64 KB. Errors: `OSError`.

    It holds the file's SHA-256 where that was computed when the file came, else where its store names it by that; size,
    time of its last change and the digest of its first bytes always.
    """
    status = path.stat()
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(HEADER_BYTES)).hexdigest()
    digest = plain_digest(recorded(path).get("sha256")) or stated_digest(path) or ""
    return f"{digest} {status.st_size} {status.st_mtime_ns} {head}"
