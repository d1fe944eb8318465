"""Texts for the loop guard: those that repeat much and mean it, and those that have lost their way.

Made up here, in the shapes that models write: tables, code, data, verse; and the loops they fall into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

START = (
    "Okay, so the question is about trains that leave at different times. First I write down what is known: the slow "
    "one needs five hours, the fast one three, and they meet somewhere in between.\n"
)
"""Something sensible before a loop begins."""


def rows(count: int, row: Callable[[int], str], start: int = 1) -> str:
    return "\n".join(row(number) for number in range(start, start + count)) + "\n"


def table(head: str, lines: Iterable[str]) -> str:
    rule = "|" + " --- |" * (head.count("|") - 1)
    return "\n".join([head, rule, *lines]) + "\n"


def scrambled(number: int) -> int:
    return int(DIGITS[3 * number % 697 :][:3])


def wheel(number: int, *words: str) -> str:
    return words[scrambled(number) % len(words)]


PRIMES = [n for n in range(2, 2000) if all(n % d for d in range(2, int(n**0.5) + 1))]
DIGITS = str(3**1500)
NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Tony", "Leslie", "Radia", "Frances")
REFRAIN = "And the river runs on, and the river runs on,\nAnd nobody asks where the water has gone.\n"
VERSES = (
    "The miller went out with a lamp in his hand,\nHe looked for the border of water and land.\n",
    "The mill wheel had stopped at a quarter to three,\nA branch in its teeth from the old willow tree.\n",
    "He pulled at the branch and he pulled at the night,\nAnd under the willow there shimmered a light.\n",
    "He called to his daughter, he called to his son,\nBut both had grown up and both were gone.\n",
    "The morning came over the meadow in grey,\nAnd washed both the lamp and the miller away.\n",
)
PARAGRAPH = (
    "The committee met on the first Tuesday of the month. It heard the report of the treasurer, who said that the roof "
    "of the school had cost less than was planned, and that the rest should go into books. Nobody was against it. "
    "The chair thanked everyone, and asked for a volunteer who would count the books already there. "
)

PASSING: dict[str, str] = {
    "a multiplication table": "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 13) for b in range(1, 13)),
    "a multiplication table in words": "".join(
        f"{a} times {b} is {a * b}.\n" for a in range(1, 11) for b in range(1, 11)
    ),
    "one row of the multiplication table, long": rows(60, lambda n: f"17 times {n} is {17 * n}"),
    "sums": rows(80, lambda n: f"{scrambled(n)} + {n} = {scrambled(n) + n}"),
    "squares and cubes": table("| n | n squared | n cubed |", (f"| {n} | {n * n} | {n**3} |" for n in range(1, 60))),
    "a table of people": table(
        "| id | name | town | age |",
        (f"| {n} | {wheel(n, *NAMES)} | {wheel(n, 'Leeds', 'York', 'Hull')} | {20 + n * 7 % 50} |" for n in range(40)),
    ),
    "a table with many columns": table("|" + " c |" * 30, ("|" + " . |" * 30 for _ in range(3))),
    "a table of yes and no": table(
        "| feature | ours | theirs |",
        (f"| {name} | {wheel(n, 'yes', 'no')} | {wheel(n + 5, 'yes', 'no')} |" for n, name in enumerate(NAMES * 3)),
    ),
    "a rule of dashes": "Heading\n" + "-" * 300 + "\nText follows.\n",
    "a rule of dashes with spaces": "Heading\n" + "- " * 120 + "\nText follows.\n",
    "rules of several kinds": "\n".join(mark * 110 for mark in "=_*~#─═") + "\nText follows.\n",
    "a box": "+" + "-" * 60 + "+\n" + ("|" + " " * 60 + "|\n") * 8 + "+" + "-" * 60 + "+\n",
    "dotted leaders": rows(15, lambda n: f"Chapter {n} {wheel(n, *NAMES)} {'.' * 60} {n * 14 + n % 5}"),
    "the numbers to 400": ", ".join(map(str, range(1, 401))) + "\n",
    "the numbers to 300, one a line": rows(300, str),
    "the even numbers, downwards": " ".join(map(str, range(600, 0, -2))) + "\n",
    "primes": ", ".join(map(str, PRIMES)) + "\n",
    "a numbered list of numbers": rows(120, lambda n: f"{n}. {n * n}"),
    "seven hundred digits": DIGITS[:700] + "\n",
    "a third, to two hundred places": "0." + "3" * 200 + "\n",
    "a matrix of zeros": ("[" + ", ".join(["0"] * 8) + "]\n") * 8,
    "the identity matrix": rows(14, lambda n: " ".join("1" if n == m + 1 else "0" for m in range(14))),
    "a hex dump": rows(
        24, lambda n: f"{n * 16:08x}: " + " ".join(f"{scrambled(n * 16 + i) % 256:02x}" for i in range(16))
    ),
    "an array of zero bytes": "const uint8_t buffer[64] = {\n" + ("    " + "0x00, " * 8 + "\n") * 8 + "};\n",
    "bits": rows(64, lambda n: f"{n:b}".zfill(8)),
    "a truth table": "\n".join(" ".join(map(str, bits)) for bits in product((0, 1), repeat=5)) + "\n",
    "a truth table in words": "\n".join(" and ".join(each) for each in product(("true", "false"), repeat=4)) + "\n",
    "a list of nulls": "[" + ", ".join(["null"] * 30) + "]\n",
    "csv": "day,visits,orders\n" + rows(60, lambda n: f"2026-03-{n % 28 + 1:02d},{scrambled(n)},{scrambled(n) // 9}"),
    "json objects": "[\n"
    + rows(30, lambda n: f'  {{"id": {n}, "name": "{wheel(n, *NAMES)}", "score": {scrambled(n)}}},')
    + "]\n",
    "json objects with a value each": "[\n"
    + rows(40, lambda n: f'  {{"id": {n}, "value": {scrambled(n)}, "ok": true}},')
    + "]\n",
    "an access log": rows(
        30,
        lambda n: (
            f"10.0.0.{scrambled(n) % 250} - [22/Nov/2026:10:{n:02d}:{scrambled(n) % 60:02d}] "
            f'"GET /items/{scrambled(n)} HTTP/1.1" 200 {scrambled(n) * 3}'
        ),
    ),
    "a heartbeat": rows(20, lambda n: f"2026-11-22 10:00:{n:02d} INFO heartbeat ok"),
    "a kernel log": rows(30, lambda n: f"[{n}.{scrambled(n):03d}] usb {n % 4}-{n % 3}: new device number {n}"),
    "an html list": "<ul>\n" + rows(25, lambda n: f"  <li>Item {n}</li>") + "</ul>\n",
    "an html table": "".join(
        f"<tr><td>{n}</td><td>{wheel(n, *NAMES)}</td><td>{scrambled(n)}</td></tr>\n" for n in range(25)
    ),
    "assignments": rows(40, lambda n: f"grid[{n}] = {scrambled(n)};"),
    "an array set to zero, line by line": rows(40, lambda n: f"a[{n}] = 0;"),
    "an enumeration": "class Colour(Enum):\n" + rows(20, lambda n: f"    COLOUR_{n} = {n}"),
    "a switch": rows(20, lambda n: f"    case {n}:\n        return {wheel(n, 'north', 'south', 'east', 'west')};"),
    "assertions": rows(30, lambda n: f"assert square({n}) == {n * n}"),
    "sql": rows(25, lambda n: f"INSERT INTO orders (id, total) VALUES ({n}, {scrambled(n)});"),
    "a python function": (
        "def collatz(n):\n    steps = 0\n    while n != 1:\n        n = n // 2 if n % 2 == 0 else 3 * n + 1\n"
        "        steps += 1\n    return steps\n\n\nfor n in range(1, 20):\n    print(n, collatz(n))\n"
    ),
    "getters": "".join(f"    def get_{name.lower()}(self):\n        return self._{name.lower()}\n\n" for name in NAMES),
    "a traceback of a recursion": '  File "a.py", line 3, in down\n    return down(n - 1)\n' * 3
    + "  [Previous line repeated 994 more times]\nRecursionError: maximum recursion depth exceeded\n",
    "a poem with a refrain": "\n".join(verse + REFRAIN for verse in VERSES),
    "a refrain sung twice at the end": "\n".join(verse + REFRAIN for verse in VERSES) + REFRAIN,
    "a song that counts down in words": "".join(
        f"{word.capitalize()} green bottles hanging on the wall,\n{word} green bottles hanging on the wall,\n"
        f"And if one green bottle should fall on the grass,\nThere'll be {below} green bottles to pick up the glass.\n"
        for word, below in zip(
            ["ten", "nine", "eight", "seven", "six", "five", "four", "three", "two"],
            ["nine", "eight", "seven", "six", "five", "four", "three", "two", "one"],
            strict=True,
        )
    ),
    "a paragraph copied twice": PARAGRAPH * 2 + "That is the whole of the minutes.\n",
    "a sentence copied three times": "The quick brown fox jumps over the lazy dog. " * 3 + "That was it.\n",
    "a chess board": "\n".join(
        ["r n b q k b n r", "p p p p p p p p", *[". . . . . . . ."] * 4, "P P P P P P P P", "R N B Q K B N R"]
    ),
    "a sudoku": rows(9, lambda n: " ".join(wheel(n * 9 + m, ".", *"123456789") for m in range(9))),
    "a calendar": "Mo Tu We Th Fr Sa Su\n" + rows(5, lambda n: " ".join(f"{n * 7 + m - 6:2d}" for m in range(7))),
    "fibonacci, step by step": "".join(
        f"F({n}) = F({n - 1}) + F({n - 2}) = {a} + {b} = {a + b}\n"
        for n, (a, b) in enumerate([(1, 0), (1, 1), (2, 1), (3, 2), (5, 3), (8, 5), (13, 8), (21, 13), (34, 21)] * 3, 2)
    ),
    "trying one number after another": "".join(
        f"n = {n}: {n} squared is {n * n}, and {n * n} mod 7 is {n * n % 7}, no.\n" for n in range(1, 50)
    ),
    "long division": "".join(
        f"{scrambled(n)} / 7 = {scrambled(n) // 7} remainder {scrambled(n) % 7}\n" for n in range(60)
    ),
    "latex": "\\begin{align}\n"
    + rows(20, lambda n: f"x_{{{n}}} &= {scrambled(n)} + x_{{{n - 1}}} \\\\")
    + "\\end{align}\n",
    "yaml": "services:\n"
    + "".join(f"  {name.lower()}:\n    image: app\n    port: {8000 + scrambled(n)}\n" for n, name in enumerate(NAMES)),
    "css": "".join(f".col-{n} {{ width: {n * 100 / 12:.4f}%; }}\n" for n in range(1, 13)),
    "a checklist": "".join(f"- [ ] call {name}\n" for name in NAMES),
    "questions answered": rows(40, lambda n: f"{n}. {wheel(n, 'Yes', 'No', 'Yes', 'Maybe')}"),
    "the same answer to twenty questions": rows(20, lambda n: f"Question {n}: yes"),
    "a diff": "".join(f"-    old_{name.lower()}()\n+    new_{name.lower()}()\n" for name in NAMES),
    "a thought that says wait again and again": (
        "Wait, the slow train left first. Wait, no, it left at noon. So it has three hours. Wait, is that right? The "
        "fast one left at two. Let me check: two plus three is five, and noon plus five is five. Wait, so they meet at "
        "five. Let me check once more. Wait, the distance is 300. Then 300 over 5 is 60. Right. Wait, and the other? "
        "300 over 3 is 100. So they close 160 an hour. Hmm. Wait, but the first has gone 120 by then. 180 are left. "
    ),
}
"""Texts in which nothing may be stopped, by name."""


def looping(period: str, times: int) -> str:
    return START + period * times


def counting(sentence: str, times: int, start: int = 1, step: int = 1) -> str:
    return START + "".join(sentence.format(n=start + step * n, m=start + step * (n + 1)) for n in range(times))


CAUGHT: dict[str, str] = {
    "one word": looping("wait ", 250),
    "one short word": looping("I ", 250),
    "one letter": looping("a ", 250),
    "one syllable": looping("ha", 800),
    "one mark": looping("!", 9000),
    "dots": looping(". ", 1000),
    "line breaks": looping("\n \n", 1000),
    "zeros": looping("0, ", 1000),
    "ones and zeros": looping("1 0 ", 800),
    "a rule without end": looping("- ", 1000),
    "a third without end": looping("0.", 1) + "3" * 9000,
    "one emoji": looping("😀 ", 1000),
    "two words": looping("wait, no, ", 150),
    "three words": looping("let me see ", 100),
    "a short sentence": looping("Let me check again. ", 80),
    "a line": looping("So the answer is 42.\n", 80),
    "a boxed answer": looping("The final answer is \\boxed{42}.\n\n", 80),
    "bold answers": looping("**Answer:** 42\n", 120),
    "a doubt": looping("But wait, maybe I'm wrong. Let me re-read the problem. ", 60),
    "two sentences in turn": looping("If it is even, it is odd. If it is odd, it is even. ", 60),
    "three lines": looping("Let x be 5.\nThen x + 1 is 6.\nBut 6 is not prime.\n", 40),
    "a list that begins anew": looping("1. Read the question.\n2. Think about it.\n3. Answer it.\n\n", 40),
    "a paragraph": looping(PARAGRAPH, 8),
    "a long stretch": looping("".join(VERSES), 8),
    "a question and its answer": looping("Q: What is the capital of France?\nA: Paris.\n", 50),
    "a function over and over": looping("def add(a, b):\n    return a + b\n\n\n", 50),
    "a line of code": looping("    total += item.price * item.quantity\n", 60),
    "a row of a table": looping("| apples | 3 | red |\n", 80),
    "an object of json": looping('{"id": 1, "name": "Ada"},\n', 80),
    "an address": looping("https://example.org/wiki/Loop ", 80),
    "html": looping("<div><p>Hello</p></div>\n", 80),
    "a formula": looping("x^2 + y^2 = z^2, so z^2 - y^2 = x^2. ", 60),
    "chinese": looping("等等，让我再想一想。", 400),
    "russian": looping("Подождите, проверим ещё раз. ", 90),
    "german": looping("Moment, das stimmt so nicht ganz. ", 90),
    "japanese": looping("もう一度考えてみましょう。", 400),
    "a refrain without verses": looping(REFRAIN, 40),
    "a chat with itself": looping("User: thanks!\nAssistant: You're welcome!\n", 60),
    "an apology": looping("I apologize for the confusion. You are right. The answer is 7. ", 60),
    "a loop after a loop that ended": START + "no no no no no no no no no no. " + "Let me think about it. " * 80,
    "a loop within a loop": looping("Hmm, hmm, hmm, hmm, hmm, hmm, hmm, hmm, hmm, so it is the third one. ", 40),
    "steps": counting("Step {n}: check the result again. ", 80),
    "steps, one a line": counting("Step {n}: I check the result again.\n", 80),
    "steps past a hundred": counting("Step {n}: I check the result again.\n", 80, start=60),
    "attempts": counting("Attempt {n} failed, so I try once more. ", 60),
    "a number counted up in a sentence": counting("If n is {n}, it does not work, so n is {m}. ", 60),
    "years": counting("In the year {n} nothing of note happened there. ", 60, start=1950),
    "pages": counting("Please turn to page {n} for the rest of it. ", 60, start=7, step=2),
    "a countdown": counting("There are {n} of them left on the wall now. ", 60, start=200, step=-1),
    "a numbered list of one thing": counting("{n}. The answer depends on the context.\n", 80),
    "waits, numbered": counting("Wait ({n}), let me think about that once again. ", 60),
}
"""Texts that end in a loop, by name; the loop is long enough for the answer's thresholds."""
