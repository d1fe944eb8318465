"""`slm plan` on a laptop with several devices: the runtimes' answers are faked in the child that is asked for them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from slm_local import system
from slm_local.cli import render
from slm_local.measured import remember
from slm_local.paths import paths
from tests.command import Result, slm
from tests.fake_runtimes import FakeRuntimes, fake_runtimes

__all__ = ["fake_runtimes", "slm"]

Slm = Callable[..., Result]

GB = 10**9

NAME = "Intel(R) Core(TM) Ultra 7 258V"
CPU = {"kind": "cpu", "description": NAME}
GPU = {
    "kind": "gpu",
    "description": "Intel(R) Arc(TM) 140V GPU (16GB) (iGPU)",
    "integrated": True,
    "memory_bytes": 17 * GB,
}
NPU = {"kind": "npu", "description": "Intel(R) AI Boost", "integrated": True, "driver": "1.28.0"}

MODEL = "deepseek-r1-distill-qwen-7b"


@pytest.fixture(autouse=True)
def lunar_lake(fake_runtimes: FakeRuntimes, monkeypatch: pytest.MonkeyPatch) -> FakeRuntimes:
    """Make this machine a Lunar Lake laptop, as far as anything asks."""
    monkeypatch.setattr(system, "cpu_name", lambda: NAME)
    monkeypatch.setattr(system, "cpu_vendor", lambda: "intel")
    monkeypatch.setattr(system, "cpu_flags", lambda: frozenset({"avx", "avx2", "fma", "f16c", "avx_vnni"}))
    monkeypatch.setattr(system, "physical_cores", lambda: 4)
    monkeypatch.setattr(system, "efficiency_cores", lambda: 4)
    monkeypatch.setattr(system, "total_memory_bytes", lambda: 32 * GB)
    monkeypatch.setattr(system, "available_memory_bytes", lambda: 24 * GB)
    fake_runtimes.answer({"llamacpp": {"devices": [CPU]}, "openvino": {"devices": [CPU, GPU, NPU]}})
    remember(paths().cache, read_gb_s=80.0, download_bytes_s=2e7)
    return fake_runtimes


def test_plan_shows_a_lunar_lake_laptops_cpu_gpu_and_npu_and_why_the_winner_won(slm: Slm) -> None:
    result = slm("plan", MODEL)
    assert (result.code, result.err) == (0, "")
    head, first, *others = result.out.split("\n\n")
    assert "; gpu: Intel(R) Arc(TM) 140V GPU (16GB) (iGPU); npu: Intel(R) AI Boost" in head
    assert first.startswith("1. int4 · openvino on gpu · Fits · about 19 tok/s · 4.5 GB to fetch")
    assert (
        "OpenVINO on the GPU: reads prompts many times as fast as the processor, and decodes faster "
        "(by rule of thumb, not measured here)\n"
    ) in first
    on_npu = next(each for each in others if "int4-cw · openvino on npu" in each)
    assert "not chosen: decodes about 7.7 tok/s against 19\n" in on_npu
    assert "OpenVINO on the NPU: quieter and takes less power, but is not faster\n" in on_npu
    assert "KV cache 470 MB" in on_npu
    for route in ("llamacpp on cpu", "openvino on cpu"):
        on_cpu = next(each for each in others if route in each)
        assert "not chosen: decodes about 1" in on_cpu
    assert all("not chosen: " in each for each in others)
    assert "not chosen" not in first


def test_plans_behind_the_first_say_only_what_differs(slm: Slm) -> None:
    out = slm("plan", MODEL).out
    assert out.count("OpenVINO on the GPU gets an assumed 100%") == 1
    assert out.count("quieter and takes less power") == 1
    assert out.count("reads prompts many times as fast") == 1
    assert out.count("as last seen") == 1
    assert out.count("context 16,384") == 1


def test_no_line_of_a_plan_is_wider_than_the_terminal(slm: Slm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render.Terminal, "columns", property(lambda terminal: 80))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    lines = slm("plan", MODEL).out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert len(lines) > 40


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        (["--prefer", "quiet"], ("int4-cw", "openvino", "npu")),
        (["--device", "npu", "--quant", "nf4"], ("nf4", "openvino", "npu")),
        (["--device", "cpu"], ("Q4_K_M", "llamacpp", "cpu")),
        (["--backend", "openvino", "--device", "cpu"], ("int4", "openvino", "cpu")),
    ],
)
def test_flags_move_the_choice(slm: Slm, flags: list[str], best: tuple[str, str, str]) -> None:
    plan = json.loads(slm("plan", MODEL, "--json", *flags).out)[0]
    assert (plan["quant"], plan["backend"], plan["device"]) == best
    assert (plan["runs"], plan["lost_because"]) == (True, None)


def test_what_can_not_run_is_in_the_list_with_its_reason(slm: Slm) -> None:
    out = slm("plan", "deepseek-r1-distill-llama-8b").out
    assert (
        "Q4_K_M · openvino on npu · does not run here\n   not chosen: an NPU runs only OpenVINO folders made for it "
        "(slm convert deepseek-r1-distill-llama-8b --npu makes one)\n"
    ) in out
    plans = json.loads(slm("plan", "deepseek-r1-distill-llama-8b", "--json").out)
    assert [plan["runs"] for plan in plans][-1] is False


def test_a_gpu_that_llamacpp_lists_is_shown_and_never_chosen(slm: Slm, lunar_lake: FakeRuntimes) -> None:
    card = {"kind": "gpu", "description": "NVIDIA RTX", "integrated": False, "memory_bytes": 12 * GB}
    lunar_lake.answer({"llamacpp": {"devices": [CPU, card]}, "openvino": {"devices": [CPU]}})
    out = slm("plan", MODEL).out
    assert "\n1. Q4_K_M · llamacpp on cpu" in out
    assert "llamacpp on gpu · does not run here\n   not chosen: slm runs llama.cpp on the processor only" in out


def test_a_device_that_is_not_there_is_refused_with_those_that_are(slm: Slm, lunar_lake: FakeRuntimes) -> None:
    lunar_lake.answer({"llamacpp": {"devices": [CPU]}, "openvino": {"devices": [CPU, GPU]}})
    result = slm("plan", MODEL, "--device", "npu")
    assert result.code == 2
    assert f"no NPU can be used here; there is cpu ({NAME}), gpu (Intel(R) Arc(TM) 140V" in result.err
    assert "hint: slm doctor" in result.err
