"""Sees a text that goes round in circles, exactly or but for a counter, at O(1) a token on average.

The candidate period is the distance to the last same 8-gram; from there on every token is compared with the one a
period before. It is fed texts of tokens (or words, of an engine that gives no ids) and keeps the last few hundred.
"""

from __future__ import annotations

import re
from collections import deque

GRAM = 8
LONGEST_PERIOD = 256
RING = 512
"""Items kept; a power of two above the longest period."""
PLACES = 4 * LONGEST_PERIOD
"""8-grams kept before those that are too far back are dropped."""
EXACT_PERIODS = 3
COUNTED_PERIODS = 8
"""What only counts on has to do so for longer: rows of data are alike, too."""
WORDLESS = 4
"""Without a word in it (rules of dashes, rows of zeros) a repetition has to be so many times longer."""
LONGEST_WORD = 16
"""Characters without white space, of an engine that gives no ids, that are looked at as a word at the latest."""

_LETTER = re.compile(r"[^\W\d_xX]")
"""Not `x`, which is a times sign and a mark of hexadecimal numbers, too."""
_WORD_BEGINS = re.compile(r"[\W\d_xX][^\W\d_xX]")
_PARTS = re.compile(r"[0-9]+|[^0-9]+")
_WORDS = re.compile(rf"\S{{1,{LONGEST_WORD}}}|\n")
_UNFINISHED = re.compile(r"\S*\Z")


class LoopGuard:
    """Is fed a text token by token and finds the loop in it.

    A loop repeats itself for at least `enough` tokens and three periods; or, numbers taken for equal, for `enough`
    words and eight periods in which no more than one number a period goes on (rows of data change more).
    """

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._exact, self._counted = _Repetition(), _Repetition()
        self._known: dict[str, _Token] = {}
        self._is_in_word = False
        self._number = ""  # the digits at the end of what was fed: the next token may go on with them
        self._rest = ""  # of a text without ids: the word that is not finished
        self.is_found = False

    def feed(self, text: str, *, is_token: bool = True) -> None:
        """Take the text of one token, or any stretch of text, which is looked at word by word."""
        if is_token:
            self._take(text)
            return
        text = self._rest + text
        rest = text[_UNFINISHED.search(text).start() :]  # type: ignore[union-attr]
        words = _WORDS.findall(text[: len(text) - len(rest)])
        while len(rest) > LONGEST_WORD:
            words.append(rest[:LONGEST_WORD])
            rest = rest[LONGEST_WORD:]
        self._rest = rest
        for word in words:
            self._is_in_word = False
            self._take(word)

    def _take(self, text: str) -> None:
        token = self._known.get(text)
        if token is None:
            token = self._known[text] = _Token(text)
        is_word = token.holds_start or (token.begins_in_word and not self._is_in_word)
        self._is_in_word = token.ends_in_word
        self._exact.feed(text, is_word)
        for part in token.parts:
            if part[0] in "0123456789":
                self._number += part
                continue
            if self._number:
                self._counted.feed("0", False, self._number)
                self._number = ""
            self._counted.feed(part, is_word)
            is_word = False
        self.is_found = self.is_found or self._repeats() or self._counts()

    def _repeats(self) -> bool:
        seen = self._exact
        needed = self._enough if seen.words else WORDLESS * self._enough
        return seen.length >= needed and seen.length >= (EXACT_PERIODS - 1) * seen.period

    def _counts(self) -> bool:
        seen = self._counted
        if seen.words < self._enough or seen.length < (COUNTED_PERIODS - 1) * seen.period:
            return False
        return seen.changes <= seen.length // seen.period + 1


class _Token:
    """What is asked of every token's text, found out once."""

    __slots__ = ("begins_in_word", "ends_in_word", "holds_start", "parts")

    def __init__(self, text: str) -> None:
        self.begins_in_word = _LETTER.match(text) is not None
        self.ends_in_word = _LETTER.match(text[-1:]) is not None
        self.holds_start = _WORD_BEGINS.search(text) is not None
        """Whether a word begins behind the first character."""
        self.parts = tuple(_PARTS.findall(text))


class _Repetition:
    """How long a stream of items has been the same as one period before."""

    def __init__(self) -> None:
        self.period = 0
        """0: no candidate."""
        self.length = 0
        """Items in a row that equal the one a period before."""
        self.words = 0
        """Words that begin in them."""
        self.changes = 0
        """Numbers in them that differ from the one a period before and from the last that did."""
        self._items = [""] * RING
        self._numbers = [""] * RING
        self._count = 0
        self._gram: deque[str] = deque(maxlen=GRAM)
        self._gram_words: deque[bool] = deque(maxlen=GRAM)
        self._places: dict[tuple[str, ...], int] = {}
        self._changed = ""

    def feed(self, item: str, is_word: bool, number: str = "") -> None:
        """Take the next item; `number` is the one that it stands for, if any."""
        at = self._count
        self._count += 1
        self._items[at % RING], self._numbers[at % RING] = item, number
        self._gram.append(item)
        self._gram_words.append(is_word)
        gram = tuple(self._gram)
        if self.period and self._items[(at - self.period) % RING] == item:
            self.length += 1
            self.words += is_word
            if number and number != self._changed and number != self._numbers[(at - self.period) % RING]:
                self.changes += 1
                self._changed = number
        else:
            self._begin(at, gram)
        self._places[gram] = at
        if len(self._places) > PLACES:
            self._places = {key: place for key, place in self._places.items() if at - place < LONGEST_PERIOD}

    def _begin(self, at: int, gram: tuple[str, ...]) -> None:
        """Look for a candidate: the last place of the same 8-gram."""
        place = self._places.get(gram) if len(gram) == GRAM else None
        if place is None or at - place > LONGEST_PERIOD:
            self.period = self.length = self.words = self.changes = 0
            return
        self.period, self.length, self.changes = at - place, GRAM, 0
        self.words = sum(self._gram_words)
