"""What there is to load: a GGUF file or an OpenVINO folder, checked, with its vocabulary and its facts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slm_local.backends.openvino.support import check_folder, unreadable_file
from slm_local.backends.openvino.vocabulary import GgufWords, IrWords, Words
from slm_local.errors import ModelBroken
from slm_local.gguf_header import GgufHeader, checked_header
from slm_local.paths import paths
from slm_local.registry.folders import chat_template, settings_in

TOKENIZER = "tokenizer"
"""A folder beside a GGUF file that may hold its tokenizer as OpenVINO models, as the embedded models' does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model whose files are sound."""

    words: Words
    header: GgufHeader | None
    """Of a GGUF file; None for an OpenVINO folder."""
    architecture: str
    name: str
    trained_context_tokens: int
    """0 where the files do not say."""
    chat_template: str | None
    adds_bos: bool


def open_source(path: Path) -> Source:
    """Check a model's files and load its vocabulary.

    Errors: `ModelBroken`, `EngineMissing` where a GGUF file needs llama.cpp for its vocabulary.
    """
    if path.is_dir():
        return _from_folder(path)
    header = checked_header(path, paths().cache)
    reason = unreadable_file(header)
    if reason is not None:
        raise ModelBroken(f"{path}: {reason}", hint="--backend llamacpp")
    return _from_gguf(path, header)


def _from_gguf(path: Path, header: GgufHeader) -> Source:
    words = _gguf_words(path, header)
    return Source(
        words=words,
        header=header,
        architecture=header.architecture,
        name=header.name or "",
        trained_context_tokens=header.context_tokens or 0,
        chat_template=header.chat_template,
        adds_bos=words.adds_bos if header.adds_bos is None else header.adds_bos,
    )


def _gguf_words(path: Path, header: GgufHeader) -> Words:
    """Take the tokenizer beside the file if it is this model's, else the file's own vocabulary."""
    beside = path.resolve().parent / TOKENIZER
    if (beside / "openvino_tokenizer.xml").is_file():
        ends = frozenset() if header.eos_id is None else frozenset({header.eos_id})
        words = IrWords(beside, size=header.shape.vocabulary, end_ids=ends)
        if (words.bos_text, words.eos_text) == (header.bos_text, header.eos_text):
            return words
    return GgufWords(path)


def _from_folder(folder: Path) -> Source:
    check_folder(folder)
    config, generation = settings_in(folder / "config.json"), settings_in(folder / "generation_config.json")
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    words = IrWords(folder, size=config.get("vocab_size"), end_ids=frozenset(_whole_numbers(ends)))
    return Source(
        words=words,
        header=None,
        architecture=str(config.get("model_type", "")),
        name=Path(str(config.get("_name_or_path") or folder)).name,
        trained_context_tokens=next(iter(_whole_numbers(config.get("max_position_embeddings"))), 0),
        chat_template=chat_template(folder) or words.own_template,
        adds_bos=words.adds_bos,
    )


def _whole_numbers(value: object) -> list[int]:
    """Return one number or several as a list; what is none is left out."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, int) and not isinstance(each, bool)]
