"""The commands that answer at once load no runtime and nothing that draws."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.command import child_environment
from tests.conftest import ScriptWriter

HEAVY = ("llama_cpp", "openvino", "openvino_genai", "textual", "huggingface_hub", "numpy", "rich", "jinja2")

PROBE = """
import sys
from slm_local.cli.app import main
code = main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help"), ("ls",)])
def test_nothing_heavy_is_loaded(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    loaded = done.stderr.splitlines()[-1].split()
    assert "slm_local" in loaded
    assert not set(HEAVY) & set(loaded)


def test_nobody_pays_for_a_server_that_does_not_run(script: ScriptWriter) -> None:
    path = script({"text": "hello", "end": "stop"})
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace('.partition(".")[0]', ""), "run", f"scripted:{path}", "hi"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=child_environment(),
    )
    assert done.stdout == "hello\n", done.stderr
    loaded = done.stderr.splitlines()[-1].split()
    assert "slm_local.engine" in loaded
    assert not {"slm_local.worker.attached", "slm_local.engine.attaching", "slm_local.server"} & set(loaded)
