"""Values of a raw header by key, each in the type that llama.cpp insists on; decoded only when asked for."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from slm_local.errors import ModelBroken
from slm_local.gguf_header.faults import broken, shown
from slm_local.gguf_header.formats import ARRAY, STRING, VALUE_FORMATS, VALUE_NAMES
from slm_local.gguf_header.reader import U64, Entry, RawHeader

MAX_TEMPLATE_BYTES = 4 << 20
"""The longest template seen has 0.1 MB."""

DESCRIPTIVE_BYTES = 1024
"""So much of a name or a licence is read."""

U16, U32, I32, F32, BOOL = 2, 4, 5, 6, 7


class Values:
    """Typed look-ups in a raw header; every one gives None for a key that is not there.

    `ModelBroken` where the type is another than llama.cpp reads.
    """

    def __init__(self, raw: RawHeader) -> None:
        self.raw = raw

    def __contains__(self, key: str) -> bool:
        return key.encode() in self.raw.entries

    def entry(self, key: str) -> Entry | None:
        """Return where a value stands."""
        return self.raw.entries.get(key.encode())

    def descriptive(self, key: str) -> str | None:
        """Return the beginning of a text that only describes; bytes that are not UTF-8 become U+FFFD."""
        entry = self._typed(key, STRING)
        if entry is None:
            return None
        return self._bytes(entry.offset, min(entry.size, DESCRIPTIVE_BYTES)).decode("utf-8", "replace") or None

    def word(self, key: str) -> str | None:
        """Return a short text that means something, whole or not at all."""
        entry = self._typed(key, STRING)
        if entry is None:
            return None
        if entry.size > DESCRIPTIVE_BYTES:
            raise broken(self.raw.path, f"has {entry.size:,} bytes under {shown(key)}; it is damaged")
        return self._bytes(entry.offset, entry.size).decode("utf-8", "replace")

    def template(self, key: str) -> str | None:
        """Return a chat template; None for an empty one."""
        entry = self._typed(key, STRING)
        if entry is None or entry.size == 0:
            return None
        if entry.size > MAX_TEMPLATE_BYTES:
            raise broken(self.raw.path, f"has a chat template of {entry.size:,} bytes; it is damaged")
        try:
            return self._bytes(entry.offset, entry.size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise broken(self.raw.path, "has a chat template that is not UTF-8; it is damaged") from error

    def whole(self, key: str, kind: int = U32) -> int | None:
        """Return a whole number of one type."""
        entry = self._typed(key, kind)
        return None if entry is None else int(self._scalar(entry))

    def flag(self, key: str) -> bool | None:
        """Return a truth value."""
        entry = self._typed(key, BOOL)
        return None if entry is None else bool(self._scalar(entry))

    def number(self, key: str) -> float | None:
        """Return a number of any type; None for one that is not finite."""
        entry = self.entry(key)
        if entry is None:
            return None
        if entry.type not in VALUE_FORMATS:
            raise self._wrong_type(key, entry, "a number")
        value = self._scalar(entry)
        return value if math.isfinite(value) else None

    def per_layer(self, key: str, layers: int) -> tuple[int, ...] | None:
        """Return a number for every layer, from an array of just as many or from one number for all."""
        entry = self.entry(key)
        if entry is None:
            return None
        if entry.type != ARRAY:
            value = self.whole(key)
            return None if value is None else (value,) * layers
        if entry.item not in (U32, I32, BOOL):
            raise self._wrong_type(key, entry, "numbers")
        if entry.size != layers:
            raise broken(self.raw.path, f"has {entry.size:,} numbers under {shown(key)} for {layers:,} layers")
        values = struct.unpack_from(f"<{layers}{VALUE_FORMATS[entry.item]}", self.raw.buffer, entry.offset)
        if min(values) < 0:
            raise broken(self.raw.path, f"has a negative number under {shown(key)}; it is damaged")
        return tuple(int(value) for value in values)

    def array_size(self, key: str, *items: int) -> int | None:
        """Return how long an array is whose items have one of these types."""
        entry = self.entry(key)
        if entry is None:
            return None
        if entry.type != ARRAY or entry.item not in items:
            raise self._wrong_type(key, entry, f"an array of {' or '.join(VALUE_NAMES[item] for item in items)}")
        return entry.size

    def token(self, index: int | None) -> str:
        """Return a token's text by its id; empty where there is none."""
        starts = self.raw.token_starts
        if index is None or index >= len(starts):
            return ""
        (size,) = U64.unpack_from(self.raw.buffer, starts[index])
        return self._bytes(starts[index] + 8, min(size, DESCRIPTIVE_BYTES)).decode("utf-8", "replace")

    def tokens(self) -> Iterator[bytes]:
        """Give the bytes of every token, one after the other."""
        buffer, length_at = self.raw.buffer, U64.unpack_from
        for start in self.raw.token_starts:
            yield bytes(buffer[start + 8 : start + 8 + length_at(buffer, start)[0]])

    def _typed(self, key: str, kind: int) -> Entry | None:
        entry = self.entry(key)
        if entry is not None and entry.type != kind:
            raise self._wrong_type(key, entry, VALUE_NAMES[kind])
        return entry

    def _wrong_type(self, key: str, entry: Entry, wanted: str) -> ModelBroken:
        is_ = f"array of {VALUE_NAMES[entry.item]}" if entry.type == ARRAY else VALUE_NAMES[entry.type]
        return broken(self.raw.path, f"has {shown(key)} as {is_}, not {wanted}; it is damaged")

    def _scalar(self, entry: Entry) -> float:
        value: float = struct.unpack_from("<" + VALUE_FORMATS[entry.type], self.raw.buffer, entry.offset)[0]
        return value

    def _bytes(self, offset: int, size: int) -> bytes:
        return bytes(self.raw.buffer[offset : offset + size])
