"""When has a thought settled on its answer? Pure: it is told what was thought and what probes said, and knows no model.

A probe is the short answer that a model gives when its thinking is closed for it. The same one several times in a row
says that further thinking changes nothing (answer consistency, Liu and Wang 2025, arXiv 2506.02536; Dynasor-CoT, Fu et
al. 2025, arXiv 2412.20993, stops at three in a row too). Answers are tried where a sentence ends, as DEER does (Yang et
al. 2025, arXiv 2504.15895): a thought cut within a step has no answer yet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LEAD = "The answer is"
"""What a probe is given behind the closing tag: `answers` looks for an answer behind these very words."""

TAIL_CHARS = 16
"""So much of a thought's end tells whether a sentence ends there."""

SENTENCE_END = re.compile(r"(?:[^\d\s][.!?]|\d[!?]|\d[.]\s|[。！？…]|\n)[\"'”’」』)\]*]*\s*$")
"""A full stop right behind a digit may be a decimal point: it counts with white space behind it."""

ANSWER_END = re.compile(r"\w.*?(?:[.!?](?=\s)|[。！？]|\n)", re.DOTALL)
BOX = re.compile(r"\\(?:boxed|fbox)\b")
BOLD = re.compile(r"\*\*[^*\n]*\w[^*\n]*\*\*")

OPEN_WORDS = re.compile(
    r"\b(?:un(?:known|clear|certain|determined|decided)|wait|hmm+|maybe|perhaps|possibly|probably|depends)\b"
    r"|\b(?:to be (?:determined|found|calculated|computed|decided)|let me|let['’]s|I (?:need|have to|should))\b"
    r"|(?:\bnot|n['’]t) (?:yet|known|clear|certain|sure|determined|decided|given|enough)\b"
    r"|未知|不确定|不清楚|无法|可能|也许|尚未|等等",
    re.IGNORECASE,
)
"""What a model says that has no answer yet; said three times it is none the more (Dynasor-CoT has such a list, too)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRule:
    """How often answers are tried, and how many equal ones settle it. Counts are of tokens of thinking.

    On its way a thought holds many a result that looks like its answer. Those of the embedded models stand for some 50
    tokens: tried every 16 tokens, three in a row ended one thought in ten, two thirds of these with another answer;
    tried at 32 tokens, at every doubling and then every 100, none (docs/benchmarks.md).
    """

    same_answers: int = 3
    most_spacing: int = 100
    """After so many tokens it waits for nothing but a sentence's end."""
    least_spacing: int = 32
    spacing_part: int = 2
    """A probe waits until so large a part of the thought is new: for half, so that it is tried at every doubling."""

    def spacing(self, thought_tokens: int) -> int:
        """Return how many tokens have to go by before the next probe."""
        return min(self.most_spacing, max(self.least_spacing, thought_tokens // self.spacing_part))


class Convergence:
    """Watches one thought and the probes into it."""

    def __init__(self, rule: ExitRule) -> None:
        self._rule = rule
        self._tail = ""
        self._thought_tokens = self._asked_at = 0
        self._answer: str | None = None
        self._times = 0

    @property
    def is_converged(self) -> bool:
        """Return whether the same answer came often enough in a row."""
        return self._times >= self._rule.same_answers

    def feed(self, text: str, thought_tokens: int) -> None:
        """Take what was thought next, and how many tokens the thought has with it."""
        self._tail = (self._tail + text)[-TAIL_CHARS:]
        self._thought_tokens = thought_tokens

    def is_due(self) -> bool:
        """Say whether to try an answer here: a sentence ends, and the last probe is long enough ago."""
        since = self._thought_tokens - self._asked_at
        return since >= self._rule.spacing(self._thought_tokens) and ends_sentence(self._tail)

    def begin(self) -> None:
        """Take note that an answer is being tried here."""
        self._asked_at = self._thought_tokens

    def take(self, answer: str | None) -> None:
        """Take what a probe said; None: it came to no answer."""
        from slm_local.answers import same_answer  # compiling its expressions takes a tenth of a child's start

        is_same = answer is not None and self._answer is not None and same_answer(self._answer, answer, computes=False)
        self._times = 0 if answer is None else self._times + 1 if is_same else 1
        self._answer = self._answer if is_same else answer


def ends_sentence(text: str) -> bool:
    """Tell whether a sentence, or a line, ends where a text does."""
    return SENTENCE_END.search(text) is not None


def is_answered(written: str) -> bool:
    """Tell whether what a probe wrote behind `LEAD` holds a whole answer: boxed, bold, or up to a sentence's end."""
    if BOX.search(written):
        from slm_local.answers import boxed

        return boxed(written) is not None
    return bool(BOLD.search(written) or ANSWER_END.search(written))


def answer_of(written: str) -> str | None:
    """Return the answer in what a probe wrote behind `LEAD`; None where it has none yet."""
    if OPEN_WORDS.search(written) or not any(char.isalnum() for char in written):
        return None
    from slm_local.answers import final_answer

    answer = final_answer(LEAD + written)
    return answer if answer is not None and any(char.isalnum() for char in answer) else None
