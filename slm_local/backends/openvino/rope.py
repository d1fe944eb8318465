"""What OpenVINO's GGUF reader leaves out: the factors of RoPE frequencies that Llama 3.1 and later files carry.

Its reader takes only the frequency base (in 2026.4.1 a file with `rope_freqs.weight` or a linear scaling computes
exactly what it would without; shown by tests/test_openvino.py). So such a file is written once as an OpenVINO
model into the cache, by the reader itself and in the file's own quantization, and the table of frequencies in it is
mended.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import Any

from slm_local.backends.openvino.library import IDLE_TOKENIZER, genai, kept_signal_stack, openvino, reported
from slm_local.errors import DoesNotFit, ModelBroken
from slm_local.gguf_header import GgufHeader
from slm_local.gguf_header.reader import RawHeader, read_raw
from slm_local.gguf_header.source import OnDisk
from slm_local.gguf_header.values import Values

FACTORS = "rope_freqs.weight"
DEFAULT_BASE = 10_000.0
DEFAULT_ALIGNMENT = 32
SAME = 1e-4
"""How close, relatively, a table must be to base^(-2i/d) to be taken for the frequencies."""

HOME = "ir"
"""The folder below the compiled model's that holds the mended one."""


def unknown_scaling(raw: RawHeader, header: GgufHeader) -> str | None:
    """Return what about the file's RoPE can't be had by factors of its frequencies; None where nothing."""
    values, arch = Values(raw), header.architecture
    kind = values.word(f"{arch}.rope.scaling.type") or "none"
    if kind not in ("none", "linear"):
        return f"OpenVINO's GGUF reader does not know the RoPE scaling {kind!r} of this file"
    if (values.number(f"{arch}.rope.scaling.attn_factor") or 1.0) != 1.0:
        return "OpenVINO's GGUF reader does not know the attention factor of this file's RoPE"
    if values.whole(f"{arch}.rope.dimension_count") not in (None, header.shape.head_dim):
        return "OpenVINO's GGUF reader does not know RoPE over a part of a head, as in this file"
    return None


def frequency_factors(raw: RawHeader, header: GgufHeader) -> list[float] | None:
    """Return by what to divide each frequency; None where the reader's own are right."""
    values, arch = Values(raw), header.architecture
    assert header.shape.head_dim is not None
    factors = [1.0] * (header.shape.head_dim // 2)
    if values.word(f"{arch}.rope.scaling.type") != "none":
        linear = values.number(f"{arch}.rope.scaling.factor") or values.number(f"{arch}.rope.scale_linear")
        factors = [linear or 1.0] * len(factors)
    tensor = next((each for each in raw.tensors if each.name == FACTORS), None)
    if tensor is not None:
        with raw.path.open("rb") as file:
            file.seek(_data_start(raw, values) + tensor.offset)
            own = struct.unpack(f"<{tensor.elements}f", file.read(4 * tensor.elements))
        factors = [one * other for one, other in zip(factors, own, strict=True)]
    return factors if any(factor != 1.0 for factor in factors) else None


def _data_start(raw: RawHeader, values: Values) -> int:
    """Return where the tensors' data begins: behind the last tensor's entry, aligned."""
    last = raw.tensors[-1]
    entry = struct.pack("<Q", len(last.name.encode())) + last.name.encode()
    behind_keys = max(each.offset for each in raw.entries.values())
    end = raw.buffer.index(entry, behind_keys) + len(entry) + 4 + 8 * len(last.dims) + 4 + 8
    alignment = values.whole("general.alignment") or DEFAULT_ALIGNMENT
    return -(-end // alignment) * alignment


def mended_folder(header: GgufHeader, folder: Path | None) -> Path | None:
    """Return the folder of a mended OpenVINO model of this GGUF file, written now if need be; None: none is needed.

    Blocks for as long as the file takes to be read and compiled once. `folder` is where to keep it; None: the disk has
    no room. Errors: `ModelBroken`, `DoesNotFit`.
    """
    raw = read_raw(Path(header.path), OnDisk())
    factors = frequency_factors(raw, header)
    if factors is None:
        return None
    if folder is None:
        raise DoesNotFit(
            f"{header.path} needs a mended copy for OpenVINO, and the disk has no room for it",
            hint="free some space, or: --backend llamacpp",
        )
    target = folder / HOME
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="ir-", ignore_cleanup_errors=True) as place:
            base = Values(raw).number(f"{header.architecture}.rope.freq_base") or DEFAULT_BASE
            written = _written(Path(header.path), Path(place))
            _mend(written, base, factors)
            with suppress(OSError):  # another process was quicker
                written.rename(target)
    return target


def _written(model: Path, place: Path) -> Path:
    """Have the reader write a GGUF file as an OpenVINO model, which it does beside the file: so beside a link to it."""
    inner = place / "model"
    inner.mkdir()
    linked = inner / "model.gguf"
    _link(model.resolve(), linked)
    module: Any = genai()
    with reported(), kept_signal_stack():
        module.ContinuousBatchingPipeline(
            str(linked),
            module.Tokenizer(str(IDLE_TOKENIZER)),
            module.SchedulerConfig(),
            "CPU",
            enable_save_ov_model=True,
        )
    linked.unlink()
    return inner


def _link(source: Path, target: Path) -> None:
    for way in (target.symlink_to, target.hardlink_to):
        with suppress(OSError, NotImplementedError):
            way(source)
            return
    shutil.copyfile(source, target)


def _mend(folder: Path, base: float, factors: list[float]) -> None:
    """Divide the table of frequencies in an OpenVINO model by the factors."""
    size = 4 * len(factors)
    expected = [base ** (-i / len(factors)) for i in range(len(factors))]
    mended = False
    with (folder / "openvino_model.bin").open("r+b") as weights:
        for place in _constants(folder / "openvino_model.xml", size):
            weights.seek(place)
            found = struct.unpack(f"<{len(factors)}f", weights.read(size))
            if all(abs(one - other) <= SAME * other for one, other in zip(found, expected, strict=True)):
                weights.seek(place)
                weights.write(struct.pack(f"<{len(factors)}f", *(f / by for f, by in zip(found, factors, strict=True))))
                mended = True
    if not mended:
        version = openvino().get_version()
        raise ModelBroken(
            f"this OpenVINO ({version}) keeps RoPE frequencies in a place that is not known, and would leave out their "
            "factors",
            hint="--backend llamacpp",
        )


def _constants(network: Path, size: int) -> list[int]:
    """Return where the network's f32 constants of that many bytes lie in its weights."""
    layers = ET.parse(network).getroot().iterfind("layers/layer[@type='Const']/data[@element_type='f32']")
    return [int(data.attrib["offset"]) for data in layers if int(data.attrib["size"]) == size]
