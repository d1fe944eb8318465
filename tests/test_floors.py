"""Imports point down the floors of docs/architecture.md, read from the syntax tree; the house's tools find nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slm_local"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "system", "paths", "sanitize", "installed"),
    ("generation", "thinking", "config", "measured", "hardware", "model", "gguf_header"),
    ("reasoning", "answers", "handover", "governor", "registry", "template", "toolcalls", "metrics", "store"),
    ("buffers", "fit", "download", "backends"),
    ("selector", "driver"),
    ("worker",),
    ("engine", "convert"),
    ("pump", "forecast", "notes", "markdown", "samples", "resuming", "session", "bench", "compare"),
    ("server",),
    ("tui",),
    ("cli",),
)
"""Rooms by floor, lowest first; within a floor a room may import those listed before it."""

OUTSIDE = ("__init__", "__main__", "tiny")
HEAVY = frozenset({"llama_cpp", "openvino", "openvino_genai", "textual", "huggingface_hub", "numpy", "torch"})

ORDER = {room: (floor, place) for floor, rooms in enumerate(FLOORS) for place, room in enumerate(rooms)}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms of slm_local that a module imports anywhere, type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module or ""]
            if node.module == "slm_local":
                names = [f"slm_local.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("slm_local.")}
    return found


def top_level_imports(path: Path) -> set[str]:
    """Return the packages that importing the module imports at once."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_floors(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    if room == "tiny":
        allowed = {"tiny", *FLOORS[0], *FLOORS[1]}
        assert imported_rooms(path) <= allowed
        return
    assert room in ORDER, f"{room} stands on no floor: put it in FLOORS and in docs/architecture.md"
    for other in imported_rooms(path) - {room, "__version__"}:
        assert other != "tiny", "only tests and scripts import tiny/"
        assert ORDER[other] < ORDER[room], f"{room} imports {other}, which does not stand below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    room = room_of(path)
    if room == "tiny":
        return
    assert not top_level_imports(path) & (HEAVY - ({"textual"} if room == "tui" else set()))


def test_every_room_on_a_floor_exists() -> None:
    rooms = {room_of(path) for path in MODULES} - set(OUTSIDE)
    assert rooms == set(ORDER)


def test_the_linter_finds_nothing() -> None:
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_hold() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
