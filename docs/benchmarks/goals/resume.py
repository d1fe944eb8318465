"""A chat of 2,000 tokens resumed from disk beside reading it anew, to the first token either way.

Through the engine, as `slm chat -c` does it: the chat is read and its state saved, the engine process started anew, the
state restored (which proves the file first), and the next prompt sent. Starting the engine and saving are not counted;
the file is in the page cache.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Figures, NotHere, Ratio, Report

from slm_local.engine import Engine
from slm_local.generation import Control, Message

from .setup import SENTENCE, SENTENCE_TOKENS, WORDS, Goal, Setup

TOKENS = 2000
MOST_BYTES = 2**34


def _measure(setup: Setup, report: Report, model: str) -> None:
    if not hasattr(Engine, "restore_state"):
        raise NotHere("this version keeps no state on disk")
    tokens = setup.tokens(TOKENS)
    with tempfile.TemporaryDirectory() as folder, setup.open(setup.words(model), WORDS) as opened:
        engine: Any = opened
        file = Path(folder) / "chat.state"
        engine.reply(engine.request("Hello.", max_tokens=8))

        def take(number: int) -> Figures:
            chat = _chat(number, tokens)
            asked = engine.request([*chat, Message(role="user", content="Go on.")], max_tokens=1)
            read_s, read_tokens, _ = _first_token(engine, asked)
            begun = time.perf_counter()
            ends = [*chat, Message(role="user", content="")]
            limits = {"least_tokens": 1, "most_bytes": MOST_BYTES, "on_wait": lambda waited_s: None}
            saved = engine.save_state(file, ends, think=None, **limits)
            saved_s = time.perf_counter() - begun
            engine.close()
            engine.start(Control())
            engine.reply(engine.request("Hello.", max_tokens=8))
            begun = time.perf_counter()
            restored = engine.restore_state(file)
            restored_s = time.perf_counter() - begun
            resumed_s, _, again_tokens = _first_token(engine, asked)
            if not restored.tokens or again_tokens > read_tokens // 10:
                raise ValueError(f"saved: {saved}; restored: {restored}; {again_tokens} tokens read again")
            return {
                "prefill_s": read_s,
                "resume_s": restored_s + resumed_s,
                "save_s": saved_s,
                "file_bytes": file.stat().st_size,
                "prompt_tokens": read_tokens,
                "read_again_tokens": again_tokens,
            }

        ratio = Ratio(
            name=f"resume {tokens:,} tokens from disk ÷ prefill them",
            of=lambda figures: figures["resume_s"] / figures["prefill_s"],
            target=0.1,
            side="most",
        )
        report.measure("resume", model, [ratio], take)


def _chat(number: int, tokens: int) -> list[Message]:
    """Return a chat of one turn and about so many tokens; no two begin alike."""
    answer = SENTENCE * (tokens // SENTENCE_TOKENS)
    return [
        Message(role="user", content=f"Round {number}: tell me what happens at the sea."),
        Message(role="assistant", content=answer.strip()),
    ]


def _first_token(engine: Engine, request: Any) -> tuple[float, int, int]:
    """Return the seconds to the first token, the prompt's tokens, and how many of them were read."""
    reply = engine.reply(request)
    prompt = reply.usage.prompt_tokens or 0
    return reply.timings.first_token_s, prompt, prompt - (reply.usage.cached_tokens or 0)


GOAL = Goal(
    name="resume",
    about="resume a 2,000-token chat from disk ÷ prefill it",
    seconds={"135m": (2, 10), "1.5b": (5, 20), "8b": (20, 90)},
    run=_measure,
)
