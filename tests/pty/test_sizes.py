"""A terminal whose size changes while a reply comes: nothing breaks, nothing is lost."""

from __future__ import annotations

from tests.conftest import ScriptWriter
from tests.pty.conftest import Start
from tests.pty.models import END, piece, thinking_row

STORM = ((1, 1), (12, 40), (300, 300), (3, 2), (70, 250), (1, 200), (200, 1), (5, 10), (60, 200))


def test_a_storm_of_sizes_breaks_nothing_in_the_app(start: Start, script: ScriptWriter) -> None:
    thoughts = thinking_row(*[f"thought{number} " for number in range(100)], delay_s=0.01)
    words = [piece(f"word{number} ", 0.01) for number in range(150)]
    terminal = start("chat", f"scripted:{script(*thoughts, *words, END)}")
    terminal.see("idle")
    terminal.type("x\r")
    terminal.hear("thought")
    for rows, columns in STORM:
        written = len(terminal.recorded)
        terminal.resize(rows, columns)
        terminal.wait(lambda written=written: len(terminal.recorded) > written, "it draws nothing")
    terminal.see("idle")
    terminal.type("\x1bOQ")  # F2
    terminal.see("thought99")
    shown = "\n".join(terminal.lines)
    assert all(f"thought{number} " in shown for number in range(100))
    assert all(f"word{number} " in shown for number in range(150))
    terminal.type("\x11")
    assert terminal.end() == 0
    assert terminal.left_modes() == set()
