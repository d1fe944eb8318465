"""One suite over every backend, in this process and in a worker: what every engine promises its caller."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_local.errors import PromptTooLong
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    Message,
    PromptProgress,
    Started,
    ThinkDelta,
)
from tests.conftest import ScriptWriter
from tests.contract.runners import CASES, Heard, InProcess, InWorker, Runner, ask, hear, runner_for
from tests.loading import THINK_TAGS, load_settings_for

QUESTION = "What is the capital of France? Answer in one sentence."
WORDS = [f"word{number}" for number in range(16)]
LONG_ANSWER = "Write a long story about a lighthouse keeper."


@pytest.fixture(scope="module", params=CASES)
def runner(
    request: pytest.FixtureRequest, smollm2: Path, tiny_reasoner: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    case = str(request.param)
    folder = tmp_path_factory.mktemp("contract")
    path = tiny_reasoner if "tiny" in case else smollm2
    if case.startswith("scripted"):
        path = folder / "script.jsonl"
        rows = [f'{{"text": "{word} ", "delay": 0.01}}' for word in WORDS]
        path.write_text("\n".join([*rows, '{"end": "stop"}']) + "\n", encoding="utf-8")
    made = runner_for(case, path, folder, context=1024)
    yield made
    made.close()


def test_events_come_in_the_order_of_the_contract(runner: Runner) -> None:
    heard = hear(runner, ask(QUESTION))
    kinds = [type(event) for event in heard.events]
    assert kinds[0] is Started
    assert kinds[-1] is Done
    assert kinds.count(Done) == kinds.count(Started) == 1
    first_text = next(i for i, kind in enumerate(kinds) if kind in (ThinkDelta, AnswerDelta))
    assert PromptProgress not in kinds[first_text:]
    last_progress = next(event for event in reversed(heard.events) if isinstance(event, PromptProgress))
    assert last_progress.done_tokens == last_progress.total_tokens == heard.started.prompt_tokens


def test_the_deltas_join_to_the_reply(runner: Runner) -> None:
    heard = hear(runner, ask(QUESTION))
    assert heard.answer.rstrip() == heard.reply.answer.rstrip() != ""
    assert heard.thinking.rstrip() == heard.reply.thinking.rstrip()
    assert not heard.thinking or "chat" in runner.facts.capabilities  # a server's model may be one that thinks


def test_every_token_is_counted_once(runner: Runner) -> None:
    heard = hear(runner, ask(LONG_ANSWER, max_tokens=13))
    usage = heard.reply.usage
    assert heard.reply.finish == "length"
    assert (usage.think_tokens or 0) + (usage.answer_tokens or 0) == 13
    assert usage.prompt_tokens == heard.started.prompt_tokens
    is_told = "chat" not in runner.facts.capabilities or "counts" in runner.facts.capabilities
    if is_told and heard.started.think_state != "open":  # room for the answer is made where a model thinks
        assert usage.injected_tokens == usage.tag_tokens == 0


def test_a_limit_of_tokens_that_falls_behind_the_end_changes_nothing(runner: Runner) -> None:
    free = hear(runner, ask(QUESTION, max_tokens=200)).reply
    assert free.finish == "stop"
    assert free.cut == "none"


def test_cancel_keeps_the_partial_answer_and_the_next_request_works(runner: Runner) -> None:
    for _ in range(40):  # the smallest models may be done before they hear of it
        control = Control()
        events = []
        for event in runner.stream(ask(LONG_ANSWER, max_tokens=400), control):
            events.append(event)
            if isinstance(event, AnswerDelta):
                control.cancel()
        heard = Heard(events)
        if heard.reply.finish == "cancelled":
            break
    assert heard.reply.finish == "cancelled"
    assert heard.reply.answer.rstrip() == heard.answer.rstrip() != ""
    assert hear(runner, ask(QUESTION, max_tokens=200)).reply.finish == "stop"


def test_a_request_cancelled_before_it_begins_still_ends_with_done(runner: Runner) -> None:
    control = Control()
    control.cancel()
    assert hear(runner, ask(QUESTION), control).reply.finish == "cancelled"


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(runner: Runner) -> None:
    whole = hear(runner, ask(LONG_ANSWER, max_tokens=40)).reply.answer
    stop = whole.split()[3]
    heard = hear(runner, ask(LONG_ANSWER, max_tokens=40, stop=(stop,)))
    assert heard.reply.finish == "stop"
    assert heard.reply.answer.rstrip() == whole[: whole.index(stop)].rstrip()
    assert heard.answer.rstrip() == heard.reply.answer.rstrip()


def test_the_common_start_of_a_conversation_is_not_read_twice(runner: Runner) -> None:
    first = hear(runner, ask(QUESTION, max_tokens=200))
    turns = (
        Message(role="user", content=QUESTION),
        Message(role="assistant", content=first.reply.answer),
        Message(role="user", content="And of Spain?"),
    )
    second = hear(runner, GenerationRequest(messages=turns, max_tokens=8))
    assert first.started.prompt_tokens is not None
    if "cached_tokens" not in runner.facts.capabilities:
        assert second.started.cached_tokens is None  # declared, never faked
        return
    cached = second.started.cached_tokens
    if "chat" in runner.facts.capabilities:  # a server says it once it has read the prompt
        cached = second.reply.usage.cached_tokens
    assert cached is not None
    assert cached >= first.started.prompt_tokens - 8


def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(runner: Runner) -> None:
    holds = f"{runner.facts.context_tokens:,}"
    with pytest.raises(PromptTooLong, match=rf"the prompt has [\d,]+ tokens and the context holds {holds}"):
        hear(runner, ask("word " * 3000))
    assert hear(runner, ask(QUESTION, max_tokens=200)).reply.finish == "stop"


def test_raw_ids_are_neither_templated_nor_split(runner: Runner) -> None:
    heard = hear(runner, GenerationRequest(prompt_ids=(100, 101, 102), max_tokens=2))
    assert heard.started.prompt_tokens == 3
    assert heard.reply.thinking == ""
    assert heard.reply.usage.answer_tokens == 2


def test_facts_name_the_context_and_the_template(runner: Runner) -> None:
    if "chat" in runner.facts.capabilities:  # a server has its own
        assert 0 < runner.facts.context_tokens <= 1024
        return
    assert runner.facts.context_tokens == 1024
    assert runner.facts.chat_template
    assert runner.facts.control_texts


@pytest.fixture(params=["here", "worker"])
def thinker(request: pytest.FixtureRequest, script: ScriptWriter, tmp_path: Path) -> Iterator[Runner]:
    path = script(
        *({"text": text} for text in ("<th", "ink>", "\nI ", "wonder", ".\n", "</think>", "\n\nIt ", "is ", "Paris.")),
        {"end": "stop"},
    )
    settings = load_settings_for("scripted", path, tags=THINK_TAGS, switch="enable_thinking")
    made: Runner = InWorker(settings, tmp_path) if request.param == "worker" else InProcess(settings)
    yield made
    made.close()


def test_thinking_and_answer_come_apart(thinker: Runner) -> None:
    heard = hear(thinker, ask("Where?"))
    assert (heard.thinking, heard.answer) == ("I wonder.\n", "It is Paris.")
    usage = heard.reply.usage
    assert usage.tag_tokens == 3
    assert usage.think_tokens == 6
    assert usage.answer_tokens == 4
    assert heard.started.think_state == "unopened"


def test_a_limit_inside_thinking_says_so(thinker: Runner) -> None:
    reply = hear(thinker, ask("Where?", max_tokens=4)).reply
    assert (reply.finish, reply.cut) == ("length", "max_tokens")
    assert reply.thinking == "I wonder"
    assert reply.answer == ""


def test_thinking_switched_off_is_closed_in_the_prompt(thinker: Runner) -> None:
    assert hear(thinker, ask("Where?", think="off")).started.think_state == "closed"
    assert hear(thinker, ask("Where?", think="on")).started.think_state == "open"


def test_a_reply_that_ends_in_thinking_is_empty_and_never_a_copy_of_the_thoughts(
    script: ScriptWriter, tmp_path: Path
) -> None:
    path = script({"text": "<think>round and round"}, {"end": "stop"})
    with_tags = InProcess(load_settings_for("scripted", path, tags=THINK_TAGS))
    reply = hear(with_tags, ask("Where?")).reply
    assert (reply.finish, reply.answer, reply.thinking) == ("empty", "", "round and round\n")  # the tag was injected
    assert reply.usage.injected_tokens


@pytest.mark.parametrize("case", ["llamacpp", "openvino-tiny"])
def test_two_requests_at_once_answer_as_each_alone(
    case: str, smollm2: Path, tiny_reasoner: Path, tmp_path: Path
) -> None:
    runner = runner_for(case, tiny_reasoner if "tiny" in case else smollm2, tmp_path, context=1024)
    assert isinstance(runner, InProcess)
    # "Name three colours." has a tie at its 17th token (logits 23.511 and 23.507), which the batch's shape decides.
    questions = [ask(QUESTION, max_tokens=24), ask("Count from one to ten.", max_tokens=24)]
    alone = [hear(runner, question).reply.answer for question in questions]
    together: dict[int, str] = {0: "", 1: ""}
    for number, question in enumerate(questions):
        runner.driver.start(number, question)
    moved_in_one_step = False
    while runner.driver.is_busy:
        events = runner.driver.step()
        moved_in_one_step |= {number for number, event in events if isinstance(event, AnswerDelta)} == {0, 1}
        for number, event in events:
            if isinstance(event, Done):
                together[number] = event.reply.answer
    runner.close()
    assert moved_in_one_step
    assert [together[0], together[1]] == alone
