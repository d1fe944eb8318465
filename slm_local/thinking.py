"""Reads how long a model is asked to think: a word, a number of tokens, a time; and limits what has no limit.

It knows no model and no machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from slm_local.generation import Cut, Thinking

WORD_TOKENS = {"low": 512, "medium": 2048, "high": 8192}
"""Most tokens of thinking that a word stands for."""

PATIENCE_S = 180.0
"""How long a person who did not say it waits for thinking to end."""

LEAST_TOKENS = 1024
"""What thinking is let have however slow the machine is: with less, hardly a problem is thought to its end."""

ROUND_TOKENS = 100
"""A limit that follows from a speed is a multiple of it: more would be said than is known."""

MOST_TOKENS = 2**31 - 1
MOST_S = 24 * 3600.0

SENTENCE = "takes off, on, auto, low, medium, high, max, a number of tokens such as 256, or a time such as 30s or 5m"

TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def read_thinking(value: object) -> Thinking:
    """Return what is meant by a value of the setting `think`; `ValueError` with a sentence that says what it may be.

    `true` and `false` are `on` and `off`. A limit opens thinking where the prompt leaves it unopened; `auto` and `max`
    leave that to the model's template.
    """
    if isinstance(value, bool):
        value = "on" if value else "off"
    text = str(value).strip().lower() if isinstance(value, str | int) else ""
    match text:
        case "off":
            return Thinking(mode="off", word=text)
        case "on":
            return Thinking(mode="on", word=text)
        case "auto" | "max":
            return Thinking(word=text)
        case "low" | "medium" | "high":
            return Thinking(mode="open", max_tokens=WORD_TOKENS[text], word=text)
    if re.fullmatch(r"[0-9]{1,10}", text) and int(text) <= MOST_TOKENS:
        return Thinking(mode="open", max_tokens=int(text), word=str(int(text)))
    seconds = _seconds(text)
    if seconds is None:
        raise ValueError(SENTENCE)
    return Thinking(mode="open", max_s=seconds, word=text)


def patient(think: Thinking, patience_s: float, *, decode_tps: float | None, context_tokens: int) -> Thinking:
    """Limit `on` and `auto` to what is thought in so many seconds, at least `LEAST_TOKENS`; all else stays as it is.

    Where the speed is not foretold the time itself is the limit; where the context is smaller, nothing more is.
    """
    is_limited = think.word not in ("", "auto", "on") or (think.max_tokens, think.max_s) != (None, None)
    if is_limited or context_tokens <= LEAST_TOKENS:
        return think
    if decode_tps is None:
        return replace(think, max_s=patience_s)
    tokens = max(LEAST_TOKENS, int(patience_s * decode_tps) // ROUND_TOKENS * ROUND_TOKENS)
    return replace(think, max_tokens=tokens) if tokens < context_tokens else think


CUT_WORDS: Mapping[Cut, str] = {
    "budget": "ended at {tokens:,} tokens",
    "time": "ended after {seconds:g} s",
    "context": "ended, for the context keeps room for the answer",
    "max_tokens": "ended, for the limit of tokens keeps room for the answer",
    "loop": "ended, for it repeated itself",
    "user": "ended, as you asked",
    "converged": "ended, for the answer had settled",
}


def cut_words(cut: Cut, think: Thinking) -> str:
    """Return how thinking was ended before the model ended it: "ended at 256 tokens"; empty where it was not.

    Empty also where no thinking was wanted (a limit of 0).
    """
    if cut == "budget" and think.max_tokens == 0:
        return ""
    words = CUT_WORDS.get(cut, "").format(tokens=think.max_tokens or 0, seconds=think.max_s or 0.0)
    return words.replace(" 1 tokens", " 1 token")


def _seconds(text: str) -> float | None:
    """Return the seconds of a time such as `90s`, `5m` or `1m30s`; None where it is none, or not up to a day."""
    found = TIME.fullmatch(text)
    if not text or found is None:
        return None
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    total = 3600 * hours + 60 * minutes + seconds
    return total if 0 < total <= MOST_S else None
