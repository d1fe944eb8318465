"""docs/many-users.md: its compose files parse, hang together, and say what `slm show --serve-with` prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from slm_local.handover import EngineName, handover
from slm_local.registry import load_registry

DOCS = Path(__file__).parents[1] / "docs"
FILES = sorted((DOCS / "many-users").glob("*.yaml"))
SUBSTITUTION = re.compile(r"\$(?:\$|\{[A-Z_]+(?::?[-?][^{}]*)?\})")
"""What compose puts in place of a variable: https://docs.docker.com/reference/compose-file/interpolation/"""

TOP = {"services", "volumes", "networks", "configs", "secrets", "include", "name"}
SERVICE = {
    *("image", "build", "entrypoint", "command", "environment", "ports", "volumes", "ipc", "deploy", "healthcheck"),
    *("restart", "network_mode", "shm_size", "user", "depends_on", "devices", "group_add"),
}


def parsed(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def services(path: Path) -> dict[str, dict[str, Any]]:
    """Return the services of a file and of those that it includes."""
    value = parsed(path)
    found: dict[str, dict[str, Any]] = dict(value["services"])
    for other in value.get("include", ()):
        found |= services(path.parent / other)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_compose_file_has_only_keys_that_compose_knows(path: Path) -> None:
    value = parsed(path)
    assert {key for key in value if not key.startswith("x-")} <= TOP
    for name, service in value["services"].items():
        assert set(service) <= SERVICE, name
        assert "image" in service, name
        assert all(isinstance(word, str) for word in service.get("command", ())), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_compose_files_references_lead_somewhere(path: Path) -> None:
    declared = set(parsed(path).get("volumes") or {})
    for name, service in services(path).items():
        assert set(service.get("depends_on", {})) <= set(services(path)), name
    for service in parsed(path)["services"].values():
        sources = [each.partition(":")[0] for each in service.get("volumes", ())]
        assert {source for source in sources if not source.startswith((".", "~", "/"))} <= declared


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_compose_files_variables_are_written_as_compose_reads_them(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert "$" not in SUBSTITUTION.sub("", "\n".join(lines))


@pytest.mark.parametrize(("file", "engine"), [("vllm.yaml", "vllm"), ("ovms.yaml", "ovms")])
def test_a_compose_file_says_what_show_prints(file: str, engine: EngineName) -> None:
    spec = load_registry().resolve("r1-7b").spec
    assert spec is not None
    made = handover(engine, spec)
    words = [word for part in made.parts for word in part]
    printed = {word: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}
    (service,) = parsed(DOCS / "many-users" / file)["services"].values()
    command = service["command"]
    written = {word: command[at + 1] for at, word in enumerate(command) if word.startswith("--")}
    inside = {
        "vllm": {"--host": "0.0.0.0"},
        "ovms": {"--model_repository_path": "/models", "--rest_bind_address": "0.0.0.0"},
    }
    assert written == {**printed, **inside[engine]}
