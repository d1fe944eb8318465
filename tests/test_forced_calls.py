"""`tool_choice` that asks for a call: the answer is made one, behind the thinking and in the model's own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slm_local import driver as driver_module
from slm_local.backends.openvino.grammar import grammar_of
from slm_local.driver import Driver
from slm_local.errors import SlmError, UsageError
from slm_local.generation import Control, GenerationRequest, Handle, Message
from slm_local.toolcalls import FAMILIES, ForcedCall, ToolCall, ToolCallParser, family_named, forced_call
from tests.conftest import ScriptWriter
from tests.contract.runners import Heard
from tests.governed import END
from tests.loading import THINK_TAGS, load_settings_for
from tests.serving import serving
from tests.test_driver_schema import Noting
from tests.test_template_files import source_of

COUNT: dict[str, Any] = {"type": "object", "properties": {"n": {"$ref": "#/$defs/few"}}, "required": ["n"]}
COUNT |= {"additionalProperties": False, "$defs": {"few": {"enum": [1, 2]}}}
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Gent", "Oslo"]}}, "required": ["city"]}
CITY |= {"additionalProperties": False}
COUNTING, LOOKING = (
    {"type": "function", "function": {"name": name, "description": "Do it.", "parameters": parameters}}
    for name, parameters in (("count", COUNT), ("look.up", CITY))
)
TOOLS: Any = [COUNTING, LOOKING]
TEXT = json.dumps(TOOLS)
FORCIBLE = [family.name for family in FAMILIES if family.opening is not None]
QWEN = source_of("Qwen-Qwen3-0.6B")
SHORT = (
    "{% for t in tools or [] %}{{ t.function.name }}({{ t.function.parameters.properties | join(',') }}) {% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}<|end|>{% endfor %}<|assistant|>{# <think> #}"
)
"""For a model of 512 tokens, the way it writes calls left to be said."""
CALLS = {
    "hermes": "<tool_call>\n{{ c.function | tojson }}\n</tool_call>",
    "llama": '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',
}
NAMED = {"type": "function", "function": {"name": "count"}}


class Holding(Noting):
    """Takes any schema, and keeps it."""

    def constrain(self, handle: Handle, schema: str, begun: str = "") -> None:
        del handle
        self.told.append(f"hold {schema}{begun}")


def driver_of(script: ScriptWriter, *rows: dict[str, Any], template: str = QWEN) -> tuple[Driver, Holding]:
    backend = Holding()
    driver = Driver(backend)
    path = script(*rows, setup={"template": template})
    driver.load(load_settings_for("scripted", path, tags=THINK_TAGS), Control(), lambda fraction: None)
    return driver, backend


def asked(*names: str, **fields: Any) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content="go"),), tools=TEXT, must_call=names, **fields)


@pytest.mark.parametrize("family", FORCIBLE)
def test_what_is_written_for_the_model_and_what_the_schema_allows_is_a_call(family: str) -> None:
    forced = forced_call(family_named(family), TEXT, ["look.up"])
    body: Any = {"city": "Gent"}
    if "$defs" in json.loads(forced.schema):
        (call,) = json.loads(forced.schema)["anyOf"]
        body = dict(zip(call["required"], ("look.up", body), strict=True))
    parser = ToolCallParser(family_named(family), TEXT)
    (found,) = parser.feed(f"\n\n{forced.opening}{json.dumps(body)}") + parser.finish()
    assert isinstance(found, ToolCall)
    assert (found.name, json.loads(found.arguments)) == ("look.up", {"city": "Gent"})


def test_what_a_tools_schema_refers_to_is_found_in_the_calls() -> None:
    schema = json.loads(forced_call(family_named("hermes"), TEXT, ["count", "look.up"]).schema)
    assert schema["$defs"]["count"]["properties"]["n"] == {"$ref": "#/$defs/count/$defs/few"}
    assert schema["$defs"]["count"]["$defs"] == COUNT["$defs"]


def test_openvino_makes_a_grammar_of_it() -> None:
    grammar = grammar_of(forced_call(family_named("llama"), TEXT, ["count", "look.up"]).schema)
    assert all(json.dumps(json.dumps(word)) in grammar for word in ("count", "look.up", "parameters", "Gent"))


@pytest.mark.parametrize(
    ("family", "names", "message"),
    [
        ("hermes", ["none"], "no tool is called 'none'"),
        ("qwen-coder", ["count"], "no schema holds it to"),
        ("gpt-oss", ["count"], "no schema holds it to"),
        ("mistral", ["count", "look.up"], "which one"),
    ],
)
def test_a_call_that_can_not_be_had_is_refused_with_the_reason(family: str, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        forced_call(family_named(family), TEXT, names)


def test_the_call_is_opened_and_held_once_the_model_has_thought(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, {"text": "hm"}, {"text": "</think>"}, END, {"text": '{"n": 1}'}, END)
    heard = Heard(list(driver.run(asked("count"))))
    opening = "\n\n<tool_call>\n"
    assert (heard.started.think_state, heard.started.tool_family) == ("open", "hermes")
    assert backend.told == [f"inject {opening}", f"hold {forced_call(family_named('hermes'), TEXT, ['count']).schema}"]
    assert (heard.thinking, heard.answer) == ("hm", '<tool_call>\n{"n": 1}')
    assert (heard.reply.usage.think_tokens, heard.reply.usage.answer_tokens) == (2, len(opening) + 2)
    assert heard.reply.usage.injected_tokens == 0


def test_how_an_answer_is_made_a_call_is_worked_out_once(script: ScriptWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[object] = []

    def forced(*given: Any) -> ForcedCall:
        worked_out.append(given)
        return forced_call(*given)

    monkeypatch.setattr(driver_module, "forced_call", forced)
    driver, backend = driver_of(script, END, {"text": "{}"}, END)
    Heard(list(driver.run(asked("count", think="off"))))
    assert (len(worked_out), backend.told[0]) == (1, "inject <tool_call>\n")


def test_the_call_is_opened_behind_what_ends_thinking_for_the_model(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, *({"text": "hm "} for _ in range(3)), {"text": "</think>"}, END, {"text": "{}"})
    Heard(list(driver.run(asked("count", think_tokens=1))))
    closing, opening, held = backend.told
    assert closing.endswith("</think>\n\n")
    assert opening == "inject <tool_call>\n"
    assert held.startswith("hold {")


def test_without_thinking_the_call_is_all_there_is(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, END, {"text": "{}"}, END)
    heard = Heard(list(driver.run(asked("count", think="off"))))
    assert backend.told[0] == "inject <tool_call>\n"
    assert heard.answer == "<tool_call>\n{}"
    assert heard.reply.usage.think_tokens == 0


def test_an_answer_that_began_in_the_token_that_ended_thinking_is_no_call(script: ScriptWriter) -> None:
    driver, _ = driver_of(script, {"text": "hm</think>No."}, END)
    with pytest.raises(SlmError, match=r"the answer began with 'No\.'"):
        list(driver.run(asked("count")))


def test_a_model_that_may_call_is_held_to_nothing(script: ScriptWriter) -> None:
    driver, backend = driver_of(script, {"text": "<think>"}, {"text": "hm</think>No."}, END)
    heard = Heard(list(driver.run(asked())))
    assert (heard.answer, backend.told) == ("No.", [])
    assert heard.started.tool_family == "hermes"


@pytest.mark.parametrize(("choice", "names"), [("required", {"count", "look.up"}), (NAMED, {"count"})])
@pytest.mark.parametrize(("backend", "family"), [("llamacpp", "hermes"), ("llamacpp", "llama"), ("openvino", "hermes")])
def test_a_real_model_that_knows_of_no_tools_calls_one(
    tiny_reasoner: Path, tmp_path: Path, backend: str, family: str, choice: Any, names: set[str]
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(SHORT.replace("CALL", CALLS[family]), encoding="utf-8")
    with serving(f"{tiny_reasoner}@backend={backend},threads=1,ctx=512,template={file}") as ours:
        fields = {"tools": TOOLS, "tool_choice": choice, "thinking_budget_tokens": 20, "seed": 1}
        answer = ours.chat("47 + 38?", **fields).json()
        assert "choices" in answer, answer
    choice_made = answer["choices"][0]
    (call,) = choice_made["message"]["tool_calls"]
    assert (choice_made["finish_reason"], choice_made["message"]["content"]) == ("tool_calls", None)
    assert choice_made["message"]["reasoning_content"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] in names
    if call["function"]["name"] == "count":
        assert arguments in ({"n": 1}, {"n": 2})
    else:
        assert arguments in ({"city": "Gent"}, {"city": "Oslo"})


def test_a_model_whose_calls_no_schema_holds_is_400_with_the_reason(
    script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    path = script({"text": "yes"}, END, setup={"template": source_of("Qwen3-Coder")})
    with serving(f"scripted:{path}") as ours:
        response = ours.chat(tools=TOOLS, tool_choice="required", stream=True)
    assert response.status_code == 400
    assert "no schema holds it to" in response.json()["error"]["message"]
