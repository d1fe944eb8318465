"""What every goal is given: tools, models, how many threads and tokens; and how our own side is opened."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Report

from slm_local.config import SamplingOverrides, Settings
from slm_local.engine import Engine, open_model
from slm_local.generation import GenerationRequest, LoadSettings, ReasoningTags, Reply

from .files import small_model, words_model
from .tools import Tools

STORY = "Write a long story about a lighthouse keeper who finds a message in a bottle. Do not stop early."

SENTENCE = "the keeper of the lighthouse counts the ships that pass and writes down what he sees "
SENTENCE_TOKENS = 16

GREEDY = SamplingOverrides(temperature=0.0)
WORDS = SamplingOverrides(temperature=1.0, top_k=40, seed=1)
"""With which the `words-…` models never draw an end token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The same for all goals."""

    tools: Tools
    folder: Path
    """Where the models are."""
    threads: int
    context_tokens: int
    is_quick: bool
    """Whether a tenth of the tokens will do: that shows that a goal works, and its figures mean nothing."""

    def tokens(self, number: int) -> int:
        """Return how many tokens to take where a full measurement takes so many."""
        return max(16, number // 10) if self.is_quick else number

    def words(self, model: str) -> Path:
        """Return the model that writes nothing but words."""
        return words_model(model, self.folder, self.tools.vocabularies)

    def plain(self, model: str) -> Path:
        """Return the real model where there is one."""
        return small_model() if model == "135m" else self.words(model)

    def open(self, file: Path, sampling: SamplingOverrides, context_tokens: int | None = None) -> Engine:
        """Open a model as `slm run` would, in a process of its own."""
        return open_model(str(file), settings=self.settings(sampling, context_tokens))

    def settings(self, sampling: SamplingOverrides, context_tokens: int | None = None) -> Settings:
        """Return the settings of our side, a token a decode; without loop guard: synthetic models repeat themselves."""
        return Settings(
            backend="llamacpp",
            device="cpu",
            sampling=sampling,
            threads=self.threads,
            context_tokens=context_tokens or self.context_tokens,
            loop_guard=False,
            offline=True,
            **_unguessed(Settings),
        )

    def load(self, file: Path, context_tokens: int | None = None) -> LoadSettings:
        """Return what a backend in this process needs to load a model."""
        return LoadSettings(
            backend="llamacpp",
            model_path=str(file),
            context_tokens=context_tokens or self.context_tokens,
            threads=self.threads,
            tags=ReasoningTags(open="<think>", close="</think>"),
            **_unguessed(LoadSettings),
        )

    def run_flags(self) -> list[str]:
        """Return the flags of `slm run` and `slm chat` for the same settings, whatever is sampled."""
        sizes = ["--ctx", str(self.context_tokens), "--threads", str(self.threads)]
        words = ["--temp", "1", "--top-k", "40", "--seed", "1", "--no-loop-guard"]
        return ["--backend", "llamacpp", "--device", "cpu", "--offline", *sizes, *words]


def _unguessed(settings: type[Settings] | type[LoadSettings]) -> dict[str, Any]:
    """Return what has tokens decoded one by one, as llama.cpp's tools do, in versions that guess ahead."""
    return {"speculation": False} if "speculation" in {each.name for each in fields(settings)} else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One line of the table, or a few that are measured together."""

    name: str
    about: str
    seconds: dict[str, tuple[float, float]]
    """For each model that it is measured with: seconds once, and seconds a round, on two slow cores."""
    run: Callable[[Setup, Report, str], None]
    """Measure with one of the models. Raises `NotHere` where this version can't do it."""
    most_rounds: int | None = None
    """Where fewer rounds than are asked for will do."""

    def takes_s(self, model: str, rounds: int) -> float:
        """Return about how long it takes when the machine is quiet."""
        once, each = self.seconds[model]
        return once + min(rounds, self.most_rounds or rounds) * each


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep what a library in this process writes to descriptor 2 off the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def random_ids(number: int, seed: int) -> tuple[int, ...]:
    """Return token ids as llama-bench takes them: random, those of control tokens left out."""
    draw = partial(random.Random(seed).randrange, 1000, 40_000)
    return tuple(draw() for _ in range(number))


def read_only(ids: tuple[int, ...]) -> GenerationRequest:
    """Return a request that reads a prompt of ids and writes one token."""
    return GenerationRequest(prompt_ids=ids, max_tokens=1)


def made_tokens(reply: Reply) -> int:
    """Return all tokens of a reply."""
    return (reply.usage.think_tokens or 0) + (reply.usage.answer_tokens or 0)
