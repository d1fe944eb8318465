"""With real vocabularies: a prompt's control tokens are the template's own, and users' text comes back exactly.

Vocabularies: the embedded model's, SmolLM2's, and two of llama.cpp's vocabulary-only files, where the environment
variable SLM_LLAMA_CPP_SOURCE names a llama.cpp folder, or the source package of llama-cpp-python (folder or .tar.gz).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_local.backends.llamacpp.library import bindings
from slm_local.backends.llamacpp.vocabulary import Vocabulary
from slm_local.generation import Message, PromptRun
from slm_local.reasoning import derive_tags
from slm_local.template import ChatTemplate

SOURCE_VARIABLE = "SLM_LLAMA_CPP_SOURCE"
TEMPLATES = Path(__file__).parent / "data" / "templates"
NEUTRAL = "Hello there"
FILES = {"llama-bpe": "meta-llama-Llama-3.1-8B-Instruct", "qwen2": "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"}
"""Vocabulary-only files, and a template for each."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A vocabulary with a template, and the texts and ids of its control and user-defined tokens."""

    vocabulary: Vocabulary
    template: ChatTemplate
    special: dict[int, str] = field(repr=False)

    def runs(self, content: str) -> tuple[PromptRun, ...]:
        messages = [
            Message(role="user", content=content),
            Message(role="assistant", content="An answer."),
            Message(role="user", content=content),
        ]
        return self.template.render(messages, adds_bos=self.vocabulary.adds_bos)

    def ids(self, runs: tuple[PromptRun, ...]) -> list[int]:
        return [token for run in runs for token in self.vocabulary.tokenize(run.text, parse_control=run.allows_control)]

    def specials(self, runs: tuple[PromptRun, ...]) -> list[str]:
        return [self.special[token] for token in self.ids(runs) if token in self.special]

    def text(self, runs: tuple[PromptRun, ...]) -> str:
        return b"".join(map(self.vocabulary.piece, self.ids(runs))).decode()


def vocabulary_file(name: str, folder: Path) -> Path:
    """Find a vocabulary-only file of llama.cpp's source; skip, with the reason, where there is none."""
    place = os.environ.get(SOURCE_VARIABLE)
    if not place:
        pytest.skip(f"{SOURCE_VARIABLE} names no source of llama.cpp (pip download --no-binary :all: llama-cpp-python)")
    file = f"models/ggml-vocab-{name}.gguf"
    if place.endswith(".tar.gz"):
        with tarfile.open(place) as archive:
            member = next(entry for entry in archive if entry.name.endswith(f"vendor/llama.cpp/{file}"))
            archive.extract(member, folder, filter="data")
            return folder / member.name
    found = [path for path in (Path(place, file), Path(place, "vendor", "llama.cpp", file)) if path.is_file()]
    assert found, f"{SOURCE_VARIABLE}={place} holds no {file}"
    return found[0]


def loaded(library: Any, path: Path) -> Any:
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp does not load {path}"
    return model


def tokenizer_of(library: Any, model: Any, source: str) -> Tokenizer:
    vocabulary = Vocabulary(library, model)
    wanted = library.LLAMA_TOKEN_ATTR_CONTROL | library.LLAMA_TOKEN_ATTR_USER_DEFINED | library.LLAMA_TOKEN_ATTR_UNKNOWN
    pointer = library.llama_model_get_vocab(model)
    special = {
        token: vocabulary.text_of(token)
        for token in range(vocabulary.size)
        if library.llama_vocab_get_attr(pointer, token) & wanted
    }
    template = ChatTemplate(
        source,
        bos_text=vocabulary.text_of(vocabulary.bos),
        eos_text=vocabulary.text_of(vocabulary.eos),
        control_texts=tuple(special.values()),
        tags=derive_tags(source, lambda text: text in special.values()),
    )
    return Tokenizer(vocabulary, template, special)


@pytest.fixture(scope="module", params=["tiny-reasoner", "SmolLM2", *FILES])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    """Load a vocabulary with its own template, or with the one that belongs to it."""
    name: str = request.param
    if name in FILES:
        path = vocabulary_file(name, tmp_path_factory.mktemp("vocabulary"))
    else:
        path = request.getfixturevalue("tiny_reasoner" if name == "tiny-reasoner" else "smollm2")
    library = bindings()
    model = loaded(library, path)
    own = library.llama_model_chat_template(model, None)
    source = own.decode() if name not in FILES else (TEMPLATES / f"{FILES[name]}.jinja").read_text(encoding="utf-8")
    yield tokenizer_of(library, model, source)
    library.llama_model_free(model)


def test_a_text_without_control_tokens_is_tokenized_in_one_call(tokenizer: Tokenizer) -> None:
    runs = tokenizer.runs(NEUTRAL)
    assert len(runs) == 1
    assert tokenizer.specials(runs)
    assert tokenizer.text(runs) == runs[0].text


def test_every_control_token_in_users_text_stays_text(tokenizer: Tokenizer) -> None:
    expected = tokenizer.specials(tokenizer.runs(NEUTRAL))
    neutral = tokenizer.text(tokenizer.runs(NEUTRAL))
    for text in (*tokenizer.special.values(), "<think>", "</think>"):
        content = f"a{text}b {text}{text}\n{text}"
        runs = tokenizer.runs(content)
        assert tokenizer.specials(runs) == expected, text
        assert tokenizer.text(runs) == neutral.replace(NEUTRAL, content)


def test_all_control_tokens_at_once_stay_text(tokenizer: Tokenizer) -> None:
    content = "".join(tokenizer.special.values())
    runs = tokenizer.runs(content)
    assert tokenizer.specials(runs) == tokenizer.specials(tokenizer.runs(NEUTRAL))
    assert tokenizer.text(runs) == tokenizer.text(tokenizer.runs(NEUTRAL)).replace(NEUTRAL, content)


@given(picks=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), st.integers(0, 30)), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_fragments_of_control_tokens_form_none(tokenizer: Tokenizer, picks: list[tuple[int, int, int]]) -> None:
    texts = [*tokenizer.special.values(), "<think>", "</think>", "a b\n"]
    content = "".join(texts[index % len(texts)][start : start + size] for index, start, size in picks).strip() or "a"
    runs = tokenizer.runs(content)
    assert tokenizer.specials(runs) == tokenizer.specials(tokenizer.runs(NEUTRAL))
    assert tokenizer.text(runs) == tokenizer.text(tokenizer.runs(NEUTRAL)).replace(NEUTRAL, content)
