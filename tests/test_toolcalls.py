"""Calls parsed out of answers: every family, however the text is cut; no character is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_local.errors import ModelBroken, UsageError
from slm_local.generation import AnswerDelta, ThinkDelta
from slm_local.reasoning import ReasoningParser, derive_tags
from slm_local.template import ChatTemplate
from slm_local.toolcalls import FAMILIES, ToolCall, ToolCallParser, ToolFamily, family_of
from tests.test_template_files import NAMES, source_of

PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "deep": {"type": "object"}}
TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}}
        for name in ("weather", "web.search")
    ]
)
FAMILY = {family.name: family for family in FAMILIES}

CALL = '{"name": "weather", "arguments": {"city": "Gent", "days": 2}}'
GENT = ("weather", {"city": "Gent", "days": 2})
SEARCH: tuple[str, dict[str, object]] = ("web.search", {})

R1_CALL = (
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Gent", "days": 2}\n```<｜tool▁call▁end｜>'
)
XML_CALL = "<function=weather>\n<parameter=city>\nGent\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>"
OSS_HEAD, OSS_ARGUMENTS = "<|channel|>commentary to=functions.weather", '<|message|>{"city": "Gent", "days": 2}'

ANSWERS: list[tuple[str, str, list[object]]] = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", [GENT]),
    ("hermes", f" I look.\n\n<tool_call>{CALL}</tool_call>\n", [" I look.", GENT]),
    (
        "hermes",
        f'<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "web.search"}}\n</tool_call> So.',
        [GENT, SEARCH, "So."],
    ),
    ("hermes", f"<tool_call>\n{CALL}", [GENT]),
    ("hermes", f"<tool_call>\n{CALL}\n<tool_call>{CALL}", [GENT, GENT]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Gent\\", \\"days\\": 2}"}</tool_call>',
        [GENT],
    ),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>{\\"{"}}</tool_call>',
        [("weather", {"city": '</tool_call>{"{'})],
    ),
    ("qwen-coder", f"<tool_call>\n{XML_CALL}\n</tool_call>", [GENT]),
    ("qwen-coder", f"Now:\n{XML_CALL}\n</tool_call>", ["Now:", GENT]),
    ("qwen-coder", "<tool_call>\n<function=web.search>\n</function>\n</tool_call>", [SEARCH]),
    (
        "qwen-coder",
        "<tool_call><function=weather><parameter=city>\n\n7\n</parameter><parameter=days>two</parameter>"
        '<parameter=deep>{"a": [1]}</parameter><parameter=odd>1</parameter></function></tool_call>',
        [("weather", {"city": "\n7", "days": "two", "deep": {"a": [1]}, "odd": "1"})],
    ),
    ("seed", f"<seed:tool_call>\n{XML_CALL}\n</seed:tool_call>", [GENT]),
    ("deepseek-r1", f"<｜tool▁calls▁begin｜>{R1_CALL}\n{R1_CALL}<｜tool▁calls▁end｜>", [GENT, GENT]),
    ("deepseek-r1", f"Well.\n{R1_CALL}", ["Well.", GENT]),
    (
        "deepseek-v3.1",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Gent", "days": 2}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>web.search<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [GENT, SEARCH],
    ),
    ("gpt-oss", f"{OSS_HEAD} <|constrain|>json{OSS_ARGUMENTS}<|call|>", [GENT]),
    ("gpt-oss", f"{OSS_HEAD} json{OSS_ARGUMENTS}", [GENT]),
    ("gpt-oss", f"to=functions.weather<|channel|>commentary{OSS_ARGUMENTS}", [GENT]),
    ("gpt-oss", f"I look.<|end|><|start|>assistant{OSS_HEAD}{OSS_ARGUMENTS}<|call|>", ["I look.", GENT]),
    (
        "gpt-oss",
        f"I look.<|end|><|start|>assistant to=functions.weather<|channel|>analysis{OSS_ARGUMENTS}",
        ["I look.", GENT],
    ),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Gent", "days": 2}[TOOL_CALLS]web.search[ARGS]{}', [GENT, SEARCH]),
    ("llama", '{"name": "weather", "parameters": {"city": "Gent", "days": 2}}', [GENT]),
    ("llama", '\n{"type": "function", "name": "weather", "parameters": {"city": "Gent", "days": 2}}\n', [GENT]),
    ("llama", '{"type": "function", "function": {"name": "web.search", "arguments": {}}}', [SEARCH]),
    ("llama", '{"function": "web.search", "parameters": {}}; {"name": "web.search"}<|eom_id|>', [SEARCH, SEARCH]),
    ("llama", 'I look. <|python_tag|>{"name": "web.search", "parameters": {}}', ["I look.", SEARCH]),
]


def parsed_template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_text="", eos_text="", control_texts=(), tags=None)


def shown(parts: list[str | ToolCall]) -> list[object]:
    return [part if isinstance(part, str) else (part.name, json.loads(part.arguments)) for part in parts]


def parsed(family: ToolFamily, chunks: list[str]) -> list[str | ToolCall]:
    parser = ToolCallParser(family, TOOLS)
    joined: list[str | ToolCall] = []
    for part in [part for chunk in chunks for part in parser.feed(chunk)] + parser.finish():
        if joined and isinstance(part, str) and isinstance(last := joined[-1], str):
            joined[-1] = last + part
        else:
            joined.append(part)
    return joined


def sources(parts: list[str | ToolCall]) -> str:
    return "".join(part if isinstance(part, str) else part.source for part in parts)


@pytest.mark.parametrize(("family", "answer", "expected"), ANSWERS)
def test_calls_are_found_in_an_answer_whether_it_comes_whole_or_by_characters(
    family: str, answer: str, expected: list[object]
) -> None:
    for chunks in ([answer], list(answer)):
        parts = parsed(FAMILY[family], chunks)
        assert shown(parts) == expected
        assert sources(parts) == answer


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("hermes", "plain <b>text</b>, a < b\n"),
        ("hermes", "Write <tool_call> and </tool_call> around it."),
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": 1e999}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": Gent}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "argum'),
        ("hermes", "<tool_call>" + '{"a":' * 100_000),
        ("qwen-coder", "<tool_call><function=weather><parameter=city>Gent</function></tool_call>"),
        ("qwen-coder", "<tool_call><function=weather>city</function></tool_call>"),
        ("deepseek-r1", "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>"),
        ("gpt-oss", "to=functions.weather, I said"),
        ("gpt-oss", '<|channel|>commentary to=browser.open<|message|>{"id": 1}'),
        ("llama", '{"answer": 42}'),
        ("llama", 'It is {"name": "weather", "parameters": {}}'),
        ("llama", '{"name": "weather"'),
        ("llama", "<|python_tag|>print(1)"),
    ],
)
def test_what_is_no_call_comes_out_as_text(family: str, answer: str) -> None:
    for chunks in ([answer], list(answer)) if len(answer) < 1000 else ([answer],):
        assert parsed(FAMILY[family], chunks) == [answer]


def test_text_goes_out_as_soon_as_it_can_be_no_call() -> None:
    parser = ToolCallParser(FAMILY["hermes"], TOOLS)
    assert parser.feed("a <b") == ["a <b"]
    assert parser.feed(" \n") == []
    assert parser.feed("<tool") == []
    assert parser.feed("s>") == [" \n<tools>"]
    assert ToolCallParser(FAMILY["llama"], TOOLS).feed('{"an') == ['{"an']


def test_a_call_goes_out_once_text_follows_it() -> None:
    parser = ToolCallParser(FAMILY["hermes"], TOOLS)
    assert parser.feed(f"<tool_call>{CALL}</tool_call>") == []
    call, text = parser.feed("\nSo")
    assert isinstance(call, ToolCall)
    assert call.source == f"<tool_call>{CALL}</tool_call>\n"
    assert text == "So"


@pytest.mark.parametrize(
    ("template", "output"),
    [
        (
            "openai-gpt-oss-120b",
            "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant"
            f"{OSS_HEAD} <|constrain|>json{OSS_ARGUMENTS}<|call|>",
        ),
        (
            "openai-gpt-oss-120b",
            "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant to=functions.weather"
            f"<|channel|>commentary json{OSS_ARGUMENTS}",
        ),
        ("Qwen-Qwen3-0.6B", f"<think>\nI look.</think>\n\n<tool_call>\n{CALL}\n</tool_call>"),
        ("Qwen3.5-4B", f"<think>\nI look.</think>\n\n<tool_call>\n{XML_CALL}\n</tool_call>"),
        ("llama-cpp-deepseek-r1", f"<think>\nI look.</think>\n\n<｜tool▁calls▁begin｜>{R1_CALL}<｜tool▁calls▁end｜>"),
        (
            "mistralai-Ministral-3-14B-Reasoning-2512",
            '[THINK]I look.[/THINK][TOOL_CALLS]weather[ARGS]{"city": "Gent", "days": 2}',
        ),
    ],
)
def test_a_call_is_found_behind_thinking(template: str, output: str) -> None:
    source = source_of(template)
    splitter = ReasoningParser(derive_tags(source, lambda _: False), state="unopened")
    deltas = [delta for character in output for delta in splitter.feed(character)] + splitter.finish()
    answer = [delta.text for delta in deltas if isinstance(delta, AnswerDelta)]
    assert "".join(delta.text for delta in deltas if isinstance(delta, ThinkDelta)) == "I look."
    assert shown(parsed(family_of(parsed_template(source)), answer)) == [GENT]


FRAGMENTS = sorted(
    {
        *(fragment for family in FAMILIES for head in (*family.heads, *family.bare_heads) for fragment in head),
        *(fragment for family in FAMILIES for fragment in (*family.close, *family.after)),
        *(
            CALL,
            CALL[:20],
            CALL[20:],
            XML_CALL,
            XML_CALL[:40],
            R1_CALL,
            OSS_ARGUMENTS,
            '{"city": "',
            '"}',
            "}",
            "{}",
            ": ",
        ),
        *(
            "weather",
            "web.search",
            "<parameter=city>",
            "</parameter>",
            "</function>",
            "word",
            "\n",
            "<",
            "tr",
            "\\",
            "[",
            ",",
        ),
    }
)


@given(
    family=st.sampled_from(FAMILIES),
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=14),
    answer=st.sampled_from([answer for _, answer, _ in ANSWERS]),
    place=st.integers(min_value=0, max_value=14),
    cuts=st.lists(st.integers(min_value=0, max_value=400), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_no_character_is_lost_and_the_cuts_make_no_difference(
    family: ToolFamily, fragments: list[str], answer: str, place: int, cuts: list[int]
) -> None:
    text = "".join([*fragments[:place], answer, *fragments[place:]])
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    whole = parsed(family, [text])
    assert sources(whole) == text
    assert parsed(family, [text[a:b] for a, b in pairwise(edges)]) == whole
    assert parsed(family, list(text)) == whole


FAMILY_OF = {
    "Bielik-11B-v3.0-Instruct": "hermes",
    "ByteDance-Seed-OSS": "seed",
    "MiMo-VL": "hermes",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen-coder",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen-coder",
    "Qwen3.5-4B": "qwen-coder",
    "Reka-Edge": "hermes",
    "StepFun3.5-Flash": "qwen-coder",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-4.1": "hermes",
    "llama-cpp-deepseek-r1": "deepseek-r1",
    "meta-llama-Llama-3.1-8B-Instruct": "llama",
    "meta-llama-Llama-3.2-3B-Instruct": "llama",
    "meta-llama-Llama-3.3-70B-Instruct": "llama",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "openai-gpt-oss-120b": "gpt-oss",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_way_of_writing_calls_is_read_off_the_template(name: str) -> None:
    try:
        family: str | None = family_of(parsed_template(source_of(name))).name
    except (UsageError, ModelBroken):
        family = None
    assert family == FAMILY_OF.get(name)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (source_of("HuggingFaceTB-SmolLM3-3B"), "takes no tools"),
        (source_of("deepseek-ai-DeepSeek-V3.1"), "takes no tools"),
        (source_of("GLM-4.6"), "not known here"),
    ],
)
def test_a_model_whose_calls_cannot_be_read_is_refused_with_the_reason(template: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        family_of(parsed_template(template))
