"""Which problems exist, and which side of the split is each on? Seeded samplers for every family.

It knows nothing of wording (`phrasing.py`), of solving (`teacher.py`) or of tokens.
"""

from dataclasses import dataclass, replace
from hashlib import sha256
from random import Random
from typing import Literal, TypeAlias

from slm_local.tiny.materials import KNOWN, QUALITIES, UNSEEN, Pieces, pseudo_word

Operation: TypeAlias = Literal["+", "-", "x"]
Unit: TypeAlias = Literal["pound", "ounce", "kilogram", "gram"]

OUNCES_PER_POUND = 16
GRAMS_PER_KILOGRAM = 1000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
"""Amounts up to twelve may be written out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculation:
    """Two whole numbers, not negative, and one operation."""

    operation: Operation
    left: int
    right: int

    @property
    def result(self) -> int:
        """Return the value; negative where a larger number is taken away."""
        match self.operation:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case "x":
                return self.left * self.right


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An amount of a material, with the words in which the prompt says it."""

    count: int
    unit: Unit
    material: str
    written: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighing:
    """Two to five items; all units are of one system."""

    items: tuple[Item, ...]
    asked: Literal["heaviest", "lightest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two numbers as they are written, such as 9.9 and 9.11."""

    left: str
    right: str
    asked: Literal["larger", "smaller"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A word problem of one or two steps; a second step starts from the result of the first."""

    steps: tuple[Calculation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A prompt that is no problem: a greeting, or a question that the model cannot answer."""

    text: str
    greeting: bool


Problem: TypeAlias = Calculation | Weighing | Comparison | Story | Chat

RIDDLE = Weighing(
    items=(
        Item(count=1, unit="pound", material="water", written="a pound of water"),
        Item(count=2, unit="pound", material="bricks", written="two pounds of bricks"),
        Item(count=1, unit="pound", material="feathers", written="a pound of feathers"),
        Item(count=3, unit="pound", material="air", written="three pounds of air"),
    ),
    asked="heaviest",
)
"""The riddle of Intel's article on small reasoning models."""

FORCED: tuple[Problem, ...] = (
    RIDDLE,
    Calculation(operation="+", left=47, right=38),
    Comparison(left="9.9", right="9.11", asked="larger"),
)
"""Problems that the README and the tests show, always on the held-out side."""

HELD_OUT_PERCENT = {"+": 5, "-": 5, "x": 10, "x1": 30, "c": 5, "w": 5}
"""Share kept for tests, by family; there are only 720 products of two digits by one, so 30 % for 200 distinct tests."""


def substeps(calculation: Calculation) -> tuple[Calculation, ...]:
    """Return the calculations that the teacher writes out inside this one, itself included."""
    if calculation.operation != "x" or calculation.right < 10:
        return (calculation,)
    tens, ones = divmod(calculation.right, 10)
    low = Calculation(operation="x", left=calculation.left, right=ones)
    high = Calculation(operation="x", left=calculation.left, right=tens)
    return calculation, low, high, Calculation(operation="+", left=low.result, right=high.result * 10)


def keys(problem: Problem) -> tuple[str, ...]:
    """Return one key per problem and sub-step, the same whatever the order or the direction asked."""
    match problem:
        case Calculation():
            return tuple(_calculation_key(step) for step in substeps(problem))
        case Story(steps=steps):
            return tuple(key for step in steps for key in keys(step))
        case Comparison(left=left, right=right):
            low, high = sorted((left, right), key=lambda number: (float(number), number))
            return (f"c:{low},{high}",)
        case Weighing(items=items):
            return ("w:" + ",".join(sorted(f"{item.count}{item.unit}{item.material}" for item in items)),)
        case Chat():
            return ()


def is_held_out(problem: Problem) -> bool:
    """Return whether the problem itself, apart from its sub-steps, is on the test side."""
    own = keys(problem)
    if isinstance(problem, Story):
        return touches_held_out(problem)
    return bool(own) and _key_held_out(own[0])


def touches_held_out(problem: Problem) -> bool:
    """Return whether any key of the problem is on the test side; training takes only problems where none is."""
    return any(_key_held_out(key) for key in keys(problem))


def _calculation_key(calculation: Calculation) -> str:
    low, high = sorted((calculation.left, calculation.right))
    family = "x1" if calculation.operation == "x" and low < 10 else calculation.operation
    return f"{family}:{low},{high}"


_FORCED_KEYS = frozenset(keys(problem)[0] for problem in FORCED)


def _key_held_out(key: str) -> bool:
    family = key.split(":", 1)[0]
    draw = int.from_bytes(sha256(key.encode()).digest()[:4], "big") % 100
    return draw < HELD_OUT_PERCENT[family] or key in _FORCED_KEYS


def draw_number(rng: Random, digits: int) -> int:
    """Return a whole number with exactly this many digits; one digit includes zero."""
    return rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def draw_addition(rng: Random) -> Calculation:
    """Return a sum of two numbers of up to three digits."""
    return Calculation(operation="+", left=_operand(rng), right=_operand(rng))


def draw_subtraction(rng: Random) -> Calculation:
    """Return a difference of two numbers of up to three digits; about a quarter are negative."""
    left, right = _operand(rng), _operand(rng)
    if left < right and rng.random() < 0.5:
        left, right = right, left
    return Calculation(operation="-", left=left, right=right)


def _operand(rng: Random) -> int:
    return draw_number(rng, rng.choices((1, 2, 3), weights=(12, 38, 50))[0])


def draw_product(rng: Random, *, digits: int) -> Calculation:
    """Return a product of two digits by `digits`; the shorter factor stands second."""
    right = rng.randrange(2, 10) if digits == 1 else draw_number(rng, 2)
    return Calculation(operation="x", left=draw_number(rng, 2), right=right)


def draw_short_product(rng: Random) -> Calculation:
    """Return a product with a single digit in front: digit by digit, or digit by two digits."""
    right = rng.randrange(2, 10) if rng.random() < 0.4 else draw_number(rng, 2)
    return Calculation(operation="x", left=rng.randrange(2, 10), right=right)


def draw_comparison(rng: Random) -> Comparison:
    """Return two numbers, half of them decimals that share the whole part."""
    kind = rng.random()
    if kind < 0.4:
        left, right = str(_operand(rng)), str(_operand(rng))
    else:
        whole = rng.randrange(0, 100) if rng.random() < 0.5 else rng.randrange(0, 10)
        other = whole if kind < 0.85 else rng.randrange(0, 100)
        left, right = f"{whole}.{_decimals(rng)}", f"{other}.{_decimals(rng)}"
        if rng.random() < 0.05:
            right = left + "0"
    if rng.random() < 0.5:
        left, right = right, left
    return Comparison(left=left, right=right, asked=rng.choice(("larger", "smaller")))


def _decimals(rng: Random) -> str:
    return "".join(rng.choices("0123456789", k=rng.choices((1, 2, 3), weights=(40, 45, 15))[0]))


Source: TypeAlias = Literal["train", "loose", "known", "unseen", "pseudo"]
"""Where materials come from: `train` mixes known and pseudo-words, and `loose` also writes `2kg` or `kilo`;
the others are for tests."""


def draw_weighing(rng: Random, source: Source, pieces: Pieces) -> Weighing:
    """Return two to five items; ties and mixed units are common."""
    count = rng.choices((2, 3, 4, 5), weights=(30, 28, 28, 14))[0]
    units = _units(rng)
    highest = rng.choice((3, 6, 12, 12))
    amounts = [rng.randint(1, highest) for _ in range(count)]
    if rng.random() < 0.15:
        amounts = [amounts[0]] * count
        units = units[:1]
    items: list[Item] = []
    while len(items) < count:
        material = _material(rng, source, pieces)
        if all(material != item.material for item in items):
            item = _item(rng, amounts[len(items)], rng.choice(units), material)
            items.append(_loosened(item, rng) if source == "loose" else item)
    return Weighing(items=tuple(items), asked=rng.choice(("heaviest", "heaviest", "lightest")))


def _units(rng: Random) -> tuple[Unit, ...]:
    return rng.choices(
        (("pound",), ("kilogram",), ("ounce",), ("gram",), ("pound", "ounce"), ("kilogram", "gram")),
        weights=(36, 22, 6, 6, 17, 13),
    )[0]


def _material(rng: Random, source: Source, pieces: Pieces) -> str:
    if source == "unseen":
        return rng.choice(UNSEEN)
    if source == "pseudo" or (source in ("train", "loose") and rng.random() < 0.5):
        return pseudo_word(rng, pieces)
    quality = rng.choice(QUALITIES) + " " if rng.random() < 0.06 else ""
    return quality + rng.choice(KNOWN)


def _item(rng: Random, amount: int, unit: Unit, material: str) -> Item:
    if unit in ("gram", "ounce") and rng.random() < 0.6:
        amount *= rng.choice((100, 250, 500)) if unit == "gram" else rng.choice((2, 4, 8))
    short = {"pound": "lb", "ounce": "oz", "kilogram": "kg", "gram": "g"}[unit]
    if rng.random() < 0.12:
        return Item(count=amount, unit=unit, material=material, written=f"{amount} {short} of {material}")
    as_word = amount <= 12 and rng.random() < 0.75
    number = WORDS[amount] if as_word else str(amount)
    if amount == 1 and as_word and rng.random() < 0.7:
        number = "an" if unit == "ounce" else "a"
    plural = unit if amount == 1 else unit + "s"
    return Item(count=amount, unit=unit, material=material, written=f"{number} {plural} of {material}")


def _loosened(item: Item, rng: Random) -> Item:
    """Write the amount as people type it: `2kg of sand`, `2 kilos of sand`."""
    amount, unit, rest = item.written.split(" ", 2)
    if unit.startswith("kilogram") and rng.random() < 0.5:
        return replace(item, written=f"{amount} {unit.replace('gram', '')} {rest}")
    if amount.isdigit() and len(unit) <= 2 and rng.random() < 0.7:
        return replace(item, written=f"{amount}{unit} {rest}")
    return item


def draw_story_steps(rng: Random) -> Story:
    """Return one or two steps whose values are never negative; few pass 999, none 1,500."""
    small = rng.random() < 0.7
    first = rng.choice((_small_sum, _small_sum, _small_product))(rng, small)
    if rng.random() < 0.5:
        return Story(steps=(first,))
    second: Operation = rng.choice(("+", "-"))
    limit = first.result if second == "-" else 99 if small else 500
    if limit < 1:
        return Story(steps=(first,))
    return Story(steps=(first, Calculation(operation=second, left=first.result, right=rng.randint(1, limit))))


def _small_sum(rng: Random, small: bool) -> Calculation:
    high = 99 if small else 500
    left, right = rng.randint(2, high), rng.randint(2, high)
    if rng.random() < 0.5:
        return Calculation(operation="+", left=left, right=right)
    return Calculation(operation="-", left=max(left, right), right=min(left, right))


def _small_product(rng: Random, small: bool) -> Calculation:
    return Calculation(operation="x", left=rng.randint(10, 30 if small else 99), right=rng.randint(2, 9))
