"""`slm ls`: a table for people, JSON for programs; and what every command says of a broken file of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import Result, slm

__all__ = ["slm"]

Slm = Callable[..., Result]


def test_ls_lists_the_embedded_models_and_nothing_that_is_not_here(slm: Slm) -> None:
    result = slm("ls")
    lines = result.out.splitlines()
    assert result.code == 0
    assert [line.split()[0] for line in lines] == ["model", "tiny-reasoner", "tiny-direct"]
    assert "inside slm" in lines[1]


def test_list_is_ls(slm: Slm) -> None:
    assert slm("list").out == slm("ls").out


def test_ls_all_has_the_registry_with_what_fits_first(slm: Slm) -> None:
    rows = json.loads(slm("ls", "--all", "--json").out)
    assert [row["model"] for row in rows[:2]] == ["tiny-reasoner", "tiny-direct"]
    assert len(rows) > 20
    fits = [row["fit"] != "Too large" for row in rows[2:]]
    assert fits == sorted(fits, reverse=True)
    assert {row["verified"] for row in rows} == {True, False}
    assert len({row["model"] for row in rows}) == len(rows)


def test_ls_finds_files_in_the_models_folder(slm: Slm, slm_home: Path) -> None:
    folder = slm_home / "models"
    folder.mkdir()
    (folder / "own\x1b[2J.gguf").write_bytes(b"GGUF")
    result = slm("ls")
    assert "own␛[2J.gguf" in result.out
    assert [row["here"] for row in json.loads(slm("ls", "--json").out)] == [True, True, True]


@pytest.mark.parametrize("command", ["show", "plan"])
def test_an_unknown_model_names_the_nearest(slm: Slm, command: str) -> None:
    result = slm(command, "qwen3-8")
    assert result.code == 2
    assert "near it: qwen3-8b" in result.err


def test_a_broken_registry_of_ones_own_is_said_with_file_and_line(slm: Slm, slm_home: Path) -> None:
    (slm_home / "config").mkdir()
    (slm_home / "config" / "models.toml").write_text("[models.mine]\nparameters = 'many'\n", encoding="utf-8")
    result = slm("ls")
    assert (result.code, result.out) == (2, "")
    assert "models.toml line 2" in result.err


def test_a_broken_configuration_is_said_with_file_and_line(slm: Slm, slm_home: Path) -> None:
    (slm_home / "config").mkdir()
    (slm_home / "config" / "config.toml").write_text("\nthreads = 'x'\n", encoding="utf-8")
    result = slm("run", "tiny", "hi")
    assert result.code == 2
    assert "config.toml, line 2: threads takes a whole number" in result.err
