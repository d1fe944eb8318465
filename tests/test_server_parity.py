"""The same file, template and greedy request give the text and the prompt's count that llama.cpp's own server gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.llama_server import ALIAS, llama_server
from tests.serving import serving

CONTEXT = 1024
# Every next token is clear: the two are different builds, and where two tokens are as likely either may come.
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Count from one to ten in words."}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Grüße! Why is the sky blue? 空は青い 🙂"},
        {"role": "assistant", "content": "Because of <b>Rayleigh</b> scattering."},
        {"role": "user", "content": "And at sunset?\n\n  two blanks, \ttab"},
    ],
]


@pytest.fixture(scope="module")
def theirs(smollm2: Path) -> Iterator[openai.OpenAI]:
    with (
        llama_server(smollm2, context=CONTEXT) as address,
        openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["a question", "a conversation"])
def test_greedy_text_and_counts_equal_llama_servers(theirs: openai.OpenAI, smollm2: Path, messages: Any) -> None:
    def greedy(client: openai.OpenAI, model: str) -> tuple[str | None, int, int]:
        answer = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=40, extra_body={"repeat_penalty": 1.0}
        )
        assert answer.usage is not None
        return answer.choices[0].message.content, answer.usage.prompt_tokens, answer.usage.completion_tokens

    with serving(f"{smollm2}@backend=llamacpp,ctx={CONTEXT},threads=1") as ours:
        (model,) = ours.openai.models.list().data
        assert greedy(ours.openai, model.id) == greedy(theirs, ALIAS)


def test_greedy_raw_text_equals_llama_servers(theirs: openai.OpenAI, smollm2: Path) -> None:
    def greedy(client: openai.OpenAI, model: str) -> tuple[str, int]:
        answer = client.completions.create(
            model=model, prompt="Once upon a time, <|im_start|>", temperature=0, max_tokens=40
        )
        assert answer.usage is not None
        return answer.choices[0].text, answer.usage.prompt_tokens

    with serving(f"{smollm2}@backend=llamacpp,ctx={CONTEXT},threads=1") as ours:
        assert greedy(ours.openai, ours.openai.models.list().data[0].id) == greedy(theirs, ALIAS)
