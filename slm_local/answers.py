r"""What a text answers at last, and whether two answers are the same by value.

The answer is looked for where evaluation harnesses look: in \boxed{}, behind "the answer is", in bold, at last the last
number or line. Numbers, units, fractions, percentages and LaTeX are compared by value, everything else by its words. It
never raises: what can't be read is another answer.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import prod
from types import FrameType

TAIL_CHARS = 20_000
"""Only so much of a text's end is looked at: an answer stands at the end, and every search here is linear in this."""

MAX_VALUE_CHARS = 120
MAX_DIGITS = 60
MAX_POWER = 1_000
MAX_SYMBOLIC_POWER = 20
"""What is longer, has longer numbers or would be raised to more than this (all powers multiplied; the lower one where
there are letters, whose powers are multiplied out) is compared as text, and so is what `NEVER_COMPUTED` names.
The library that computes values has no limit of its own but signals, which other threads can't use: sympy would compute
9^9^9^9 until memory ends."""

MAX_COMPUTING_S = 10.0
"""Most processor time of one comparison, looking at the clock included, which takes four fifths of it. The limits above
are there for what can't be interrupted: a single huge number."""

NEVER_COMPUTED = re.compile(
    r"\\(?:i*nt|oint|sum|prod|lim|binom|d?frac\s*\{\s*d\b)|exp.*exp|(?:sin|cos|tan)h|!.*!|\d{4,}\s*!|[)}\]]\s*!"
)
"""Integrals, sums, limits, exponentials of exponentials, factorials of more than a small number."""

MOST_BOXES = 20
"""So many are tried, from the last one on, until one is closed."""

POWER = re.compile(r"\^|\*\*")
EXPONENT = re.compile(
    r"\s*(?:[-+]?\d{1,4}(?!\d)|[A-Za-z]|\{?\\circ\}?"
    r"|[({]\s*[-+]?[A-Za-z\d\s+-]{1,12}[)}]|[({]\s*-?\d{1,3}\s*/\s*\d{1,3}\s*[)}]"
    r"|\{\s*-?\\d?frac\s*\{\d{1,3}\}\s*\{\d{1,3}\}\s*\})(?!\s*(?:\^|\*\*|!))"
)
"""An exponent that may be computed: a number, a letter, a short sum or a fraction, and no power of a power."""

PHRASE = re.compile(
    r"(?:\b(?:answer|result|solution)\b[^.\n:=]{0,40}?(?:\bis\b|\bare\b|:|=|\*\*[ \t]*\n)|^\s*####)"
    r"[ \t:]*(?:\*\*(?=[ \t:]|\n))?[ \t:]*\n{0,2}([^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
"""`The answer is X`, `**Answer:** X`, a heading `Final answer` with X below it, `#### X` as in GSM8K."""

BOLD = re.compile(r"\*\*([^*\n]{1,200}?)\*\*")
SENTENCE_END = re.compile(r"(?<=[^\s\d])[.!?](?:\s|$)|(?<=\d)[.!?](?:\s+\D|\s*$)")
REASON = re.compile(r"[,;(]|\b(?:because|since|which|as|so|for)\b", re.IGNORECASE)
LINKED = re.compile(r"\b(?:is|are|be|was|were)\b|[:=]", re.IGNORECASE)

CHOICE = re.compile(r"\(?([A-J])\)?[.):]?", re.IGNORECASE)
CHOICE_IN_TEXT = re.compile(r"(?:^|[\s(*])([A-J])(?=[\s).:*,]|$)")
YES_OR_NO = frozenset({"yes", "no", "true", "false"})

NUMBER = re.compile(
    r"[-+]?(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:[.,]\d+)?(?:[eE][-+]?\d{1,3})?(?:\s*/\s*\d+)?(?:\s*\\?%)?|[-+]?\.\d+"
)
MIXED = re.compile(r"([-+]?\d+)\s+(\d+)\s*/\s*(\d+)")
WORD = re.compile(r"[-+]?\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?|[%°$€£¥₹]")
MATH = re.compile(r"[\\^_{}=<>√∞|*+]|\d\s*\(|\)\s*\(")

SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "\u00a0": " ", "\u202f": " ", "\u2009": " "})
FILLERS = frozenset({"a", "an", "the", "of", "about", "approximately", "exactly", "is", "are", "it", "its"})

SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_WORDS = {word: str(number) for number, word in enumerate(SMALL)} | {
    word: str(10 * number) for number, word in enumerate(TENS, 2)
}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

UNITS: dict[str, tuple[str, Fraction]] = {
    **{name: ("mass", Fraction(1)) for name in ("g", "gram")},
    **{name: ("mass", Fraction(1000)) for name in ("kg", "kilogram", "kilo")},
    **{name: ("mass", Fraction(1, 1000)) for name in ("mg", "milligram")},
    **{name: ("mass", Fraction(1_000_000)) for name in ("t", "tonne")},
    **{name: ("mass", Fraction(45359237, 100_000)) for name in ("lb", "pound")},
    **{name: ("mass", Fraction(45359237, 1_600_000)) for name in ("oz", "ounce")},
    **{name: ("length", Fraction(1)) for name in ("m", "meter", "metre")},
    **{name: ("length", Fraction(1000)) for name in ("km", "kilometer", "kilometre")},
    **{name: ("length", Fraction(1, 100)) for name in ("cm", "centimeter", "centimetre")},
    **{name: ("length", Fraction(1, 1000)) for name in ("mm", "millimeter", "millimetre")},
    **{name: ("length", Fraction(254, 10_000)) for name in ("inch", "inche")},
    **{name: ("length", Fraction(3048, 10_000)) for name in ("ft", "foot", "feet")},
    **{name: ("length", Fraction(1_609_344, 1000)) for name in ("mi", "mile")},
    **{name: ("time", Fraction(1)) for name in ("s", "sec", "second")},
    **{name: ("time", Fraction(60)) for name in ("min", "minute")},
    **{name: ("time", Fraction(3600)) for name in ("h", "hr", "hour")},
    **{name: ("time", Fraction(86_400)) for name in ("d", "day")},
    **{name: ("volume", Fraction(1)) for name in ("l", "liter", "litre")},
    **{name: ("volume", Fraction(1, 1000)) for name in ("ml", "milliliter", "millilitre")},
}
"""What is measured, and in how many of its base unit; by the words of units without a plural's s. The pound and the
foot are the international ones of 1959."""

CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A number as it was written, and the words behind it."""

    written: str
    value: Fraction | None
    """None for what is more than one plain number: the library reads it."""
    is_decimal: bool
    """Whether it is a whole or decimal number, no fraction and no percentage."""
    units: frozenset[str]


def final_answer(text: str) -> str | None:
    """Return what a text answers at last, as it is written there; None for an empty one."""
    stated = _stated(text)
    if stated is not None:
        return stated
    lines = [line.strip() for line in text[-TAIL_CHARS:].splitlines() if line.strip()]
    if not lines:
        return None
    numbers = list(NUMBER.finditer(lines[-1]))
    return numbers[-1].group().strip() if numbers else _bare(lines[-1])


def is_right(text: str, expected: str) -> bool:
    """Tell whether a text's final answer is the expected one, by value."""
    wanted = _bare(expected)
    stated = _stated(text)
    if CHOICE.fullmatch(wanted) and not wanted.isdigit():
        return _choice(stated if stated is not None else text) == wanted.strip("().: ").upper()
    if wanted.casefold() in YES_OR_NO:
        said = re.match(r"\W*(\w+)", stated if stated is not None else text)
        return said is not None and said[1].casefold() == wanted.casefold()
    found = [stated if stated is not None else final_answer(text)]
    if stated is None and _quantity(wanted) is None:
        found.append(_last_line(text))
    return any(same_answer(wanted, way) for each in found if each for way in _ways_to_read(each, wanted))


def same_answer(expected: str, given: str, *, computes: bool = True) -> bool:
    """Tell whether two answers are the same: by value where both are one, else word for word, case aside.

    `computes` False leaves out what needs a computer algebra system, which takes seconds to load: numbers are compared
    by value all the same, expressions then as text.
    """
    first, second = _bare(expected), _bare(given)
    if not first or not second:
        return False
    if first == second:
        return True
    quantities = _quantity(first), _quantity(second)
    if quantities[0] is not None and quantities[1] is not None:
        return _same_quantity(quantities[0], quantities[1], _same_by_library if computes else _same_text)
    if MATH.search(first) or MATH.search(second):
        return _same_text(first, second)
    return bool(_words(first)) and _words(first) == _words(second)


def _stated(text: str) -> str | None:
    """Return the answer that a text marks as one: boxed, behind "the answer is", or in bold; the last of its kind."""
    tail = text[-TAIL_CHARS:]
    in_box = boxed(tail)
    if in_box:
        return in_box
    phrases = [match[1] for match in PHRASE.finditer(tail)]
    sentence = SENTENCE_END.split(phrases[-1], maxsplit=1)[0] if phrases else tail
    bold = BOLD.findall(sentence)
    if bold and _bare(bold[-1]):
        return _bare(bold[-1])
    return (_bare(sentence) or None) if phrases else None


def boxed(text: str) -> str | None:
    r"""Return what stands in the last \boxed{} that is closed, braces inside counted."""
    starts = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    for start in reversed(starts[-MOST_BOXES:]):
        depth = 1
        for at in range(start, min(len(text), start + MAX_VALUE_CHARS * 5)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at].strip()
    return None


def _last_line(text: str) -> str | None:
    lines = [line.strip() for line in text[-TAIL_CHARS:].splitlines() if line.strip()]
    return _bare(lines[-1]) if lines else None


def _ways_to_read(answer: str, wanted: str) -> list[str]:
    """Return an answer whole, without its reasons, what stands behind its last "is", and for a number its last one."""
    ways = [answer, REASON.split(answer)[0], LINKED.split(answer)[-1], REASON.split(LINKED.split(answer)[-1])[0]]
    numbers = list(NUMBER.finditer(answer.translate(SIGNS)))
    if numbers and _quantity(wanted) is not None and not MATH.search(answer.rpartition("=")[2]):
        ways.append(numbers[-1].group())
    return list(dict.fromkeys(ways))


def _choice(text: str) -> str | None:
    """Return the letter that a text chooses among A to J: its first word, else the last that stands alone."""
    first = re.match(r"\(?([A-J])(?:[).:,]|\s*$|\s+is\b)", _bare(text))
    if first is not None:
        return first[1]
    found = CHOICE_IN_TEXT.findall(text[-TAIL_CHARS:])
    return found[-1] if found else None


def _bare(text: str) -> str:
    """Return an answer without what is put around it: dollars of LaTeX, bold, quotes, a full stop."""
    text = text[:TAIL_CHARS].strip().strip("*`\"'“”‘’").strip()
    text = re.sub(r"(?<=[^\s.])\.$", "", text).strip("*").strip()
    dollars = re.fullmatch(r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]", text)
    if dollars is not None:
        text = next(part for part in dollars.groups() if part is not None).strip()
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",").replace("\\,", " ").replace("\\ ", " ")
    return " ".join(text.translate(SIGNS).split())


def _words(text: str) -> tuple[str, ...]:
    """Return the words that carry meaning: case folded, numbers as digits, each unit by one name."""
    found: list[str] = []
    for word in WORD.findall(text.casefold().translate(SIGNS).replace("-", " -").replace(" - ", " ")):
        plain = word.lstrip("-") if not word.lstrip("-+")[:1].isdigit() else word.lstrip("+")
        plain = NUMBER_WORDS.get(plain, plain)
        if plain not in FILLERS:
            found.append(_unit_name(plain))
    return tuple(found)


def _is_unit(word: str) -> bool:
    return word.lower() in UNITS or word.lower().rstrip("s") in UNITS


def _unit_name(word: str) -> str:
    """Return a unit's first name (`lb` and `pounds` are `lb`); any other word as it is."""
    singular = word if word in UNITS else word.rstrip("s") or word
    if singular not in UNITS:
        return CURRENCIES.get(word, singular)
    return next(name for name, unit in UNITS.items() if unit == UNITS[singular])


def _quantity(text: str) -> _Quantity | None:
    """Read a number with words behind it, or an expression; None for any other text."""
    text = text.translate(SIGNS).strip()
    if len(text) > MAX_VALUE_CHARS:
        return None
    sign, money, rest = re.fullmatch(r"([-+]?)\s*([$€£¥₹]?)\s*(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    digits = _with_digits(rest)
    mixed, number = MIXED.match(digits), NUMBER.match(digits)
    match = mixed or number
    behind = digits[match.end() :] if match else ""
    units, is_variable = _units(f"{money} {behind}"), len(behind) == 1 and behind.isalpha() and not _is_unit(behind)
    if match is None or units is None or is_variable:
        is_expression = is_variable or (
            MATH.search(text) and (re.search(r"[\d\\]", text) or not re.search(r"[^\W\d_]{2}", text))
        )
        return _Quantity(text, None, False, frozenset()) if is_expression else None
    value = _mixed_value(mixed) if mixed else _plain_value(match.group())
    if value is None:
        return None
    scale = prod((SCALES[word] for word in units if word in SCALES), start=1)
    return _Quantity(
        sign + match.group(),
        (-value if sign == "-" else value) * scale,
        not mixed and not re.search("[/%]", match.group()),
        frozenset(_unit_name(word) for word in units if word not in SCALES),
    )


def _with_digits(text: str) -> str:
    """Write a number word at the beginning as digits: `twenty-five apples` as `25 apples`."""
    match = re.match(r"([a-z]+)(?:[- ]([a-z]+))?", text, re.IGNORECASE)
    first = NUMBER_WORDS.get(match[1].lower()) if match else None
    if match is not None and match[1].lower() in ("a", "an") and _is_unit(match[2] or ""):
        first = "1"
    if match is None or first is None:
        return text
    second = NUMBER_WORDS.get((match[2] or "").lower())
    if second is not None and len(second) == 1 and match[1].lower() in TENS:
        return f"{int(first) + int(second)}{text[match.end() :]}"
    return first + text[match.end(1) :]


def _units(text: str) -> list[str] | None:
    """Return the words of a unit; None where what follows a number is more than that."""
    text = text.replace("°", " degree ")
    if not re.fullmatch(r"[\s$€£¥₹]*(?:(?:[^\W\d_]+['’.]?[\s/-]*){1,6}(?:[²³]|\^\{?[23]\}?)?)?\s*", text):
        return None
    words = [word for word in re.findall(r"[^\W\d_]+|[$€£¥₹²³]|\^\{?[23]\}?", text.casefold()) if word not in FILLERS]
    return [{"^2": "²", "^{2}": "²", "^3": "³", "^{3}": "³"}.get(word, CURRENCIES.get(word, word)) for word in words]


def _plain_value(written: str) -> Fraction | None:
    """Return the value of one number as `NUMBER` finds it, exactly."""
    percent = "%" in written
    text = re.sub(r"\s*\\?%", "", written)
    text = re.sub(r"(?<=\d)[, ](?=\d{3}(?!\d))", "", text).replace(",", ".").replace(" ", "")
    if sum(char.isdigit() for char in text) > MAX_DIGITS or not text.isascii():
        return None
    upper, _, lower = text.partition("/")
    if lower and not int(lower):
        return None
    return Fraction(upper) / (int(lower) if lower else 1) / (100 if percent else 1)


def _mixed_value(match: re.Match[str]) -> Fraction | None:
    whole, upper, lower = (int(part) for part in match.groups())
    if not lower:
        return None
    return whole + Fraction(-upper if match[1].startswith("-") else upper, lower)


def _same_quantity(expected: _Quantity, given: _Quantity, same_expression: Callable[[str, str], bool]) -> bool:
    if expected.value is None or given.value is None:
        return same_expression(expected.written, given.written)
    if expected.units and given.units and not (expected.units <= given.units or given.units <= expected.units):
        return _same_in_base_units(expected, given)
    if expected.value == given.value:
        return True
    if expected.is_decimal and given.is_decimal:
        return False
    return same_expression(expected.written, given.written)


def _same_in_base_units(expected: _Quantity, given: _Quantity) -> bool:
    """Compare `3 kg` and `3000 g`; words that are no known unit are different things."""
    ours, theirs = (UNITS.get(next(iter(each.units))) if len(each.units) == 1 else None for each in (expected, given))
    if ours is None or theirs is None or ours[0] != theirs[0] or expected.value is None or given.value is None:
        return False
    return expected.value * ours[1] == given.value * theirs[1]


def _same_text(expected: str, given: str) -> bool:
    return "".join(expected.split()) == "".join(given.split())


def _same_by_library(expected: str, given: str) -> bool:
    """Compare two expressions with math-verify, within the limits that keep it from computing for ever."""
    is_same_text = _same_text(expected, given)
    if is_same_text or not _is_bounded(expected) or not _is_bounded(given):
        return is_same_text
    compute = _library()
    try:
        with _deadline(MAX_COMPUTING_S):
            return compute(_as_latex(expected), _as_latex(given))
    except (_TookTooLong, Exception):  # other people's parser, fed what a model wrote: what it can't read is no answer
        return False


@cache
def _library() -> Callable[[str, str], bool]:
    """Load math-verify; its first comparison builds its tables, for longer than most others take, so that is made here.

    Its own time limits are signals, which other threads can't use, and it warns when they are off.
    """
    import logging

    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    def compute(expected: str, given: str) -> bool:
        first, second = parse(expected, parsing_timeout=None), parse(given, parsing_timeout=None)
        return bool(verify(first, second, timeout_seconds=None))

    compute("$x^2-1$", "$(x-1)(x+1)$")
    return compute


class _TookTooLong(BaseException):
    """A computation took longer than it may; no `Exception`, for the library catches those and goes on."""


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `_TookTooLong` in this thread's next call of a function once it has computed for so many seconds.

    Unlike a signal it works in every thread and on every system; it is looked at whenever Python calls a function.
    """
    end = time.thread_time() + seconds

    def look(frame: FrameType, event: str, argument: object) -> None:
        if time.thread_time() > end:
            raise _TookTooLong

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def _is_bounded(text: str) -> bool:
    """Tell whether computing an expression ends soon: short, no long numbers, no towers of powers, no sums."""
    if len(text) > MAX_VALUE_CHARS or NEVER_COMPUTED.search(text) or re.search(rf"\d{{{MAX_DIGITS},}}", text):
        return False
    exponents = [EXPONENT.match(text, power.end()) for power in POWER.finditer(text)]
    numbers: list[int] = []
    for exponent in exponents:
        if exponent is None:
            return False
        numbers += [int(number) for number in re.findall(r"\d{1,4}", exponent.group())]
    is_symbolic = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)) is not None
    return prod(max(1, number) for number in numbers) <= (MAX_SYMBOLIC_POWER if is_symbolic else MAX_POWER)


def _as_latex(text: str) -> str:
    return f"${text}$" if re.search(r"[\\^_{}A-Za-z]|\)\s*\(", text) else text
