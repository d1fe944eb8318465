"""`slm plan`, `slm show` and the choice of a model: facts, fit and speed, with nothing fetched or loaded."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_local import hardware, system
from slm_local.config import Settings
from slm_local.forecast.plans import forecast
from slm_local.forecast.suited import offers
from slm_local.hardware import Hardware, runtimes
from slm_local.measured import FILE, remember
from slm_local.model import ModelSpec, Variant
from slm_local.paths import paths
from slm_local.registry import load_registry
from slm_local.selector import rank
from tests.command import Result, slm

__all__ = ["slm"]

Slm = Callable[..., Result]

GB = 10**9

LAPTOP = Hardware(
    os="linux",
    cpu_name="A laptop",
    physical_cores=8,
    logical_cores=16,
    instruction_sets=("avx2",),
    total_ram_bytes=16 * GB,
    free_ram_bytes=11 * GB,
    devices=(),
    engines=frozenset({"llamacpp"}),
    read_gb_s=60.0,
    engine_shares={"llamacpp": 0.7},
    download_bytes_s=10e6,
)


@pytest.fixture
def measured() -> None:
    """Spare a test the half second of measuring."""
    remember(paths().cache, read_gb_s=50.0, download_bytes_s=1e7)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Note every try to reach another machine, and have none succeed."""
    tries: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tries.append(arguments)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tries


# ---- plan


def test_plan_needs_no_network_and_leaves_nothing_behind(
    slm: Slm, measured: None, no_network: list[object], slm_home: Path
) -> None:
    result = slm("plan", "deepseek-r1-distill-llama-8b")
    assert result.code == 0
    assert result.out.startswith("deepseek-r1-distill-llama-8b on ")
    assert "\n1. Q4_K_M · llamacpp on cpu · " in result.out
    assert "4.9 GB to fetch" in result.out
    assert no_network == []
    left = {each.name for each in slm_home.rglob("*") if each.is_file() and each.parent.name != "headers"}
    assert left == {FILE, runtimes.FILE}  # a server of an earlier test may still read a model's header


def test_plan_tells_the_time_of_a_thought_and_of_the_download(slm: Slm, measured: None) -> None:
    out = slm("plan", "r1-8b").out
    assert "so 1,000 tokens of thinking take about" in out
    assert "context 16,384" in out
    assert re.search(
        r"1\. Q4_K_M · llamacpp on cpu · \w+ · about [\d.]+ tok/s · about 4\.9 GB to fetch, about 8 min 14 s", out
    )


def test_plan_does_not_repeat_what_holds_for_the_best_plan_too(slm: Slm, measured: None) -> None:
    out = slm("plan", "r1-8b").out
    assert out.count("one for each physical core") == 1
    assert out.count("weights") >= 5


def test_plan_as_json_has_the_sum(slm: Slm, measured: None) -> None:
    plans = json.loads(slm("plan", "r1-8b", "--json", "--ctx", "4096").out)
    best = plans[0]
    assert best["context_tokens"] == 4096
    assert (best["here"], best["size_bytes"], best["fetch_bytes"]) == (False, best["fetch_bytes"], best["size_bytes"])
    assert best["fetch_s"] == pytest.approx(best["size_bytes"] / 1e7)
    assert best["thought_1000_s"] == pytest.approx(1000 / best["expected_decode_tps"])
    assert best["read_gb_s_is_measured"]
    assert best["kv_bytes"] == 4096 * 128 * 1024
    parts = ("weights_bytes", "kv_bytes", "compute_bytes", "output_bytes", "runtime_bytes")
    assert best["memory_bytes"] == sum(best[part] for part in parts)
    assert all(plan["reasons"] for plan in plans)


def test_plan_of_what_is_too_large_says_what_would_help(
    slm: Slm, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "available_memory_bytes", lambda: 6 * GB)
    result = slm("plan", "r1-8b", "--ctx", "16384")
    assert result.code == 0
    assert "Too large" in result.out
    assert "GB short" in result.err
    assert "hint: --ctx " in result.err


def test_plan_of_what_is_here_fetches_nothing(slm: Slm, measured: None) -> None:
    result = slm("plan", "tiny")
    assert "· 2 MB, here\n" in result.out
    assert json.loads(slm("plan", "tiny", "--json").out)[0]["fetch_bytes"] == 0


@pytest.mark.first_run
def test_the_first_plan_measures_the_memory_and_says_so(slm: Slm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "measure_read_gb_s", lambda cores, free_bytes: 46.6)
    first, second = slm("plan", "r1-8b"), slm("plan", "r1-8b")
    assert "this machine's memory is read at 47 GB/s" in first.err
    assert second.err == ""
    assert "read at 47 GB/s" in second.out


# ---- show


def test_show_gives_the_facts_of_a_model(slm: Slm) -> None:
    out = slm("show", "r1-8b").out
    for fact in (
        "deepseek-r1-distill-llama-8b",
        "licence:      MIT; base: Llama 3.1 licence",
        "temperature 0.6, top_p 0.95",
        "131,072 tokens, 128 KiB of memory each",
        "between <think> and </think>",
        "slm opens it in the prompt",
        "AIME 2024 50.4, AIME 2024 cons@64 80.0, MATH-500 89.1, GPQA Diamond 49.0, LiveCodeBench 39.6, CodeForces 1205",
        "(DeepSeek-R1, table 5)",
        "about 4.9 GB",
        "unsloth/DeepSeek-R1-Distill-Llama-8B-GGUF",
        "DeepSeek-R1-Distill-Llama-8B-Q8_0.gguf",
    ):
        assert fact in out, fact
    assert "TFLOPs" not in out
    assert "0addb133" not in out


def test_show_verbose_adds_digests(slm: Slm) -> None:
    assert "0addb1339a82385bcd973186cd80d18dcc71885d45eabd899781a118d03827d9" in slm("show", "-v", "r1-8b").out


@pytest.mark.parametrize(
    ("model", "tflops"), [("deepseek-moe-16b", "74.42"), ("llama2-7b", "187.94"), ("deepseek-llm-7b", "183.48")]
)
def test_show_verbose_computes_what_the_paper_prints(slm: Slm, model: str, tflops: str) -> None:
    """Figures of the DeepSeekMoE paper, which prints 74.4, 187.9 and 183.5."""
    out = slm("show", "-v", model).out
    assert f"compute:      {tflops} TFLOPs for 4,096 tokens\n" in out
    assert "idealised" in out
    assert "about a third" in out


@pytest.mark.parametrize("model", ["gpt-oss", "qwen3.5-4b", "qwen3-14b"], ids=["mixture", "hybrid", "no shape"])
def test_compute_is_not_known_where_the_formula_does_not_hold(slm: Slm, model: str) -> None:
    assert "compute:      not known" in slm("show", "-v", model).out
    assert json.loads(slm("show", "--json", model).out)["training_flops_4096"] is None


def test_show_as_json_has_every_fact(slm: Slm) -> None:
    value = json.loads(slm("show", "tiny", "--json").out)
    assert (value["id"], value["embedded"], value["thinks"]) == ("tiny-reasoner", True, True)
    assert value["tags"]["open"] == "<think>"
    assert value["here"][0].endswith("tiny-reasoner.gguf")
    assert value["scores"] is None
    scores = json.loads(slm("show", "r1-8b", "--json").out)["scores"]
    assert (scores["source"], scores["AIME 2024"], scores["CodeForces"]) == ("DeepSeek-R1, table 5", 50.4, 1205)


def test_show_tells_what_the_template_of_a_file_does_with_thinking(slm: Slm) -> None:
    out = slm("show", "tiny").out
    assert "switched off by the template's variable enable_thinking" in out
    assert "with the file's chat template the prompt opens thinking" in out


def test_show_says_what_can_not_be_switched_off(slm: Slm) -> None:
    assert "can't be switched off" in slm("show", "gpt-oss").out


def test_show_reads_a_files_own_header(slm: Slm, smollm2: Path) -> None:
    result = slm("show", str(smollm2))
    assert "architecture: llama" in result.out
    assert "8,192 tokens" in result.out
    assert f"here:         {smollm2}" in result.out


def test_show_of_a_name_of_ones_own_that_runs_elsewhere(slm: Slm, slm_home: Path) -> None:
    (slm_home / "config").mkdir()
    (slm_home / "config" / "models.toml").write_text('[models.far]\nremote = "http://host:1/v1#big"\n')
    result = slm("show", "far")
    assert result.code == 0
    assert "model:        far" in result.out


# ---- which one?


def here(spec: ModelSpec, position: int = 0) -> list[Variant]:
    return [replace(spec.variants[position], path="/models/a.gguf")]


@pytest.fixture(scope="module")
def registry() -> Any:
    return load_registry()


def test_three_that_fit_and_think_are_offered(registry: Any) -> None:
    found = offers(registry, LAPTOP, {})
    assert len(found) == 3
    assert all(plan.fits and plan.spec.thinks and not plan.spec.embedded for plan in found)
    assert len({plan.spec.family for plan in found}) == 3


def test_what_is_here_is_offered_first_and_thinking_models_before_others(registry: Any) -> None:
    on_disk = {model: here(registry.get(model)) for model in ("llama-3.1-8b-instruct", "deepseek-r1-distill-llama-8b")}
    found = offers(registry, LAPTOP, on_disk)
    assert [plan.spec.id for plan in found][:2] == ["deepseek-r1-distill-llama-8b", "llama-3.1-8b-instruct"]
    assert found[2].variant.path is None


def test_what_is_here_and_does_not_fit_is_not_offered(registry: Any) -> None:
    found = offers(registry, LAPTOP, {"qwq-32b": here(registry.get("qwq-32b"))})
    assert "qwq-32b" not in [plan.spec.id for plan in found]


def test_an_offer_says_fit_speed_and_what_is_to_be_fetched(registry: Any) -> None:
    spec = registry.get("r1-8b")
    on_disk = offers(registry, LAPTOP, {spec.id: here(spec, 1)})[0]
    assert forecast(on_disk, LAPTOP).line().endswith(" tok/s · 4.7 GB, here")
    absent = offers(registry, LAPTOP, {})[0]
    assert forecast(absent, LAPTOP).line().startswith("Fits · about ")
    assert " to fetch, about " in forecast(absent, LAPTOP).line()


def test_an_offer_does_not_say_what_is_not_known(registry: Any) -> None:
    plan = rank(registry.get("r1-70b"), LAPTOP, Settings())[0]
    assert forecast(plan, LAPTOP).line() == "Unknown · to fetch, size not known"


def test_escapes_in_a_models_facts_are_shown_and_not_obeyed(slm: Slm, slm_home: Path) -> None:
    (slm_home / "config").mkdir()
    entry = '[models.odd]\nbase = "tiny"\nname = "a\\u001b[2Jb"\nlicence = "x\\ny[bold]"\n'
    (slm_home / "config" / "models.toml").write_text(entry)
    out = slm("show", "odd").out
    assert "name:         a␛[2Jb\n" in out
    assert "licence:      x y[bold]\n" in out
