"""Read the header of a GGUF file within bounds: keys, values where they stand, tensors and their places.

Nothing is mapped, weights are never read, big arrays become no Python objects. Every length is checked against the
file and a limit before it is used. What the values mean, `facts` knows.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from slm_local.errors import ModelBroken
from slm_local.gguf_header.faults import BIG_ENDIAN, NEWER_ENGINE, OTHER_GGUF, broken, not_gguf, shown
from slm_local.gguf_header.formats import ARRAY, STRING, TENSOR_TYPES, TENSOR_TYPES_END, VALUE_FORMATS, TensorType
from slm_local.gguf_header.source import Bytes, Files

MAX_HEADER_BYTES = 48 << 20
"""Three times the largest header seen (a vocabulary of 262,144 tokens: 15.8 MB)."""
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_ITEMS = 64 << 20
MAX_STRINGS = 2 << 20
"""In all arrays together: a vocabulary of 262,144 tokens with 515,000 merges has 0.8 million."""
MAX_TOKENS = 1 << 19
"""Twice the largest vocabulary seen; bounds the memory that comparing tokens takes."""
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = 0xFFFF
MAX_NAME_BYTES = 63
"""GGML_MAX_NAME less its final zero."""
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
CHUNK_BYTES = 1 << 20

LONG_TEXTS = frozenset({b"tokenizer.chat_template", b"tokenizer.huggingface.json"})
"""Strings bounded by the header's limit only."""

TOKENS = b"tokenizer.ggml.tokens"

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


class Entry(NamedTuple):
    """Where a key's value stands."""

    type: int
    offset: int
    """Of the first byte of the value, its length and count not included."""
    size: int
    """Bytes of a string, items of an array, else 1."""
    item: int = -1
    """Type of an array's items."""


class Tensor(NamedTuple):
    """One tensor's shape, packing and place."""

    name: str
    dims: tuple[int, ...]
    type: TensorType
    elements: int
    size_bytes: int
    offset: int
    """From the beginning of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawHeader:
    """A header whose every length, type and place is sound; its values are still bytes."""

    path: Path
    size_bytes: int
    """Of the whole file."""
    version: int
    entries: dict[bytes, Entry]
    tensors: tuple[Tensor, ...]
    buffer: bytearray
    token_starts: array[int]
    """Where each token of the vocabulary stands, its length first."""


def read_raw(path: Path, files: Files) -> RawHeader:
    """Read and check one file's header; `ModelBroken` names what is wrong."""
    with files.open(path) as file:
        return _read(_Cursor(path, file))


class _Cursor:
    """The bytes from a file's beginning that were read so far, and a place in them."""

    def __init__(self, path: Path, file: Bytes) -> None:
        self.path = path
        self.size = file.size_bytes
        self.buffer = bytearray()
        self.place = 0
        self.strings_left = MAX_STRINGS
        self._file = file

    def broken(self, cause: str, hint: str | None = None) -> ModelBroken:
        return broken(self.path, cause, hint)

    def need(self, end: int) -> None:
        """Read on until `end` bytes are there."""
        while len(self.buffer) < end:
            if end > self.size:
                raise self.broken(f"is truncated: it ends inside its header, after {self.size:,} bytes")
            if end > MAX_HEADER_BYTES:
                raise self.broken(f"has a header of more than {MAX_HEADER_BYTES:,} bytes; it is damaged")
            chunk = self._file.read(max(CHUNK_BYTES, end - len(self.buffer)))
            if not chunk:
                raise self.broken("became shorter while it was read")
            self.buffer += chunk

    def skip(self, size: int) -> int:
        """Step over so many bytes and return where they begin."""
        start = self.place
        self.need(start + size)
        self.place = start + size
        return start

    def u32(self) -> int:
        return int(U32.unpack_from(self.buffer, self.skip(4))[0])

    def u64(self) -> int:
        return int(U64.unpack_from(self.buffer, self.skip(8))[0])

    def name(self, what: str, limit: int) -> bytes:
        size = self.u64()
        if size > limit:
            raise self.broken(f"has {what} whose name would be {size:,} bytes long; it is damaged")
        start = self.skip(size)
        return bytes(self.buffer[start : start + size])


def _read(cursor: _Cursor) -> RawHeader:
    version = _version(cursor)
    tensor_count, key_count = cursor.u64(), cursor.u64()
    if tensor_count > MAX_TENSORS:
        raise cursor.broken(f"claims {tensor_count:,} tensors; it is damaged")
    if key_count > MAX_KEYS:
        raise cursor.broken(f"claims {key_count:,} keys; it is damaged")
    entries: dict[bytes, Entry] = {}
    token_starts = array("I")
    for number in range(key_count):
        key = cursor.name(f"a key ({number + 1} of {key_count})", MAX_KEY_BYTES)
        if not key:
            raise cursor.broken(f"has a key without a name ({number + 1} of {key_count})")
        if key in entries:
            raise cursor.broken(f"has the key {shown(key)} twice")
        entries[key] = _entry(cursor, key, token_starts if key == TOKENS else None)
    alignment = _alignment(cursor, entries.get(b"general.alignment"))
    tensors = tuple(_tensors(cursor, tensor_count))
    if tensors:
        _check_places(cursor, tensors, alignment)
    return RawHeader(
        path=cursor.path,
        size_bytes=cursor.size,
        version=version,
        entries=entries,
        tensors=tensors,
        buffer=cursor.buffer,
        token_starts=token_starts,
    )


def _version(cursor: _Cursor) -> int:
    if cursor.size == 0:
        raise cursor.broken("is empty")
    cursor.need(min(cursor.size, 4096))
    if not cursor.buffer.startswith(b"GGUF"):
        raise not_gguf(cursor.path, bytes(cursor.buffer[:4096]))
    cursor.skip(4)
    version = cursor.u32()
    if version & 0xFFFF == 0 and version:
        raise cursor.broken(BIG_ENDIAN, OTHER_GGUF)
    if version in (0, 1):
        raise cursor.broken(f"has GGUF version {version}, which no engine reads any more", OTHER_GGUF)
    if version > 3:
        raise cursor.broken(f"has GGUF version {version}; the engine reads versions 2 and 3", NEWER_ENGINE)
    return version


def _entry(cursor: _Cursor, key: bytes, starts: array[int] | None) -> Entry:
    """Read where a value stands and step over it, noting in `starts` where its strings stand if it is an array."""
    kind = cursor.u32()
    if kind in VALUE_FORMATS:
        return Entry(kind, cursor.skip(struct.calcsize(VALUE_FORMATS[kind])), 1)
    if kind == STRING:
        size = cursor.u64()
        if size > MAX_STRING_BYTES and key not in LONG_TEXTS:
            raise cursor.broken(f"has a text of {size:,} bytes under {shown(key)}; it is damaged")
        return Entry(kind, cursor.skip(size), size)
    if kind != ARRAY:
        raise cursor.broken(f"has a value of unknown type {kind} under {shown(key)}; it is damaged")
    item, count = cursor.u32(), cursor.u64()
    if item == ARRAY:
        raise cursor.broken(f"has an array of arrays under {shown(key)}, which no engine reads")
    if item != STRING and item not in VALUE_FORMATS:
        raise cursor.broken(f"has an array of unknown type {item} under {shown(key)}; it is damaged")
    if count > MAX_ARRAY_ITEMS:
        raise cursor.broken(f"has an array of {count:,} items under {shown(key)}; it is damaged")
    if item == STRING:
        entry = Entry(kind, cursor.place, count, item)
        _walk_strings(cursor, key, count, starts)
        return entry
    return Entry(kind, cursor.skip(count * struct.calcsize(VALUE_FORMATS[item])), count, item)


def _walk_strings(cursor: _Cursor, key: bytes, count: int, starts: array[int] | None) -> None:
    """Step over so many strings; the one loop that runs once per token and merge of the vocabulary."""
    cursor.strings_left -= count
    if cursor.strings_left < 0 or (key == TOKENS and count > MAX_TOKENS):
        raise cursor.broken(f"has an array of {count:,} texts under {shown(key)}; it is damaged")
    buffer, length_at = cursor.buffer, U64.unpack_from
    place, have = cursor.place, len(cursor.buffer)
    for _ in range(count):
        if place + 8 > have:
            cursor.need(place + 8)
            have = len(buffer)
        end = place + 8 + length_at(buffer, place)[0]
        if end > have:  # every text longer than a chunk comes here, for at most a chunk is read ahead
            if end - place > MAX_STRING_BYTES:
                raise cursor.broken(f"has a text of {end - place - 8:,} bytes under {shown(key)}; it is damaged")
            cursor.need(end)
            have = len(buffer)
        if starts is not None:
            starts.append(place)
        place = end
    cursor.place = place


def _alignment(cursor: _Cursor, entry: Entry | None) -> int:
    if entry is None:
        return 32
    if entry.type != 4:
        raise cursor.broken("has a general.alignment that is not of type u32; it is damaged")
    alignment = int(U32.unpack_from(cursor.buffer, entry.offset)[0])
    if alignment < 8 or alignment > MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.broken(f"has an alignment of {alignment:,}, which is not a power of two from 8 on")
    return alignment


def _tensors(cursor: _Cursor, count: int) -> Iterator[Tensor]:
    seen: set[bytes] = set()
    for number in range(count):
        raw = cursor.name(f"a tensor ({number + 1} of {count})", MAX_NAME_BYTES)
        if raw in seen:
            raise cursor.broken(f"has the tensor {shown(raw)} twice")
        seen.add(raw)
        name = shown(raw)
        dimensions = cursor.u32()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise cursor.broken(f"has {dimensions:,} dimensions in the tensor {name}; 1 to 4 are allowed")
        dims = tuple(cursor.u64() for _ in range(dimensions))
        packing = _tensor_type(cursor, name, cursor.u32())
        yield _tensor(cursor, name, dims, packing, cursor.u64())


def _tensor_type(cursor: _Cursor, name: str, number: int) -> TensorType:
    if number in TENSOR_TYPES:
        return TENSOR_TYPES[number]
    if TENSOR_TYPES_END <= number < 2 * TENSOR_TYPES_END:
        raise cursor.broken(f"has the tensor {name} in type {number}, which needs a newer engine", NEWER_ENGINE)
    raise cursor.broken(f"has the tensor {name} in type {number}, which does not exist or was withdrawn")


def _tensor(cursor: _Cursor, name: str, dims: tuple[int, ...], packing: TensorType, offset: int) -> Tensor:
    elements = 1
    for dim in dims:
        elements *= dim
    if elements == 0:
        raise cursor.broken(f"has a dimension of 0 in the tensor {name}")
    if elements >= 1 << 63:
        raise cursor.broken(f"has impossible dimensions in the tensor {name}: {' x '.join(map(str, dims))}")
    if dims[0] % packing.block_elements:
        raise cursor.broken(
            f"has rows of {dims[0]:,} in the tensor {name}, which {packing.name} can't pack: "
            f"not a multiple of {packing.block_elements}"
        )
    size = elements // packing.block_elements * packing.block_bytes
    return Tensor(name, dims, packing, elements, size, offset)


def _check_places(cursor: _Cursor, tensors: tuple[Tensor, ...], alignment: int) -> None:
    """Check that the tensors stand one behind the other, as llama.cpp wants them, and inside the file."""
    data = -(-cursor.place // alignment) * alignment
    expected = 0
    for tensor in tensors:
        if tensor.offset % alignment:
            raise cursor.broken(f"has the tensor {tensor.name} at {tensor.offset:,}, no multiple of {alignment}")
        if tensor.offset != expected and data + tensor.offset >= cursor.size:
            raise cursor.broken(f"has the tensor {tensor.name} outside the file, at {data + tensor.offset:,}")
        if tensor.offset < expected:
            raise cursor.broken(f"has the tensor {tensor.name} overlapping the one before it")
        if tensor.offset > expected:
            raise cursor.broken(f"has a gap of {tensor.offset - expected:,} bytes before the tensor {tensor.name}")
        needed = data + tensor.offset + tensor.size_bytes
        expected += -(-tensor.size_bytes // alignment) * alignment
    if needed > cursor.size:
        raise cursor.broken(
            f"is truncated: {cursor.size:,} of {needed:,} bytes are there, {needed - cursor.size:,} missing"
        )
