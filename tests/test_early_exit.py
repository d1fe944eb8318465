"""Early exit with the embedded model and on the command line: what is said of it, and that it changes nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.config import Settings
from slm_local.driver import Driver
from slm_local.engine import Engine, choose
from slm_local.generation import Control, Done, GenerationRequest, ModelFacts, Reply
from slm_local.governor.convergence import ExitRule
from slm_local.notes import unused_early_exit
from tests.command import Result, slm
from tests.conftest import ScriptWriter
from tests.contract.runners import ask
from tests.governed import ANSWER, BRIDGE, END, OPEN
from tests.loading import THINK_TAGS, load_settings_for
from tests.probed import IDEA

__all__ = ["slm"]

Slm = Callable[..., Result]

EAGER = ExitRule(same_answers=2, least_spacing=8, most_spacing=8)
NEVER = replace(EAGER, same_answers=10**9)
COMPARISON = "Which number is higher: 9.67 or 9.22?"
"""The embedded model has the answer in its second line, and writes five."""


@pytest.fixture
def driver_of(tiny_reasoner: Path) -> Iterator[Callable[[ExitRule], Driver]]:
    made: list[Driver] = []

    def make(rule: ExitRule) -> Driver:
        driver = Driver(LlamaCppBackend(), exit_rule=rule)
        settings = load_settings_for("llamacpp", tiny_reasoner, context=512, tags=THINK_TAGS)
        driver.load(settings, Control(), lambda fraction: None)
        made.append(driver)
        return driver

    yield make
    for driver in made:
        driver.close()


def wish(text: str, *, early_exit: bool = True) -> GenerationRequest:
    return replace(ask(text, max_tokens=None, think="open"), early_exit=early_exit)


def reply_of(driver: Driver, request: GenerationRequest) -> Reply:
    return next(event.reply for event in driver.run(request) if isinstance(event, Done))


def test_the_embedded_model_stops_thinking_once_its_answer_has_settled(
    driver_of: Callable[[ExitRule], Driver],
) -> None:
    driver = driver_of(EAGER)
    full = reply_of(driver, wish(COMPARISON, early_exit=False))
    reply = reply_of(driver, wish(COMPARISON))
    assert (full.cut, reply.cut, reply.finish) == ("none", "converged", "stop")
    assert reply.answer == full.answer == "The answer is **9.67**."
    ours = reply.thinking.partition(" Enough thinking")[0]
    assert full.thinking.startswith(ours)
    assert len(ours) < len(full.thinking) - 20
    assert reply.usage.probes == 2


@pytest.mark.parametrize("text", [COMPARISON, "What is 619 + 771?", "63 * 39"])
def test_probes_that_never_settle_it_leave_the_embedded_models_words(
    text: str, driver_of: Callable[[ExitRule], Driver]
) -> None:
    driver = driver_of(NEVER)
    full = reply_of(driver, wish(text, early_exit=False))
    probed = reply_of(driver, wish(text))
    assert (probed.usage.probes or 0) >= 3
    assert (probed.thinking, probed.answer, probed.cut) == (full.thinking, full.answer, full.cut)
    counts = replace(probed.usage, probes=0, probe_tokens=0, cached_tokens=full.usage.cached_tokens)
    assert counts == full.usage


def test_the_command_line_counts_probes_apart_and_says_what_they_took(slm: Slm) -> None:
    plain = json.loads(slm("run", "tiny", "What is 47 + 38?", "--backend", "llamacpp", "--json").out)
    result = slm("run", "tiny", "What is 47 + 38?", "--backend", "llamacpp", "--json", "-v", "--early-exit")
    reply = json.loads(result.out)
    assert (reply["thinking"], reply["answer"]) == (plain["thinking"], plain["answer"])
    assert reply["usage"]["think_tokens"] == plain["usage"]["think_tokens"]
    assert (plain["usage"]["probes"], plain["usage"]["probe_tokens"]) == (0, 0)
    assert reply["usage"]["probe_tokens"] > reply["usage"]["probes"] > 0
    assert re.search(r"answers tried: +\d+ probes?, \d+ tokens\n", result.err)
    assert re.search(r"think: .*; it ends once its answer has settled\n", result.err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tiny-direct",), "tiny-direct has no thinking of its own: --early-exit changes nothing\n"),
        (("tiny@early-exit", "--no-think"), "thinking is off: --early-exit changes nothing\n"),
    ],
)
def test_without_thinking_the_command_line_says_that_it_has_no_effect(
    slm: Slm, arguments: tuple[str, ...], said: str
) -> None:
    model, *flags = (*arguments, "--max-tokens", "8")
    result = slm("run", model, "What is 2 + 3?", "--early-exit", *flags)
    assert (result.code, result.err.count(said)) == (0, 1)
    assert "changes nothing" not in slm("run", model, "What is 2 + 3?", *flags, "-o", "seed=1").err.replace(said, "")


def test_a_settled_answer_is_told_in_words_and_in_json(slm: Slm, script: ScriptWriter) -> None:
    line = {**IDEA, "fork": [" **42", "**."]}
    model = f"scripted:{script(OPEN, line, {'text': '</think>'}, END, ANSWER)}@early-exit"
    reply = json.loads(slm("run", model, "x", "--json").out)
    assert (reply["cut"], reply["finish"], reply["answer"]) == ("converged", "stop", "It is 42.")
    assert reply["thinking"].endswith(BRIDGE)
    assert "**" not in reply["thinking"]
    assert reply["usage"]["probes"] == 3
    result = slm("run", model, "x", "-v")
    assert result.out == "It is 42.\n"
    assert "thinking was ended, for the answer had settled\n" in result.err
    assert f"answers tried:         3 probes, {reply['usage']['probe_tokens']} tokens\n" in result.err


def test_an_engine_that_can_not_try_an_answer_is_named() -> None:
    facts = ModelFacts(
        architecture="llama",
        name="x",
        context_tokens=512,
        trained_context_tokens=512,
        vocabulary_size=9,
        chat_template=None,
        bos_text="",
        eos_text="",
        adds_bos=False,
        control_texts=(),
    )
    engine = Engine(choose("tiny", settings=Settings(backend="llamacpp", early_exit=True)))
    said = "llamacpp on cpu can't try an answer beside the thinking: --early-exit changes nothing"
    for capabilities, words in (((), said), (("fork",), None)):
        engine._facts = replace(facts, capabilities=capabilities)
        assert unused_early_exit(engine) == words
