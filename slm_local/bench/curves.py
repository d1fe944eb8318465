"""How does decoding slow down as the context fills, and what does a step cost that serves several sequences?"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from slm_local.bench.passes import SHORT_PROMPT_TOKENS, decode, ids_request, is_first_token, random_prompt, short_tokens
from slm_local.engine import Engine
from slm_local.errors import Interrupted, SlmError
from slm_local.generation import AnswerDelta, Control, Done, Started, ThinkDelta

DEPTHS = (0, 256, 1024, 4096, 16_384, 65_536)
"""Tokens in the KV cache when decoding begins, but for a short prompt; those are measured that the context holds."""

READ_S = 60.0
"""A depth that takes longer to read is left out, unless it was asked for."""

DEPTH_TOKENS = 32
"""Tokens decoded at each depth: few beside the depth."""

ROOM_TOKENS = SHORT_PROMPT_TOKENS + DEPTH_TOKENS
"""What a context must hold beside a depth."""

WIDTHS = (1, 2, 4, 8)

BATCH_TOKENS = 32
"""Tokens decoded of each sequence."""

BATCH_TRIES = 12
"""Batches at most, of a model that ends its replies early."""

SEED = 1_000_000
"""Far from the seeds of the rounds: no prompt begins like one of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How fast tokens come behind so many others."""

    depth_tokens: int
    decode_tps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a step costs that decodes a token of each of so many sequences."""

    sequences: int
    step_s: float

    @property
    def tps(self) -> float:
        """Return the tokens per second of all sequences together."""
        return self.sequences / self.step_s


def depths_of(context_tokens: int, deepest: int | None) -> list[int]:
    """Return the depths that a context has room for, not beyond `deepest`, which is one of them where it is given."""
    asked = {*DEPTHS, *([] if deepest is None else [deepest])}
    most = context_tokens - ROOM_TOKENS
    return sorted(each for each in asked if each <= most and (deepest is None or each <= deepest))


def measure_depths(
    engine: Engine, deepest: int | None, prefill_tps: float, control: Control
) -> tuple[tuple[Depth, ...], list[str]]:
    """Decode at one depth after the other, each reading on from the last; return them and what was left out, and why.

    `prefill_tps` foretells how long a depth takes to read. Errors: those of `decode`.
    """
    wanted = depths_of(engine.facts.context_tokens, deepest)
    text = random_prompt(engine, max(wanted, default=0), SEED)
    done: list[Depth] = []
    for depth in wanted:
        read_s = (depth - (done[-1].depth_tokens if done else 0)) / prefill_tps
        if deepest is None and read_s > READ_S:
            return tuple(done), [f"depth {depth:,} was left out, reading it takes {read_s:.0f} s: --depth {depth}"]
        reached = decode(engine, DEPTH_TOKENS, SEED + depth, control, held=text[:depth])
        done.append(Depth(depth_tokens=depth, decode_tps=reached.decode_tps))
    return tuple(done), []


def measure_batches(engine: Engine, control: Control, widths: Sequence[int] = WIDTHS) -> tuple[Batch, ...]:
    """Decode several sequences at once, for each width that the engine and its context can take.

    Errors: those of `Engine.stream`, `Interrupted`.
    """
    remembered, engine.remembers_speed = engine.remembers_speed, False
    done: list[Batch] = []
    try:
        for width in widths:
            if width * (short_tokens(engine) + BATCH_TOKENS) > engine.facts.context_tokens:
                break
            step_s = _step_s(engine, width, control)
            if step_s is None:
                break
            done.append(Batch(sequences=width, step_s=step_s))
    finally:
        engine.remembers_speed = remembered
    return tuple(done)


def _step_s(engine: Engine, width: int, control: Control) -> float | None:
    """Return the seconds of a step while all sequences decoded; None where they never did at once."""
    tokens, seconds = 0, 0.0
    for number in range(BATCH_TRIES):
        begun = threading.Barrier(width)  # a short reply would be over before the last thread began
        flights = [_Flight(engine, SEED + 1000 * (number + 1) * width + n, control, begun) for n in range(width)]
        for each in flights:
            each.join()
        _raise_first(flights, control)
        begin, end = max(each.first_s for each in flights), min(each.last_s for each in flights)
        if end > begin:
            tokens += sum(each.tokens_between(begin, end) for each in flights)
            seconds += end - begin
        if tokens >= width * BATCH_TOKENS // 2:
            break
    return width * seconds / tokens if tokens else None


def _raise_first(flights: Sequence[_Flight], control: Control) -> None:
    for each in flights:
        if each.failure is not None:
            raise each.failure
    if control.cancelled:
        raise Interrupted("the measurement was stopped")


class _Flight:
    """One of the sequences, in a thread of its own."""

    def __init__(self, engine: Engine, seed: int, control: Control, begun: threading.Barrier) -> None:
        self.failure: SlmError | None = None
        self.first_s = self.last_s = 0.0
        self._arrivals: list[tuple[float, int]] = []
        """When tokens came, and how many."""
        self._thread = threading.Thread(
            target=self._run, args=(engine, seed, control, begun), name="slm-batch", daemon=True
        )
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def tokens_between(self, begin_s: float, end_s: float) -> int:
        """Return the tokens that came after a moment and until another."""
        return sum(tokens for at_s, tokens in self._arrivals if begin_s < at_s <= end_s)

    def _run(self, engine: Engine, seed: int, control: Control, begun: threading.Barrier) -> None:
        request = ids_request(engine, random_prompt(engine, short_tokens(engine), seed), BATCH_TOKENS + 1)
        begun.wait()
        try:
            for event in engine.stream(request, control):
                now = time.perf_counter()
                if not isinstance(event, Started) and not self.first_s and is_first_token(event):
                    self.first_s = now
                if isinstance(event, ThinkDelta | AnswerDelta):
                    self._arrivals.append((now, event.tokens))
                elif isinstance(event, Done):
                    self.last_s = now
                    self.first_s = self.first_s or now
        except SlmError as error:
            self.failure = error
