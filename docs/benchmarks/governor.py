"""Measure what ending a model's thinking costs and brings: python docs/benchmarks/governor.py --model SmolLM2.gguf

1. curve: held-out problems of the embedded model's generator at several budgets, on both engines through the whole
   path (worker, governor, events): right answers, mean tokens, how many thoughts were ended; and whether every reply
   kept the two promises: an answer with a character that the model wrote itself, thinking within the budget.
2. cost: the governor's microseconds a token, over the texts given and over a text that repeats itself.
3. injection: the first step after one, beside a decode step; tokens computed for it, where the engine tells.
4. answer now: from the key, the model in a process of its own, to the answer's first token, beside two decode steps
   and one such as under 3.

Parts 3 and 4 use `--model`, a GGUF file of real size (SmolLM2-135M); its thinking is opened by the prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, pairwise
from pathlib import Path

from slm_local.backends import backend_named
from slm_local.backends.llamacpp import LlamaCppBackend
from slm_local.config import Settings
from slm_local.engine import Engine, open_model
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    Handle,
    LoadSettings,
    Message,
    Piece,
    Prompt,
    PromptRun,
    ReasoningTags,
    Reply,
    Sampling,
    ThinkDelta,
    Thinking,
)
from slm_local.governor import Governor, Limits, closing_texts
from slm_local.reasoning import ReasoningParser
from slm_local.tiny import REASONER
from slm_local.tiny.evaluate import final_of
from slm_local.tiny.heldout import FAMILIES, Trial, draw_trials
from slm_local.worker import Worker

BUDGETS = (0, 8, 16, 32, 64, 128, None)
SEED = 6
TAGS = ReasoningTags(open="<think>", close="</think>", force_open=True)
RUNS_ON = "Think about every number from one to one thousand, one after the other, and say something about each."
CLOSING = closing_texts(TAGS, None)[0]


class Stopped(Exception):
    """The model ended its reply before it was measured."""


# ---- 1. accuracy against budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one budget gave on one engine."""

    engine: str
    budget: int | None
    problems: int
    right: int
    ended: int
    """Replies whose thinking was ended for the model."""
    mean_tokens: float
    mean_think_tokens: float
    unanswered: int
    """Replies without a character of an answer that the model wrote itself."""
    over_budget: int


def problems(number: int) -> list[Trial]:
    """Return held-out problems, the same number of each kind, those it should refuse aside."""
    families = [family for family in FAMILIES if not family.startswith("refuse")]
    drawn = [draw_trials(family, -(-number // len(families)), SEED) for family in families]
    return [trial for row in zip(*drawn, strict=True) for trial in row][:number]


def point(engine: Engine, budget: int | None, trials: Sequence[Trial]) -> Point:
    """Ask every problem within one budget."""
    heard = [ask(engine, trial, budget) for trial in trials]
    replies = [reply for reply, _ in heard]
    return Point(
        engine=engine.plan.backend,
        budget=budget,
        problems=len(trials),
        right=sum(final_of(r.answer.strip()) == final_of(t.answer) for r, t in zip(replies, trials, strict=True)),
        ended=sum(reply.cut != "none" for reply in replies),
        mean_tokens=statistics.mean(tokens(reply) for reply in replies),
        mean_think_tokens=statistics.mean(map(thought_tokens, replies)),
        unanswered=sum(not own.strip() for _, own in heard),
        over_budget=sum(budget is not None and thought_tokens(reply) > budget for reply in replies),
    )


def ask(engine: Engine, trial: Trial, budget: int | None) -> tuple[Reply, str]:
    """Return the reply, and of its answer what the model wrote itself."""
    system = [Message(role="system", content=trial.prompt.system)] if trial.prompt.system else []
    turns = [*system, Message(role="user", content=trial.prompt.text)]
    own = ""
    for event in engine.stream(engine.request(turns, think=Thinking(mode="open", max_tokens=budget, word="max"))):
        if isinstance(event, AnswerDelta) and not event.injected:
            own += event.text
        elif isinstance(event, Done):
            return event.reply, own
    raise AssertionError("no last event")


def tokens(reply: Reply) -> int:
    """Return all tokens of a reply, injected ones among them."""
    return (reply.usage.think_tokens or 0) + (reply.usage.answer_tokens or 0)


def thought_tokens(reply: Reply) -> int:
    """Return the tokens of thinking that the model wrote, tags not counted."""
    usage = reply.usage
    return (usage.think_tokens or 0) - (usage.tag_tokens or 0) - (usage.injected_tokens or 0)


def curve(engine_name: str, number: int) -> Iterator[Point]:
    """Measure every budget on one engine; print as it goes."""
    trials = problems(number)
    settings = Settings(backend=engine_name)  # type: ignore[arg-type]
    with open_model(REASONER, settings=settings) as engine:
        for budget in BUDGETS:
            found = point(engine, budget, trials)
            name = "none" if budget is None else str(budget)
            print(
                f"| {found.engine} | {name} | {found.right / number:.1%} | {found.mean_tokens:.0f} "
                f"| {found.mean_think_tokens:.0f} | {found.ended / number:.0%} | {found.unanswered} "
                f"| {found.over_budget} |",
                flush=True,
            )
            yield found


# ---- 2. the governor's own cost


def governor_us(pieces: Sequence[str]) -> tuple[float, float]:
    """Return the governor's microseconds a token over a thought of these pieces: mean, and the 99th percentile.

    By the clock of this thread: what other programs take meanwhile is not counted.
    """
    parser = ReasoningParser(TAGS, state="open")
    governor = Governor(Limits(think_tokens=10**9, think_s=1e9, room_tokens=10**9), parser)
    handle = Handle(id=1, prompt_tokens=1, cached_tokens=0)
    spent: list[float] = []
    for text in pieces:
        piece = Piece(handle=handle, text=text, ids=(1,))
        parser.feed(text)
        begun = time.thread_time()
        governor.feed(piece, time.monotonic())
        governor.verdict(time.monotonic())
        spent.append(time.thread_time() - begun)
    return 1e6 * statistics.mean(spent), 1e6 * sorted(spent)[len(spent) * 99 // 100]


def texts(files: Sequence[Path]) -> dict[str, list[str]]:
    """Return texts cut into pieces about as long as tokens: real ones, and one that repeats itself for long."""
    words = [word for file in files for word in re.findall(r"\s?\w{1,6}|\W", file.read_text(encoding="utf-8"))]
    rng = random.Random(SEED)
    phrase = [rng.choice(words) for _ in range(200)]
    loop = [word for number in range(50) for word in (*phrase, str(number))]
    return {"prose": [word for word in words if "<" not in word], "repeating": [w for w in loop if "<" not in w]}


# ---- 3. the first step after an injection


def load_settings(engine: str, model: str, threads: int) -> LoadSettings:
    """Return how the model of real size is loaded."""
    return LoadSettings(backend=engine, model_path=model, context_tokens=4096, threads=threads, tags=TAGS)


def injection(engine: str, model: str, threads: int, rounds: int) -> dict[str, float]:
    """Return milliseconds of a decode step and of the first step after an injection, and the median of their ratio."""
    backend = backend_named(engine)
    backend.load(load_settings(engine, model, threads), Control(), lambda fraction: None)
    rng = random.Random(SEED)
    ratios: list[float] = []
    steps_ms: list[float] = []
    decode_ms: list[float] = []
    computed: list[int] = []
    for seed in count():
        if len(ratios) == rounds:
            break
        text = f"<|im_start|>user\n{seed}. {RUNS_ON}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        prompt = Prompt(runs=(PromptRun(text=text, allows_control=True),))
        handle = backend.add(prompt, Sampling(temperature=1.0, seed=seed))
        try:
            times = stepped(backend.step, 12 + rng.randrange(32))
            before = backend.decoded_tokens if isinstance(backend, LlamaCppBackend) else 0
            backend.inject(handle, CLOSING)
            (first,) = stepped(backend.step, 1)
            after = backend.decoded_tokens if isinstance(backend, LlamaCppBackend) else 0
            decode = statistics.median([*times[-8:], *stepped(backend.step, 4)])
        except Stopped:
            continue
        finally:
            backend.remove(handle)
        computed.append(after - before)
        steps_ms.append(1e3 * first)
        decode_ms.append(1e3 * decode)
        ratios.append(first / decode)
    found = {"computed_tokens": float(max(computed))} if max(computed) else {}
    found |= {
        "bridge_and_tag_tokens": float(backend.token_count(CLOSING)),
        "decode_ms": statistics.median(decode_ms),
        "first_step_ms": statistics.median(steps_ms),
        "ratio": statistics.median(ratios),
        "ratio_worst": max(ratios),
    }
    backend.close()
    return found


def stepped(step: Callable[[Control], object], pieces: int) -> list[float]:
    """Step until so many steps gave a token; return the seconds of each of these. Raises `Stopped`."""
    spent: list[float] = []
    while len(spent) < pieces:
        begun = time.perf_counter()
        updates = step(Control())
        seconds = time.perf_counter() - begun
        assert isinstance(updates, list)
        if any(isinstance(update, Piece) and update.end for update in updates):
            raise Stopped
        if any(isinstance(update, Piece) for update in updates):
            spent.append(seconds)
    return spent


# ---- 4. answer now


def answer_now(engine: str, model: str, threads: int, rounds: int, first_step_ratio: float) -> dict[str, float]:
    """Return the milliseconds from the key to the answer's first token, and their share of what is allowed.

    That is two decode steps and one that reads what is injected, `first_step_ratio` decode steps long; a decode step as
    it was just before the key.
    """
    worker = Worker(Path(os.environ["SLM_HOME"]))
    facts = worker.load(load_settings(engine, model, threads), Control(), lambda waited, fraction: None)
    assert facts.chat_template
    rng = random.Random(SEED)
    delays: list[float] = []
    shares: list[float] = []
    for number in count():
        if len(delays) == rounds:
            break
        try:
            delay_ms, decode_ms = pressed(worker, f"{number}. {RUNS_ON}", rng)
        except Stopped:
            continue
        delays.append(delay_ms)
        shares.append(delay_ms / ((2 + first_step_ratio) * decode_ms))
    worker.close()
    return {
        "key_to_answer_ms": statistics.median(delays),
        "key_to_answer_ms_worst": max(delays),
        "of_what_is_allowed": statistics.median(shares),
        "of_what_is_allowed_worst": max(shares),
    }


def pressed(worker: Worker, prompt: str, rng: random.Random) -> tuple[float, float]:
    """Press the key at some moment of the thinking; return milliseconds to the answer, and of a decode step.

    Raises `Stopped`.
    """
    sampling = Sampling(temperature=1.0, seed=rng.randrange(10**6))
    request = GenerationRequest(messages=(Message(role="user", content=prompt),), sampling=sampling, think="open")
    control, told_at = Control(), [0.0]
    key_at = 0.0

    def press() -> None:
        nonlocal key_at
        key_at = time.perf_counter()
        control.end_thinking()

    for event in worker.stream(replace(request, max_tokens=400), control):
        now = time.perf_counter()
        if isinstance(event, ThinkDelta) and event.injected:
            if not key_at:  # the model stopped by itself, and was given the rest
                raise Stopped
            # The step that reads what is injected writes the answer's first token, too: they come together.
            control.cancel()
            return 1e3 * (now - key_at), 1e3 * statistics.median(b - a for a, b in pairwise(told_at[-20:]))
        if isinstance(event, ThinkDelta):
            told_at = [*told_at, now] if told_at[0] else [now]
            if len(told_at) == 24:
                step_s = (told_at[-1] - told_at[0]) / 23
                threading.Timer(rng.uniform(0.0, 2.0 * step_s), press).start()
    raise Stopped


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file of real size; without it parts 3 and 4 are left out")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20, help="of parts 3 and 4")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--engines", nargs="+", default=["llamacpp", "openvino"], choices=["llamacpp", "openvino"])
    given = parser.parse_args()
    result: dict[str, object] = {"problems": given.problems, "threads": given.threads}
    with tempfile.TemporaryDirectory() as home:
        os.environ["SLM_HOME"] = home
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}\n")
        print("| engine | budget | right | mean tokens | of them thought | ended | unanswered | over budget |")
        print("|---|---|---|---|---|---|---|---|")
        result["curve"] = [asdict(each) for name in given.engines for each in curve(name, given.problems)]
        print()
        for name, words in texts(sorted(Path(__file__).parents[1].glob("*.md"))).items():
            mean, late = governor_us(words)
            result[f"governor_us_{name}"], result[f"governor_us_{name}_p99"] = mean, late
            print(f"governor, {len(words):,} tokens of {name} text: {mean:.1f} us a token, 99th percentile {late:.1f}")
        for name in given.engines if given.model else ():
            found = injection(name, given.model, given.threads, given.rounds)
            found |= answer_now(name, given.model, given.threads, given.rounds, found["ratio"])
            result[name] = found
            print(f"\n{name}")
            print("\n".join(f"  {key:28} {value:8.2f}" for key, value in found.items()))
        print(json.dumps(result))


if __name__ == "__main__":
    main()
