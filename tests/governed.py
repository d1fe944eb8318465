"""Models that misbehave, as scripts, and what the governor makes of each: the same in driver, worker, CLI and app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slm_local.generation import Cut, Finish

Row = dict[str, Any]

BRIDGE = "Enough thinking, I answer now.\n"
OPEN: Row = {"text": "<think>"}
END: Row = {"end": "stop"}
ANSWER: Row = {"text": "It is 42.", "end": "stop"}
SEVEN = ("one ", "two ", "three ", "four ", "five ", "six ", "seven ")
VARIED = "idea {n} leads to {n}{n} and {n}1, "
"""Goes on without ever repeating itself: more than one number changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A script, how long it may think and write, and the end that it has to come to."""

    name: str
    rows: tuple[Row, ...]
    think_tokens: int | None = None
    max_tokens: int | None = None
    finish: Finish = "stop"
    cut: Cut = "none"
    answer: str | None = "It is 42."
    """None: any."""
    thinking_end: str = BRIDGE


def period(length: int) -> tuple[Row, ...]:
    """Return rows that repeat themselves every `length` tokens, often enough."""
    words = [chr(0x4E00 + n) for n in range(length)]
    return tuple({"text": f" {word}"} for word in words * (1 + 1200 // length))


CASES = (
    Case(name="never ends thinking", rows=(OPEN, {"text": VARIED, "times": 9000}, END, ANSWER), cut="context"),
    Case(
        name="never ends thinking under a budget",
        rows=(OPEN, {"text": VARIED, "times": 9000}, END, ANSWER),
        think_tokens=50,
        cut="budget",
    ),
    Case(
        name="never ends thinking under a limit",
        rows=(OPEN, {"text": VARIED, "times": 9000}, END, ANSWER),
        max_tokens=400,
        cut="max_tokens",
    ),
    Case(name="loops with period 1", rows=(OPEN, *period(1), END, ANSWER), cut="loop"),
    Case(name="loops with period 7", rows=(OPEN, *period(7), END, ANSWER), cut="loop"),
    Case(name="loops with period 200", rows=(OPEN, *period(200), END, ANSWER), cut="loop"),
    Case(
        name="loops with a counter",
        rows=(OPEN, {"text": "Wait, let me check number {n} once again. ", "times": 900}, END, ANSWER),
        cut="loop",
    ),
    Case(
        name="loops in its answer",
        rows=(OPEN, {"text": "hm</think>"}, *period(7), END),
        finish="loop",
        answer=None,
        thinking_end="hm",
    ),
    Case(
        name="loops in thinking and again in its answer",
        rows=(OPEN, *period(7), END, *period(1), END),
        finish="loop",
        cut="loop",
        answer=None,
    ),
    Case(name="stops in mid-thought", rows=(OPEN, {"text": "so it", "end": "stop"}, ANSWER), thinking_end=BRIDGE),
    Case(
        name="stops in mid-character",
        rows=(OPEN, {"text": "caf", "ids": [1]}, {"text": "\ufffd", "ids": [2], "end": "stop"}, ANSWER),
        thinking_end=f"caf\ufffd {BRIDGE}",
    ),
    Case(
        name="stops inside its closing tag",
        rows=(OPEN, {"text": "so it is</thi", "end": "stop"}, ANSWER),
        thinking_end=f"so it is</thi {BRIDGE}",
    ),
    Case(
        name="stops behind its closing tag",
        rows=(OPEN, {"text": "it is 42</think>"}, {"text": "\n\n", "end": "stop"}, ANSWER),
        thinking_end="it is 42",
    ),
    Case(
        name="answers nothing, whatever it is given",
        rows=(OPEN, {"text": "so it", "end": "stop"}, END),
        finish="empty",
        answer="",
    ),
    Case(name="says nothing at all at first", rows=(END, ANSWER), thinking_end=""),
)
