"""Draw docs/terminal.svg from a real run of the embedded model: python docs/draw_terminal.py"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from slm_local.cli.panels import PanelView
from slm_local.cli.render import Terminal
from slm_local.cli.stream import Outcome
from slm_local.engine import open_model
from slm_local.metrics import Collector

RIDDLE = "Which weighs more: a pound of water, two pounds of bricks, a pound of feathers, or three pounds of air?"
COLUMNS = 92


class Screen(io.StringIO):
    """Takes what a terminal would be sent."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


def main() -> None:
    """Run the riddle, show it in panels, export the screen."""
    os.environ.update(COLUMNS=str(COLUMNS), LINES="40")
    screen, unheard = Screen(), io.StringIO()
    with open_model("tiny-reasoner") as engine:
        view = PanelView(Terminal(screen, unheard), engine.spec.id, shows_thinking=True)
        collector = Collector()
        for event in engine.stream(RIDDLE):
            collector.feed(event)
            view.feed(event, time.perf_counter())
        view.close(Outcome(reply=collector.reply()))
    paper = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    paper.print(Text(f'$ slm run tiny-reasoner "{RIDDLE}"', style="bold"))
    paper.print(Text.from_ansi(screen.getvalue()))
    Path(__file__).with_name("terminal.svg").write_text(paper.export_svg(title="slm"), encoding="utf-8")


if __name__ == "__main__":
    main()
