"""What does the model see in training? The mix of families, worded, solved, tokenized and cut into batches.

Pool k of a seed is the same whoever asks, so a resumed run sees what an unbroken one would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal, TypeAlias

from slm_local.tiny import problems, smalltalk, teacher, tokens
from slm_local.tiny.materials import Pieces
from slm_local.tiny.phrasing import ask
from slm_local.tiny.problems import Problem

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind: TypeAlias = Literal["reasoner", "direct"]

POOL = 2048
"""Examples drawn, sorted by length and batched together."""

BATCH_TOKENS = 4000
EARLY_TOKENS = 140
"""Longest example in the first part of the training (curriculum)."""

CUT_SHARE = 0.10
EARLY_CUT_SHARE = 0.4
"""Share of the cuts that fall within the first `EARLY_CUT` tokens."""

EARLY_CUT = 64
EMPTY_THOUGHT_SHARE = 0.02
EARLIER_TURN_SHARE = 0.07

MIX = {
    "add": 11,
    "subtract": 15,
    "times1": 7,
    "times2": 7,
    "compare": 12,
    "weigh": 32,
    "story": 9,
    "refuse": 6,
    "greet": 1,
}
"""Examples of each family in the main part, per cent."""

LATE_MIX = {
    "add": 6,
    "subtract": 9,
    "times1": 5,
    "times2": 5,
    "times short": 3,
    "compare": 9,
    "weigh": 40,
    "weigh loose": 10,
    "story": 7,
    "refuse": 5,
    "greet": 1,
}
"""The mix of the last part: weighing is learnt last, since it needs unseen words copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Token ids and, for each, whether the model is trained to say it."""

    ids: list[int]
    is_learnt: list[bool]


def draw_family(family: str, rng: Random, pieces: Pieces) -> Problem:
    """Return a problem of a family; the split is left to the caller."""
    makers: dict[str, Callable[[], Problem]] = {
        "add": lambda: problems.draw_addition(rng),
        "subtract": lambda: problems.draw_subtraction(rng),
        "times1": lambda: problems.draw_product(rng, digits=1),
        "times2": lambda: problems.draw_product(rng, digits=2),
        "times short": lambda: problems.draw_short_product(rng),
        "compare": lambda: problems.draw_comparison(rng),
        "weigh": lambda: problems.draw_weighing(rng, "train", pieces),
        "weigh loose": lambda: problems.draw_weighing(rng, "loose", pieces),
        "story": lambda: problems.draw_story_steps(rng),
        "refuse": lambda: smalltalk.draw_out_of_scope(rng, pieces),
        "greet": lambda: smalltalk.draw_greeting(rng),
    }
    return makers[family]()


def draw_training_problem(rng: Random, mix: dict[str, int], pieces: Pieces) -> Problem:
    """Return a problem of the mix that touches no held-out key, sub-steps included."""
    family = rng.choices(list(mix), weights=list(mix.values()))[0]
    while True:
        problem = draw_family(family, rng, pieces)
        if not problems.touches_held_out(problem):
            return problem


class Writer:
    """Turns problems into examples with one tokenizer; reasoner and direct share prompts and answers."""

    def __init__(self, tokenizer: "Tokenizer", kind: Kind) -> None:
        self._tokenizer = tokenizer
        self._kind = kind
        self.pieces = tokens.pieces_of(tokenizer)
        self._closing = self._encode(tokens.CLOSING)
        self._bridge = self._encode(teacher.BRIDGE)
        self._eos = self._encode(tokens.EOS)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def example(self, problem: Problem, rng: Random, earlier: Problem | None) -> Example:
        """Word one problem and its right reply; prompt, thought, bridge and answer are tokenized apart."""
        prompt = ask(problem, rng)
        turns = [(prompt.text, "")]
        if earlier is not None:
            before = ask(earlier, rng)
            turns.insert(0, (before.text, teacher.answer(earlier, boxed=before.is_boxed)))
        text = tokens.render(turns, system=prompt.system)
        answer = self._encode(teacher.answer(problem, boxed=prompt.is_boxed)) + self._eos
        if self._kind == "direct":
            return _joined((self._encode(text), False), (answer, True))
        if rng.random() < EMPTY_THOUGHT_SHARE:
            empty = f"{text}{tokens.THINK}\n{tokens.CLOSING}"
            return _joined((self._encode(empty), False), (answer, True))
        head, thought = self._encode(f"{text}{tokens.THINK}\n"), self._encode(teacher.trace(problem))
        if rng.random() >= CUT_SHARE:
            return _joined((head, False), (thought, True), (self._closing, True), (answer, True))
        last = min(EARLY_CUT, len(thought)) if rng.random() < EARLY_CUT_SHARE else len(thought)
        kept = thought[: rng.randrange(last)]
        return _joined((head, False), (kept, True), (self._bridge + self._closing, False), (answer, True))


def _joined(*parts: tuple[list[int], bool]) -> Example:
    return Example(
        ids=[token for ids, _ in parts for token in ids],
        is_learnt=[flag for ids, flag in parts for _ in ids],
    )


def draw_pool(writer: Writer, seed: int, number: int, mix: dict[str, int], longest: int) -> list[Example]:
    """Return the examples of one pool, none longer than `longest` tokens."""
    rng = Random(f"{seed}/{number}")
    pool: list[Example] = []
    while len(pool) < POOL:
        problem = draw_training_problem(rng, mix, writer.pieces)
        earlier = draw_training_problem(rng, mix, writer.pieces) if rng.random() < EARLIER_TURN_SHARE else None
        example = writer.example(problem, rng, earlier)
        if len(example.ids) <= longest:
            pool.append(example)
    return pool


def cut_batches(pool: list[Example], rng: Random) -> Iterator[list[Example]]:
    """Yield batches of about `BATCH_TOKENS` tokens, each of one length, in random order."""
    ordered = sorted(pool, key=lambda example: len(example.ids))
    batches: list[list[Example]] = []
    batch: list[Example] = []
    for example in ordered:
        if batch and (len(batch) + 1) * len(example.ids) > BATCH_TOKENS:
            batches.append(batch)
            batch = []
        batch.append(example)
    batches.append(batch)
    rng.shuffle(batches)
    yield from batches


def tokenizer_texts(seed: int, count: int) -> Iterator[str]:
    """Yield prompts, thoughts and answers of the training mix for the tokenizer."""
    rng = Random(f"tokenizer/{seed}")
    for _ in range(count):
        problem = draw_training_problem(rng, MIX, Pieces())
        prompt = ask(problem, rng)
        yield prompt.text
        yield teacher.trace(problem)
        yield teacher.answer(problem, boxed=prompt.is_boxed)
