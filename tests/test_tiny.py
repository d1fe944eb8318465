"""Are the embedded models what their card says? Teacher, split, vocabulary, files and a handful of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from operator import add, mul, sub
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from slm_local.tiny import DIRECT, REASONER, WEIGHTS, batches, heldout, phrasing, problems, smalltalk, teacher, tokens
from slm_local.tiny.materials import UNSEEN, Pieces
from slm_local.tiny.problems import Calculation, Chat, Comparison, Problem, Story, Weighing

if TYPE_CHECKING:
    from slm_local.tiny.evaluate import Runner

CARD = WEIGHTS.parent / "CARD.md"
CHECKPOINT = Path(__file__).parent / "data" / "tiny-reasoner"
OPERATIONS = {"+": add, "-": sub, "x": mul}
GRAMS = {"pounds": 453.59237, "ounces": 453.59237 / 16, "kilograms": 1000.0, "grams": 1.0}
SHORT = {"lb": "pounds", "oz": "ounces", "kg": "kilograms", "g": "grams"}
EQUATION = re.compile(r"(?<![\d.])(\d+(?:[-+x]\d+)+)=(-?\d+)")
RELATION = re.compile(r"(?<![\d.x+-])(\d+(?:\.\d+)?)([<>=])(\d+(?:\.\d+)?)(?![\dx+-])")


def drawn(family: str, count: int, seed: int = 1) -> Iterator[Problem]:
    rng = Random(f"{family}/{seed}")
    for _ in range(count):
        yield batches.draw_family(family, rng, Pieces())


def evaluated(expression: str) -> int:
    first, *rest = re.findall(r"[-+x]?\d+", expression)
    value = int(first)
    for part in rest:
        value = OPERATIONS[part[0]](value, int(part[1:]))
    return value


def holds(left: str, relation: str, right: str) -> bool:
    a, b = float(left), float(right)
    return {"<": a < b, ">": a > b, "=": a == b}[relation]


@pytest.mark.parametrize("family", ["add", "subtract", "times1", "times2", "compare", "weigh", "story"])
def test_every_step_of_a_trace_is_true(family: str) -> None:
    steps = 0
    for problem in drawn(family, 1500):
        trace = teacher.trace(problem)
        for expression, value in EQUATION.findall(trace):
            assert evaluated(expression) == int(value), trace
            steps += 1
        for left, relation, right in RELATION.findall(trace):
            assert holds(left, relation, right), trace
            steps += 1
    assert steps > 1500


@pytest.mark.parametrize("family", ["add", "subtract", "times1", "times2"])
def test_a_sum_ends_with_its_value(family: str) -> None:
    for problem in drawn(family, 2000):
        assert isinstance(problem, Calculation)
        value = OPERATIONS[problem.operation](problem.left, problem.right)
        assert teacher.trace(problem).endswith(f"={value}.")
        assert teacher.answer(problem, boxed=False) == f"The answer is **{value}**."
        assert teacher.answer(problem, boxed=True) == f"The answer is \\boxed{{{value}}}."


def test_the_digits_line_holds_the_value_of_the_step() -> None:
    for problem in drawn("add", 500):
        assert isinstance(problem, Calculation)
        digits = re.findall(r"digits: \+?(\d+)", teacher.trace(problem))
        assert int(digits[-1]) == problem.left + problem.right


def test_a_story_is_the_chain_of_its_steps() -> None:
    for problem in drawn("story", 1500):
        assert isinstance(problem, Story)
        for before, after in zip(problem.steps, problem.steps[1:], strict=False):
            assert after.left == before.result
        assert all(0 <= step.result <= 1500 for step in problem.steps)
        assert teacher.result(problem) == str(problem.steps[-1].result)


def test_a_story_names_every_number_it_needs() -> None:
    rng = Random(5)
    for problem in drawn("story", 500):
        assert isinstance(problem, Story)
        told = {int(number) for number in re.findall(r"\d+", phrasing.wording(problem, rng))}
        assert told == {problem.steps[0].left, *(step.right for step in problem.steps)}


def test_the_heaviest_is_found_from_the_words_alone() -> None:
    for problem in drawn("weigh", 2000):
        assert isinstance(problem, Weighing)
        values = [grams(item.written) for item in problem.items]
        best = max(values) if problem.asked == "heaviest" else min(values)
        winners = [
            item.written for item, value in zip(problem.items, values, strict=True) if value == pytest.approx(best)
        ]
        if len(winners) == len(values):
            assert teacher.result(problem) == "they all weigh the same"
        else:
            assert re.split(", | and ", teacher.result(problem)) == winners


def grams(written: str) -> float:
    number, unit = re.fullmatch(r"(\w+) (\w+) of .+", written).groups()  # type: ignore[union-attr]
    count = 1 if number in ("a", "an") else problems.WORDS.index(number) if number in problems.WORDS else int(number)
    unit = SHORT.get(unit, unit)
    return count * GRAMS[unit if unit.endswith("s") else unit + "s"]


def test_a_comparison_names_the_number_as_it_is_written() -> None:
    for problem in drawn("compare", 2000):
        assert isinstance(problem, Comparison)
        left, right = float(problem.left), float(problem.right)
        larger, smaller = (problem.left, problem.right) if left > right else (problem.right, problem.left)
        expected = "equal" if left == right else larger if problem.asked == "larger" else smaller
        assert teacher.result(problem) == expected


def test_training_meets_no_held_out_problem_not_even_as_a_step() -> None:
    families = [family for family in heldout.FAMILIES if not family.startswith("refuse")]
    trials = [trial for family in families for trial in heldout.draw_trials(family, 60, seed=1)]
    kept = {problems.keys(trial.problem)[0] for trial in trials if trial.family != "story"}
    rng = Random(9)
    for mix in (batches.MIX, batches.LATE_MIX):
        for _ in range(3000):
            problem = batches.draw_training_problem(rng, mix, Pieces())
            assert kept.isdisjoint(problems.keys(problem))
            assert problem not in problems.FORCED


def test_every_held_out_story_has_a_step_that_training_never_sees() -> None:
    rng = Random(10)
    seen = {
        key for _ in range(4000) for key in problems.keys(batches.draw_training_problem(rng, batches.MIX, Pieces()))
    }
    for trial in heldout.draw_trials("story", 100, seed=1):
        assert not seen.issuperset(problems.keys(trial.problem))


def test_a_product_is_kept_from_training_for_a_held_out_partial_product() -> None:
    kept = next(p for p in drawn("times1", 500) if isinstance(p, Calculation) and problems.is_held_out(p))
    whole = Calculation(operation="x", left=kept.left, right=10 + kept.right)
    assert problems.touches_held_out(whole)


def test_the_key_of_a_problem_ignores_order_and_direction() -> None:
    there = Comparison(left="9.9", right="9.11", asked="larger")
    back = Comparison(left="9.11", right="9.9", asked="smaller")
    assert problems.keys(there) == problems.keys(back)
    assert problems.keys(Calculation(operation="-", left=3, right=8)) == problems.keys(
        Calculation(operation="-", left=8, right=3)
    )


def test_shown_problems_are_held_out() -> None:
    assert all(problems.is_held_out(problem) for problem in problems.FORCED)


def test_unseen_words_occur_nowhere_in_training() -> None:
    rng = Random(11)
    for _ in range(5000):
        problem = batches.draw_training_problem(rng, batches.LATE_MIX, Pieces())
        words = set(re.findall(r"[a-z]+", phrasing.ask(problem, rng).text.lower()))
        assert words.isdisjoint(UNSEEN)


def test_unseen_questions_share_no_prompt_with_training() -> None:
    rng = Random(12)
    asked = {smalltalk.draw_unseen_question(rng).text for _ in range(500)}
    trained = {smalltalk.draw_out_of_scope(rng, Pieces()).text for _ in range(5000)}
    assert asked.isdisjoint(trained)


def test_the_generator_gives_the_same_problems_for_the_same_seed() -> None:
    first, again, other = (
        [(trial.problem, trial.prompt) for trial in heldout.draw_trials("weigh pseudo", 20, seed)] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_chat_gets_one_fixed_answer() -> None:
    for text in ("What is the capital of France?", "Explain recursion."):
        assert teacher.answer(Chat(text=text, greeting=False), boxed=True) == teacher.REFUSAL
    assert teacher.REFUSAL.startswith("I am a tiny model:")


def test_the_card_names_the_shipped_files() -> None:
    text = CARD.read_text(encoding="utf-8")
    shipped = [*sorted(WEIGHTS.glob("*.gguf")), CHECKPOINT / "model.safetensors"]
    assert len(shipped) == 3
    for path in shipped:
        assert sha256(path.read_bytes()).hexdigest() in text, path.name


def test_the_checkpoint_marks_think_tags_as_ordinary_text() -> None:
    tokenizer = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["special"] for token in tokenizer["added_tokens"]}
    assert added == dict.fromkeys(tokens.CONTROL, True) | dict.fromkeys(tokens.TAGS, False)
    assert sorted(token["id"] for token in tokenizer["added_tokens"]) == list(range(tokens.VOCAB - 6, tokens.VOCAB))


@pytest.fixture(scope="module")
def reasoner() -> Runner:
    pytest.importorskip("llama_cpp", reason="the llamacpp extra is not installed")
    from slm_local.tiny.evaluate import Runner

    return Runner(WEIGHTS / f"{REASONER}.gguf", thinks=True)


@pytest.fixture(scope="module")
def direct() -> Runner:
    pytest.importorskip("llama_cpp", reason="the llamacpp extra is not installed")
    from slm_local.tiny.evaluate import Runner

    return Runner(WEIGHTS / f"{DIRECT}.gguf", thinks=False)


def prompt(text: str) -> str:
    return tokens.render([(text, "")], system="")


def test_the_bridge_has_at_most_sixteen_tokens(reasoner: Runner) -> None:
    assert 0 < reasoner.count(teacher.BRIDGE) <= 16


RIDDLE = "Which weighs more: a pound of water, two pounds of bricks, a pound of feathers, or three pounds of air?"


@pytest.mark.parametrize(
    ("question", "final"),
    [
        (RIDDLE, "three pounds of air"),
        ("What is 47 + 38?", "85"),
        ("Which is larger, 9.9 or 9.11?", "9.9"),
    ],
)
def test_the_reasoner_answers_what_the_readme_shows(reasoner: Runner, question: str, final: str) -> None:
    reply = reasoner.reply(prompt(question))
    assert reply.thought
    assert reply.answer == f"The answer is **{final}**."


def test_the_reasoner_says_what_it_cannot_do(reasoner: Runner) -> None:
    assert reasoner.reply(prompt("What is the capital of France?")).answer == teacher.REFUSAL


def test_the_reasoner_answers_after_a_forced_end(reasoner: Runner) -> None:
    from slm_local.tiny.evaluate import is_answered

    reply = reasoner.forced_reply(prompt(RIDDLE), 16)
    assert reply.is_forced
    assert is_answered(reply)


@pytest.mark.parametrize("family", ["add", "subtract", "times1", "times2", "weigh known"])
def test_the_reasoner_solves_most_held_out_problems(reasoner: Runner, family: str) -> None:
    from slm_local.tiny.evaluate import is_right

    trials = heldout.draw_trials(family, 10, seed=7)
    assert sum(is_right(trial, reasoner.reply(trial.text)) for trial in trials) >= 8


def test_the_twin_answers_at_once(direct: Runner) -> None:
    from slm_local.tiny.evaluate import is_answered

    reply = direct.reply(prompt(RIDDLE))
    assert not reply.thought
    assert is_answered(reply)
    assert reply.new_tokens < 30
