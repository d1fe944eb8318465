"""KV states on disk: what llama.cpp writes of one sequence, sealed so that nothing but the same is ever read back.

A state file is llama.cpp's own, followed by a seal: facts as JSON, their length, a mark. llama.cpp does not look behind
its own part; the seal says what the state belongs to and holds the SHA-256 of everything before it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from slm_local.backends.base import shared_prefix
from slm_local.backends.llamacpp.library import bindings
from slm_local.backends.llamacpp.sequences import KvCache
from slm_local.generation import StateMoved

MARK = b"slm-seal"
FORMAT = 1
LONGEST_FACTS = 4096
READ_BYTES = 2**20

END = struct.Struct("<Q8s")
HEAD = struct.Struct("<III")
"""llama.cpp's own beginning: mark, version, count of the tokens that follow, 4 bytes each."""

Facts = Mapping[str, str]
"""What a state belongs to: model, kv (types of the cache), build (llama.cpp's), template."""

WORDS = {
    "model": "another model or file",
    "kv": "another type of KV cache",
    "build": "another build of llama.cpp",
    "template": "another chat template",
}


class Refused(Exception):
    """A state file is not what is wanted; the message says why, for a person."""


def facts_of(model: str, kv: str, template: str | None) -> Facts:
    """Return what a state of a loaded model belongs to."""
    digest = hashlib.sha256((template or "").encode("utf-8", "surrogatepass")).hexdigest()
    return {"model": model, "kv": kv, "build": _build(), "template": digest}


def _build() -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes as long as the rest of this package

    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:  # built by hand: every build is a file of its own
        return str(Path(str(bindings().__file__)).stat().st_mtime_ns)


def save_state(
    library: Any, context: Any, cache: KvCache, ids: Sequence[int], path: Path, facts: Facts, *, most_bytes: int
) -> StateMoved:
    """Write the state of the longest beginning of `ids` that an idle sequence holds; what it holds more is dropped."""
    cache.bring_back(ids)
    slot = max((each for each in cache.slots if each.handle is None), key=lambda s: shared_prefix(s.cells, ids))
    shared = shared_prefix(slot.cells, ids)
    kept = cache.cut(slot, shared) if shared else 0
    if not kept:
        return StateMoved(tokens=0, note="the KV cache holds nothing of it")
    size = int(library.llama_state_seq_get_size(context, slot.sequence)) + HEAD.size + 4 * kept
    if size > most_bytes:
        return StateMoved(
            tokens=0, note=f"it takes {size / 1e6:,.0f} MB, and there is room for {most_bytes / 1e6:,.0f}"
        )
    tokens = (ctypes.c_int32 * kept)(*slot.cells)
    if not library.llama_state_seq_save_file(context, str(path).encode(), slot.sequence, tokens, kept):
        return StateMoved(tokens=0, note=f"it can't be written to {path}")
    try:
        seal(path, facts, kept)
    except OSError as error:
        return StateMoved(tokens=0, note=f"it can't be written: {error.strerror}")
    return StateMoved(tokens=kept)


def restore_state(library: Any, context: Any, cache: KvCache, path: Path, facts: Facts) -> StateMoved:
    """Read a state into an idle sequence, once it has proved to be what it should be."""
    try:
        ids = sealed_ids(path, facts)
    except (OSError, Refused) as error:
        return StateMoved(tokens=0, note=str(error), is_refused=isinstance(error, Refused))
    cache.bring_back(ids)
    if any(slot.cells[: len(ids)] == ids for slot in cache.slots):
        return StateMoved(tokens=len(ids), note="held already")
    slot = cache.emptied(len(ids))
    if slot is None:
        return StateMoved(tokens=0, note=f"its {len(ids):,} tokens find no room in the context")
    tokens, count = (ctypes.c_int32 * len(ids))(), ctypes.c_size_t()
    read = library.llama_state_seq_load_file(
        context, str(path).encode(), slot.sequence, tokens, len(ids), ctypes.byref(count)
    )
    slot.cells, slot.prompt_tokens = list(tokens), len(ids)
    if not read or slot.cells != ids or not cache.holds(slot):
        cache.cut(slot, 0)
        return StateMoved(tokens=0, note="llama.cpp does not take it", is_refused=True)
    return StateMoved(tokens=len(ids))


def seal(path: Path, facts: Facts, tokens: int) -> None:
    """Append the seal. Errors: `OSError`."""
    with path.open("r+b") as file:
        digest, size = _digest(file, path.stat().st_size), file.tell()
        known = {**facts, "format": FORMAT, "tokens": tokens, "bytes": size, "sha256": digest}
        written = json.dumps(known, sort_keys=True).encode("ascii")
        file.write(written + END.pack(len(written), MARK))


def sealed_ids(path: Path, facts: Facts) -> list[int]:
    """Check a state file and return its tokens. Errors: `Refused`, `OSError`."""
    with path.open("rb") as file:
        known = _seal_of(file, path.stat().st_size)
        for name, words in WORDS.items():
            if known.get(name) != facts[name]:
                raise Refused(f"it is of {words}")
        file.seek(0)
        if _digest(file, int(known["bytes"])) != known["sha256"]:
            raise Refused("it is damaged")
        file.seek(0)
        _, _, count = HEAD.unpack(file.read(HEAD.size))
        if count != known["tokens"]:
            raise Refused("it is damaged")
        return list(struct.unpack(f"<{count}i", file.read(4 * count)))


def _seal_of(file: BinaryIO, size: int) -> dict[str, Any]:
    """Return the facts at a file's end. Errors: `Refused`."""
    try:
        file.seek(size - END.size)
        length, mark = END.unpack(file.read(END.size))
        if mark != MARK or not 0 < length <= LONGEST_FACTS:
            raise Refused("it is no whole state")
        start = size - END.size - length
        file.seek(start)
        known = json.loads(file.read(length))
    except (OSError, struct.error, ValueError) as error:
        raise Refused("it is no whole state") from error
    if not isinstance(known, dict) or known.get("format") != FORMAT or known.get("bytes") != start:
        raise Refused("it is no whole state")
    return known


def _digest(file: BinaryIO, size: int) -> str:
    """Hash so many bytes from where the file is; it is behind them then."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, READ_BYTES))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()
