"""`slm ls`, `slm show`, `slm plan`: tables for people, JSON for programs."""

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


def test_show_gives_the_facts_of_a_model(slm: Slm) -> None:
    out = slm("show", "r1-8b").out
    for word in (
        "deepseek-r1-distill-llama-8b",
        "temperature 0.6, top_p 0.95",
        "between <think> and </think>",
        "Q4_K_M",
    ):
        assert word in out


def test_show_as_json_has_every_fact(slm: Slm) -> None:
    value = json.loads(slm("show", "tiny", "--json").out)
    assert (value["id"], value["embedded"], value["thinks"]) == ("tiny-reasoner", True, True)
    assert value["tags"]["open"] == "<think>"
    assert value["here"][0].endswith("tiny-reasoner.gguf")


def test_show_reads_a_files_own_header(slm: Slm, smollm2: Path) -> None:
    result = slm("show", str(smollm2))
    assert "llama" in result.out
    assert "8,192 tokens" in result.out


def test_plan_ranks_with_reasons_and_fetches_nothing(slm: Slm, slm_home: Path) -> None:
    result = slm("plan", "r1-8b")
    assert result.out.startswith("1. deepseek-r1-distill-llama-8b Q4_K_M · llamacpp on cpu")
    assert "context 16,384" in result.out
    plans = json.loads(slm("plan", "r1-8b", "--json", "--ctx", "4096").out)
    assert plans[0]["context_tokens"] == 4096
    assert plans[0]["here"] is False
    assert all(plan["reasons"] for plan in plans)
    assert not (slm_home / "models").exists()


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
