"""Models that misbehave, on the command line: there is an answer, and JSON says why thinking ended."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from slm_local import open_model
from slm_local.generation import Thinking
from tests.command import Result, slm
from tests.conftest import ScriptWriter
from tests.governed import CASES, Case

Slm = Callable[..., Result]

__all__ = ["slm"]


def flags_of(case: Case) -> list[str]:
    flags = ["--ctx", "4096"]
    flags += ["--think", str(case.think_tokens)] if case.think_tokens is not None else []
    return flags + (["-n", str(case.max_tokens)] if case.max_tokens is not None else [])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whatever_a_model_does_the_command_gives_what_was_promised(case: Case, slm: Slm, script: ScriptWriter) -> None:
    result = slm("run", f"scripted:{script(*case.rows)}", "go", "--json", *flags_of(case))
    assert result.code == 0, result.err
    reply = json.loads(result.out)
    assert (reply["finish"], reply["cut"]) == (case.finish, case.cut)
    assert reply["thinking"].endswith(case.thinking_end)
    assert reply["answer"] == (reply["answer"] if case.answer is None else case.answer)
    usage = reply["usage"]
    if case.think_tokens is not None:
        assert usage["think_tokens"] - usage["tag_tokens"] - usage["injected_tokens"] <= case.think_tokens


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whatever_a_model_does_the_api_gives_what_was_promised(
    case: Case, script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")
    limit = Thinking(mode="open", max_tokens=case.think_tokens) if case.think_tokens is not None else None
    with open_model(f"scripted:{script(*case.rows)}@ctx=4096") as engine:
        reply = engine.reply(engine.request("go", think=limit, max_tokens=case.max_tokens))
    assert (reply.finish, reply.cut) == (case.finish, case.cut)
    assert reply.thinking.endswith(case.thinking_end)
    assert reply.answer == (reply.answer if case.answer is None else case.answer)
