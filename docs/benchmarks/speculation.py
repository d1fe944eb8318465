"""Measure what guessing ahead brings on llama.cpp, and whether the text stays what it was.

    python docs/benchmarks/speculation.py gain MODEL.gguf [--threads 2] [--rounds 5] [--tokens 192]
    python docs/benchmarks/speculation.py texts MODEL.gguf [MODEL.gguf ...] [--threads 2] [--tokens 256]

gain, with acceptance forced by what is guessed, in rounds that measure everything once, medians over the rounds:

1. t(rows) / t(1): `llama_decode` of so many rows in these very runs.
2. acceptance 1: guessed is what a plain greedy run of the prompt wrote, at a fixed width, and each token sampled is
   replaced by the one of that run: with random weights the batch's shape alone changes it soon. Measured gain (wall
   time a token of the plain run over that of this one) beside the predicted one, rows / (t(rows) / t(1)).
3. acceptance 0: guessed are random tokens, at a fixed width; predicted 1 / (t(rows) / t(1)).
4. on its own: the same two with the width, and whether to guess at all, left to `drafting.Drafting`, kept over the
   rounds as over a session's replies; the first round, in which it finds out, stands apart. The goal at acceptance 0,
   where it switches itself off: at least 0.97 of the plain speed.

texts: greedy replies with and without guesses from the sequence's own tokens, at a fixed width (most guesses) and on
its own, to prompts whose answers copy. Where two differ, the first token that does is shown with its two likeliest
tokens' logits in both runs: ties that the batch's shape decides. Then both go on differently, and no more is compared.

End tokens are ordinary ones in `gain`, so a synthetic model of random weights (docs/benchmarks/synthetic.py) will do
there. Let nothing else run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.backends.llamacpp.drafting import Drafting, StepTimes
from slm_local.backends.llamacpp.ngrams import NgramIndex
from slm_local.backends.llamacpp.sequences import Slot
from slm_local.backends.llamacpp.speculation import Chooser, Speculation
from slm_local.driver import Driver
from slm_local.generation import (
    Control,
    Done,
    GenerationRequest,
    LoadSettings,
    Message,
    Piece,
    Prompt,
    Reply,
    Sampling,
)

WIDTHS = (2, 4, 8, 12, 16)
PROMPT_TOKENS = 100

TEXT = (
    "The lighthouse at Cape Orme was built in 1861 by the engineer Thomas Hale. Its lamp burned whale oil until 1889, "
    "when it was changed to paraffin. In 1923 the tower was raised by four metres, and since 1978 the light has been "
    "automatic. The keeper's house is a small museum now; it is open from May to September and shows Hale's drawings."
)
CODE = """def total_price(items, tax_rate):
    total = 0
    for item in items:
        price = item["price"] * item["quantity"]
        if item.get("discount"):
            price = price - price * item["discount"]
        total = total + price
    return total + total * tax_rate
"""
PROMPTS = (
    f"Repeat this text word for word:\n\n{TEXT}",
    f"Summarize in three sentences, keeping names and years:\n\n{TEXT}",
    f"List the years in this text, each with the sentence it stands in:\n\n{TEXT}",
    f"Rename the variable total to amount in this function and write it out whole:\n\n{CODE}",
    f"Add a docstring to this function and write it out whole:\n\n{CODE}",
    "Write a numbered list of ten fruits, each with the sentence: I like this fruit.",
    "Write a short story about a keeper of a lighthouse.",
)
SUMS = (
    *("What is 47 + 38?", "What is 906 - 517?", "What is 23 * 4?", "Which is larger, 0.85 or 0.9?"),
    "Ann has 14 apples. She buys 27 more and gives 9 away. How many apples does she have?",
    "Which weighs more: 3 kg of feathers or 2500 g of iron?",
)
"""For the embedded model, which knows sums only and whose answer restates its thinking."""


class Guided:
    """Guesses what is given, from the first generated token on."""

    def __init__(self, guess: Callable[[int, int], list[int]]) -> None:
        self._guess = guess
        self._made = 0

    def add(self, token: int) -> None:
        """Count a token."""
        self._made += 1

    def match(self) -> int:
        """Return that there always is a guess."""
        return 4

    def draft(self, count: int) -> list[int]:
        """Return the guess for the next tokens."""
        return self._guess(self._made, count)


class Fixed:
    """The same width for every decode."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.times = StepTimes()
        self.seconds: list[float] = []

    def begin(self) -> None:
        """Change nothing for another sequence."""

    def rows(self, matched: int, most: int) -> int:
        """Return the width, or what there is room for."""
        return min(self._rows, most)

    def stepped(self, rows: int, seconds: float) -> None:
        """Remember a decode of the width."""
        if rows == self._rows:
            self.seconds.append(seconds)

    def judged(self, matched: int, place: int, *, is_kept: bool) -> None:
        """Heed no fate."""


class Watched(LlamaCppBackend):
    """Keeps of every token that was handed out the two likeliest tokens and their logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tops: list[tuple[tuple[int, float], tuple[int, float]]] = []

    def _sample(self, slot: Slot, row: int) -> Piece:
        size = self._vocabulary.size
        logits = np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, row), (size,))
        second, first = (int(token) for token in np.argsort(logits)[-2:])
        self.tops.append(((first, float(logits[first])), (second, float(logits[second]))))
        return super()._sample(slot, row)

    def text(self, token: int) -> str:
        """Return a token's text as Python writes it."""
        return repr(self._vocabulary.text_of(token))


class Replaying:
    """A library whose samplers, once they have sampled, return recorded tokens, one after the other."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.recorded: list[int] = []
        self.place = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def llama_sampler_sample(self, *given: Any) -> int:
        """Sample; return the next recorded token, where there is one."""
        sampled, place = self._library.llama_sampler_sample(*given), self.place
        self.place += 1
        return self.recorded[place] if place < len(self.recorded) else int(sampled)


@dataclass(frozen=True, slots=True)
class Run:
    """One generation."""

    ids: list[int]
    seconds: float
    """From the first token to the last."""

    @property
    def token_s(self) -> float:
        """Return the wall time a token."""
        return self.seconds / (len(self.ids) - 1)


class Gain:
    """A model and one prompt of random tokens for it."""

    def __init__(self, model: str, threads: int, tokens: int) -> None:
        self._backend = LlamaCppBackend()
        self._backend.load(_settings(model, threads, PROMPT_TOKENS + tokens + 64), Control(), lambda fraction: None)
        self._backend._vocabulary.is_end = lambda token: False  # type: ignore[method-assign]
        self._backend._lib = self._library = Replaying(self._backend._lib)
        size = self._backend._vocabulary.size
        rng = random.Random(1)
        self._prompt = [rng.randrange(size // 2) for _ in range(PROMPT_TOKENS)]
        self._tokens = tokens
        self._noise = [rng.randrange(size) for _ in range(2 * tokens)]
        self._recorded: list[int] = []
        self._recorded = self._library.recorded = self.run(None, Fixed(1)).ids

    def right(self, made: int, count: int) -> list[int]:
        """Guess what was recorded."""
        return self._recorded[made : made + count]

    def wrong(self, made: int, count: int) -> list[int]:
        """Guess random tokens, never the right one."""
        drafted = self._noise[made : made + count]
        rights = self.right(made, count)
        return [1 + token if token == right else token for token, right in zip(drafted, rights, strict=False)]

    def run(self, guess: Callable[[int, int], list[int]] | None, chooser: Chooser) -> Run:
        """Generate; `guess` None: plain steps."""
        backend = self._backend
        backend.speculation = Speculation(lambda prompt: Guided(guess or _nothing), chooser)
        handle = backend.add(Prompt(ids=tuple(self._prompt)), Sampling())
        self._library.place = 0
        ids: list[int] = []
        begun = 0.0
        while len(ids) < self._tokens:
            ids += [token for update in backend.step(Control()) if isinstance(update, Piece) for token in update.ids]
            begun = begun or (time.perf_counter() if ids else 0.0)
        seconds = time.perf_counter() - begun
        backend.remove(handle)
        return Run(ids, seconds)

    def close(self) -> None:
        """Free the model."""
        self._backend.close()


def gain(model: str, threads: int, rounds: int, tokens: int) -> dict[str, float]:
    """Print the table of a model and return its figures."""
    bench = Gain(model, threads, tokens)
    plain_s: list[float] = []
    one = Fixed(1)
    fates = {"right": bench.right, "wrong": bench.wrong}
    fixed = {(fate, rows): Fixed(rows) for fate in fates for rows in WIDTHS}
    own = {fate: Drafting() for fate in fates}
    gains: dict[tuple[str, int], list[float]] = {key: [] for key in fixed}
    own_gains: dict[str, list[float]] = {fate: [] for fate in fates}
    for _ in range(rounds + 1):  # the first one warms up; of `own` it is the one in which it finds out
        plain_s.append(bench.run(None, one).token_s)
        for (fate, rows), chooser in fixed.items():
            gains[fate, rows].append(plain_s[-1] / bench.run(fates[fate], chooser).token_s)
        for fate, guess in fates.items():
            plain_s.append(bench.run(None, one).token_s)
            own_gains[fate].append(plain_s[-1] / bench.run(guess, own[fate]).token_s)
    bench.close()
    figures: dict[str, float] = {"plain_ms": 1000 * statistics.median(plain_s)}
    decode_ms = 1000 * statistics.median(one.seconds)
    print(f"{Path(model).name}: {figures['plain_ms']:.2f} ms a token, of which t(1) is {decode_ms:.2f}")
    for rows in WIDTHS:
        seconds = fixed["right", rows].seconds + fixed["wrong", rows].seconds
        curve = statistics.median(seconds) / statistics.median(one.seconds)
        figures[f"t{rows}"] = curve
        for fate, given in (("right", float(rows)), ("wrong", 1.0)):
            measured, predicted = statistics.median(gains[fate, rows][1:]), given / curve
            figures[f"{fate}{rows}"] = measured / predicted
            print(
                f"  {rows:2} rows, all {fate}: t {curve:5.2f}  gain {measured:5.2f}  predicted {predicted:5.2f}  "
                f"ratio {measured / predicted:.3f}"
            )
    for fate in fates:
        figures[f"own_{fate}"] = statistics.median(own_gains[fate][1:])
        figures[f"own_{fate}_first"] = own_gains[fate][0]
        print(f"  on its own, all {fate}: {figures[f'own_{fate}']:.3f} of plain, first round {own_gains[fate][0]:.3f}")
    return figures


def texts(model: str, threads: int, tokens: int) -> dict[str, float]:
    """Compare greedy texts; print what differs and return counts."""
    backend = Watched()
    driver = Driver(backend)
    driver.load(_settings(model, threads, 2048), Control(), lambda fraction: None)
    is_tiny = backend._vocabulary.size < 4096
    ways: dict[str, Speculation] = {"fixed": Speculation(NgramIndex, Fixed(4)), "own": Speculation()}
    counts = dict.fromkeys(("replies", "differ", "tokens", "drafted", "kept"), 0)
    for prompt in SUMS if is_tiny else PROMPTS:
        _reply(driver, backend, prompt, None, 1)  # from now on its prompt is cached: read in one way for all
        plain, plain_tops = _reply(driver, backend, prompt, None, tokens)
        for way, speculation in ways.items():
            reply, tops = _reply(driver, backend, prompt, speculation, tokens)
            at = _first_difference(plain_tops, tops)
            gained = reply.timings.decode_tps / plain.timings.decode_tps if plain.timings.decode_tps else 0.0
            print(
                f"  {way:5} {prompt.splitlines()[0][:48]:48} {len(tops):4} tokens, "
                f"drafted {reply.usage.drafted_tokens}, kept {reply.usage.accepted_tokens}, speed {gained:.2f}: "
                f"{'same' if at is None else f'differs at {at}'}"
            )
            if at is not None:
                for name, top in (("plain", plain_tops[at]), ("drafted", tops[at])):
                    print("        " + f"{name:8}" + "  ".join(f"{backend.text(t)} {logit:.4f}" for t, logit in top))
            counts["replies"] += 1
            counts["differ"] += at is not None
            counts["tokens"] += len(tops)
            counts["drafted"] += reply.usage.drafted_tokens or 0
            counts["kept"] += reply.usage.accepted_tokens or 0
    driver.close()
    print(f"{Path(model).name}: {json.dumps(counts)}")
    return {key: float(value) for key, value in counts.items()}


Top = tuple[tuple[int, float], tuple[int, float]]


def _reply(
    driver: Driver, backend: Watched, prompt: str, speculation: Speculation | None, tokens: int
) -> tuple[Reply, list[Top]]:
    """Return a greedy reply and the likeliest tokens at each of its tokens."""
    backend.speculation, backend.tops = speculation, []
    messages = (Message(role="user", content=prompt),)
    request = GenerationRequest(messages=messages, max_tokens=tokens, has_loop_guard=False)
    *_, done = driver.run(request)
    assert isinstance(done, Done)
    return done.reply, backend.tops


def _first_difference(plain: Sequence[Top], drafted: Sequence[Top]) -> int | None:
    pairs = zip(plain, drafted, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left[0][0] != right[0][0]), None)


def _nothing(made: int, count: int) -> list[int]:
    return []


def _settings(model: str, threads: int, context: int) -> LoadSettings:
    return LoadSettings(backend="llamacpp", model_path=model, context_tokens=context, threads=threads)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gain", "texts"))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=192)
    asked = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {asked.threads} threads", end="")
    print(f", load {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "")
    results = {
        Path(model).name: gain(model, asked.threads, asked.rounds, asked.tokens)
        if asked.what == "gain"
        else texts(model, asked.threads, asked.tokens)
        for model in asked.models
    }
    print(json.dumps({"what": asked.what, "threads": asked.threads, "tokens": asked.tokens, "models": results}))


if __name__ == "__main__":
    main()
