"""What any server that speaks OpenAI's protocol can be asked, and what its answers come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from slm_local.backends import backend_named
from slm_local.backends.openai.address import Address
from slm_local.backends.openai.refusals import refusal
from slm_local.driver import Driver
from slm_local.errors import PromptTooLong, RemoteFailed, SlmError, UsageError
from slm_local.generation import (
    Control,
    GenerationRequest,
    LoadSettings,
    Message,
    Note,
    PromptProgress,
    Sampling,
    Started,
)
from tests.contract.runners import Heard, ask
from tests.fake_engine import DONE, Answer, FakeEngine, Route, delta, fake_engine, finish, says, usage
from tests.loading import THINK_TAGS

OK = says(delta(content="ok"), finish())

Opened = Callable[..., tuple[Driver, FakeEngine]]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Open the model of a server with these routes."""
    with ExitStack() as stack:

        def opening(reply: Route = OK, **routes: Route) -> tuple[Driver, FakeEngine]:
            engine = stack.enter_context(fake_engine(v1__chat__completions=reply, **routes))
            driver = Driver(backend_named("openai"))
            stack.callback(driver.close)
            driver.load(settings_for(engine), Control(), lambda fraction: None)
            return driver, engine

        yield opening


def settings_for(engine: FakeEngine) -> LoadSettings:
    return LoadSettings(
        backend="openai", model_path=engine.url, remote_model="m", context_tokens=4096, threads=0, tags=THINK_TAGS
    )


def heard(driver: Driver, request: GenerationRequest | None = None) -> Heard:
    return Heard(list(driver.run(request or ask("Where?", max_tokens=None))))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_in_a_field_of_its_own_comes_apart(opened: Opened, name: str) -> None:
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}
    thoughts = [delta(**{name: text}) for text in ("I ", "wonder.")]
    details = {"completion_tokens_details": {"reasoning_tokens": 4}}
    driver, _ = opened(says(first, *thoughts, delta(content="Paris."), finish(), usage(9, 7, **details)))
    found = heard(driver)
    assert (found.thinking, found.answer, found.reply.finish) == ("I wonder.", "Paris.", "stop")
    said = found.reply.usage
    assert (said.prompt_tokens, said.think_tokens, said.answer_tokens) == (9, 4, 3)


def test_thinking_between_tags_comes_apart_in_any_pieces(opened: Opened) -> None:
    driver, _ = opened(
        says(*(delta(content=each) for each in ("<thi", "nk>I won", "der.</thi", "nk>\n\nParis.")), finish())
    )
    found = heard(driver)
    assert (found.thinking, found.answer) == ("I wonder.", "Paris.")


def test_a_count_that_the_server_does_not_give_is_not_there(opened: Opened) -> None:
    thoughts = (delta(reasoning="I wonder."), delta(content="Paris."), finish())
    zero = {"completion_tokens_details": {"reasoning_tokens": 0}}
    told = heard(opened(says(*thoughts, usage(9, 7, **zero)))[0]).reply.usage
    assert (told.prompt_tokens, told.think_tokens, told.answer_tokens) == (9, None, None)
    silent = heard(opened(says(*thoughts))[0]).reply.usage
    assert (silent.prompt_tokens, silent.think_tokens, silent.answer_tokens) == (None, None, None)
    plain = heard(opened(says(delta(content="Paris."), finish(), usage(9, 7)))[0]).reply.usage
    assert (plain.think_tokens, plain.answer_tokens, plain.cached_tokens) == (0, 7, None)


def test_what_is_asked_is_what_is_sent(opened: Opened) -> None:
    driver, engine = opened()
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="<think>hm</think>"))
    sampling = Sampling(temperature=0.6, top_p=0.9, seed=7, presence_penalty=0.5)
    heard(driver, GenerationRequest(messages=turns, sampling=sampling, max_tokens=50))
    (body,) = engine.bodies("/v1/chat/completions")
    assert body["messages"] == [{"role": each.role, "content": each.content} for each in turns]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 50, True)
    assert (body["temperature"], body["top_p"], body["seed"], body["presence_penalty"]) == (0.6, 0.9, 7, 0.5)
    assert "top_k" not in body


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (GenerationRequest(messages=ask("?").messages, sampling=Sampling(top_k=20)), "top_k can't be told"),
        (GenerationRequest(messages=ask("?").messages, think_tokens=5), "budget not available"),
        (GenerationRequest(messages=ask("?").messages, think_s=5.0), "budget not available"),
        (GenerationRequest(messages=ask("?").messages, tools="[]"), "tools can't be given"),
        (GenerationRequest(messages=ask("?").messages, schema="{}"), "schema"),
        (GenerationRequest(messages=ask("?").messages, logprobs=1), "log-probabilities"),
        (GenerationRequest(prompt_ids=(1, 2)), "no token ids"),
    ],
)
def test_what_a_server_can_not_do_is_refused_before_it_is_asked(
    opened: Opened, request_: GenerationRequest, words: str
) -> None:
    driver, engine = opened()
    with pytest.raises(UsageError, match=words):
        heard(driver, request_)
    assert engine.bodies("/v1/chat/completions") == []


def test_an_answer_asked_for_now_is_told_that_it_can_not_come_sooner(opened: Opened) -> None:
    driver, _ = opened(says(delta(reasoning="Hm."), delta(content="Paris."), finish()))
    control = Control()
    control.end_thinking()
    found = Heard(list(driver.run(ask("Where?"), control)))
    assert "no way to end thinking" in next(each.text for each in found.events if isinstance(each, Note))
    assert (found.thinking, found.answer, found.reply.cut) == ("Hm.", "Paris.", "none")


def test_a_limit_that_the_server_kept_to_is_told_apart_from_a_full_context(opened: Opened) -> None:
    driver, _ = opened(says(delta(content="Par"), finish("length"), usage(9, 3)))
    assert heard(driver, ask("Where?", max_tokens=3)).reply.finish == "length"
    assert heard(driver, ask("Where?", max_tokens=None)).reply.finish == "context"


def test_a_stop_string_ends_the_answer_and_is_not_sent(opened: Opened) -> None:
    driver, engine = opened(
        says(delta(reasoning="END? "), delta(content="Paris EN"), delta(content="D more"), finish())
    )
    found = heard(driver, ask("Where?", stop=("END",)))
    assert (found.thinking, found.answer, found.reply.finish) == ("END? ", "Paris ", "stop")
    assert "stop" not in engine.bodies("/v1/chat/completions")[0]


def json_error(status: int, message: str, **headers: str) -> Route:
    return lambda body: Answer({"error": {"message": message}}, status, headers=headers)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (json_error(401, "bad token"), "wants a key: bad token"),
        (json_error(404, "no such model"), "no such model"),
        (json_error(500, "out of\nmemory\x1b[2J"), "answers 500: out of␊memory␛"),
        (json_error(503, "queue full", **{"Retry-After": "7"}), "no place free, again after 7 s: queue full"),
        (lambda body: Answer(b"<html>", 502), "answers 502: <html>"),
        (lambda body: Answer(b"", 307, {"Location": "http://127.0.0.1:1/"}), "leads elsewhere"),
        (says(delta(content="Pa"), {"error": {"message": "the GPU fell off", "code": 500}}), "the GPU fell off"),
        (says(delta(content="Pa"), b"data: {\n\n"), "does not speak OpenAI's protocol"),
        (says(delta(content="Pa"), b"data: [1]\n\n"), "does not speak OpenAI's protocol"),
        (lambda body: Answer(chunks=[delta(content="Pa")]), "broke off: the stream ended before the reply did"),
        (says(delta(content="Pa")), "broke off: the stream ended before the reply did"),
    ],
)
def test_whatever_goes_wrong_is_one_error_with_what_to_type(opened: Opened, reply: Route, words: str) -> None:
    driver, engine = opened(reply)
    with pytest.raises(RemoteFailed, match=words) as caught:
        heard(driver)
    assert caught.value.exit_code == 7
    assert caught.value.hint
    assert "\x1b" not in caught.value.message
    engine.routes["/v1/chat/completions"] = says(delta(content="ok"), finish())
    assert heard(driver).answer == "ok"


def test_an_address_without_v1_that_leads_nowhere_is_given_back_with_it() -> None:
    bare = refusal(Address(base="http://host:1", model="big", key_env="KEY"), 404, None)
    assert bare.hint == "slm run 'http://host:1/v1#big'"
    assert (
        refusal(Address(base="http://host:1/v1", model="big", key_env="KEY"), 404, None).hint
        == "curl http://host:1/v1/models"
    )


def test_a_prompt_that_is_too_long_for_the_server_says_both_counts(opened: Opened) -> None:
    error: dict[str, Any] = {
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9000,
        "n_ctx": 4096,
        "message": "?",
    }
    driver, _ = opened(lambda body: Answer({"error": error}, 400))
    with pytest.raises(PromptTooLong, match="9,000 tokens and the context holds 4,096"):
        heard(driver)


def test_a_line_without_end_is_given_up(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_local.backends.openai.link.LONGEST_LINE", 1000)
    driver, _ = opened(says(b"data: " + b"x" * 3000))
    with pytest.raises(RemoteFailed, match="a line of more than"):
        heard(driver)


def test_nobody_at_the_address_is_said_with_the_address() -> None:
    with fake_engine() as engine:
        settings = settings_for(engine)
    driver = Driver(backend_named("openai"))
    with pytest.raises(RemoteFailed, match=r"no engine answers at 127\.0\.0\.1:\d+"):
        driver.load(settings, Control(), lambda fraction: None)
    driver.close()


def test_a_model_that_is_not_there_is_told_with_those_that_are(opened: Opened) -> None:
    with pytest.raises(SlmError, match="has no model 'm'; it has other"):
        opened(v1__models=lambda body: Answer({"data": [{"id": "other"}]}))


def test_the_prompt_is_known_to_be_read_when_the_first_text_comes(opened: Opened) -> None:
    first = {**delta(content="Par"), "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    driver, _ = opened(says(first, delta(content="is."), finish(), usage(9, 2)))
    kinds = [type(each) for each in heard(driver).events]
    assert kinds[:2] == [Started, PromptProgress]


def test_blank_lines_and_comments_of_a_stream_say_nothing(opened: Opened) -> None:
    odd = [b": ping\n\n", b"event: x\ndata:" + b'{"choices": []}\r\n\r\n', b"\n\n"]
    driver, _ = opened(lambda body: Answer(chunks=[*odd, delta(content="Paris."), *odd, finish(), DONE, b"data: junk"]))
    assert heard(driver).answer == "Paris."


def test_a_server_without_a_list_of_models_is_asked_all_the_same(opened: Opened) -> None:
    driver, engine = opened(v1__models=lambda body: Answer({"detail": "Not Found"}, 404))
    assert heard(driver).answer == "ok"
    assert engine.bodies("/v1/chat/completions")[0]["model"] == "m"
