"""Pictures of screens as text with colours, kept in a file each and compared; `SLM_SNAPSHOTS=write` writes them anew.

A picture is the SVG that the app exports, without what differs from run to run: ids, the window's title.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from textual.app import App

FOLDER = Path(__file__).parent / "snapshots"
WRITES = "SLM_SNAPSHOTS"


def normal(svg: str) -> str:
    """Return a picture with its ids counted and one text a line, so that a difference reads as one."""
    numbers: dict[str, str] = {}

    def counted(match: re.Match[str]) -> str:
        return "terminal-" + numbers.setdefault(match[1], str(len(numbers)))

    svg = re.sub(r"terminal-(\d+)", counted, svg)
    return re.sub(r">\s*<", ">\n<", svg).strip() + "\n"


def assert_looks_as_before(app: App[None], name: str) -> None:
    """Compare the screen with the picture of this name; where they differ, the new one lies beside it."""
    file, seen = FOLDER / f"{name}.svg", normal(app.export_screenshot(title="slm"))
    if os.environ.get(WRITES) == "write":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(seen, encoding="utf-8")
        return
    assert file.exists(), f"there is no picture {file}: {WRITES}=write makes it"
    if file.read_text(encoding="utf-8") != seen:
        differs = file.with_suffix(".seen.svg")
        differs.write_text(seen, encoding="utf-8")
        raise AssertionError(f"the screen is not as in {file}: see {differs}; {WRITES}=write takes it")
