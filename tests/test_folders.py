"""An OpenVINO folder is a model like a file: known by its records, else described by what lies in it; and it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slm_local.download.places import Record, write_record
from slm_local.errors import ModelBroken
from slm_local.model import ModelSpec, Variant
from slm_local.registry import load_registry, spec_for_folder
from slm_local.registry.local import MADE
from tests.command import Result, slm
from tests.openvino_files import openvino_folder

__all__ = ["slm"]


@pytest.fixture
def folder(tmp_path: Path, tiny_reasoner: Path) -> Path:
    return openvino_folder(tiny_reasoner, tmp_path / "ir")


def test_a_folder_runs_by_its_path_with_thinking_and_answer_apart(folder: Path, slm: Callable[..., Result]) -> None:
    ran = slm("run", str(folder), "What is 47 + 38?", "--json", "--threads", "1")
    assert ran.code == 0, ran.err
    reply = json.loads(ran.out)
    assert (reply["backend"], reply["device"]) == ("openvino", "cpu")
    assert "85" in reply["answer"]
    assert "47+38" in reply["thinking"]


def test_a_folder_nobody_knows_is_described_by_its_own_files(folder: Path) -> None:
    spec, line = spec_for_folder(folder, load_registry().models)
    config = json.loads((folder / "config.json").read_text())
    assert spec.origin == "file"
    assert (spec.shape.layers, spec.shape.hidden) == (config["num_hidden_layers"], config["hidden_size"])
    assert spec.context_tokens == config["max_position_embeddings"]
    assert spec.tags is not None
    assert "<think>" in line
    assert spec.variants[0].size_bytes


def test_a_fetched_folder_is_the_registrys_model(folder: Path) -> None:
    known = next(model for model in load_registry().models if any(each.kind == "openvino" for each in model.variants))
    variant = next(each for each in known.variants if each.kind == "openvino")
    assert variant.repo is not None
    record = Record(
        repo=variant.repo,
        file="config.json",
        commit="0" * 40,
        etag="x",
        size_bytes=2,
        sha256="0" * 64,
        verified_against="git blob",
    )
    write_record(folder / "config.json", record)
    spec, line = spec_for_folder(folder, [known])
    assert spec.id == known.id
    assert spec.variants[0].path == str(folder)
    assert variant.repo in line


def test_a_converted_folder_is_the_model_it_was_made_from(folder: Path) -> None:
    (folder / MADE).write_text(json.dumps({"model": "mine", "quant": "int4-cw", "device": "npu"}))
    mine = ModelSpec(id="mine", name="Mine", variants=(Variant(kind="gguf", quant="Q8_0"),))
    spec, _ = spec_for_folder(folder, [mine])
    assert spec.id == "mine"
    assert (spec.variants[0].quant, spec.variants[0].device) == ("int4-cw", "npu")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]"])
def test_settings_that_can_not_be_read_are_a_broken_model(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelBroken, match=r"config\.json"):
        spec_for_folder(folder, ())
