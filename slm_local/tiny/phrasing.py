"""In which words is a problem asked? Many wordings for each family, and the variations that every prompt may carry."""

from dataclasses import dataclass
from random import Random
from typing import assert_never

from slm_local.tiny.problems import Calculation, Chat, Comparison, Problem, Story, Weighing

BOXED_SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The suffix that DeepSeek recommends for mathematics."""

_BOXED_SUFFIXES = (
    BOXED_SUFFIX,
    " Please reason step by step, and put your final answer within \\boxed{}.",
    " Reason step by step and put the answer in \\boxed{}.",
    "\nThink step by step, then give the final answer in \\boxed{}.",
)
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a careful assistant who thinks before answering.",
    "Answer briefly.",
    "You are a small model. Be exact.",
    "Be concise and correct.",
    "You solve small problems step by step.",
)
_SUMS = {
    "+": (
        "What is {a} + {b}?", "What is {a} + {b}?", "What is {a}+{b}?", "{a} + {b}", "{a}+{b}", "{a}+{b}=?",
        "{a} + {b} =", "Calculate {a} + {b}.", "Compute {a}+{b}", "Add {a} and {b}.", "What is {a} plus {b}?",
        "How much is {a} + {b}?", "{a} plus {b}", "What is the sum of {a} and {b}?", "Please add {a} and {b}.",
        "Can you tell me what {a} + {b} is?", "what's {a} + {b}?", "How much is {a} and {b} together?",
        "Solve: {a} + {b}", "Find the sum of {a} and {b}.",
    ),
    "-": (
        "What is {a} - {b}?", "What is {a} - {b}?", "What is {a}-{b}?", "{a} - {b}", "{a}-{b}", "{a}-{b}=?",
        "{a} \N{MINUS SIGN} {b}", "Calculate {a} - {b}.", "Compute {a}-{b}", "Subtract {b} from {a}.",
        "Subtract {b} from {a}.", "Take {b} away from {a}.", "Please subtract {b} from {a}.",
        "What do you get if you subtract {b} from {a}?", "What is {a} minus {b}?", "How much is {a} - {b}?",
        "{a} minus {b}", "What is the difference {a} - {b}?", "what's {a} - {b}?", "How much is {a} less {b}?",
    ),
    "x": (
        "What is {a} x {b}?", "What is {a} * {b}?", "What is {a} * {b}?", "What is {a} \N{MULTIPLICATION SIGN} {b}?",
        "{a} * {b}", "{a}*{b}", "{a}x{b}", "{a} x {b} =", "Calculate {a} * {b}.", "Compute {a} x {b}",
        "Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is {a} times {b}?", "How much is {a} times {b}?",
        "{a} times {b}", "What is the product of {a} and {b}?", "what's {a} times {b}?", "Solve: {a} * {b}",
        "Find {a} \N{MULTIPLICATION SIGN} {b}.", "Can you multiply {a} by {b}?",
    ),
}  # fmt: skip
_HEAVIEST = (
    "Which weighs more: {list}?", "Which weighs more: {list}?", "Which weighs more, {list}?",
    "Which is heavier: {list}?", "Which is heavier, {list}?", "What weighs more: {list}?",
    "What weighs the most: {list}?", "Which weighs the most: {list}?", "Which of these is the heaviest: {list}?",
    "What is heavier, {list}?", "Tell me which weighs more: {list}.", "Which one is the heaviest? {list}.",
    "Riddle: which weighs more, {list}?", "{list}: which is heaviest?",
)  # fmt: skip
_LIGHTEST = (
    "Which weighs less: {list}?", "Which is lighter: {list}?", "Which is lighter, {list}?",
    "What weighs the least: {list}?", "Which weighs the least: {list}?", "Which of these is the lightest: {list}?",
    "What is lighter, {list}?", "Tell me which weighs less: {list}.", "Which one is the lightest? {list}.",
    "{list}: which is lightest?",
)  # fmt: skip
_COMPARE = (
    "Which is {word}, {a} or {b}?", "Which is {word}: {a} or {b}?", "Which number is {word}: {a} or {b}?",
    "What is {word}, {a} or {b}?", "Is {a} or {b} {word}?", "Which one is {word}, {a} or {b}?",
    "Compare {a} and {b}: which is {word}?", "Tell me which is {word}: {a} or {b}.", "{a} or {b}, which is {word}?",
    "Which of the two is {word}: {a} or {b}?", "Which is the {word} number, {a} or {b}?",
)  # fmt: skip
_COMPARE_WORDS = {
    "larger": ("larger", "bigger", "greater", "larger", "higher"),
    "smaller": ("smaller", "less", "lower"),
}
_NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Max", "Emma", "Leo", "Nora", "Paul", "Ida", "Finn", "Ruth")
_THINGS = ("apples", "pencils", "coins", "cards", "marbles", "books", "stamps", "eggs", "cookies", "balls", "stickers")
_PLACES = (("box", "boxes"), ("bag", "bags"), ("shelf", "shelves"), ("basket", "baskets"), ("pack", "packs"))
_GAINS = ("buys {n} more", "gets {n} more", "finds {n} more", "is given {n} more", "adds {n} more")
_LOSSES = ("gives away {n}", "loses {n}", "sells {n}", "uses {n}", "takes out {n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as it is put to the model."""

    text: str
    is_boxed: bool
    system: str


def ask(problem: Problem, rng: Random) -> Prompt:
    """Word the problem: 10 % ask for a box, 10 % are in lower case, 5 % have a system prompt."""
    text = wording(problem, rng)
    if rng.random() < 0.1 and "lb" not in text:
        text = text.lower()
    if rng.random() < 0.05:
        text = text.rstrip("?.")
    is_boxed = rng.random() < 0.1
    if is_boxed:
        text += rng.choice(_BOXED_SUFFIXES)
    return Prompt(text=text, is_boxed=is_boxed, system=rng.choice(_SYSTEMS) if rng.random() < 0.05 else "")


def wording(problem: Problem, rng: Random) -> str:
    """Return one plain wording of the problem."""
    match problem:
        case Calculation(operation=operation, left=left, right=right):
            return rng.choice(_SUMS[operation]).format(a=left, b=right)
        case Weighing(items=items, asked=asked):
            forms = _HEAVIEST if asked == "heaviest" else _LIGHTEST
            return rng.choice(forms).format(list=_listed([item.written for item in items], rng))
        case Comparison(left=left, right=right, asked=asked):
            return rng.choice(_COMPARE).format(a=left, b=right, word=rng.choice(_COMPARE_WORDS[asked]))
        case Story():
            return _tell(problem, rng)
        case Chat(text=text):
            return text
        case _:
            assert_never(problem)


def _listed(phrases: list[str], rng: Random) -> str:
    comma = "," if len(phrases) > 2 and rng.random() < 0.6 else ""
    return f"{', '.join(phrases[:-1])}{comma} or {phrases[-1]}"


def _tell(story: Story, rng: Random) -> str:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    first = story.steps[0]
    if first.operation == "x":
        one, many = rng.choice(_PLACES)
        start = rng.choice(
            (
                f"{name} has {first.right} {many} with {first.left} {thing} each",
                f"There are {first.left} {thing} in one {one}. {name} has {first.right} {many}",
                f"One {one} holds {first.left} {thing} and {name} has {first.right} {many}",
            )
        )
        changes = story.steps[1:]
    else:
        start = rng.choice((f"{name} has {first.left} {thing}", f"{name} starts with {first.left} {thing}"))
        changes = story.steps
    return _continued(start, [_change(step, rng) for step in changes], name, thing, rng)


def _change(step: Calculation, rng: Random) -> str:
    return rng.choice(_GAINS if step.operation == "+" else _LOSSES).format(n=step.right)


def _continued(start: str, changes: list[str], name: str, thing: str, rng: Random) -> str:
    text = start
    if changes:
        text += rng.choice((f" and {changes[0]}.", f". {name} {changes[0]}."))
    else:
        text += "."
    for change in changes[1:]:
        text += rng.choice((f" Then {name} {change}.", f" Later {name} {change}."))
    verb = rng.choice((f"does {name} have now", "are there now", f"does {name} have in the end"))
    return f"{text} How many {thing} {verb}?"
