"""The base package alone, in a fresh environment without compiler and llama.cpp, answers through OpenVINO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

INSTALL_LIMIT_S = 400


@pytest.fixture(scope="module")
def slm_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Install the base package into an environment of its own; return its `slm` and variables to run it with."""
    if os.environ.get("SLM_SKIP_INSTALL"):
        pytest.skip("SLM_SKIP_INSTALL is set: nothing is installed")
    home = tmp_path_factory.mktemp("base")
    venv.create(home / "venv")
    scripts = home / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "-q", "--no-compile"]
    asked = ["-c", str(ROOT / "constraints.txt"), str(ROOT)]
    subprocess.run([*pip, *asked], check=True, timeout=INSTALL_LIMIT_S, env=variables)
    return scripts / "slm", {**variables, "SLM_HOME": str(home / "slm"), "SLM_THREADS": "1"}


def test_the_base_package_answers_without_llama_cpp(slm_alone: tuple[Path, dict[str, str]]) -> None:
    slm, variables = slm_alone
    done = subprocess.run(
        [str(slm), "run", "tiny-reasoner", "What is 47 + 38?", "--json"],
        capture_output=True,
        check=False,
        timeout=120,
        env=variables,
    )
    assert done.returncode == 0, done.stderr.decode()
    reply = json.loads(done.stdout)
    assert (reply["backend"], reply["device"]) == ("openvino", "cpu")
    assert "85" in reply["answer"]
    assert reply["thinking"]
    assert reply["usage"]["cached_tokens"] is None


def test_doctor_says_how_to_add_llama_cpp(slm_alone: tuple[Path, dict[str, str]]) -> None:
    slm, variables = slm_alone
    done = subprocess.run([str(slm), "doctor"], capture_output=True, check=False, timeout=120, env=variables)
    assert done.returncode == 0, done.stderr.decode()
    assert "llama.cpp" in done.stdout.decode()
    mending = [line for line in done.stdout.decode().splitlines() if "[llamacpp]" in line]
    assert mending
    assert str(ROOT) in mending[0]
