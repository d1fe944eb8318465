"""Real chat templates: all files of llama.cpp's source package (tests/data/templates) are rendered."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import Template
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slm_local.errors import ModelBroken, UsageError
from slm_local.generation import Message, Prompt, ThinkMode, ThinkState
from slm_local.reasoning import derive_tags, derive_think_control
from slm_local.template import ChatTemplate, prompt_for

FOLDER = Path(__file__).parent / "data" / "templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

NEEDS_MORE: dict[str, dict[str, object]] = {
    "CohereForAI-c4ai-command-r-plus-tool_use": {"tools": []},  # a template for tools alone: loops over them
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": {"tools": []},
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": {"tools": []},
    "fireworks-ai-llama-3-firefunction-v2": {"functions": "[]", "datetime": "today"},  # adds both to a text
}

NO_SYSTEM_ROLE = {"google-gemma-2-2b-it"}

TURNS = [
    Message(role="user", content='Què és "això"? {{ 1 }}\n\n  def f(x): return x[1:]'),
    Message(role="assistant", content="An answer.\n\nOf two lines."),
    Message(role="user", content="  And now?\n"),
]

R1 = "<｜User｜>Hi<｜Assistant｜>"
CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
BLOCK = "<think>\n\n</think>\n\n"

TAILS: list[tuple[str, ThinkMode, ThinkState, str]] = [
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "auto", "open", R1 + "<think>\n"),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "on", "open", R1 + "<think>\n"),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "off", "closed", R1 + BLOCK),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "auto", "open", R1 + "<think>\n"),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "on", "open", R1 + "<think>\n"),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "off", "closed", R1 + "<think>\n</think>"),
    ("llama-cpp-deepseek-r1", "auto", "open", "<｜User｜>Hi<｜end▁of▁sentence｜><｜Assistant｜><think>\n"),
    ("Qwen-QwQ-32B", "auto", "open", CHATML + "<think>\n"),
    ("Qwen-QwQ-32B", "off", "closed", CHATML + "<think>\n</think>"),
    ("Qwen-Qwen3-0.6B", "auto", "unopened", CHATML),
    ("Qwen-Qwen3-0.6B", "on", "open", CHATML + "<think>\n"),
    ("Qwen-Qwen3-0.6B", "off", "closed", CHATML + BLOCK),
    ("Qwen3.5-4B", "auto", "open", CHATML + "<think>\n"),
    ("Qwen3.5-4B", "off", "closed", CHATML + BLOCK),
    ("HuggingFaceTB-SmolLM3-3B", "auto", "unopened", CHATML),
    ("HuggingFaceTB-SmolLM3-3B", "off", "closed", CHATML + "<think>\n\n</think>\n"),
    ("LFM2.5-Instruct", "auto", "unopened", CHATML),
    ("LFM2.5-8B-A1B", "auto", "unopened", CHATML),
    ("LFM2.5-8B-A1B", "off", "closed", CHATML + BLOCK),
    ("openbmb-MiniCPM5-1B", "auto", "unopened", CHATML),
    ("openbmb-MiniCPM5-1B", "on", "open", CHATML + "<think>\n"),
    ("openbmb-MiniCPM5-1B", "off", "closed", CHATML + BLOCK),
    ("mistralai-Ministral-3-14B-Reasoning-2512", "auto", "unopened", "[INST]Hi[/INST]"),
    ("mistralai-Ministral-3-14B-Reasoning-2512", "on", "open", "[INST]Hi[/INST][THINK]"),
    ("mistralai-Ministral-3-14B-Reasoning-2512", "off", "closed", "[INST]Hi[/INST][THINK][/THINK]"),
    ("openai-gpt-oss-120b", "auto", "unopened", "<|message|>Hi<|end|><|start|>assistant"),
    ("openai-gpt-oss-120b", "on", "open", "<|end|><|start|>assistant<|channel|>analysis<|message|>"),
    ("ByteDance-Seed-OSS", "auto", "unopened", "<seed:bos>user\nHi<seed:eos><seed:bos>assistant\n"),
    ("ByteDance-Seed-OSS", "on", "open", "<seed:bos>assistant\n<seed:think>\n"),
    ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "auto", "unopened", "<|CHATBOT_TOKEN|>"),
    ("Cohere2MoE", "auto", "open", "<|START_THINKING|>"),
    ("Cohere2MoE", "off", "closed", "<|START_THINKING|><|END_THINKING|>"),
    ("google-gemma-4-31B-it", "auto", "unopened", "<|turn>user\nHi<turn|>\n<|turn>model\n"),
    ("google-gemma-4-31B-it", "off", "closed", "<|turn>model\n<|channel>thought\n<channel|>"),
    ("GLM-4.7-Flash", "off", "closed", "<|user|>Hi<|assistant|></think>"),
    ("deepseek-ai-DeepSeek-V3.1", "auto", "open", R1 + "<think>"),
    ("meta-llama-Llama-3.1-8B-Instruct", "auto", "closed", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("Qwen-Qwen2.5-7B-Instruct", "off", "closed", CHATML),
]


@functools.cache
def source_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache  # making one compiles it, which takes most of a test's time
def template_of(name: str) -> ChatTemplate:
    source = source_of(name)
    tags = derive_tags(source, lambda _: False)
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>", control_texts=("<s>", "</s>"), tags=tags)


def rendered(name: str, messages: list[Message]) -> str:
    (run,) = template_of(name).render(messages, adds_bos=False, variables=NEEDS_MORE.get(name, {}))
    return run.text


def prompt(name: str, messages: list[Message], think: ThinkMode = "auto") -> Prompt:
    source = source_of(name)
    tags = derive_tags(source, lambda _: False)
    return prompt_for(template_of(name), messages, think, derive_think_control(source), tags, adds_bos=False)


@functools.cache
def plain_template(name: str) -> Template:
    """Compile as transformers does: the sandbox without our meter, stand-ins and rewriting."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    source = source_of(name).replace("{%- generation -%}", "{#- -#}").replace("{%- endgeneration -%}", "{#- -#}")
    return environment.from_string(source)


def plainly_rendered(name: str, messages: list[Message]) -> str:
    """Render as transformers does."""
    variables: dict[str, object] = {
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_generation_prompt": True,
        "tools": None,
        "strftime_now": lambda pattern: "the date",
        **NEEDS_MORE.get(name, {}),
    }
    return plain_template(name).render(variables)


def test_the_folder_holds_every_template() -> None:
    assert len(NAMES) == 70
    assert set(NEEDS_MORE) < set(NAMES)


@pytest.fixture(scope="module", autouse=True)
def one_date() -> Iterator[None]:
    """Have templates that ask for the date be told the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm_local.template.sandbox._now", lambda pattern: "the date")
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_template_gives_what_plain_jinja_gives(name: str) -> None:
    with_system = [Message(role="system", content="Be brief."), *TURNS]
    assert rendered(name, TURNS) == plainly_rendered(name, TURNS)
    if name in NO_SYSTEM_ROLE:
        with pytest.raises(UsageError, match="System role not supported"):
            rendered(name, with_system)
    else:
        assert rendered(name, with_system) == plainly_rendered(name, with_system)


@pytest.mark.parametrize("name", NEEDS_MORE)
def test_a_template_for_tools_alone_is_named_as_broken(name: str) -> None:
    with pytest.raises(ModelBroken) as caught:
        template_of(name).render(TURNS, adds_bos=False)
    assert "--template FILE" in (caught.value.hint or "")


@pytest.mark.parametrize(("name", "think", "state", "tail"), TAILS)
def test_a_prompt_ends_as_thinking_was_asked_for(name: str, think: ThinkMode, state: ThinkState, tail: str) -> None:
    result = prompt(name, [Message(role="user", content="Hi")], think)
    assert "".join(run.text for run in result.runs).endswith(tail)
    assert result.think_state == state


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(NEEDS_MORE)))
def test_thinking_can_be_left_to_every_template_that_needs_no_tools(name: str) -> None:
    result = prompt(name, [Message(role="user", content="Hi")])
    assert len(result.runs) == 1
    if derive_tags(source_of(name), lambda _: False) is None:
        assert result.think_state == "closed"


def test_gpt_oss_cannot_be_kept_from_thinking() -> None:
    with pytest.raises(UsageError, match="can't be switched off"):
        prompt("openai-gpt-oss-120b", TURNS, "off")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "<s>Be brief.<｜User｜>"),
        ("Qwen-Qwen3-0.6B", "<|im_start|>system\nBe brief.<|im_end|>\n"),
        ("HuggingFaceTB-SmolLM3-3B", "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n"),
        ("mistralai-Ministral-3-14B-Reasoning-2512", "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]"),
        ("meta-llama-Llama-3.1-8B-Instruct", "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge"),
    ],
)
def test_the_system_text_stands_where_the_model_learnt_it(name: str, start: str) -> None:
    text = rendered(name, [Message(role="system", content="Be brief."), *TURNS])
    assert text.startswith(start)
    assert "Be brief." in text


def test_the_system_text_of_gpt_oss_is_the_developers() -> None:
    text = rendered("openai-gpt-oss-120b", [Message(role="system", content="Be brief."), *TURNS])
    assert "<|start|>developer<|message|># Instructions\n\nBe brief." in text


def test_ministral_brings_a_system_text_of_its_own() -> None:
    assert rendered("mistralai-Ministral-3-14B-Reasoning-2512", TURNS).startswith("<s>[SYSTEM_PROMPT]# HOW YOU")


def test_roles_that_do_not_alternate_are_refused_in_the_templates_words() -> None:
    with pytest.raises(UsageError, match="alternat"):
        rendered("mistralai-Mistral-Nemo-Instruct-2407", [TURNS[0], TURNS[0]])


@pytest.mark.parametrize(
    "name", ["deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B", "openai-gpt-oss-120b"]
)
def test_an_answer_that_quotes_the_tags_stays_whole(name: str) -> None:
    quoted = "Write <think>x</think> or <|channel|>analysis<|message|>, then go on."
    runs = template_of(name).render([TURNS[0], Message(role="assistant", content=quoted), TURNS[2]], adds_bos=False)
    assert quoted in "".join(run.text for run in runs)
    assert [run.text for run in runs if not run.allows_control][:2] == (
        ["<", "|channel|>analysis<|message|>"] if "gpt-oss" in name else ["<", "think>"]
    )
