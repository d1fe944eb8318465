"""Every way to ask for thinking, and what they come to together."""

from __future__ import annotations

from typing import Any

import pytest

from slm_local.generation import Thinking
from slm_local.server.asked import ThinkingFields
from slm_local.server.effort import AskedThinking, for_model, thinking_asked
from slm_local.server.faults import Refused

OFF, ON = Thinking(mode="off", word="off"), Thinking(mode="on", word="on")
MAX, AUTO = Thinking(word="max"), Thinking(word="auto")


def tokens(count: int, word: str | None = None) -> Thinking:
    return Thinking(mode="open", max_tokens=count, word=word or str(count))


def asked(**fields: Any) -> AskedThinking:
    return thinking_asked(ThinkingFields(**fields))


SPELLINGS: list[tuple[dict[str, Any], Thinking]] = [
    ({}, Thinking()),
    ({"reasoning_effort": "none"}, OFF),
    ({"reasoning_effort": "minimal"}, tokens(128)),
    ({"reasoning_effort": "low"}, tokens(512, "low")),
    ({"reasoning_effort": "medium"}, tokens(2048, "medium")),
    ({"reasoning_effort": "High"}, tokens(8192, "high")),
    ({"reasoning_effort": "xhigh"}, tokens(32768)),
    ({"reasoning_effort": "ultra"}, MAX),
    ({"reasoning_effort": "max"}, MAX),
    ({"reasoning": {"effort": "low"}}, tokens(512, "low")),
    ({"reasoning": {"max_tokens": 300}}, tokens(300)),
    ({"reasoning": {"enabled": True}}, ON),
    ({"reasoning": {"enabled": False}}, OFF),
    ({"reasoning": "off"}, OFF),
    ({"reasoning_effort": 300}, tokens(300)),
    ({"reasoning": 300}, tokens(300)),
    ({"reasoning": {"effort": 300}}, tokens(300)),
    ({"think": True}, ON),
    ({"think": False}, OFF),
    ({"think": "low"}, tokens(512, "low")),
    ({"think": 256}, tokens(256)),
    ({"think": "30s"}, Thinking(mode="open", max_s=30.0, word="30s")),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, tokens(1024)),
    ({"thinking": {"type": "enabled"}}, ON),
    ({"thinking": {"type": "adaptive"}}, AUTO),
    ({"thinking": {"type": "disabled"}}, OFF),
    ({"thinking_budget_tokens": 0}, tokens(0)),
    ({"reasoning_budget_tokens": -1}, MAX),
    ({"thinking_token_budget": 77}, tokens(77)),
    ({"chat_template_kwargs": {"enable_thinking": False}}, OFF),
    ({"chat_template_kwargs": {"thinking": True}}, ON),
    ({"chat_template_kwargs": {"reasoning_effort": "low"}}, tokens(512, "low")),
    ({"think": True, "thinking_budget_tokens": 64}, tokens(64)),
    ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}}, OFF),
]


@pytest.mark.parametrize(("fields", "meant"), SPELLINGS, ids=[str(fields) for fields, _ in SPELLINGS])
def test_every_spelling_has_one_meaning(fields: dict[str, Any], meant: Thinking) -> None:
    assert asked(**fields).thinking == meant


def test_a_number_wins_over_a_word_and_that_is_told() -> None:
    both = asked(reasoning_effort="high", thinking_budget_tokens=100)
    assert both.thinking == tokens(100)
    assert both.warnings == ("reasoning_effort gives way to thinking_budget_tokens",)


CONTRADICTIONS: list[dict[str, Any]] = [
    {"reasoning_effort": "none", "think": True},
    {"reasoning_effort": "low", "reasoning": {"effort": "high"}},
    {"thinking_budget_tokens": 5, "thinking_token_budget": 6},
    {"thinking": {"type": "disabled", "budget_tokens": 100}},
]


@pytest.mark.parametrize("fields", CONTRADICTIONS, ids=str)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="contradict each other") as caught:
        asked(**fields)
    assert caught.value.fault.param


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"reasoning_effort": "lots"}, "reasoning_effort"),
    ({"think": -3}, "think"),
    ({"reasoning": "some"}, "reasoning"),
    ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs.documents"),
    ({"chat_template_kwargs": {"enable_thinking": []}}, "chat_template_kwargs.enable_thinking"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[param for _, param in WRONG])
def test_what_is_no_effort_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        asked(**fields)
    assert caught.value.fault.param == param


def test_a_model_without_thinking_is_asked_for_none_and_that_is_told() -> None:
    wanted = for_model(asked(reasoning_effort="high"), thinks=False)
    assert wanted.thinking == Thinking()
    assert wanted.warnings == ("this model marks no thinking: what was asked of it has no effect",)
    assert for_model(asked(reasoning_effort="none"), thinks=False).warnings == ()
    assert for_model(asked(reasoning_effort="high"), thinks=True).thinking == tokens(8192, "high")


def test_thinking_is_shown_unless_it_is_excluded() -> None:
    assert asked(reasoning={"effort": "low"}).is_shown
    assert not asked(reasoning={"exclude": True}).is_shown
    assert not asked(include_reasoning=False).is_shown
