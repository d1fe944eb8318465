"""Text to tokens and back: by a model's tokenizer IR, or by llama.cpp with a GGUF file's vocabulary only."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from slm_local.backends.llamacpp.library import bindings, quiet_log
from slm_local.backends.llamacpp.vocabulary import Vocabulary
from slm_local.backends.openvino.library import genai, kept_signal_stack
from slm_local.errors import EngineMissing, ModelBroken

BYTE_TOKEN = re.compile(rb"<0x([0-9A-F]{2})>")
"""How SentencePiece vocabularies write a token that is one byte."""

SPACE_MARK = "▁".encode()


class Words(Protocol):
    """One model's vocabulary."""

    size: int
    tokenizer: Any
    """OpenVINO's own, which grammars need; None where there is none."""

    def tokenize(self, text: str, *, parse_control: bool) -> list[int]:
        """Return the token ids of `text`, without BOS; control tokens' texts count only with `parse_control`."""
        ...

    def piece(self, token: int) -> bytes:
        """Return a token's text as bytes."""
        ...

    def end_ids(self) -> frozenset[int]:
        """Return the tokens that end generation; at least one."""
        ...

    def control_texts(self) -> tuple[str, ...]:
        """Return the texts that are found whole in a text and become one token."""
        ...

    @property
    def bos(self) -> int:
        """Return the BOS token's id, or -1."""
        ...

    @property
    def eos(self) -> int:
        """Return the EOS token's id, or -1."""
        ...

    @property
    def pad(self) -> int:
        """Return the padding token's id, or -1."""
        ...

    @property
    def bos_text(self) -> str:
        """Return the BOS token's text, empty where there is none."""
        ...

    @property
    def eos_text(self) -> str:
        """Return the EOS token's text, empty where there is none."""
        ...

    @property
    def pad_text(self) -> str:
        """Return the padding token's text, empty where there is none."""
        ...

    @property
    def adds_bos(self) -> bool:
        """Return whether the vocabulary asks for a BOS before every prompt."""
        ...

    @property
    def own_template(self) -> str | None:
        """Return the chat template that came with the tokenizer, if one did."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


class GgufWords(Vocabulary):
    """The vocabulary of a GGUF file, tokenized by llama.cpp exactly as when llama.cpp runs the model."""

    own_template = tokenizer = None

    def __init__(self, path: Path) -> None:
        """Load the vocabulary only. Errors: `EngineMissing` without llama.cpp, `ModelBroken`."""
        try:
            lib = bindings()
        except EngineMissing as error:
            raise EngineMissing(
                "a GGUF file on OpenVINO is tokenized by llama.cpp, which is not installed", hint=error.hint
            ) from error
        quiet_log(lib)
        lib.llama_backend_init()
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise ModelBroken(f"llama.cpp would not load the vocabulary of {path}", hint=f"slm show {path}")
        super().__init__(lib, self._model)

    def end_ids(self) -> frozenset[int]:
        """Return every token that llama.cpp ends generation at."""
        return frozenset(self.end_tokens())

    @property
    def bos_text(self) -> str:
        """Return the BOS token's text, empty where there is none."""
        return self.text_of(self.bos)

    @property
    def eos_text(self) -> str:
        """Return the EOS token's text, empty where there is none."""
        return self.text_of(self.eos)

    @property
    def pad_text(self) -> str:
        """Return the padding token's text, empty where there is none."""
        return self.text_of(self.pad)

    def close(self) -> None:
        """Free the vocabulary."""
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None


class IrWords:
    """A tokenizer that is an OpenVINO model itself."""

    def __init__(self, folder: Path, *, size: int | None, end_ids: frozenset[int]) -> None:
        """Load the folder's tokenizer and detokenizer; `size` None: as many tokens as it knows.

        `end_ids` are those that the model names; the tokenizer's own EOS is added. Errors: `ModelBroken`.
        """
        try:
            with kept_signal_stack():
                self.tokenizer = genai().Tokenizer(str(folder))
            texts = self.tokenizer.get_vocab()
        except RuntimeError as error:
            raise ModelBroken(
                f"OpenVINO would not load the tokenizer in {folder}", hint="convert the model again: slm convert MODEL"
            ) from error
        self._pieces = _pieces(texts)
        self.size = size if size is not None else max(self._pieces, default=-1) + 1
        self._control = tuple(_split_texts(folder / "openvino_tokenizer.xml"))
        self._protected = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or r"(?!)")
        self._ends = end_ids | {self.tokenizer.get_eos_token_id()}

    def tokenize(self, text: str, *, parse_control: bool) -> list[int]:
        """Return the token ids of `text`, without BOS."""
        parts = [text] if parse_control else self._cut(text)
        return [token for part in parts if part for token in self._encoded(part)]

    def _cut(self, text: str) -> Iterator[str]:
        """Cut a text so that no part holds a control token's text: this tokenizer has no other way to leave it be."""
        while found := self._protected.search(text):
            yield text[: found.start() + 1]
            text = text[found.start() + 1 :]
        yield text

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
        return ids

    def piece(self, token: int) -> bytes:
        """Return a token's text as bytes; empty for an id that pads the vocabulary."""
        return self._pieces.get(token, b"")

    def end_ids(self) -> frozenset[int]:
        """Return the tokens that end generation."""
        return frozenset(token for token in self._ends if token >= 0)

    def control_texts(self) -> tuple[str, ...]:
        """Return what the tokenizer splits off before everything else."""
        return self._control

    @property
    def bos(self) -> int:
        """Return the BOS token's id, or -1."""
        return int(self.tokenizer.get_bos_token_id())

    @property
    def eos(self) -> int:
        """Return the EOS token's id, or -1."""
        return int(self.tokenizer.get_eos_token_id())

    @property
    def pad(self) -> int:
        """Return the padding token's id, or -1."""
        return int(self.tokenizer.get_pad_token_id())

    @property
    def bos_text(self) -> str:
        """Return the BOS token's text, empty where there is none."""
        return str(self.tokenizer.get_bos_token())

    @property
    def eos_text(self) -> str:
        """Return the EOS token's text, empty where there is none."""
        return str(self.tokenizer.get_eos_token())

    @property
    def pad_text(self) -> str:
        """Return the padding token's text, empty where there is none."""
        return str(self.tokenizer.get_pad_token())

    @property
    def adds_bos(self) -> bool:
        """Return whether the tokenizer, left to itself, puts a BOS first."""
        ids = self.tokenizer.encode("a", add_special_tokens=True).input_ids.data[0].tolist()
        return bool(ids) and ids[0] == self.tokenizer.get_bos_token_id()

    @property
    def own_template(self) -> str | None:
        """Return the chat template that came with the tokenizer."""
        return self.tokenizer.get_original_chat_template() or None

    def close(self) -> None:
        """Free the tokenizer."""
        del self.tokenizer


def _pieces(texts: dict[bytes, int]) -> dict[int, bytes]:
    """Return the bytes of each token; those of SentencePiece are written with marks."""
    if b"<0x0A>" not in texts:
        return {token: text for text, token in texts.items()}
    plain = {}
    for text, token in texts.items():
        byte = BYTE_TOKEN.fullmatch(text)
        plain[token] = bytes.fromhex(byte[1].decode()) if byte else text.replace(SPACE_MARK, b" ")
    return plain


def _split_texts(model: Path) -> Iterator[str]:
    """Read the texts that a tokenizer IR splits off first: alternatives of a pattern in its weights file."""
    network = ET.parse(model).getroot()
    layers: dict[str, Any] = {layer.attrib["id"]: layer for layer in network.iterfind("layers/layer")}
    weights = model.with_suffix(".bin").read_bytes()
    for edge in network.iterfind("edges/edge"):
        source, target = layers[edge.attrib["from-layer"]], layers[edge.attrib["to-layer"]]
        if target.attrib["type"] != "SpecialTokensSplit" or source.attrib["type"] != "Const":
            continue
        place = source.find("data").attrib
        begin, size = int(place["offset"]), int(place["size"])
        yield from _alternatives(weights[begin : begin + size].decode("utf-8"))


def _alternatives(pattern: str) -> Iterator[str]:
    """Return the texts of `(one\\|a)|(?:\\s*)(other)`: `|` divides, a backslash quotes, brackets are its own."""
    text = ""
    for part in re.findall(r"\\.|.", pattern.replace(r"(?:\s*)", ""), re.S):
        if part in "|()":
            if text:
                yield text
            text = ""
        else:
            text += part[-1]
    if text:
        yield text
