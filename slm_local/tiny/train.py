"""How are the two models trained? `python -m slm_local.tiny.train --out DIR` repeats tokenizer, both models and export.

The schedule counts tokens, not time, so the same seed sees the same batches; weights agree to rounding.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from slm_local.tiny import batches, tokens
from slm_local.tiny.batches import Example, Kind, Writer
from slm_local.tiny.model import Shape, TinyLlama
from slm_local.tiny.muon import Muon

TOKENS = 14_000_000
"""Training tokens of each model, prompts included, padding not."""

SEED = 20261121
TOKENIZER_TEXTS = 30_000
MUON_LR = 0.02
ADAM_LR = 3e-3
WARMUP_STEPS = 30
RATES: dict[Kind, tuple[tuple[float, float], ...]] = {
    "reasoner": ((0.2214, 1.0), (0.3867, 0.6647), (0.705, 0.2466), (1.0, 0.0)),
    "direct": ((0.2214, 1.0), (0.4501, 0.536), (0.7831, 0.1328), (1.0, 0.0)),
}
"""Share of the tokens and factor on the peak rate there; constant before the first point, linear between two.

The bends are where the budget was raised from 10 to 12.5 and to 14 million tokens. Nearly everything is learnt as the
rate falls.
"""

CURRICULUM_END = 0.0857
LATE_START = 0.5357
"""Share of the budget after which weighing takes half of the mix."""

REPORT_S = 10.0
CHECKPOINT_S = 120.0
IGNORED = -100
KINDS: tuple[Kind, ...] = ("reasoner", "direct")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one training run depends on."""

    kind: Kind
    out: Path
    seed: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run stands; changes as it goes."""

    tokens: int = 0
    steps: int = 0
    pools: int = 0
    examples: int = 0
    seconds: float = 0.0


def learning_rate(kind: Kind, done: float, steps: int) -> float:
    """Return the factor on the peak rate when a share `done` of the tokens is spent."""
    shares, factors = zip(*RATES[kind], strict=True)
    return float(np.interp(done, shares, factors)) * min(1.0, (steps + 1) / WARMUP_STEPS)


def tensors(batch: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return padded inputs, flat positions whose next token is learnt, and those next tokens."""
    width = max(len(example.ids) for example in batch)
    inputs = torch.zeros(len(batch), width - 1, dtype=torch.long)
    targets = torch.full((len(batch), width - 1), IGNORED)
    for row, example in enumerate(batch):
        ids = torch.tensor(example.ids)
        inputs[row, : len(ids) - 1] = ids[:-1]
        learnt = torch.tensor(example.is_learnt)[1:]
        targets[row, : len(ids) - 1] = torch.where(learnt, ids[1:], IGNORED)
    picked = (targets.view(-1) != IGNORED).nonzero().view(-1)
    return inputs, picked, targets.view(-1)[picked]


class Trainer:
    """One model in training, with its optimizers and its checkpoint."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.model = TinyLlama(Shape())
        self.writer = Writer(tokenizer, plan.kind)
        self.progress = Progress()
        matrices = [weight for weight in self.model.model.layers.parameters() if weight.ndim == 2]
        chosen = {id(weight) for weight in matrices}
        others = [weight for weight in self.model.parameters() if id(weight) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=MUON_LR, weight_decay=0.01),
            torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.checkpoint = plan.out / f"tiny-{plan.kind}.ckpt"

    def run(self) -> None:
        """Train until the tokens are spent, going on from a checkpoint where there is one."""
        if self.checkpoint.exists():
            self._restore(torch.load(self.checkpoint, weights_only=True))
        saved_at = reported_at = started = time.monotonic() - self.progress.seconds
        saved_at += self.progress.seconds
        while self.progress.tokens < self.plan.tokens:
            losses: list[float] = []
            for batch in self._next_pool():
                if self.progress.tokens >= self.plan.tokens:
                    break
                losses.append(self._step(batch))
                self.progress.seconds = time.monotonic() - started
                if self.progress.seconds - (reported_at - started) >= REPORT_S:
                    reported_at = time.monotonic()
                    self._report(losses)
                    losses.clear()
            if time.monotonic() - saved_at >= CHECKPOINT_S:
                saved_at = time.monotonic()
                self.save()
        self.save()

    def _next_pool(self) -> list[list[Example]]:
        done = self.progress.tokens / self.plan.tokens
        mix = batches.MIX if done < LATE_START else batches.LATE_MIX
        longest = batches.EARLY_TOKENS if done < CURRICULUM_END else self.model.shape.context
        number = self.progress.pools
        pool = batches.draw_pool(self.writer, self.plan.seed, number, mix, longest)
        self.progress.pools += 1
        return list(batches.cut_batches(pool, Random(f"order/{self.plan.seed}/{number}")))

    def _step(self, batch: list[Example]) -> float:
        factor = learning_rate(self.plan.kind, self.progress.tokens / self.plan.tokens, self.progress.steps)
        for optimizer, peak in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        inputs, picked, targets = tensors(batch)
        loss = nn.functional.cross_entropy(self.model(inputs, picked), targets)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.steps += 1
        self.progress.examples += len(batch)
        self.progress.tokens += sum(len(example.ids) for example in batch)
        return float(loss.detach())

    def _report(self, losses: list[float]) -> None:
        at = self.progress
        print(
            f"{self.plan.kind} {at.seconds / 60:6.1f} min  {at.tokens / 1e6:6.2f} M tokens  {at.examples} examples  "
            f"loss {sum(losses) / len(losses):.4f}  {at.tokens / at.seconds:.0f} tok/s",
            flush=True,
        )

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        part = self.checkpoint.with_suffix(".part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "progress": {name: getattr(self.progress, name) for name in Progress.__slots__},
            },
            part,
        )
        part.replace(self.checkpoint)

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])


def make_tokenizer(out: Path, seed: int) -> Tokenizer:
    """Train the tokenizer, or read the one that the other run has written."""
    path = out / "tokenizer.json"
    if not path.exists():
        tokenizer = tokens.train_tokenizer(batches.tokenizer_texts(seed, TOKENIZER_TEXTS))
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def train_both(out: Path, arguments: list[str]) -> None:
    """Train both models side by side, one process each: together faster than one after the other."""
    commands = [[sys.executable, "-m", "slm_local.tiny.train", "--only", kind, *arguments] for kind in KINDS]
    runs = [subprocess.Popen(command) for command in commands]
    codes = [run.wait() for run in runs]
    if any(codes):
        raise SystemExit("a training run failed; its messages are above")
    from slm_local.tiny.export import export_all

    export_all(out, out / "weights", out / "checkpoints")


def main(arguments: list[str]) -> None:
    """Parse the flags, train and export."""
    parser = argparse.ArgumentParser(prog="python -m slm_local.tiny.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and exported files")
    parser.add_argument("--only", choices=KINDS, help="train one model and export nothing")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="training tokens of each model")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(options.out, options.seed)
    if options.only is None:
        train_both(options.out, arguments)
        return
    torch.set_num_threads(options.threads)
    Trainer(Plan(kind=options.only, out=options.out, seed=options.seed, tokens=options.tokens), tokenizer).run()


if __name__ == "__main__":
    main(sys.argv[1:])
