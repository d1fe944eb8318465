"""How is a problem solved, step by step? A pure function from the problem to the trace and the answer.

Nothing here is random: with one right trace per problem, a token-exact match is a cheap measure of progress.
Sums hold no spaces, since the pre-tokenizer would make two tokens of ` 7`.
"""

from slm_local.generation import DEFAULT_BRIDGE
from slm_local.tiny.problems import (
    GRAMS_PER_KILOGRAM,
    OUNCES_PER_POUND,
    Calculation,
    Chat,
    Comparison,
    Item,
    Problem,
    Story,
    Weighing,
)

REFUSAL = (
    "I am a tiny model: I can only add, subtract and multiply small numbers, "
    "compare two numbers, and say which thing weighs more."
)
"""The one answer to everything out of scope."""

GREETING = "Hello! I am a tiny model for small sums, comparing numbers and weighing things. Ask me one."

GREETED = "A greeting. I say what I am."
OUT_OF_SCOPE = "Not a small sum, comparison or weighing. Out of scope."
"""The whole thought of the two kinds of chat."""

BRIDGE = DEFAULT_BRIDGE
"""What stands between a cut thought and the closing tag; at most 16 tokens of the shipped vocabulary."""

COLUMNS = ("ones", "tens", "hundreds", "thousands")
LABELS = "ABCDE"
ALL_EQUAL = "they all weigh the same"
EQUAL = "equal"


def trace(problem: Problem) -> str:
    """Return the thought that leads to the answer, lines joined by newlines."""
    match problem:
        case Calculation():
            return "\n".join(_calculate(problem))
        case Story(steps=steps):
            lines: list[str] = []
            for number, step in enumerate(steps, start=1):
                lines += [f"Step {number} of {len(steps)}: {_written(step)}", *_calculate(step)]
            return "\n".join(lines)
        case Comparison():
            return "\n".join(_compare(problem))
        case Weighing():
            return "\n".join(_weigh(problem))
        case Chat(greeting=greeting):
            return GREETED if greeting else OUT_OF_SCOPE


def result(problem: Problem) -> str:
    """Return the bare result, the text that stands bold or boxed; empty for chat."""
    match problem:
        case Calculation():
            return str(problem.result)
        case Story(steps=steps):
            return str(steps[-1].result)
        case Comparison(left=left, right=right, asked=asked):
            if float(left) == float(right):
                return EQUAL
            return (max if asked == "larger" else min)((left, right), key=float)
        case Weighing(items=items):
            winners = [items[index].written for index in best_items(problem)]
            if len(winners) == len(items):
                return ALL_EQUAL
            return " and ".join(filter(None, [", ".join(winners[:-1]), winners[-1]]))
        case Chat():
            return ""


def answer(problem: Problem, *, boxed: bool) -> str:
    """Return the reply that follows the thought."""
    if isinstance(problem, Chat):
        return GREETING if problem.greeting else REFUSAL
    final = result(problem)
    return f"The answer is \\boxed{{{final}}}." if boxed else f"The answer is **{final}**."


def best_items(problem: Weighing) -> list[int]:
    """Return the positions of the items that win, several on a tie."""
    values = weights(problem)
    best = max(values) if problem.asked == "heaviest" else min(values)
    return [index for index, value in enumerate(values) if value == best]


def weights(problem: Weighing) -> list[int]:
    """Return every item's weight in the common unit, the smaller one where two occur."""
    mixed = len({item.unit for item in problem.items}) > 1
    return [item.count * (_factor(item) if mixed else 1) for item in problem.items]


def _factor(item: Item) -> int:
    return {"pound": OUNCES_PER_POUND, "kilogram": GRAMS_PER_KILOGRAM}.get(item.unit, 1)


def _written(step: Calculation) -> str:
    return f"{step.left}{step.operation}{step.right}"


def _calculate(step: Calculation) -> list[str]:
    match step.operation:
        case "+":
            lines = _add(step.left, step.right)
        case "-":
            lines = _subtract(step.left, step.right)
        case "x" if step.right < 10:
            lines = _times_digit(step.left, step.right)
        case "x":
            lines = _times(step.left, step.right)
    return [*lines, f"So {_written(step)}={step.result}."]


def _pad(left: int, right: int) -> tuple[str, str]:
    width = max(len(str(left)), len(str(right)))
    return str(left).zfill(width), str(right).zfill(width)


def _add(left: int, right: int) -> list[str]:
    a, b = _pad(left, right)
    lines, digits, carry = [f"Line up: {a}+{b}"], "", 0
    for name, x, y in zip(COLUMNS, map(int, reversed(a)), map(int, reversed(b)), strict=False):
        total = x + y + carry
        lines.append(f"{name}: {x}+{y}+{carry}={total:02d}")
        digits, carry = str(total % 10) + digits, total // 10
    return [*lines, f"digits: {carry}{digits}"]


def _subtract(left: int, right: int) -> list[str]:
    a, b = _pad(left, right)
    pairs = [f"{x}{_relation(x, y)}{y}" for x, y in zip(a, b, strict=True)]
    decisive = next((index for index, pair in enumerate(pairs) if "=" not in pair), len(pairs) - 1)
    sign, top, bottom = ("-", b, a) if left < right else ("+", a, b)
    lines = [f"Line up: {a}-{b}", "Compare: " + ", ".join(pairs[: decisive + 1])]
    lines.append(f"{'negative' if left < right else 'positive'}: {top}-{bottom}")
    digits, borrow = "", 0
    for name, x, y in zip(COLUMNS, map(int, reversed(top)), map(int, reversed(bottom)), strict=False):
        taken = y + borrow
        needs = int(x < taken)
        x_full = x + 10 * needs
        lines.append(
            f"{name}: {y}+{borrow}={taken}, {x}{_relation(x, taken)}{taken}, borrow {needs}, "
            f"{x_full:02d}-{taken}={x_full - taken}"
        )
        digits, borrow = str(x_full - taken) + digits, needs
    return [*lines, f"digits: {sign}{digits}"]


def _relation(x: int | str, y: int | str) -> str:
    """Compare two numbers, or two digits as text."""
    a, b = int(x), int(y)
    return "<" if a < b else ">" if a > b else "="


def _times_digit(left: int, digit: int) -> list[str]:
    tens, ones = divmod(left, 10)
    low, high = ones * digit, tens * digit
    carry = low // 10
    total = high + carry
    return [
        f"{left}x{digit}",
        f"ones: {ones}x{digit}={low:02d}",
        f"tens: {tens}x{digit}={high:02d}, {high % 10}+{carry}={high % 10 + carry:02d}, {high:02d}+{carry}={total:02d}",
        f"digits: {total:02d}{low % 10}",
    ]


def _times(left: int, right: int) -> list[str]:
    tens, ones = divmod(right, 10)
    return [
        f"Split: {right}={tens}0+{ones}",
        *_times_digit(left, ones),
        *_times_digit(left, tens),
        f"tenfold: {left * tens}0",
        *_add(left * ones, left * tens * 10),
    ]


def _compare(problem: Comparison) -> list[str]:
    a, b = _align(problem.left, problem.right)
    lines = [f"Line up: {a} and {b}"]
    for x, y in zip(a, b, strict=True):
        if x == ".":
            continue
        lines.append(f"{x}{_relation(x, y)}{y}")
        if x != y:
            break
    relation = _relation_of(problem)
    named = {"larger": EQUAL, "smaller": EQUAL}
    if relation != "=":
        named = {"larger": problem.left, "smaller": problem.right}
        if relation == "<":
            named = {"larger": problem.right, "smaller": problem.left}
    lines.append(f"So {problem.left}{relation}{problem.right}.")
    lines += [f"{name}: {value}" for name, value in named.items()]
    return [*lines, f"Asked: {problem.asked}. Answer: {named[problem.asked]}"]


def _relation_of(problem: Comparison) -> str:
    left, right = float(problem.left), float(problem.right)
    return "<" if left < right else ">" if left > right else "="


def _align(left: str, right: str) -> tuple[str, str]:
    """Pad both numbers to the same digits before and behind the point."""
    parts = [number.partition(".")[::2] for number in (left, right)]
    before = max(len(whole) for whole, _ in parts)
    behind = max(len(decimals) for _, decimals in parts)
    dot = "." if behind else ""
    a, b = (whole.zfill(before) + dot + decimals.ljust(behind, "0") for whole, decimals in parts)
    return a, b


def _weigh(problem: Weighing) -> list[str]:
    asked, items = problem.asked, problem.items
    units = sorted({item.unit for item in items}, key=("pound", "kilogram", "ounce", "gram").index)
    is_mixed = len(units) > 1
    labels = LABELS[: len(items)]
    lines = [f"Asked: {asked} of {len(items)}: {' '.join(labels)}", "Units: " + " and ".join(f"{u}s" for u in units)]
    best, best_labels = 0, ""
    for label, item, value in zip(labels, items, weights(problem), strict=True):
        line = f"{label}: {item.written}: {item.count}"
        if is_mixed:
            line += f"x{_factor(item)}={value}"
        if best_labels:
            line += f", {value}{_relation(value, best)}{best}"
        if value == best:
            best_labels += "=" + label
        elif not best_labels or (value > best) == (asked == "heaviest"):
            best, best_labels = value, label
        lines.append(f"{line}, {asked}: {best_labels} {best}")
    lines.append(f"Done, all {len(items)}. Asked: {asked}.")
    winners = best_items(problem)
    if len(winners) == len(items):
        return [*lines, f"{ALL_EQUAL[:1].upper()}{ALL_EQUAL[1:]}."]
    return lines + [f"{labels[index]}: {items[index].written}" for index in winners]
