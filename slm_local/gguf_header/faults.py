"""Say what is wrong with a file that should be a GGUF: one line each, with what to type."""

from __future__ import annotations

from pathlib import Path

from slm_local.errors import ModelBroken
from slm_local.paths import paths
from slm_local.sanitize import one_line, shell_word

NEWER_ENGINE = "pip install -U slm-local llama-cpp-python"

OTHER_GGUF = "slm ls --all"
"""Names the models whose GGUF files are known."""

BIG_ENDIAN = "is a GGUF file for big-endian machines"

LEGACY_GGML = "is in the ggml format from before GGUF (2023), which no engine reads any more"

PICKLE = "is a PyTorch checkpoint, not a GGUF file"

BEGINNINGS: tuple[tuple[bytes, str, str | None], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer: the model itself was never fetched", "git lfs pull"),
    (b"FUGG", BIG_ENDIAN, OTHER_GGUF),
    (b"lmgg", LEGACY_GGML, OTHER_GGUF),
    (b"fmgg", LEGACY_GGML, OTHER_GGUF),
    (b"tjgg", LEGACY_GGML, OTHER_GGUF),
    (b"algg", LEGACY_GGML, OTHER_GGUF),
    (b"\x80\x02", PICKLE, OTHER_GGUF),
    (b"\x80\x03", PICKLE, OTHER_GGUF),
    (b"\x80\x04", PICKLE, OTHER_GGUF),
    (b"\x80\x05", PICKLE, OTHER_GGUF),
    (b"\x1f\x8b", "is a gzip archive: unpack it first", "gunzip {}"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive: unpack it first", "unzstd {}"),
    (b"\xfd7zXZ", "is an xz archive: unpack it first", "unxz {}"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first", "7z x {}"),
    (b"\0" * 64, "begins with zeros: a download that was never finished", None),
)
"""How files begin that are taken for models: the bytes, what to say, what to type (with the path for `{}`; None:
fetch it again)."""


def broken(path: Path, cause: str, hint: str | None = None) -> ModelBroken:
    """Make the error that names file and cause.

    A file in the models folder is to be verified, which says how it is mended; elsewhere, without a hint of its own, it
    is its owner who has to fetch it again.
    """
    if hint in (None, OTHER_GGUF) and path.absolute().is_relative_to(paths().models_dir.absolute()):
        hint = f"slm verify {quoted(path)}"
    return ModelBroken(f"{path} {cause}", hint=hint or f"slm show {quoted(path)}   once the file was fetched again")


def quoted(path: Path) -> str:
    """Return a path as it can be typed in a shell."""
    return shell_word(str(path))


def shown(raw: bytes | str) -> str:
    """Return a name from the file as a message may hold it."""
    text = raw if isinstance(raw, str) else raw[:256].decode("utf-8", "replace")
    return one_line(text, 80)


def not_gguf(path: Path, beginning: bytes) -> ModelBroken:
    """Make the error for a file that does not begin as a GGUF does, by what it looks like instead."""
    for start, cause, hint in BEGINNINGS:
        if beginning.startswith(start):
            return broken(path, cause, hint and hint.replace("{}", quoted(path)))
    if beginning.startswith(b"PK\x03\x04"):
        if b"data.pkl" in beginning:
            return broken(path, PICKLE, OTHER_GGUF)
        return broken(path, "is a zip archive: unpack it first", f"unzip {quoted(path)}")
    if beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 1 << 32:
        return broken(path, "is a safetensors checkpoint, not a GGUF file", OTHER_GGUF)
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        return _markup(path, text[:512].lower())
    if text and all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in text[:64]):
        return broken(path, f"is a text, not a model; it begins: {shown(text.splitlines()[0])}")
    return broken(path, f"is not a GGUF file: it begins with the bytes {beginning[:8].hex(' ')}", OTHER_GGUF)


def _markup(path: Path, text: bytes) -> ModelBroken:
    if b"<net" in text:
        return broken(
            path, "is part of an OpenVINO model, which is named by its folder", f"slm show {quoted(path.parent)}"
        )
    return broken(
        path,
        "holds a web page, not a model",
        f"slm show {quoted(path)}   once the file itself was fetched, from an address with /resolve/, not /blob/",
    )
