"""Values and children for tests of what is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from slm_local.generation import Reply, Sampling, Timings, Usage
from slm_local.store import PlanFacts, Store
from tests.command import child_environment

FACTS = PlanFacts(
    model="tiny-reasoner",
    backend="llamacpp",
    device="cpu",
    quant="Q8_0",
    context_tokens=4096,
    threads=2,
    think="on",
    think_tokens=512,
    think_s=None,
    max_tokens=900,
    sampling=Sampling(temperature=0.6, seed=7),
)

USAGE = Usage(prompt_tokens=9, cached_tokens=None, think_tokens=5, answer_tokens=3, tag_tokens=2, injected_tokens=0)


def reply_of(thinking: str = "hmm", answer: str = "85") -> Reply:
    timings = Timings(load_s=0.5, first_token_s=0.25, decode_tps=20.0, peak_rss_bytes=1 << 33)
    return Reply(thinking=thinking, answer=answer, finish="stop", cut="budget", usage=USAGE, timings=timings)


def keep(store: Store, *turns: tuple[str, str, str], model: str = "r1-8b@no-think", system: str | None = None) -> int:
    """Keep a chat of (prompt, thinking, answer) and return its number."""
    chat = store.begin_chat(model=model, kind="chat", system=system)
    for prompt, thinking, answer in turns:
        store.end_turn(store.begin_turn(chat, prompt, FACTS), reply_of(thinking, answer))
    return chat


def child(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=child_environment(),
    )
