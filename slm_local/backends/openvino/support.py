"""Which models OpenVINO can run: what its GGUF reader understands, and whether an IR folder is whole.

Looks at headers and sizes only; imports no runtime, so that plans can be made from it.
"""

from __future__ import annotations

from pathlib import Path
from xml.parsers import expat

from slm_local.backends.openvino.rope import unknown_scaling
from slm_local.errors import ModelBroken
from slm_local.gguf_header import GgufHeader
from slm_local.gguf_header.reader import read_raw
from slm_local.gguf_header.source import OnDisk

READABLE_ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})
"""Source: openvino.genai, src/cpp/src/gguf_utils/gguf_modeling.cpp."""

READABLE_TENSORS = frozenset({"F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"})
"""Source: its documentation of GGUF support, and gguf_quants.cpp."""

READABLE_QUANTS = frozenset({"F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q4_K_M", "Q6_K"})
"""File types made of such tensors alone. Q4_K_S is none: llama.cpp writes some of its tensors as Q5_K. A small model's
Q4_K_M may be none either (rows that 256 does not divide become Q5_0); its tensors say so when it is here."""

IR_FILES = ("openvino_model", "openvino_tokenizer", "openvino_detokenizer")
CONVERT_AGAIN = "convert or fetch it again: slm convert MODEL"


def unreadable_kind(architecture: str | None, quant: str) -> str | None:
    """Return why OpenVINO can't read such a GGUF file, from what is known before it is here; None where it can."""
    if architecture is not None and architecture not in READABLE_ARCHITECTURES:
        return f"OpenVINO reads GGUF files of llama, qwen2 and qwen3 models, and this is {architecture}"
    if quant.upper() not in READABLE_QUANTS:
        return f"OpenVINO reads GGUF files in {', '.join(sorted(READABLE_QUANTS))}, and this is {quant}"
    return None


def unreadable_file(header: GgufHeader) -> str | None:
    """Return why OpenVINO can't read this GGUF file, from its own tensors; None where it can. Errors: `ModelBroken`."""
    if header.architecture not in READABLE_ARCHITECTURES:
        return unreadable_kind(header.architecture, header.quant)
    if header.split_count > 1:
        return "OpenVINO reads GGUF files that are whole, and this one is split"
    raw = read_raw(Path(header.path), OnDisk())
    kinds = {tensor.type.name for tensor in raw.tensors}
    if not kinds <= READABLE_TENSORS:
        return f"OpenVINO's GGUF reader does not know tensors in {', '.join(sorted(kinds - READABLE_TENSORS))}"
    return unknown_scaling(raw, header)


def check_folder(folder: Path) -> None:
    """Raise `ModelBroken` where an IR folder lacks a file or one is cut, before native code sees it."""
    for name in IR_FILES:
        network, weights = folder / f"{name}.xml", folder / f"{name}.bin"
        for file in (network, weights):
            if not file.is_file():
                what = "its tokenizer" if name != "openvino_model" else "the model"
                raise ModelBroken(f"{folder} has no {file.name}: {what} is missing", hint=CONVERT_AGAIN)
        needed = _needed_bytes(network)
        found = weights.stat().st_size
        if found < needed:
            raise ModelBroken(
                f"{weights} is truncated: it has {found:,} bytes and {network.name} needs {needed:,}",
                hint=CONVERT_AGAIN,
            )


def _needed_bytes(network: Path) -> int:
    """Return up to where a network's description reaches into its weights."""
    needed = 0

    def look(tag: str, attributes: dict[str, str]) -> None:
        nonlocal needed
        if tag == "data" and "offset" in attributes and "size" in attributes:
            needed = max(needed, int(attributes["offset"]) + int(attributes["size"]))

    parser = expat.ParserCreate()
    parser.StartElementHandler = look
    try:
        with network.open("rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, ValueError) as error:
        raise ModelBroken(f"{network} is damaged or cut: {error}", hint=CONVERT_AGAIN) from error
    return needed
