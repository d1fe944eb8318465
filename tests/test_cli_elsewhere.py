"""`slm run`, `chat`, `compare` and `bench` with a model that runs elsewhere: nothing in them is another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command import Result, slm
from tests.fake_engine import Answer, delta, fake_engine, finish, says, usage
from tests.llama_server import ALIAS, llama_server

__all__ = ["slm"]

Slm = Callable[..., Result]

SUM = "What is 47 + 38?"


@pytest.fixture(scope="module")
def served(tiny_reasoner: Path) -> Iterator[str]:
    """Return the embedded model as a llama-server has it."""
    with llama_server(tiny_reasoner, context=512, key="sk-1") as url:
        yield f"{url}#{ALIAS}"


@pytest.fixture
def lab(served: str, slm_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LAB_KEY", "sk-1")
    config = slm_home / "config"
    config.mkdir(exist_ok=True)
    entry = f'[models.lab]\nbase = "tiny-reasoner"\nremote = "{served}"\nkey_env = "LAB_KEY"\n'
    (config / "models.toml").write_text(entry, encoding="utf-8")
    return "lab"


@pytest.mark.parametrize("limit", [(), ("--think", "5")])
def test_text_and_counts_are_those_of_the_same_file_here(slm: Slm, lab: str, limit: tuple[str, ...]) -> None:
    there, here = (json.loads(slm("run", name, SUM, "--json", *limit).out) for name in (lab, "tiny-reasoner"))
    assert [there[key] for key in ("thinking", "answer", "finish", "cut")] == [
        here[key] for key in ("thinking", "answer", "finish", "cut")
    ]
    counts = ("prompt_tokens", "think_tokens", "answer_tokens", "tag_tokens", "injected_tokens")
    assert [there["usage"][key] for key in counts] == [here["usage"][key] for key in counts]
    assert (there["backend"], there["device"], there["quant"], there["timings"]["peak_rss_bytes"]) == (
        *("openai", "remote", "Q8_0"),
        0,
    )


def test_a_conversation_goes_on(slm: Slm, lab: str) -> None:
    done = slm("chat", lab, stdin=b"What is 3 + 4?\nWhat is 9 - 2?\n")
    assert (done.code, done.out.count("**7**")) == (0, 2)


def test_both_stand_beside_each_other_in_a_comparison(slm: Slm, lab: str) -> None:
    done = slm("compare", "tiny-reasoner", lab, "-p", SUM, "--expect", "85", "--json")
    assert (done.code, done.out.count('"correct": true')) == (0, 2)


def test_the_speed_of_a_server_that_takes_no_ids_is_measured_in_words_and_nothing_of_this_machine(slm: Slm) -> None:
    reply = says(*(delta(content=f"{n} ") for n in range(200)), finish(), usage(300, 200))
    with fake_engine(v1__chat__completions=reply) as engine:
        values = json.loads(slm("bench", f"{engine.url}#m", "--rounds", "1", "--json").out)
        assert all("prompt" not in body for _, body, _ in engine.asked)
    assert (values["prompt_tokens"], values["decoded_tokens"]) == (512, 128)
    assert values["decode_tps"]["median"] > 0
    assert (values["memory_bytes"], values["limit_tps"], values["tokens_per_joule"]) == (None, None, None)


def test_without_the_key_it_is_said_which_variable_is_to_hold_it(
    slm: Slm, lab: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAB_KEY")
    done = slm("run", lab, SUM)
    assert done.code == 7
    assert "LAB_KEY, which is not set" in done.err
    monkeypatch.setenv("LAB_KEY", "sk-wrong")
    done = slm("run", lab, SUM)
    assert done.code == 7
    assert "refuses the key in LAB_KEY" in done.err
    assert "sk-wrong" not in done.err


def test_what_went_wrong_in_the_middle_keeps_what_came(slm: Slm) -> None:
    broken = says(delta(content="Paris is"), {"error": {"message": "out of memory"}})
    with fake_engine(v1__chat__completions=broken) as engine:
        done = slm("run", f"{engine.url}#m", "Where?")
        values = json.loads(slm("run", f"{engine.url}#m", "Where?", "--json").out)
    assert (done.code, done.out) == (7, "Paris is\n")
    assert "out of memory" in done.err
    assert (values["answer"], values["error"]["type"], values["error"]["exit_code"]) == ("Paris is", "RemoteFailed", 7)


def test_a_model_that_the_server_does_not_have_is_an_unknown_one(slm: Slm) -> None:
    with fake_engine(v1__models=lambda body: Answer({"data": [{"id": "qwen"}]})) as engine:
        done = slm("run", f"{engine.url}#m", "Where?")
    assert done.code == 2
    assert "has no model 'm'; it has qwen" in done.err
    assert f"{engine.url}#qwen" in done.err


def test_what_is_for_models_of_this_machine_is_said_to_be_left_out(slm: Slm) -> None:
    with fake_engine(v1__chat__completions=says(delta(content="ok"), finish())) as engine:
        done = slm("run", f"{engine.url}#m", "Where?", "--threads", "2", "--quant", "Q4_K_M", "--keep-alive", "5m")
        offline = slm("run", f"{engine.url}#m", "Where?", "--offline")
        shown = slm("plan", f"{engine.url}#m")
        pulled = slm("pull", f"{engine.url}#m")
    assert (done.code, done.out) == (0, "ok\n")
    assert "quant, threads, keep-alive: for models of this machine" in " ".join(done.err.split())
    assert (offline.code, "opens no socket" in offline.err) == (2, True)
    assert "openai on remote · Fits · elsewhere" in shown.out
    assert (pulled.code, "nothing to fetch" in pulled.err) == (2, True)
