"""How good are the shipped models? `python -m slm_local.tiny.evaluate` prints accuracy and forced-end tables.

Greedy, through llama.cpp on the Q8_0 files, on problems that occur nowhere in training.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama_cpp import Llama

from slm_local.tiny import DIRECT, REASONER, WEIGHTS, teacher, tokens
from slm_local.tiny.heldout import FAMILIES, Trial, draw_trials

MAX_TOKENS = 400
"""Cap of a reply, thought included; a copying loop ends here."""

CONTEXT_TOKENS = 1024
"""Room for the longest prompt and the cap; the models were trained on 512."""

COUNT = 200
SEED = 2
"""The seed of the card's tables."""

FORCED_AFTER = (0, 8, 16, 32, 64)
"""Thought tokens after which thinking is ended by force."""

_FINAL = re.compile(r"\*\*(.+?)\*\*|\\boxed\{(.+?)\}", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model said to one prompt."""

    thought: str
    answer: str
    new_tokens: int
    is_forced: bool = False


class Runner:
    """One GGUF file, asked greedily."""

    def __init__(self, path: Path, *, thinks: bool) -> None:
        self._model = Llama(str(path), n_ctx=CONTEXT_TOKENS, n_threads=1, n_threads_batch=1, verbose=False)
        self._thinks = thinks
        self._end = self._ids(tokens.END_THINK)[0]

    def count(self, text: str) -> int:
        """Return how many tokens a text is in the model's vocabulary."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=True)
        return ids

    def _text(self, ids: list[int]) -> str:
        raw: bytes = self._model.detokenize(ids, special=True)
        return raw.decode(errors="replace")

    def _generate(self, ids: list[int], limit: int, *, until: int | None = None) -> list[int]:
        """Return new tokens: up to the end of the reply, to `until` (included), or `limit` tokens."""
        new: list[int] = []
        if limit == 0:
            return new
        for token in self._model.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
            if token == self._model.token_eos():
                break
            new.append(token)
            if token == until or len(new) == limit:
                break
        return new

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a rendered prompt, the opened thought included where the model thinks."""
        return self._ids(f"{text}{tokens.THINK}\n" if self._thinks else text)

    def reply(self, text: str) -> Reply:
        """Answer a rendered prompt, thinking first where the model does."""
        new = self._generate(self.prompt_ids(text), MAX_TOKENS)
        if not self._thinks:
            return Reply(thought="", answer=self._text(new).strip(), new_tokens=len(new))
        thought, _, answer = self._text(new).partition(tokens.END_THINK)
        return Reply(thought=thought.strip(), answer=answer.strip(), new_tokens=len(new))

    def forced_reply(self, text: str, after: int) -> Reply:
        """Answer with thinking ended by force once the thought has `after` tokens."""
        prompt = self.prompt_ids(text)
        thought = self._generate(prompt, after, until=self._end)
        is_forced = self._end not in thought
        if is_forced:
            prompt = prompt + thought + self._ids(teacher.BRIDGE) + self._ids(tokens.CLOSING)
        else:
            prompt = prompt + thought
        new = self._generate(prompt, MAX_TOKENS)
        answer = self._text(new).strip()
        return Reply(thought=self._text(thought), answer=answer, new_tokens=len(new), is_forced=is_forced)


def final_of(answer: str) -> str:
    """Return what stands bold or boxed, else the whole answer."""
    found = _FINAL.search(answer)
    return (found[1] or found[2]) if found else answer


def is_right(trial: Trial, reply: Reply) -> bool:
    """Return whether the final answer is the right one."""
    return final_of(reply.answer) == final_of(trial.answer)


def is_answered(reply: Reply) -> bool:
    """Return whether the reply has a final answer at all, right or wrong."""
    return bool(_FINAL.search(reply.answer)) or reply.answer in (teacher.REFUSAL, teacher.GREETING)


def accuracy_table(runners: dict[str, Runner], trials: dict[str, list[Trial]]) -> list[str]:
    """Return a Markdown table: right answers by category and mean tokens of a reply, for every model."""
    lines = ["| category | problems | " + " | ".join(f"{name} | tokens" for name in runners) + " |"]
    lines.append("|---|---|" + "---|---|" * len(runners))
    for family, asked in trials.items():
        cells = [family, str(len(asked))]
        for runner in runners.values():
            replies = [runner.reply(trial.text) for trial in asked]
            right = sum(map(is_right, asked, replies))
            mean = sum(reply.new_tokens for reply in replies) / len(replies)
            cells += [f"{right} ({right / len(asked):.1%})", f"{mean:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def forced_table(runner: Runner, trials: dict[str, list[Trial]]) -> list[str]:
    """Return a Markdown table: what is answered, and rightly, when the thought is cut."""
    lines = ["| cut after | forced | answered | right | " + " | ".join(trials) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(trials))
    for after in FORCED_AFTER:
        replies = {family: [runner.forced_reply(t.text, after) for t in asked] for family, asked in trials.items()}
        right = {family: sum(map(is_right, asked, replies[family])) for family, asked in trials.items()}
        flat = [reply for group in replies.values() for reply in group]
        cells = [
            str(after),
            _share(flat, lambda reply: reply.is_forced),
            _share(flat, is_answered),
            f"{sum(right.values()) / len(flat):.1%}",
            *(f"{count / len(trials[family]):.1%}" for family, count in right.items()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _share(replies: list[Reply], holds: Callable[[Reply], bool]) -> str:
    return f"{sum(map(holds, replies)) / len(replies):.1%}"


def main(arguments: list[str]) -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m slm_local.tiny.evaluate")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with the two GGUF files")
    parser.add_argument("--count", type=int, default=COUNT, help="problems of each category")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed draws other problems")
    options = parser.parse_args(arguments)
    trials = {family: draw_trials(family, options.count, options.seed) for family in FAMILIES}
    reasoner = Runner(options.weights / f"{REASONER}.gguf", thinks=True)
    direct = Runner(options.weights / f"{DIRECT}.gguf", thinks=False)
    print("\n".join(accuracy_table({REASONER: reasoner, DIRECT: direct}, trials)), end="\n\n", flush=True)
    half = {family: asked[: options.count // 2] for family, asked in trials.items()}
    print("\n".join(forced_table(reasoner, half)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
