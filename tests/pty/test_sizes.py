"""A terminal whose size changes while a reply comes: nothing breaks, nothing is lost."""

from __future__ import annotations

from random import Random

from tests.conftest import ScriptWriter
from tests.pty.conftest import Start
from tests.pty.models import END, piece, thinking_row

WORDS = ["".join(Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=8)) for seed in range(300)]
"""A model that repeats itself would be stopped."""

STORM = ((1, 1), (12, 40), (100, 300), (3, 2), (1, 200), (200, 1), (5, 10), (60, 100))


def test_a_storm_of_sizes_breaks_nothing_in_the_app(start: Start, script: ScriptWriter) -> None:
    thoughts = thinking_row(*[f"{word} " for word in WORDS[:100]], delay_s=0.01)
    answer = [piece(f"{word} ", 0.01) for word in WORDS[100:]]
    terminal = start("chat", f"scripted:{script(*thoughts, *answer, END)}")
    terminal.see("idle")
    terminal.type("x\r")
    terminal.hear(WORDS[0])
    terminal.draws = False
    for rows, columns in STORM:
        terminal.redraw(rows, columns)
    terminal.hear(WORDS[-1])
    terminal.draws = True
    terminal.redraw(70, 200)
    terminal.see("idle")
    terminal.type("\x1bOQ")  # F2
    terminal.wait(lambda: set(WORDS) <= set(terminal.shown.split()), "text was lost")
    terminal.type("\x11")
    assert terminal.end() == 0
    assert terminal.left_modes() == set()
