"""llama.cpp's own server tests, asked of ours: published counts on stories260K, and its server's greedy texts.

Published: tools/server/tests/unit of llama.cpp (test_completion.py, test_chat_completion.py). Its texts are drawn at
0.8 from seed 42, with llama.cpp's order of samplers and its generator, which are not ours; that its server here draws
them shows that the file is the published one, and what is compared with it is greedy.

Needs the file (1.2 MB, MIT, karpathy's tinyllamas), which is not in this repository; SLM_TEST_STORIES names it:
https://huggingface.co/ggml-org/test-model-stories260K
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.llama_server import ALIAS, llama_server
from tests.serving import Serving, serving

VARIABLE = "SLM_TEST_STORIES"
SHA256 = "270cba1bd5109f42d03350f60406024560464db173c0e387d91f0426d3bd256d"
CONTEXT = 256

CHATML = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
"""What llama-server gives a model without a template."""

NO_TEMPLATE = "This is not a chat template, it is"

BOOK = "What is the best book"
# system, user, most tokens, published text, prompt tokens, tokens of the answer
CHATS: list[tuple[str, Any, int, str, int, int]] = [
    ("Book", "Hey", 8, "But she couldn't", 69, 8),
    ("Book", BOOK, 8, "(Suddenly)+", 77, 8),
    (
        "You are a coding assistant.",
        "Write the fibonacci function in c++.",
        128,
        "(Aside|she|felter|alonger)+",
        104,
        128,
    ),
]
# prompt, most tokens, published text, prompt tokens, tokens of the answer
RAW = [
    ("I believe the meaning of life is", 8, "(going|bed)+", 18, 8),
    (
        "Write a joke about AI from a very long prompt which will not be truncated",
        *(64, "(princesses|everyone|kids|Anna|forest)+", 46, 64),
    ),
]
GREEDY: dict[str, Any] = {"temperature": 0}
PUBLISHED: dict[str, Any] = {"temperature": 0.8, "seed": 42}


@pytest.fixture(scope="module")
def stories() -> Path:
    path = Path(os.environ.get(VARIABLE, ""))
    if not path.is_file():
        pytest.skip(f"{VARIABLE} does not name stories260K.gguf")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256, "it is another file"
    return path


@pytest.fixture(scope="module")
def theirs(stories: Path) -> Iterator[openai.OpenAI]:
    with (
        llama_server(stories, context=CONTEXT, places=2) as address,
        openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client,
    ):
        yield client


def reference_of(stories: Path, folder: Path, template: str = CHATML) -> str:
    file = folder / "template.jinja"
    file.write_text(template, encoding="utf-8")
    return f"{stories}@backend=llamacpp,ctx={CONTEXT},threads=1,template={file}"


Said = tuple[str | None, str | None, int, int]


def chat(client: openai.OpenAI, model: str, system: str, user: Any, most: int, **how: Any) -> Said:
    messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=most, **how)
    assert answer.usage is not None
    choice = answer.choices[0]
    return choice.message.content, choice.finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens


def complete(client: openai.OpenAI, model: str, prompt: str, most: int, **how: Any) -> Said:
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=most, **how)
    assert answer.usage is not None
    choice = answer.choices[0]
    return choice.text, choice.finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens


def test_llama_server_draws_the_published_texts_from_this_file(theirs: openai.OpenAI) -> None:
    for system, user, most, text, *counts in CHATS:
        said, *ended = chat(theirs, ALIAS, system, user, most, **PUBLISHED)
        assert re.search(text, said or "")
        assert ended == ["length", *counts]
    for prompt, most, text, *counts in RAW:
        said, *ended = complete(theirs, ALIAS, prompt, most, **PUBLISHED)
        assert re.search(text, said or "")
        assert ended == ["length", *counts]


def test_chats_have_the_published_counts_and_llama_servers_greedy_texts(
    theirs: openai.OpenAI, stories: Path, tmp_path: Path
) -> None:
    with serving(reference_of(stories, tmp_path)) as ours:
        model = ours.openai.models.list().data[0].id
        for system, user, most, _, *counts in CHATS:
            said = chat(ours.openai, model, system, user, most, **GREEDY)
            assert said == chat(theirs, ALIAS, system, user, most, **GREEDY)
            assert said[1:] == ("length", *counts)


def test_raw_prompts_have_the_published_counts_and_llama_servers_greedy_texts(
    theirs: openai.OpenAI, stories: Path, tmp_path: Path
) -> None:
    with serving(reference_of(stories, tmp_path)) as ours:
        model = ours.openai.models.list().data[0].id
        for prompt, most, _, *counts in RAW:
            said = complete(ours.openai, model, prompt, most, **GREEDY)
            assert said == complete(theirs, ALIAS, prompt, most, **GREEDY)
            assert said[1:] == ("length", *counts)


def test_a_text_in_parts_and_a_template_without_messages_have_the_published_counts(
    stories: Path, tmp_path: Path
) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "the best book"}]
    for template, user, prompt_tokens in ((CHATML, parts, 79), (NO_TEMPLATE, BOOK, 23)):
        with serving(reference_of(stories, tmp_path, template)) as ours:
            model = ours.openai.models.list().data[0].id
            assert chat(ours.openai, model, "Book", user, 8, **GREEDY)[1:] == ("length", prompt_tokens, 8)


def test_prompts_that_begin_alike_have_as_many_cached_tokens_as_published(stories: Path, tmp_path: Path) -> None:
    # each prompt has 77 tokens, the last of which is always decoded again
    published = [("1 2 3 4 5 6", 0), ("1 2 3 4 5 6", 76), ("1 2 3 4 5 9", 51), ("1 2 3 9 9 9", 47)]
    with serving(reference_of(stories, tmp_path)) as ours:
        found = [(user, cached_tokens(ours, user)) for user, _ in published]
    assert found == published


def cached_tokens(ours: Serving, user: str) -> int:
    messages = [{"role": "system", "content": "Test"}, {"role": "user", "content": user}]
    answer = ours.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 8}).json()
    assert answer["usage"]["prompt_tokens"] == 77
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_ids_are_llama_servers(theirs: openai.OpenAI, stories: Path, tmp_path: Path) -> None:
    text = "This is a test string with unicode 媽 and emoji 🤗"
    asked = {"content": text, "add_special": True}
    expected = httpx.post(f"{str(theirs.base_url).removesuffix('v1/')}tokenize", json=asked).json()["tokens"]
    with serving(reference_of(stories, tmp_path)) as ours:
        answer = ours.http.post("/tokenize", json={"prompt": text, "add_special_tokens": True}).json()
    assert answer["tokens"] == expected
