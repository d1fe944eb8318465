"""`slm show MODEL --serve-with ENGINE`: a model's facts become another engine's command, and nothing is invented."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.errors import UsageError
from slm_local.generation import Thinking
from slm_local.handover import ENGINES, EngineName, Handover, handover
from slm_local.model import ModelSpec, Variant
from slm_local.registry import load_registry
from tests.command import Result, slm
from tests.gguf_files import small_model

__all__ = ["slm"]

Slm = Callable[..., Result]


def spec_of(name: str) -> ModelSpec:
    spec = load_registry().resolve(name).spec
    assert spec is not None
    return spec


def options(made: Handover) -> dict[str, str]:
    """Return each option with its value, the command itself under its first word."""
    words = [word for part in made.parts for word in part]
    return {word: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}


def test_vllm_serves_the_original_weights_with_sampling_parser_and_context() -> None:
    made = handover("vllm", spec_of("r1-8b"))
    assert made.parts[0] == ("vllm", "serve", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    given = options(made)
    assert given["--reasoning-parser"] == "deepseek_r1"
    assert given["--max-model-len"] == "131072"
    assert given["--served-model-name"] == "deepseek-r1-distill-llama-8b"
    assert given["--generation-config"] == "vllm"
    assert json.loads(given["--override-generation-config"]) == {"temperature": 0.6, "top_p": 0.95}
    assert given["--host"] == "127.0.0.1"
    assert made.remarks == (
        "a context of 131,072 tokens takes 17.2 GB: slm show deepseek-r1-distill-llama-8b@ctx=8192 asks for less",
    )
    assert handover("vllm", spec_of("r1-8b"), context_tokens=8192).remarks == ()


def test_what_its_authors_leave_unset_is_off_also_where_the_engines_own_default_is_not() -> None:
    unset = spec_of("llama-2-7b-chat")
    vllm = json.loads(options(handover("vllm", unset))["--override-generation-config"])
    assert vllm == {"temperature": 0.0}
    server = options(handover("llama-server", unset))
    assert [server[name] for name in ("--temp", "--top-p", "--top-k", "--min-p")] == ["0", "1", "0", "0"]


def test_a_penalty_that_its_authors_advise_is_a_default_of_the_server() -> None:
    made = json.loads(options(handover("vllm", spec_of("qwen3.5-2b")))["--override-generation-config"])
    assert (made["presence_penalty"], made["top_k"]) == (1.5, 20)
    assert options(handover("llama-server", spec_of("qwen3.5-2b")))["--presence-penalty"] == "1.5"
    lfm = json.loads(options(handover("vllm", spec_of("lfm2.5-2.6b")))["--override-generation-config"])
    assert lfm["repetition_penalty"] == 1.1


@pytest.mark.parametrize(
    ("model", "vllm", "ovms"),
    [
        ("qwen3-8b", "qwen3", "qwen3"),
        ("qwq-32b", "deepseek_r1", "qwen3"),
        ("gpt-oss-20b", "openai_gptoss", "gptoss"),
        ("ministral-3-8b-reasoning-2512", "mistral", None),
        ("smollm3-3b", "qwen3", "qwen3"),
        ("phi-4-mini-reasoning", "deepseek_r1", "qwen3"),
        ("minicpm5-1b", "qwen3", "minicpm5"),
        ("llama-3.1-8b-instruct", None, None),
    ],
)
def test_the_reasoning_parser_is_the_one_that_the_engine_has_for_the_model(
    model: str, vllm: str | None, ovms: str | None
) -> None:
    spec = spec_of(model)
    assert options(handover("vllm", spec)).get("--reasoning-parser") == vllm
    assert options(handover("ovms", spec)).get("--reasoning_parser") == ovms
    wanted = "deepseek" if spec.thinks else None
    server = options(handover("llama-server", spec))
    assert server.get("--reasoning-format") == wanted
    assert server.get("--reasoning") == ("on" if spec.thinks else None)


def test_a_parser_that_the_documentation_does_not_give_the_model_is_said_to_be_one() -> None:
    assert any("does not name this model" in each for each in handover("vllm", spec_of("smollm3-3b")).remarks)
    assert any("model_server#3829" in each for each in handover("ovms", spec_of("r1-7b")).remarks)
    assert not any("does not name" in each for each in handover("ovms", spec_of("qwen3-8b")).remarks)
    ministral = spec_of("ministral-3-8b-reasoning-2512")
    assert any("no parser for [THINK]" in each for each in handover("ovms", ministral).remarks)
    assert options(handover("vllm", ministral))["--tokenizer-mode"] == "mistral"


def test_the_model_server_takes_the_ready_made_folder_and_says_what_it_has_no_option_for() -> None:
    made = handover("ovms", spec_of("qwen3-8b"))
    given = options(made)
    assert given["--source_model"] == "OpenVINO/Qwen3-8B-int4-ov"
    assert "--target_device" not in given
    assert any("generation_config.json" in each and "temperature 0.6" in each for each in made.remarks)
    assert any("no limit of thinking" in each for each in made.remarks)
    assert made.address.endswith("/v3")


def test_a_folder_made_for_the_npu_is_served_there() -> None:
    assert options(handover("ovms", spec_of("qwen3-8b"), quant="INT4-CW"))["--target_device"] == "NPU"
    assert options(handover("ovms", spec_of("gemma-3-4b-it")))["--target_device"] == "NPU"


def test_without_a_ready_made_folder_the_model_server_converts_the_original() -> None:
    made = handover("ovms", spec_of("r1-8b"))
    assert options(made)["--source_model"] == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert options(made)["--weight-format"] == "int4"
    assert any("latest-py" in each for each in made.remarks)


def test_llama_server_takes_the_file_that_lies_here_before_the_registrys() -> None:
    spec = spec_of("r1-8b")
    assert handover("llama-server", spec).parts[0] == (
        "llama-server",
        "--hf-repo",
        "unsloth/DeepSeek-R1-Distill-Llama-8B-GGUF",
        "--hf-file",
        "DeepSeek-R1-Distill-Llama-8B-Q4_K_M.gguf",
    )
    here = Variant(kind="gguf", quant="Q4_K_M", path="/models/r 1.gguf")
    assert handover("llama-server", spec, [here]).parts[0] == ("llama-server", "--model", "/models/r 1.gguf")
    assert options(handover("llama-server", spec, [here], quant="q8_0"))["--hf-file"].endswith("Q8_0.gguf")


def test_a_checkpoint_here_and_a_context_that_was_asked_for_are_taken() -> None:
    here = Variant(kind="checkpoint", quant="bf16", path="/made/tiny")
    made = handover("vllm", spec_of("tiny"), [here], context_tokens=256)
    assert made.parts[0] == ("vllm", "serve", "/made/tiny")
    assert options(made)["--max-model-len"] == "256"


def test_thinking_that_an_entry_limits_or_switches_off_stays_so() -> None:
    limited = replace(spec_of("qwen3-8b"), thinking=Thinking(mode="open", max_tokens=512, word="512"), bridge=" Done.")
    server = options(handover("llama-server", limited))
    assert (server["--reasoning-budget"], server["--reasoning-budget-message"]) == ("512", " Done.")
    assert any("thinking_token_budget 512" in each for each in handover("vllm", limited).remarks)
    off = replace(spec_of("qwen3-8b"), thinking=Thinking(mode="off", word="off"))
    assert options(handover("llama-server", off))["--reasoning"] == "off"
    assert json.loads(options(handover("vllm", off))["--default-chat-template-kwargs"]) == {"enable_thinking": False}


def test_an_entrys_own_template_and_system_prompt_are_told_of() -> None:
    spec = replace(spec_of("qwen3-8b"), template="{{ messages }}", system="Be brief.")
    assert options(handover("vllm", spec))["--chat-template"] == "qwen3-8b.jinja"
    assert options(handover("llama-server", spec))["--chat-template-file"] == "qwen3-8b.jinja"
    for engine in ENGINES:
        remarks = " ".join(handover(engine, spec).remarks)
        assert "qwen3-8b.jinja" in remarks
        assert "system prompt" in remarks


@pytest.mark.parametrize("engine", ENGINES)
def test_every_repository_in_a_command_is_one_of_the_registrys(engine: EngineName) -> None:
    served = 0
    for model in load_registry().models:
        try:
            made = handover(engine, model)
        except UsageError:
            continue
        words = shlex.split(made.command.replace("\\\n", " "))
        assert words == [word for part in made.parts for word in part]
        named = {word for word in words if word.count("/") == 1 and not word.startswith(("{", "/"))}
        assert named <= {model.original_repo, *(each.repo for each in model.variants)}, model.id
        served += len(named) == 1
    assert served > 20


def test_an_engine_with_nothing_to_serve_names_one_that_has(slm: Slm) -> None:
    result = slm("show", "tiny", "--serve-with", "vllm")
    assert (result.code, result.out) == (2, "")
    assert "vllm can't serve tiny-reasoner: it serves original weights" in result.err
    assert "--serve-with llama-server" in result.err


def test_a_file_that_an_engine_can_not_serve_is_named_as_a_file_in_the_hint(slm: Slm, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(small_model().encode())
    result = slm("show", str(path), "--serve-with", "vllm")
    assert result.code == 2
    assert f"slm show {shlex.quote(str(path))} --serve-with llama-server" in " ".join(result.err.split())


def test_show_writes_the_command_alone_to_stdout(slm: Slm) -> None:
    result = slm("show", "tiny", "--serve-with", "llama-server")
    assert result.code == 0
    words = shlex.split(result.out.replace("\\\n", " "))
    assert words[:2] == ["llama-server", "--model"]
    assert Path(words[2]).name == "tiny-reasoner.gguf"
    assert words[words.index("--ctx-size") + 1] == "512"
    assert "http://127.0.0.1:8080/v1#tiny-reasoner" in result.err


def test_show_as_json_gives_the_words_of_the_command(slm: Slm) -> None:
    value = json.loads(slm("show", "r1-8b@ctx=8192", "--serve-with", "vllm", "--json", "--offline").out)
    assert value["command"][:2] == ["vllm", "serve"]
    assert value["command"][value["command"].index("--max-model-len") + 1] == "8192"
    assert (value["engine"], value["model"]) == ("vllm", "deepseek-r1-distill-llama-8b")
    assert value["address"] == "http://127.0.0.1:8000/v1"


def test_an_engine_that_is_not_known_is_refused_with_those_that_are(slm: Slm) -> None:
    result = slm("show", "tiny", "--serve-with", "tgi")
    assert result.code == 2
    assert "takes vllm, ovms, llama-server, not tgi" in result.err


def test_a_model_that_runs_elsewhere_is_not_handed_over(slm: Slm, slm_home: Path) -> None:
    (slm_home / "config").mkdir()
    (slm_home / "config" / "models.toml").write_text('[models.far]\nremote = "http://host:1/v1#big"\n')
    result = slm("show", "far", "--serve-with", "vllm")
    assert result.code == 2
    assert "runs elsewhere already, at http://host:1/v1" in result.err
