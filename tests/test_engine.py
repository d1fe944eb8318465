"""Opening models: what a reference becomes, what is refused, what a request carries."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.config import SamplingOverrides, Settings
from slm_local.engine import Choice, Engine, choose, open_model
from slm_local.errors import (
    DownloadFailed,
    Interrupted,
    ModelBroken,
    RemoteFailed,
    UnknownModel,
    UsageError,
    WorkerCrashed,
)
from slm_local.generation import AnswerDelta, Control, Done, Message, Sampling, Thinking, TokenOrder
from slm_local.model import ModelSpec
from tests.conftest import ScriptWriter

pytestmark = pytest.mark.usefixtures("scripted_allowed")


@pytest.fixture
def hello(script: ScriptWriter) -> Iterator[Engine]:
    with open_model(f"scripted:{script({'text': '<think>hm</think>'}, {'text': 'hello'}, {'end': 'stop'})}") as engine:
        yield engine


def test_a_reply_has_both_parts_and_times_by_our_own_clock(hello: Engine) -> None:
    reply = hello.reply("hi")
    assert (reply.thinking, reply.answer, reply.finish) == ("hm", "hello", "stop")
    assert reply.timings.load_s > 0.0
    assert 0.0 < reply.timings.first_token_s <= reply.timings.first_answer_s
    assert reply.timings.peak_rss_bytes > 2**20
    assert hello.reply("hi again").timings.load_s == 0.0  # loaded already


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_a_new_child_takes_over_when_one_died(hello: Engine) -> None:
    before = hello.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    with contextlib.suppress(WorkerCrashed):  # its death may be seen only while it is spoken to
        hello.reply("hi")
    assert hello.reply("hi").answer == "hello"
    assert hello.pid != before


def test_tokens_are_told_without_a_reply_also_by_a_new_child(hello: Engine) -> None:
    assert hello.tokens(TokenOrder(text="hi")).ids == (104, 105)
    hello.close()
    assert hello.tokens(TokenOrder(ids=(104,))).data == ((104,),)
    assert hello.tokens(TokenOrder(request=hello.request("hi"))).data
    with pytest.raises(UsageError, match="token id 300 is not in the vocabulary"):
        hello.tokens(TokenOrder(ids=(300,)))


def test_status_is_told_after_half_a_second_of_silence(script: ScriptWriter) -> None:
    told: list[str] = []
    path = script({"text": "late"}, setup={"load_fault": "slow"})
    control = Control()

    def note(text: str) -> None:
        told.append(text)
        control.cancel()

    with pytest.raises(Interrupted):
        open_model(f"scripted:{path}", on_status=note, control=control)
    assert told[0] == "starting the engine…"


def test_a_crash_while_loading_is_an_error_and_no_hang(script: ScriptWriter) -> None:
    with pytest.raises(WorkerCrashed):
        open_model(f"scripted:{script(setup={'load_fault': 'exit'})}")


def test_settings_hang_on_the_reference(script: ScriptWriter) -> None:
    chosen = choose(f"scripted:{script({'end': 'stop'})}@no-think,temperature=0.3,threads=1")
    assert chosen.settings.think.mode == "off"
    assert chosen.settings.sampling.temperature == 0.3
    assert chosen.plans[0].threads == 1


def test_the_users_sampling_lies_over_the_models(script: ScriptWriter) -> None:
    reference = f"scripted:{script({'end': 'stop'})}"
    settings = Settings(sampling=SamplingOverrides(top_k=5, seed=9))
    chosen = choose(reference, settings=settings)
    engine = Engine(chosen)
    assert engine.sampling() == Sampling(top_k=5, seed=9)
    quiet = _engine_of(choose("qwen3-0.6b").spec, chosen)
    assert quiet.sampling(Thinking(mode="off")).temperature == 0.7
    assert quiet.sampling().temperature == 0.6


def _engine_of(spec: ModelSpec, runnable: Choice) -> Engine:
    engine = Engine(runnable)
    engine.spec = spec
    return engine


def test_a_request_carries_how_long_to_think_and_what_is_kept_for_the_answer(script: ScriptWriter) -> None:
    reference = f"scripted:{script({'end': 'stop'})}@think=256,answer-reserve=32,loop-guard=false,early-exit"
    engine = Engine(choose(reference))
    request = engine.request("hi")
    assert (request.think, request.think_tokens, request.think_s) == ("open", 256, None)
    assert (request.answer_reserve, request.has_loop_guard, request.early_exit) == (32, False, True)
    timed = engine.request("hi", think=Thinking(mode="open", max_s=5.0))
    assert (timed.think_tokens, timed.think_s) == (None, 5.0)
    assert engine.request("hi", think=Thinking()).think_tokens == 256  # nothing asked: as set


def test_a_models_own_way_to_think_yields_to_every_other(script: ScriptWriter) -> None:
    chosen = choose(f"scripted:{script({'end': 'stop'})}")
    spec = replace(chosen.spec, thinking=Thinking(mode="open", max_tokens=64, word="64"))
    engine = _engine_of(spec, chosen)
    assert engine.request("hi").think_tokens == 64
    engine.settings = replace(engine.settings, think=Thinking(word="max"))
    assert engine.request("hi").think_tokens is None


def test_only_a_person_without_patience_limits_what_nobody_limited(script: ScriptWriter) -> None:
    chosen = choose(f"scripted:{script({'end': 'stop'})}")
    engine = Engine(chosen)
    assert engine.thinking() == Thinking()
    engine.patience_s = 180.0
    engine.plan = replace(engine.plan, expected_decode_tps=10.0, context_tokens=16384)
    assert engine.request("hi").think_tokens == 1800
    assert engine.request("hi", think=Thinking(word="max")).think_tokens is None
    assert engine.request("hi", think=Thinking(mode="off", word="off")).think_tokens is None
    engine.spec = replace(engine.spec, tags=None)
    assert engine.request("hi").think_tokens is None


def test_where_no_speed_was_foretold_a_long_reply_tells_it(script: ScriptWriter) -> None:
    rows = (
        {"text": "a {n} ", "ids": [1], "times": 20},
        {"end": "stop"},
        {"text": "b {n} ", "times": 90},
        {"end": "stop"},
    )
    with open_model(f"scripted:{script(*rows)}@no-think,loop-guard=false") as engine:
        engine.reply("hi")
        assert engine.plan.expected_decode_tps is None
        engine.reply("hi")
        assert engine.plan.expected_decode_tps


def test_the_bridge_is_the_users_else_the_models(script: ScriptWriter) -> None:
    chosen = choose(f"scripted:{script({'end': 'stop'})}@bridge= So:")
    own = replace(chosen.plans[0], spec=replace(chosen.spec, bridge=" Enough."))
    assert Engine(replace(chosen, plans=(own,))).load_settings.bridge == " So:"
    unset = replace(chosen, plans=(own,), settings=replace(chosen.settings, bridge=None))
    assert Engine(unset).load_settings.bridge == " Enough."


def test_a_system_prompt_that_is_advised_against_heads_the_first_user_turn(script: ScriptWriter) -> None:
    chosen = choose(f"scripted:{script({'end': 'stop'})}@system=Be brief.")
    engine = _engine_of(replace(chosen.spec, advises_against_system=True), chosen)
    assert engine.request("hi").messages == (Message(role="user", content="Be brief.\n\nhi"),)
    turns = [Message(role="system", content="S"), Message(role="user", content="a")]
    turns += [Message(role="assistant", content="b"), Message(role="user", content="c")]
    later = engine.request(turns).messages
    assert [(each.role, each.content) for each in later] == [("user", "S\n\na"), ("assistant", "b"), ("user", "c")]
    assert Engine(chosen).request("hi").messages[0] == Message(role="system", content="Be brief.")


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("deepseek-r1-distil-lama-8b", UnknownModel, "deepseek-r1-distill-llama-8b"),
        ("./nowhere.gguf", UsageError, "nowhere.gguf"),
        ("hf:owner/repo@offline", DownloadFailed, "not here"),
        ("http://127.0.0.1:1/v1#m", RemoteFailed, "no engine answers"),
    ],
)
def test_what_can_not_be_opened_is_refused_by_name(reference: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        open_model(reference)


def test_a_registry_model_that_is_not_here_says_offline_what_is_missing() -> None:
    with pytest.raises(DownloadFailed, match=r"Qwen3-0\.6B") as caught:
        open_model("qwen3-0.6b@offline=true")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("slm pull qwen3-0.6b")


def test_an_openvino_folder_that_is_not_whole_is_broken(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(ModelBroken, match="openvino"):
        open_model(str(tmp_path))


def test_a_file_that_is_no_gguf_never_reaches_native_code(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(ModelBroken):
        open_model(str(path))


def test_a_registry_models_file_is_checked_like_any_other(slm_home: Path) -> None:
    variant = choose("qwen3-0.6b").spec.variants[0]
    assert variant.file is not None
    path = slm_home / "models" / variant.file
    path.parent.mkdir()
    path.write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(ModelBroken, match=variant.file):
        open_model("qwen3-0.6b")


def test_a_template_file_replaces_the_models_own(script: ScriptWriter, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}!")
    path = script({"text": "ok"}, {"end": "stop"})
    with open_model(f"scripted:{path}", settings=Settings(template_file=str(template))) as engine:
        assert engine.reply("four").usage.prompt_tokens == len("four!")
    with pytest.raises(UsageError, match="can't be read"):
        open_model(f"scripted:{path}", settings=Settings(template_file=str(tmp_path / "none.jinja")))


def test_a_template_that_does_not_parse_ends_with_the_flag_to_give(script: ScriptWriter, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for %}")
    with pytest.raises(ModelBroken) as caught:
        open_model(f"scripted:{script()}", settings=Settings(template_file=str(template)))
    assert "--template" in (caught.value.hint or "")


def test_a_stream_that_is_cancelled_ends_with_done(script: ScriptWriter) -> None:
    path = script({"text": "on "}, {"text": "and on", "delay": 60.0})
    control = Control()
    with open_model(f"scripted:{path}") as engine:
        for event in engine.stream("go", control):
            if isinstance(event, AnswerDelta):
                control.cancel()
        assert isinstance(event, Done)
        assert event.reply.finish == "cancelled"
        assert event.reply.answer.strip() == "on"
