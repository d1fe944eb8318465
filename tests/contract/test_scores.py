"""What every backend promises that tells how likely tokens were: of what it wrote, and of a prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_local.errors import UsageError
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    PromptScores,
    Sampling,
    StreamEvent,
    TokenOrder,
    TokenScore,
)
from tests.contract.runners import InProcess, Runner, ask, hear, runner_for
from tests.loading import THINK_TAGS, load_settings_for

QUESTION = "What is 47 + 38?"
SCRIPT = """\
{"text": "4", "ids": [4], "logprob": -0.25, "top": [["4", -0.25], ["5", -1.5]]}
{"text": "2", "ids": [2], "logprob": -0.5, "top": [["2", -0.5], ["3", -1.0]]}
{"end": "stop", "logprob": -0.1, "top": [["", -0.1], ["1", -2.5]]}
"""


@pytest.fixture(scope="module", params=["scripted", "llamacpp", "openvino-tiny", "llamacpp-worker"])
def runner(
    request: pytest.FixtureRequest, tiny_reasoner: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("scores")
    path = tiny_reasoner
    if request.param == "scripted":
        path = folder / "script.jsonl"
        path.write_text(SCRIPT, encoding="utf-8")
    made = runner_for(str(request.param), path, folder, context=512)
    yield made
    made.close()


@pytest.fixture
def telling(runner: Runner) -> Runner:
    if "logprobs" not in runner.facts.capabilities:
        pytest.skip("this engine tells no log-probabilities")
    return runner


def request_of(
    ids: tuple[int, ...], *, max_tokens: int, logprobs: int | None = 2, scores: bool = False
) -> GenerationRequest:
    return GenerationRequest(
        prompt_ids=ids, max_tokens=max_tokens, logprobs=logprobs, scores_prompt=scores, sampling=Sampling()
    )


def told(events: list[StreamEvent]) -> list[TokenScore]:
    return [score for event in events if isinstance(event, AnswerDelta) for score in event.scores]


def prompt_scores(events: list[StreamEvent]) -> tuple[TokenScore, ...]:
    (found,) = [event.scores for event in events if isinstance(event, PromptScores)]
    return found


def prompt_ids(runner: Runner) -> tuple[int, ...]:
    return runner.tokens(TokenOrder(request=ask(QUESTION * 4))).ids


def test_what_an_engine_lacks_is_refused_with_a_word_on_who_has_it(runner: Runner) -> None:
    asked = {
        "logprobs": request_of((7, 8), max_tokens=1),
        "scores": request_of((7, 8), max_tokens=1, logprobs=None, scores=True),
    }
    for capability, request in asked.items():
        if capability in runner.facts.capabilities:
            continue
        with pytest.raises(UsageError, match="this engine does not tell how likely") as caught:
            hear(runner, request)
        assert caught.value.hint == "--backend llamacpp"


def test_each_token_of_an_answer_is_scored_and_their_texts_join_to_it(telling: Runner) -> None:
    heard = hear(telling, request_of(prompt_ids(telling), max_tokens=12))
    scores = told(heard.events)
    assert b"".join(bytes(score.data) for score in scores).decode() == heard.answer != ""
    for score in scores:
        assert score.logprob is not None
        assert score.logprob <= 0.0
        assert [each.top for each in score.top] == [(), ()]
        assert (score.top[0].logprob, score.top[0].data) == (score.logprob, score.data), "greedy takes the likeliest"
        assert score.top[1].logprob is not None
        assert score.top[1].logprob <= score.logprob


def test_nothing_is_scored_unasked(telling: Runner) -> None:
    assert told(hear(telling, request_of(prompt_ids(telling), max_tokens=4, logprobs=None)).events) == []
    alone = told(hear(telling, request_of(prompt_ids(telling), max_tokens=2, logprobs=0)).events)
    assert [score.top for score in alone] == [(), ()]


def test_the_probabilities_of_all_tokens_add_up_to_one(telling: Runner) -> None:
    if telling.facts.architecture == "scripted":
        pytest.skip("a script says what it likes")
    (score,) = told(hear(telling, request_of(prompt_ids(telling), max_tokens=1, logprobs=10**6)).events)
    assert len(score.top) == telling.facts.vocabulary_size
    assert sum(math.exp(each.logprob or 0.0) for each in score.top) == pytest.approx(1.0, abs=1e-5)


def test_temperature_changes_no_score(telling: Runner) -> None:
    ids = prompt_ids(telling)
    warm = GenerationRequest(
        prompt_ids=ids, max_tokens=1, logprobs=2, sampling=Sampling(temperature=3.0, top_k=2, seed=1)
    )
    (one,), (other,) = (told(hear(telling, each).events) for each in (warm, request_of(ids, max_tokens=1)))
    assert [each.logprob for each in one.top] == pytest.approx([each.logprob for each in other.top], abs=1e-4)


def test_a_prompt_is_scored_before_the_first_token_all_but_its_first(telling: Runner) -> None:
    ids = prompt_ids(telling)
    heard = hear(telling, request_of(ids, max_tokens=2, scores=True))
    kinds = [type(event) for event in heard.events]
    assert kinds.index(PromptScores) < kinds.index(AnswerDelta)
    scores = prompt_scores(heard.events)
    assert tuple(score.id for score in scores) == ids
    assert (scores[0].logprob, scores[0].top) == (None, ())
    assert all(score.logprob is not None and len(score.top) == 2 for score in scores[1:])
    assert len(told(heard.events)) == 2


def test_a_scored_prompt_alone_ends_without_a_token(telling: Runner) -> None:
    ids = prompt_ids(telling)
    both = prompt_scores(hear(telling, request_of(ids, max_tokens=1, scores=True)).events)
    for _ in range(2):  # the second one finds all of it in the KV cache
        heard = hear(telling, request_of(ids, max_tokens=0, scores=True))
        assert (heard.reply.finish, heard.reply.answer, heard.reply.usage.answer_tokens) == ("length", "", 0)
        assert heard.reply.usage.prompt_tokens == len(ids)
        assert [score.logprob for score in prompt_scores(heard.events)[1:]] == pytest.approx(
            [score.logprob for score in both[1:]], abs=1e-3
        )
    assert prompt_scores(hear(telling, request_of(ids[:1], max_tokens=0, scores=True)).events)[0].id == ids[0]


def test_a_prompts_tokens_are_as_likely_as_when_the_model_wrote_them(telling: Runner) -> None:
    if telling.facts.architecture == "scripted":
        pytest.skip("a script says what it likes")
    ids = prompt_ids(telling)
    written = told(hear(telling, request_of(ids, max_tokens=40)).events)
    whole = (*ids, *(score.id for score in written))
    scores = prompt_scores(hear(telling, request_of(whole, max_tokens=0, scores=True)).events)[len(ids) :]
    assert [score.logprob for score in scores] == pytest.approx([score.logprob for score in written], abs=2e-3)


def test_a_conversation_has_its_answer_scored_and_not_its_thinking(tiny_reasoner: Path) -> None:
    runner = InProcess(load_settings_for("llamacpp", tiny_reasoner, context=512, tags=THINK_TAGS))
    heard = hear(runner, GenerationRequest(messages=ask(QUESTION).messages, max_tokens=400, logprobs=1))
    runner.close()
    assert heard.reply.thinking
    text = b"".join(bytes(score.data) for score in told(heard.events)).decode()
    assert text.strip() == heard.reply.answer.strip() != ""


def test_only_token_ids_can_be_scored_as_a_prompt(telling: Runner) -> None:
    with pytest.raises(UsageError, match="only a prompt of token ids"):
        hear(telling, GenerationRequest(messages=ask(QUESTION).messages, scores_prompt=True))


def test_scores_are_those_of_a_prompt_alone_also_beside_others(tiny_reasoner: Path) -> None:
    runner = InProcess(load_settings_for("llamacpp", tiny_reasoner, context=2048))
    ids = prompt_ids(runner)
    alone = prompt_scores(hear(runner, request_of(ids, max_tokens=0, scores=True)).events)
    found: dict[int, tuple[TokenScore, ...]] = {}
    ends = 0
    for number in range(12):  # enough that few rows of logits are left for each
        runner.driver.start(number, request_of(ids, max_tokens=0 if number % 2 else 3, scores=bool(number % 2)))
    while runner.driver.is_busy:
        for number, event in runner.driver.step():
            if isinstance(event, PromptScores):
                found[number] = event.scores
            ends += isinstance(event, Done)
    runner.close()
    assert ends == 12
    assert sorted(found) == [1, 3, 5, 7, 9, 11]
    for scores in found.values():
        assert [each.logprob for each in scores[1:]] == pytest.approx([each.logprob for each in alone[1:]], abs=1e-2)


def test_a_cancelled_scoring_leaves_the_next_request_as_it_should_be(telling: Runner) -> None:
    control = Control()
    control.cancel()
    assert hear(telling, request_of(prompt_ids(telling), max_tokens=0, scores=True), control).reply.finish == (
        "cancelled"
    )
    assert hear(telling, ask(QUESTION, max_tokens=300)).reply.finish == "stop"
