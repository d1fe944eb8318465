"""What every engine promises when thinking is ended for the model, in this process and in a worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.generation import (
    DEFAULT_BRIDGE,
    AnswerDelta,
    Control,
    GenerationRequest,
    Message,
    PromptProgress,
    StreamEvent,
    ThinkDelta,
)
from slm_local.tiny import heldout
from tests.contract.runners import CASES, REMOTE_VARIABLE, Heard, Runner, hear, running
from tests.loading import THINK_TAGS, load_settings_for

LONG_THOUGHT = "What is 47 x 38?"
WORDS = [f"word{number} " for number in range(8)]
SCRIPT = "\n".join(
    [*(f'{{"text": "{word}", "delay": 0.005}}' for word in [*WORDS, "</think>", *WORDS]), '{"end": "stop"}\n']
)


@pytest.fixture(
    scope="module",
    params=[
        *("scripted", "scripted-worker", "llamacpp", "llamacpp-worker", "openvino", "openvino-worker"),
        *(each for each in CASES if each.startswith("openai-")),
    ],
)
def thinker(
    request: pytest.FixtureRequest, tiny_reasoner: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("governed")
    backend, _, where = str(request.param).partition("-")
    path = tiny_reasoner
    if backend == "scripted":
        path = folder / "script.jsonl"
        path.write_text(SCRIPT, encoding="utf-8")
    settings = load_settings_for(backend, path, context=1024, tags=THINK_TAGS, switch="enable_thinking")
    if "slm" in where:
        settings = replace(settings, remote_model="slm", context_tokens=512)
    elif "remote" in where:
        settings = replace(settings, remote_model=REMOTE_VARIABLE)
    settings = replace(settings, cache_dir=str(folder / "compiled"))
    made = running(settings, folder, is_worker=bool(where))
    yield made
    made.close()


def ask(*, think_tokens: int | None = None) -> GenerationRequest:
    return GenerationRequest(
        messages=(Message(role="user", content=LONG_THOUGHT),), think="open", think_tokens=think_tokens
    )


def thought_tokens(heard: Heard) -> int | None:
    """Return the tokens that the model thought; None from a server that does not tell its own from injected ones."""
    usage = heard.reply.usage
    if usage.injected_tokens is None:
        return None
    return (usage.think_tokens or 0) - (usage.tag_tokens or 0) - (usage.injected_tokens or 0)


def ended_by_hand(runner: Runner, *, cancel: bool = False) -> Heard:
    """Ask for the answer while it thinks; the smallest model may be done before it hears of it: then again."""
    for _ in range(40):
        control = Control()
        events: list[StreamEvent] = []
        for event in runner.stream(ask(), control):
            events.append(event)
            if isinstance(event, ThinkDelta):
                control.end_thinking()
                if cancel:
                    control.cancel()
        heard = Heard(events)
        if heard.reply.cut == "user" or heard.reply.finish == "cancelled":
            return heard
    raise AssertionError("the model never heard it")


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_budget_ends_thinking_exactly_there_and_the_model_answers(thinker: Runner, budget: int) -> None:
    heard = hear(thinker, ask(think_tokens=budget))
    assert heard.reply.cut == "budget"
    assert thought_tokens(heard) in (budget, None)
    assert heard.thinking.rstrip().endswith(DEFAULT_BRIDGE.strip())
    written = [event for event in heard.events if isinstance(event, AnswerDelta) and not event.injected]
    assert "".join(event.text for event in written).strip() == heard.reply.answer.strip() != ""
    marks = [event.injected for event in heard.events if isinstance(event, ThinkDelta)]
    assert marks == sorted(marks)
    assert marks[-1] or thought_tokens(heard) is None


def test_what_is_injected_is_counted_once_whatever_the_budget(thinker: Runner) -> None:
    few, more = (hear(thinker, ask(think_tokens=budget)).reply.usage for budget in (2, 6))
    assert few.injected_tokens == more.injected_tokens != 0
    assert (more.think_tokens or 0) - (few.think_tokens or 0) == 4


def test_an_answer_asked_for_before_the_first_token_comes_without_thinking(thinker: Runner) -> None:
    control = Control()
    control.end_thinking()
    heard = hear(thinker, ask(), control)
    assert heard.reply.cut == "user"
    assert not thought_tokens(heard)
    assert heard.reply.answer.strip()
    kinds = [type(event) for event in heard.events]
    assert PromptProgress not in kinds[kinds.index(ThinkDelta) :]


def test_an_answer_asked_for_while_it_thinks_follows_what_was_thought(thinker: Runner) -> None:
    heard = ended_by_hand(thinker)
    assert heard.reply.finish == "stop"
    assert heard.reply.answer.strip()
    assert heard.thinking.removesuffix(DEFAULT_BRIDGE + "\n").strip()
    assert heard.thinking.rstrip().endswith(DEFAULT_BRIDGE.strip())
    assert heard.thinking.rstrip() == heard.reply.thinking.rstrip()


def test_a_cancel_right_after_ends_the_reply_and_the_next_answers(thinker: Runner) -> None:
    heard = ended_by_hand(thinker, cancel=True)
    assert heard.reply.finish == "cancelled"
    assert hear(thinker, ask(think_tokens=3)).reply.answer.strip()


def test_a_budget_that_is_never_reached_changes_nothing(thinker: Runner) -> None:
    free, bounded = (hear(thinker, ask(think_tokens=budget)) for budget in (None, 900))
    assert (bounded.thinking, bounded.answer) == (free.thinking, free.answer)
    assert bounded.reply.usage.injected_tokens == free.reply.usage.injected_tokens


@pytest.mark.parametrize("thinker", ["llamacpp", "openvino", "openai-worker"], indirect=True)
@pytest.mark.parametrize("budget", [0, 8, 64])
def test_every_problem_gets_an_answer_of_the_models_own_within_the_budget(thinker: Runner, budget: int) -> None:
    families = [family for family in heldout.FAMILIES if not family.startswith("refuse")]
    trials = [trial for family in families for trial in heldout.draw_trials(family, 3, seed=6)][:20]
    for trial in trials:
        turns: tuple[Message, ...] = (Message(role="user", content=trial.prompt.text),)
        if trial.prompt.system:
            turns = (Message(role="system", content=trial.prompt.system), *turns)
        heard = hear(thinker, GenerationRequest(messages=turns, think="open", think_tokens=budget))
        own = "".join(each.text for each in heard.events if isinstance(each, AnswerDelta) and not each.injected)
        assert own.strip(), trial.prompt.text
        assert (thought_tokens(heard) or 0) <= budget
        assert heard.reply.finish in ("stop", "loop")
