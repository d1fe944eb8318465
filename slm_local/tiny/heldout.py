"""Which problems measure a model? Distinct held-out problems of every family, worded as in training.

It knows nothing of models; `evaluate.py` asks and counts.
"""

from dataclasses import dataclass
from random import Random

from slm_local.tiny import batches, problems, smalltalk, teacher, tokens
from slm_local.tiny.materials import Pieces
from slm_local.tiny.phrasing import Prompt, ask
from slm_local.tiny.problems import Problem, Source

SUMS = ("add", "subtract", "times1", "times2", "compare", "story")
WEIGHING: dict[str, Source] = {"weigh known": "known", "weigh unseen": "unseen", "weigh pseudo": "pseudo"}
FAMILIES = (*SUMS[:4], *WEIGHING, *SUMS[4:], "refuse questions", "refuse sums")
"""The categories of the tables, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One held-out prompt with the reply that is right."""

    family: str
    problem: Problem
    prompt: Prompt

    @property
    def text(self) -> str:
        """Return the rendered prompt up to the generation prompt."""
        return tokens.render([(self.prompt.text, "")], system=self.prompt.system)

    @property
    def answer(self) -> str:
        """Return the reply that is right, word for word."""
        return teacher.answer(self.problem, boxed=self.prompt.is_boxed)


def draw_trials(family: str, count: int, seed: int) -> list[Trial]:
    """Return `count` prompts of a family, none twice, no problem from training.

    A problem may come back in other words: only 188 products of two digits by one are held out.
    """
    rng = Random(f"held out/{family}/{seed}")
    trials: dict[str, Trial] = {}
    while len(trials) < count:
        problem = _draw(family, rng)
        if _is_fit(problem):
            prompt = ask(problem, rng)
            trials[prompt.text] = Trial(family=family, problem=problem, prompt=prompt)
    return list(trials.values())


def _draw(family: str, rng: Random) -> Problem:
    if family in WEIGHING:
        return problems.draw_weighing(rng, WEIGHING[family], Pieces())
    if family == "refuse questions":
        return smalltalk.draw_unseen_question(rng)
    if family == "refuse sums":
        return smalltalk.draw_beyond_range(rng)
    return batches.draw_family(family, rng, Pieces())


def _is_fit(problem: Problem) -> bool:
    return not problems.keys(problem) or problems.is_held_out(problem)
