"""The help is short and true, and docs/cli.md says all that it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from slm_local.config import KINDS, SAMPLING_FIELDS
from slm_local.errors import error_classes
from slm_local.model import ModelSpec
from tests.command import COMMANDS, Result, slm

__all__ = ["slm"]

Slm = Callable[..., Result]

PAGE = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_help_names_every_command_and_fits_a_screen(slm: Slm) -> None:
    result = slm("--help")
    assert result.code == 0
    assert all(re.search(rf"^  {command}\b", result.out, re.MULTILINE) for command in COMMANDS)
    assert len(result.out.splitlines()) <= 24
    assert max(map(len, result.out.splitlines())) <= 80


def test_without_a_command_the_help_is_shown(slm: Slm) -> None:
    assert slm().out == slm("--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_the_help_is_in_the_docs(slm: Slm, command: str) -> None:
    flags = [flag for text in _helps(slm, command) for flag in re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE)]
    names = [name.split()[0] for each in flags for name in re.split(", | / ", each)]
    assert "--help" in names
    missing = [name for name in names if f"`{name}" not in PAGE]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flags_help_is_one_line(slm: Slm, command: str) -> None:
    for text in _helps(slm, command):
        assert not re.search(r"^ {20,}\S", text, re.MULTILINE)


def _helps(slm: Slm, command: str) -> list[str]:
    """Return the help of a command, or of each of its parts."""
    parts = getattr(import_module(f"slm_local.cli.{COMMANDS[command].module}"), "commands", {"": None})
    return [slm(*filter(None, (command, part)), "--help").out for part in parts]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_docs_have_every_command(command: str) -> None:
    assert f"| `slm {command}" in PAGE


def test_the_docs_have_every_setting_exit_code_and_field() -> None:
    assert all(f"`{name}`" in PAGE for name in (*KINDS, *SAMPLING_FIELDS))
    assert all(f"| {each.exit_code} |" in PAGE for each in error_classes().values())
    assert all(f'"{each.name}"' in PAGE for each in fields(ModelSpec))


def test_the_docs_have_every_chat_command() -> None:
    from slm_local.cli.repl import COMMANDS as WORDS
    from slm_local.cli.repl import LEAVING

    assert all(f"`{word}" in PAGE for word in (*WORDS, *LEAVING))


def test_the_docs_have_every_field_of_ls_and_plan(slm: Slm) -> None:
    import json

    for command in (("ls",), ("plan", "tiny")):
        row = json.loads(slm(*command, "--json").out)[0]
        assert ", ".join(f'"{name}"' for name in row) in re.sub(r"\s+", " ", PAGE)
