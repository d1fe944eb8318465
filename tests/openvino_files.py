"""Model files for the tests of the OpenVINO backend: GGUF files with RoPE factors, OpenVINO folders."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

from slm_local.backends.openvino.library import IDLE_TOKENIZER
from slm_local.backends.openvino.rope import _data_start, _written
from slm_local.gguf_header.reader import read_raw
from slm_local.gguf_header.source import OnDisk
from slm_local.gguf_header.values import Values
from tests.gguf_files import F32, plain, scalar, text

CHECKPOINT = Path(__file__).parent / "data" / "tiny-reasoner"


def with_rope(
    source: Path, target: Path, *, factors: Sequence[float] = (), linear: float | None = None, kind: str | None = None
) -> Path:
    """Write a copy of a GGUF file that has RoPE factors as a tensor, a linear scaling, or a named kind of scaling."""
    raw, old = read_raw(source, OnDisk()), source.read_bytes()
    data = old[_data_start(raw, Values(raw)) :]
    data += bytes(-len(data) % 32)
    last = raw.tensors[-1]
    entry = plain(last.name)
    after_keys = max(each.offset for each in raw.entries.values())
    end = old.index(entry, after_keys) + len(entry) + 4 + 8 * len(last.dims) + 12
    keys = [plain("llama.rope.scaling.factor") + scalar(F32, linear)] if linear else []
    keys += [plain("llama.rope.scaling.type") + text(kind)] if kind else []
    tensor = b""
    if factors:
        tensor = plain("rope_freqs.weight") + struct.pack("<IQIQ", 1, len(factors), 0, len(data))
        data += struct.pack(f"<{len(factors)}f", *factors)
    counts = struct.pack("<IQQ", 3, len(raw.tensors) + bool(factors), len(raw.entries) + len(keys))
    head = old[:4] + counts + b"".join(keys) + old[24:end] + tensor
    target.write_bytes(head + bytes(-len(head) % 32) + data)
    return target


def openvino_folder(gguf: Path, place: Path) -> Path:
    """Write the embedded model as an OpenVINO folder, as an exporter leaves one."""
    place.mkdir(parents=True, exist_ok=True)
    folder = _written(gguf, place)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder / name)
    for file in IDLE_TOKENIZER.iterdir():
        shutil.copy(file, folder / file.name)
    return folder
