"""llama.cpp's quantizer through `slm quantize`: sizes, the check of the result, nothing half made."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.convert import quantize, target_types
from slm_local.convert.quantize import SPARE_BYTES, _whole_name
from slm_local.errors import DoesNotFit, Interrupted, ModelBroken, UsageError
from slm_local.generation import Control
from slm_local.gguf_header import read_header
from slm_local.hardware import probe
from slm_local.installed import add_line
from tests.command import Result, slm

__all__ = ["slm"]


@pytest.fixture
def model(tmp_path: Path, tiny_reasoner: Path) -> Path:
    return Path(shutil.copy(tiny_reasoner, tmp_path / "tiny-Q8_0.gguf"))


def test_a_smaller_file_is_made_that_still_answers(model: Path, slm: Callable[..., Result]) -> None:
    made = slm("quantize", str(model), "--to", "q4_0", "--requantize", "--json", "--threads", "1")
    assert made.code == 0, made.err
    values = json.loads(made.out)
    path = Path(values["path"])
    assert path == model.with_name("tiny-Q4_0.gguf")
    assert values["before_bytes"] == model.stat().st_size
    assert values["after_bytes"] == path.stat().st_size < model.stat().st_size
    assert read_header(path).quant == "Q4_0"
    assert "it loads" in made.err
    answered = slm("run", str(path), "What is 2 + 3?", "--json", "--threads", "1", "-n", "100")
    assert answered.code == 0
    assert json.loads(answered.out)["answer"]


def test_progress_counts_the_tensors(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize(
        model, "Q8_0", out=model.with_name("again.gguf"), allow_requantize=True, on_tensor=lambda *at: seen.append(at)
    )
    assert seen
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_a_quantized_source_is_refused_unless_asked_for(model: Path) -> None:
    with pytest.raises(UsageError, match="Q8_0 already") as error:
        quantize(model, "Q4_0")
    assert error.value.hint is not None
    assert error.value.hint.endswith("--requantize")


def test_a_type_that_cannot_be_made_is_refused_with_those_that_can(model: Path) -> None:
    with pytest.raises(UsageError, match="Q4_K_M"):
        quantize(model, "Q9_9")
    assert target_types()[0] == "F32"


def test_a_file_that_is_there_stays(model: Path) -> None:
    there = model.with_name("tiny-Q4_0.gguf")
    there.write_text("mine")
    with pytest.raises(UsageError, match="stays as it is"):
        quantize(model, "Q4_0", allow_requantize=True)
    assert there.read_text() == "mine"


def test_a_full_disk_is_seen_before_anything_is_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(model.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DoesNotFit, match="1 kB"):
        quantize(model, "Q4_0", allow_requantize=True)
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_the_room_for_a_result_that_grows_is_seen_first(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SPARE_BYTES + 2 * model.stat().st_size
    usage = shutil.disk_usage(model.parent)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DoesNotFit, match="7 MB"):
        quantize(model, "F32", allow_requantize=True)


def test_the_parts_number_is_no_part_of_the_results_name() -> None:
    assert _whole_name(Path("m-Q8_0-00001-of-00003.gguf")) == "m-Q8_0"
    assert _whole_name(Path("m-Q8_0.gguf")) == "m-Q8_0"


def test_without_llama_cpp_the_hint_adds_it(
    slm: Callable[..., Result], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(probe(), engines=frozenset())
    monkeypatch.setattr(sys.modules[quantize.__module__], "probe", lambda: bare)
    refused = slm("quantize", str(model), "--to", "Q4_0", "--requantize")
    assert refused.code == 4
    assert add_line("llamacpp") in refused.err


def test_a_stop_leaves_nothing_behind(model: Path) -> None:
    control = Control()
    with pytest.raises(Interrupted):
        quantize(model, "Q4_0", allow_requantize=True, on_tensor=lambda *_: control.cancel(), control=control)
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_a_broken_source_never_reaches_the_quantizer(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-5000])
    with pytest.raises(ModelBroken):
        quantize(model, "Q4_0", allow_requantize=True)
