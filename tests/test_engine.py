"""Opening models: what a reference becomes, what is refused, what a request carries."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_local.config import SamplingOverrides, Settings
from slm_local.engine import Choice, Engine, choose, open_model
from slm_local.errors import (
    DownloadFailed,
    Interrupted,
    ModelBroken,
    UnknownModel,
    UsageError,
    WorkerCrashed,
)
from slm_local.generation import AnswerDelta, Control, Done, Sampling
from tests.conftest import ScriptWriter


@pytest.fixture(autouse=True)
def scripted_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_SCRIPTED", "1")


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
    assert chosen.settings.think == "off"
    assert chosen.settings.sampling.temperature == 0.3
    assert chosen.plans[0].threads == 1


def test_the_users_sampling_lies_over_the_models(script: ScriptWriter) -> None:
    reference = f"scripted:{script({'end': 'stop'})}"
    settings = Settings(sampling=SamplingOverrides(top_k=5, seed=9))
    chosen = choose(reference, settings=settings)
    engine = Engine(chosen)
    assert engine.sampling("auto") == Sampling(top_k=5, seed=9)
    registry_choice = choose("qwen3-0.6b")
    quiet = _engine_for(registry_choice, chosen)
    assert quiet.sampling("off").temperature == 0.7
    assert quiet.sampling("auto").temperature == 0.6


def _engine_for(spec_of: Choice, runnable: Choice) -> Engine:
    engine = Engine(runnable)
    engine.spec = spec_of.spec
    return engine


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("deepseek-r1-distil-lama-8b", UnknownModel, "deepseek-r1-distill-llama-8b"),
        ("./nowhere.gguf", UsageError, "nowhere.gguf"),
        ("hf:owner/repo@offline", DownloadFailed, "not here"),
        ("http://127.0.0.1:1/v1#m", UsageError, "remote"),
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
