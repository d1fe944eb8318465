"""For every template: whatever is said next, its prompt begins with the tokens that were read for it in advance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from slm_local.backends.llamacpp.library import bindings
from slm_local.backends.llamacpp.vocabulary import Vocabulary
from slm_local.driver.warming import common_start
from slm_local.errors import SlmError
from slm_local.generation import GenerationRequest, Message, ReasoningTags, Role, ThinkControl, ThinkMode
from slm_local.reasoning import derive_tags, derive_think_control
from slm_local.template import ChatTemplate, prompt_for
from tests.test_template_files import NAMES, NEEDS_MORE, NO_SYSTEM_ROLE, source_of
from tests.test_template_tokens import FILES, loaded, vocabulary_file

MARKS = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>|<\w+_of_\w+>|</?think>|\[/?\w+\]")
"""What in a template's source looks like a control token."""

NEXT = ("\nthen", "\n\n \n", "  def f():", "è così", "日本", "1st", "name", "</s> and <think>\n")
HISTORY: tuple[tuple[Role, str], ...] = (
    ("user", "What is 47 + 38?"),
    ("assistant", "It is **85**."),
    ("user", "  Sure?\n"),
    ("assistant", "Yes.\n\n- 40 + 30\n- 7 + 8"),
)
WAYS: list[tuple[bool, ThinkMode]] = [(False, "auto"), (True, "off"), (True, "on")]


@dataclass(frozen=True, slots=True)
class Model:
    """A template with a vocabulary."""

    vocabulary: Vocabulary
    template: ChatTemplate
    tags: ReasoningTags | None
    control: ThinkControl
    marks: tuple[str, ...]

    def token_ids(self, request: GenerationRequest) -> list[int]:
        prompt = prompt_for(self.template, request.messages, request.think, self.control, self.tags, adds_bos=False)
        tokenize = self.vocabulary.tokenize
        return [token for run in prompt.runs for token in tokenize(run.text, parse_control=run.allows_control)]


@cache  # making a template compiles it
def parts_of(name: str) -> tuple[ChatTemplate, ReasoningTags | None, ThinkControl, tuple[str, ...]]:
    source = source_of(name)
    marks = ("<s>", "</s>", *sorted({mark for mark in MARKS.findall(source) if "{" not in mark}))
    tags = derive_tags(source, lambda text: text in marks)
    template = ChatTemplate(source, bos_text="<s>", eos_text="</s>", control_texts=marks, tags=tags)
    return template, tags, derive_think_control(source), marks


def model_of(vocabulary: Vocabulary, name: str) -> Model:
    return Model(vocabulary, *parts_of(name))


@pytest.fixture(scope="module", params=["SmolLM2", *FILES])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    library, name = bindings(), str(request.param)
    smollm2 = name == "SmolLM2"
    path: Path = request.getfixturevalue("smollm2") if smollm2 else vocabulary_file(name, tmp_path_factory.mktemp("v"))
    model = loaded(library, path)
    yield Vocabulary(library, model)
    library.llama_model_free(model)


def begun(texts: tuple[tuple[Role, str], ...], think: ThinkMode) -> GenerationRequest:
    """A request whose last message is not known yet."""
    messages = (Message(role=role, content=content) for role, content in (*texts, ("user", "")))
    return GenerationRequest(messages=tuple(messages), think=think)


def said(request: GenerationRequest, text: str) -> GenerationRequest:
    *before, _ = request.messages
    return GenerationRequest(messages=(*before, Message(role="user", content=text)), think=request.think)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_MORE])
def test_the_next_prompt_begins_with_what_was_read_in_advance(vocabulary: Vocabulary, name: str) -> None:
    model = model_of(vocabulary, name)
    checked = 0
    for has_system, think in WAYS:
        if has_system and name in NO_SYSTEM_ROLE:
            continue
        system: tuple[tuple[Role, str], ...] = (("system", "Be brief."),) if has_system else ()
        request = begun((*system, *HISTORY), think)
        try:
            whole = model.token_ids(said(request, NEXT[0]))
        except SlmError:
            continue  # this model's thinking can't be switched so
        start = list(common_start(request, model.token_ids, lambda: True))
        for text in (*NEXT, model.marks[-1]):
            assert model.token_ids(said(request, text))[: len(start)] == start, (think, text)
        text_read = b"".join(map(vocabulary.piece, start)).decode(errors="replace")
        assert "7 + 8" in text_read, "all of the last answer is in it"
        assert len(start) < len(whole)
        checked += 1
    assert checked


def test_what_is_known_of_the_next_message_is_read_too(vocabulary: Vocabulary) -> None:
    model = model_of(vocabulary, "Qwen-Qwen3-0.6B")
    request = said(begun((), "auto"), "A long file.\n\n")
    start = list(common_start(request, model.token_ids, lambda: True))
    assert b"A long" in b"".join(map(vocabulary.piece, start))
    for text in NEXT:
        assert model.token_ids(said(request, "A long file.\n\n" + text))[: len(start)] == start


def test_nothing_is_rendered_once_a_request_is_on_its_way(vocabulary: Vocabulary) -> None:
    model = model_of(vocabulary, "Qwen-Qwen3-0.6B")
    assert common_start(begun(HISTORY, "auto"), model.token_ids, lambda: False) == ()
