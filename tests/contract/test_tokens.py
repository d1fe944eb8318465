"""What every backend promises about tokens: the same ids as a prompt has, and bytes that join to the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.errors import UsageError
from slm_local.generation import AnswerDelta, Control, GenerationRequest, TokenOrder, Tokens
from tests.conftest import ScriptWriter
from tests.contract.runners import InWorker, Runner, ask, hear, runner_for
from tests.loading import THINK_TAGS, load_settings_for

QUESTION = "What is 47 + 38?"


@pytest.fixture(scope="module", params=["scripted", "llamacpp", "openvino-tiny"])
def runner(
    request: pytest.FixtureRequest, tiny_reasoner: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("tokens")
    path = tiny_reasoner
    if request.param == "scripted":
        path = folder / "script.jsonl"
        path.write_text('{"text": "yes"}\n{"end": "stop"}\n', encoding="utf-8")
    made = runner_for(str(request.param), path, folder, context=512)
    yield made
    made.close()


def text_of(tokens: Tokens) -> str:
    return b"".join(bytes(data) for data in tokens.data).decode()


@pytest.mark.parametrize("text", [QUESTION, "naïve 日本\n\t", ""])
def test_the_bytes_of_a_texts_tokens_join_to_the_text(runner: Runner, text: str) -> None:
    tokens = runner.tokens(TokenOrder(text=text))
    assert text_of(tokens) == text
    assert len(tokens.ids) == len(tokens.data)
    assert runner.tokens(TokenOrder(ids=tokens.ids)) == tokens


def test_a_conversation_has_the_tokens_of_its_prompt(runner: Runner) -> None:
    request = ask(QUESTION, max_tokens=1)
    tokens = runner.tokens(TokenOrder(request=request))
    assert QUESTION in text_of(tokens)
    assert len(tokens.ids) == hear(runner, request).started.prompt_tokens
    assert runner.tokens(TokenOrder(request=GenerationRequest(prompt_ids=tokens.ids))) == tokens


def test_a_control_tokens_text_is_one_token_only_where_that_is_asked_for(runner: Runner) -> None:
    text = runner.facts.eos_text
    if not text:
        return
    assert runner.tokens(TokenOrder(text=text, parses_special=True)).ids == (runner.facts.eos_id,)
    plain = runner.tokens(TokenOrder(text=text))
    assert runner.facts.eos_id not in plain.ids
    assert text_of(plain) == text


def test_ids_that_the_vocabulary_lacks_are_refused(runner: Runner) -> None:
    with pytest.raises(UsageError, match=f"token id {runner.facts.vocabulary_size} is not in the vocabulary"):
        runner.tokens(TokenOrder(ids=(runner.facts.vocabulary_size,)))
    with pytest.raises(UsageError, match="nothing was given to tokenize"):
        runner.tokens(TokenOrder())


def test_a_bos_is_put_before_a_text_where_one_is_asked_for_and_the_vocabulary_wants_it(runner: Runner) -> None:
    plain = runner.tokens(TokenOrder(text=QUESTION))
    marked = runner.tokens(TokenOrder(text=QUESTION, adds_special=True))
    assert marked.ids == ((runner.facts.bos_id, *plain.ids) if runner.facts.adds_bos else plain.ids)
    text = runner.facts.bos_text + QUESTION
    twice = runner.tokens(TokenOrder(text=text, adds_special=True, parses_special=True))
    assert twice == runner.tokens(TokenOrder(text=text, parses_special=True))


def test_tokens_are_told_while_a_reply_streams(script: ScriptWriter, tmp_path: Path) -> None:
    path = script({"text": "one "}, *[{"text": "word ", "delay": 0.02}] * 400, {"end": "stop"})
    worker = InWorker(replace(load_settings_for("scripted", path, context=4096), tags=THINK_TAGS), tmp_path)
    control = Control()
    words = 0
    for event in worker.stream(ask("go", max_tokens=None), control):
        if isinstance(event, AnswerDelta) and not control.cancelled:
            words += 1
            assert worker.tokens(TokenOrder(text="ab")).ids == (97, 98)
            control.cancel()
    worker.close()
    assert words == 1
