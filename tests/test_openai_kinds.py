"""The kinds of servers: how each is told apart, its own limit of thinking, and going on behind a text of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from slm_local.backends import backend_named
from slm_local.backends.openai.address import address_of
from slm_local.driver import Driver
from slm_local.errors import RemoteFailed, UsageError
from slm_local.generation import Control, GenerationRequest, Note
from tests.contract.runners import Heard, ask
from tests.fake_engine import DONE, Answer, FakeEngine, Json, Route, fake_engine
from tests.test_openai import settings_for

PROMPT = "<u>Where?<a><think>\n"
BRIDGE = " Enough thinking, I answer now.\n</think>\n\n"


ADDRESSES = {
    "http://127.0.0.1:8000/v1": False,
    "http://localhost/v1": False,
    "http://box:8000/v1": True,
    "https://box/v1": False,
}
"""Whether a key would go there unencrypted."""


def codes(text: str) -> list[int]:
    return [ord(char) for char in text]


def words(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def tokenized(body: Json) -> Answer:
    """Answer as vLLM's /tokenize does, a character being a token."""
    tokens = codes(PROMPT if "messages" in body else body["prompt"])
    return Answer({"count": len(tokens), "max_model_len": 4096, "tokens": tokens})


def piece(text: str = "", *, ids: str | None = None, reason: str | None = None, **fields: Any) -> Json:
    """Return a chunk as vLLM sends it with return_token_ids; `ids` are of what the parser took out, too."""
    choice = {"index": 0, "delta": fields, "text": text, "finish_reason": reason}
    return {"choices": [{**choice, "token_ids": codes(text if ids is None else ids)}]}


def thought(text: str) -> list[Json]:
    return [piece(ids=char, reasoning=char) for char in text]


def answered(text: str) -> list[Json]:
    return [*(piece(ids=char, content=char) for char in text), piece(ids="$", reason="stop")]


def completed(body: Json) -> Answer:
    """Go on behind what was thought: the answer says how much of a prompt there was."""
    text = f"I read {len(body['prompt'])}."
    return Answer(chunks=[*(piece(char) for char in text), piece(ids="$", reason="stop"), DONE])


@contextmanager
def vllm(chat: Route, **routes: Route) -> Iterator[tuple[Driver, FakeEngine]]:
    known: dict[str, Route] = {
        "v1__models": lambda body: Answer({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]}),
        "version": lambda body: Answer({"version": "0.32.0"}),
        "tokenize": tokenized,
        "detokenize": lambda body: Answer({"prompt": words(body["tokens"])}),
        "v1__completions": completed,
        "v1__chat__completions": chat,
        **routes,
    }
    with fake_engine(**known) as engine:
        driver = Driver(backend_named("openai"))
        try:
            driver.load(settings_for(engine), Control(), lambda fraction: None)
            yield driver, engine
        finally:
            driver.close()


def streamed(*chunks: Json) -> Route:
    return lambda body: Answer(chunks=[*chunks, DONE])


def heard(driver: Driver, request: GenerationRequest, control: Control | None = None) -> Heard:
    return Heard(list(driver.run(request, control)))


def limited(tokens: int) -> GenerationRequest:
    return GenerationRequest(messages=ask("Where?").messages, think="open", think_tokens=tokens)


def test_vllm_counts_every_token_on_its_side() -> None:
    with vllm(streamed(*thought("Hm."), piece(ids="#"), *answered("Paris."))) as (driver, _):
        found = heard(driver, ask("Where?"))
    said = found.reply.usage
    assert (found.thinking, found.answer, found.started.think_state) == ("Hm.", "Paris.", "open")
    assert (said.prompt_tokens, said.think_tokens, said.tag_tokens, said.answer_tokens) == (len(PROMPT), 4, 1, 7)


def test_a_limit_that_the_server_keeps_with_our_bridge_is_its_own_doing() -> None:
    bridge = BRIDGE.partition("</think>")[0]
    with vllm(streamed(*thought("Hmm"), *thought(bridge), piece(ids="#"), *answered("Paris."))) as (driver, engine):
        found = heard(driver, limited(3))
        assert engine.bodies("/v1/completions") == []
    assert (found.thinking, found.answer, found.reply.cut) == ("Hmm" + bridge, "Paris.", "budget")
    said = found.reply.usage
    assert (said.think_tokens or 0) - (said.injected_tokens or 0) == 3


def test_a_limit_that_the_server_keeps_by_the_tag_alone_goes_on_behind_the_bridge() -> None:
    with vllm(streamed(*thought("Hmm"), piece(ids="#"), *answered("Rome."))) as (driver, engine):
        found = heard(driver, limited(3))
        (chat,), (body,) = engine.bodies("/v1/chat/completions"), engine.bodies("/v1/completions")
    assert chat["thinking_token_budget"] == 4  # vLLM counts the line end behind the prompt's own tag
    assert words(body["prompt"]) == PROMPT + "Hmm" + BRIDGE
    assert (found.answer, found.reply.cut) == (f"I read {len(PROMPT + 'Hmm' + BRIDGE)}.", "budget")
    said = found.reply.usage
    assert (said.think_tokens or 0) - (said.injected_tokens or 0) == 3


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_limit_that_the_server_passes_over_is_kept_to_by_going_on(budget: int) -> None:
    with vllm(streamed(*thought("I wonder and wonder."), *answered("Rome."))) as (driver, engine):
        found = heard(driver, limited(budget))
        (body,) = engine.bodies("/v1/completions")
    thoughts = "I wonder"[:budget]
    assert words(body["prompt"]) == PROMPT + thoughts + BRIDGE
    assert (found.thinking, found.reply.cut) == ((thoughts + BRIDGE.split("<")[0]).lstrip(), "budget")
    assert found.answer == f"I read {len(PROMPT + thoughts + BRIDGE)}."
    said = found.reply.usage
    assert (said.think_tokens or 0) - (said.injected_tokens or 0) == budget
    assert said.injected_tokens == len(BRIDGE)


def test_vllm_without_a_reasoning_parser_refuses_its_field_and_is_asked_without_it() -> None:
    def refusing(body: Json) -> Answer:
        if "thinking_token_budget" in body:
            return Answer({"error": {"message": "thinking_token_budget is set but reasoning_config is not"}}, 400)
        return Answer(chunks=[*(piece(ids=char, content=char) for char in "Hm and hm</think>"), DONE])

    with vllm(refusing) as (driver, engine):
        found = heard(driver, limited(2))
        assert (found.thinking[:2], found.reply.cut) == ("Hm", "budget")
        heard(driver, limited(2))
        sent = ["thinking_token_budget" in each for each in engine.bodies("/v1/chat/completions")]
    assert sent == [True, False, False]


def test_an_answer_asked_for_now_goes_on_behind_what_was_thought() -> None:
    control = Control()
    control.end_thinking()
    with vllm(streamed(*thought("I wonder."), *answered("Rome."))) as (driver, engine):
        found = heard(driver, ask("Where?", max_tokens=None), control)
        assert engine.bodies("/v1/chat/completions") == []
        assert words(engine.bodies("/v1/completions")[0]["prompt"]) == PROMPT + BRIDGE
    assert (found.reply.cut, found.answer) == ("user", f"I read {len(PROMPT + BRIDGE)}.")


def test_thinking_switched_off_is_closed_behind_the_servers_own_prompt() -> None:
    with vllm(streamed(*answered("Rome."))) as (driver, engine):
        found = heard(driver, ask("Where?", think="off"))
        assert words(engine.bodies("/v1/completions")[0]["prompt"]) == PROMPT + "\n</think>\n\n"
    assert (found.started.think_state, found.thinking) == ("closed", "")


def test_a_reply_that_stopped_without_an_answer_is_nudged_once() -> None:
    with vllm(streamed(*thought("Hm."), piece(ids="$", reason="stop"))) as (driver, engine):
        found = heard(driver, ask("Where?", max_tokens=None))
        assert words(engine.bodies("/v1/completions")[0]["prompt"]) == PROMPT + "Hm." + BRIDGE
    assert found.answer.startswith("I read")


def test_raw_ids_are_sent_as_they_are() -> None:
    with vllm(streamed()) as (driver, engine):
        found = heard(driver, GenerationRequest(prompt_ids=(5, 6, 7), max_tokens=40))
        (body,) = engine.bodies("/v1/completions")
    assert (body["prompt"], body["max_tokens"], found.answer) == ([5, 6, 7], 40, "I read 3.")


def slm_chunks(cut: str = "none", **usage: Any) -> Route:
    own = {"finish": "stop", "cut": cut}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "slm": own}]}
    told = {"choices": [], "usage": usage, "warnings": ["top_k has no effect here"]}
    texts = [{"reasoning_content": "Hm.", "reasoning": "Hm."}, {"content": "Rome."}]
    return streamed(*({"choices": [{"index": 0, "delta": each, "finish_reason": None}]} for each in texts), last, told)


def test_slm_serve_keeps_the_limit_and_tells_what_came_of_it() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 2}}
    chat = slm_chunks("budget", prompt_tokens=20, completion_tokens=8, **details)
    mine: Route = lambda body: Answer({"data": [{"id": "m", "owned_by": "slm-local", "max_model_len": 4096}]})  # noqa: E731
    with vllm(chat, v1__models=mine) as (driver, engine):
        found = heard(driver, limited(3))
        assert engine.bodies("/v1/chat/completions")[0]["thinking_token_budget"] == 3
        assert engine.bodies("/v1/completions") == []
    assert (found.thinking, found.answer, found.reply.cut) == ("Hm.", "Rome.", "budget")
    said = found.reply.usage
    assert (said.prompt_tokens, said.cached_tokens, said.think_tokens, said.answer_tokens) == (20, 2, 3, 5)
    assert any("top_k has no effect" in each.text for each in found.events if isinstance(each, Note))


def test_an_address_with_a_password_in_it_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="no password") as caught:
        address_of("http://me:hunter2@box/v1", "m")
    assert "hunter2" not in repr(caught.value.record())


def test_a_key_that_goes_over_a_network_unencrypted_is_spoken_of() -> None:
    key = {"SLM_REMOTE_KEY": "sk-1"}
    openly = {url: address_of(url, "m", environment=key).sends_key_openly for url in ADDRESSES}
    assert openly == ADDRESSES
    assert not address_of("http://box:8000/v1", "m", environment={}).sends_key_openly
    assert "sk-1" not in repr(address_of("http://box:8000/v1", "m", environment=key))


def test_a_key_is_sent_in_its_header_and_said_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_REMOTE_KEY", "sk-secret-1")
    refuse: Route = lambda body: Answer({"error": {"message": "sk-secret-1 is not a key"}}, 401)  # noqa: E731
    with vllm(refuse) as (driver, engine):
        with pytest.raises(RemoteFailed, match="refuses the key in SLM_REMOTE_KEY: … is not a key") as caught:
            heard(driver, ask("Where?"))
        assert all(headers["Authorization"] == "Bearer sk-secret-1" for _, _, headers in engine.asked)
    assert "SLM_REMOTE_KEY=" in (caught.value.hint or "")
    assert "sk-secret" not in repr(caught.value.record())
