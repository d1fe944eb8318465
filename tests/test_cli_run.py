"""`slm run`: prompt, stdout, stderr, JSON, exit codes; on the scripted backend and the embedded model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm_local.sanitize import UNSAFE
from tests.command import THINK_THEN_ANSWER, Result, child_environment, slm, slm_process
from tests.conftest import ScriptWriter

Slm = Callable[..., Result]

__all__ = ["slm"]

REPLY_KEYS = [
    "model",
    "backend",
    "device",
    "quant",
    "prompt",
    "thinking",
    "answer",
    "finish",
    "cut",
    "usage",
    "timings",
]
USAGE_KEYS = [
    *("prompt_tokens", "cached_tokens", "think_tokens", "answer_tokens", "tag_tokens", "injected_tokens"),
    *("probes", "probe_tokens", "drafted_tokens", "accepted_tokens"),
]
TIMING_KEYS = ["load_s", "prefill_s", "first_token_s", "first_answer_s", "decode_s", "prefill_tps", "decode_tps"]


@pytest.fixture
def model(script: ScriptWriter) -> str:
    return f"scripted:{script(*THINK_THEN_ANSWER)}"


def lines_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_json_of_a_reply_carries_hostile_text_exactly_and_as_escapes(slm: Slm, script: ScriptWriter) -> None:
    answer = "\x9b31mred\u202e]"
    hostile = f"scripted:{script({'text': answer, 'ids': [1], 'end': 'stop'})}"
    for words in (("run", hostile, "x", "--json"), ("run", hostile, "x", "--jsonl"), ("history", "show", "--json")):
        done = slm(*words)
        assert done.code == 0, done.err
        assert not UNSAFE.search(done.out)
        last = json.loads(done.out.splitlines()[-1])
        assert [each["answer"] for each in last.get("turns", [last])] == [answer]


# ---- what is asked


def prompt_of(result: Result) -> str:
    assert result.code == 0, result.err
    return str(json.loads(result.out)["prompt"])


def test_the_prompt_is_all_words_with_stdin_behind_them(slm: Slm, model: str) -> None:
    assert prompt_of(slm("run", model, "Sum", "up:", "--json", stdin=b"one\ntwo\n")) == "Sum up:\n\none\ntwo"


def test_with_files_the_order_is_files_stdin_words(slm: Slm, model: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"file {name}\n", encoding="utf-8")
    files = ("-f", str(tmp_path / "a"), "-f", str(tmp_path / "b"))
    prompt = prompt_of(slm("run", model, "words", "--json", *files, stdin=b"piped"))
    assert prompt == "file a\n\nfile b\n\npiped\n\nwords"


def test_stdin_alone_is_a_prompt(slm: Slm, model: str) -> None:
    assert prompt_of(slm("run", model, "--json", stdin="\ufeffgrüß".encode())) == "grüß"


def test_with_m_every_word_is_prompt(slm: Slm, model: str) -> None:
    assert prompt_of(slm("run", "-m", model, "tiny-direct", "hi", "--json")) == "tiny-direct hi"


def test_slm_model_is_meant_when_the_first_word_names_none(
    slm: Slm, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_MODEL", model)
    assert prompt_of(slm("run", "What", "is", "it?", "--json")) == "What is it?"
    named = slm("run", model, "What", "--json")
    assert prompt_of(named) == "What"


def test_bytes_that_are_not_utf8_are_replaced_and_told_of(slm: Slm, model: str) -> None:
    result = slm("run", model, "--json", stdin=b"caf\xe9")
    assert prompt_of(result) == "caf\ufffd"
    assert "U+FFFD" in result.err


def test_words_that_are_not_utf8_are_replaced_and_told_of(slm: Slm, model: str) -> None:
    result = slm("run", model, "caf\udce9", "--json")
    assert prompt_of(result) == "caf\ufffd"
    assert "U+FFFD" in result.err


@pytest.mark.parametrize("words", [("",), ("  ",), ()])
def test_an_empty_prompt_is_a_usage_error(slm: Slm, model: str, words: tuple[str, ...]) -> None:
    result = slm("run", model, *words, stdin=b" \n")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: the prompt is empty\nhint: slm run ")


def test_a_file_that_is_no_text_is_refused_by_name(slm: Slm, model: str, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, said in (("binary", "binary file"), ("latin", "not UTF-8 text: byte 4"), ("absent", "No such file")):
        result = slm("run", model, "x", "-f", str(tmp_path / name))
        assert result.code == 2
        assert said in result.err


# ---- what comes out


def test_on_a_pipe_stdout_is_the_answer_and_stderr_the_thinking(slm: Slm, model: str) -> None:
    result = slm("run", model, "What is 47 + 38?")
    assert (result.code, result.out) == (0, "It is **85**.\n")
    assert "7 + 8 = 15, carry 1." in result.err


@pytest.mark.parametrize("flag", ["-q", "--hide-thinking", "SLM_HIDE_THINKING"])
def test_thinking_can_be_kept_off_stderr(slm: Slm, model: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if flag.startswith("-"):
        result = slm("run", model, "x", flag)
    else:
        monkeypatch.setenv(flag, "1")
        result = slm("run", model, "x")
    assert result.out == "It is **85**.\n"
    assert "carry" not in result.err


def test_text_of_the_model_is_made_visible_on_a_pipe_and_exact_in_json(slm: Slm, script: ScriptWriter) -> None:
    hostile = "a\x1b]52;c;aGk=\x07\u202e[/]"
    model = f"scripted:{script({'text': hostile, 'ids': [1], 'end': 'stop'})}"
    assert slm("run", model, "x").out == "a␛]52;c;aGk=␇⟨U+202E⟩[/]\n"
    assert json.loads(slm("run", model, "x", "--json").out)["answer"] == hostile


def test_json_is_one_object_of_the_contracts_shape(slm: Slm, model: str) -> None:
    result = slm("run", model, "What is 47 + 38?", "--json")
    value = json.loads(result.out)
    assert list(value) == REPLY_KEYS
    assert list(value["usage"]) == USAGE_KEYS
    assert list(value["timings"]) == [*TIMING_KEYS, "peak_rss_bytes"]
    assert (value["thinking"], value["answer"]) == ("7 + 8 = 15, carry 1.", "It is **85**.")
    assert (value["backend"], value["finish"], value["cut"]) == ("scripted", "stop", "none")
    assert "carry" not in result.err


def test_json_lines_keep_the_order_and_join_to_the_fields(slm: Slm, model: str) -> None:
    events = lines_of(slm("run", model, "x", "--jsonl").out)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "done"
    assert kinds[1:-1] == sorted(kinds[1:-1], reverse=True)
    assert set(kinds[1:-1]) == {"think", "answer"}
    done = events[-1]
    assert list(done) == ["event", *REPLY_KEYS]
    for kind, field in (("think", "thinking"), ("answer", "answer")):
        assert "".join(event["text"] for event in events if event["event"] == kind) == done[field]


def test_v_says_plan_defaults_and_timings_on_stderr(slm: Slm, model: str) -> None:
    result = slm("run", model, "x", "-v", "--temp", "0.5")
    assert result.out == "It is **85**.\n"
    for word in ("because:", "temperature 0.5", "load duration:", "prompt eval count:", "eval rate:"):
        assert word in result.err


def test_a_cut_reply_says_so_and_exits_with_0(slm: Slm, model: str) -> None:
    result = slm("run", model, "x", "-n", "8", "-q")
    assert (result.code, result.out) == (0, "It is\n")
    assert "the answer was cut at 8 tokens\nhint: --max-tokens 16\n" in result.err


# ---- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "code", "said", "hint"),
    [
        (("run", "tiny-resoner", "x"), 2, "near it: tiny-reasoner", "slm ls --all"),
        (("run", "./absent.gguf", "x"), 2, "there is no file ./absent.gguf", "slm ls"),
        (("run", "tiny", "x", "--think", "maybe"), 2, "--think takes off, on, auto, low", "--think off"),
        (("run", "tiny", "x", "--temp", "hot"), 2, "--temp takes a number from 0 to 10, not 'hot'", "--temp 0.6"),
        (("run", "tiny", "x", "--no-think", "--think", "on"), 2, "contradict", "--think off"),
        (("run", "tiny", "x", "-o", "topp=1"), 2, "near it: top_p", "-o top_p=0.95"),
        (("run", "tiny", "x", "--pace", "fast"), 2, "--pace takes tokens a second", "--pace 60"),
        (("run", "tiny", "x", "--json", "--jsonl"), 2, "can't be had together", "--jsonl"),
        (("run", "tiny", "x", "--tmp", "1"), 2, "there is no flag --tmp", "slm run --temp"),
        (("run", "tiny", "-5 + 3"), 2, "there is no flag -5", "-- "),
        (("run", "tiny", "x", "--temp"), 2, "requires an argument", "slm run --help"),
        (("run",), 2, "which model?", "slm run tiny-reasoner"),
        (("rnu", "tiny"), 2, "there is no command 'rnu'", "slm run"),
        (("run", "tiny@think=3d", "x"), 2, "@think on the model takes off, on, auto, low", "@think=off"),
        (("run", "tiny", "x", "--think", "9", "--think-budget", "8"), 2, "contradict", "--think 9"),
    ],
)
def test_bad_input_is_said_in_one_line_with_what_to_type(
    slm: Slm, arguments: tuple[str, ...], code: int, said: str, hint: str
) -> None:
    result = slm(*arguments)
    error, advice = result.err.splitlines()
    assert (result.code, result.out) == (code, "")
    assert error.startswith("error: ")
    assert said in error
    assert advice.startswith("hint: ")
    assert hint in advice


def test_a_prompt_longer_than_the_context_names_both_counts(slm: Slm, model: str) -> None:
    result = slm("run", model, "word " * 100, "--ctx", "128")
    assert result.code == 6
    assert re.search(r"error: the prompt has 5\d\d tokens and the context holds 128\n", result.err)


def test_a_failure_before_the_first_event_is_a_json_object_with_the_error(slm: Slm) -> None:
    result = slm("run", "nothing-like-it", "x", "--json")
    value = json.loads(result.out)
    assert list(value) == [*REPLY_KEYS, "error"]
    assert (value["model"], value["prompt"], value["finish"]) == ("nothing-like-it", "x", "error")
    assert list(value["error"]) == ["type", "message", "hint", "exit_code"]
    assert (value["error"]["type"], value["error"]["exit_code"], result.code) == ("UnknownModel", 2, 2)
    assert result.err.startswith("error: ")


def test_a_crash_keeps_what_was_streamed_and_names_the_log(slm: Slm, script: ScriptWriter) -> None:
    crash = {"fault": "segv", "delay": 0.1}
    model = f"scripted:{script({'text': 'so far ', 'ids': [1]}, {'text': 'good', 'ids': [1], 'delay': 0.1}, crash)}"
    result = slm("run", model, "x")
    assert (result.code, result.out) == (8, "so far good\n")
    assert "SIGSEGV" in result.err or "access violation" in result.err
    assert ".log" in result.err.splitlines()[-1]
    events = lines_of(slm("run", model, "x", "--jsonl").out)
    assert events[-1]["event"] == "error"
    assert (events[-1]["answer"], events[-1]["error"]["type"]) == ("so far good", "WorkerCrashed")
    assert not any(event["event"] == "done" for event in events)


def test_a_traceback_is_shown_only_when_asked_for(slm: Slm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in slm("run", "nothing-like-it", "x").err
    monkeypatch.setenv("SLM_DEBUG", "1")
    assert "Traceback" in slm("run", "nothing-like-it", "x").err


def test_a_bug_of_ours_is_one_line_and_exit_1(slm: Slm, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("slm_local.cli.run.registry_here", broken)
    result = slm("run", "tiny", "x")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: a bug of slm: ZeroDivisionError: by zero\nhint: ")


# ---- the embedded models


def test_an_embedded_model_out_of_its_depth_names_a_better_one(slm: Slm) -> None:
    result = slm("run", "tiny-reasoner", "Who wrote Hamlet?")
    assert result.code == 0
    assert "tiny-reasoner is a toy of 1.8 million parameters that ships inside slm" in result.err
    assert re.match(r"hint: slm plan [\w.-]+$", result.err.splitlines()[-1])


# ---- a process of its own


def test_a_reader_that_leaves_early_is_no_error(script: ScriptWriter) -> None:
    rows = [{"text": f"line {number}\n", "ids": [1], "delay": 0.005} for number in range(400)]
    model = f"scripted:{script(*rows)}"
    child = subprocess.Popen(
        [sys.executable, "-m", "slm_local", "run", model, "x"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == b"line 0\n"
    child.stdout.close()
    said = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(120) == 0
    assert "Error" not in said
    assert "error" not in said


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_keeps_the_partial_answer_and_exits_with_130(script: ScriptWriter) -> None:
    rows = [{"text": "first", "ids": [1]}, {"text": "never", "ids": [1], "delay": 60}]
    child = subprocess.Popen(
        [sys.executable, "-m", "slm_local", "run", f"scripted:{script(*rows)}", "x"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    assert child.stdout is not None
    assert child.stdout.read(5) == b"first"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert (out, err.splitlines()[-1]) == (b"\n", b"stopped")


def test_a_limit_that_was_reached_is_told_with_what_to_type_and_stands_in_the_json(slm: Slm, model: str) -> None:
    result = slm("run", model, "x", "--think", "3", "--json")
    reply = json.loads(result.out)
    usage = reply["usage"]
    assert reply["cut"] == "budget"
    assert usage["think_tokens"] - usage["tag_tokens"] - usage["injected_tokens"] <= 3
    assert "thinking was ended at 3 tokens\nhint: --think 6\n" in result.err


def test_on_a_pipe_nobody_limits_thinking(slm: Slm, model: str) -> None:
    for flags in ((), ("--think", "auto"), ("--think", "max")):
        result = slm("run", model, "x", "--jsonl", *flags)
        assert lines_of(result.out)[0]["context_tokens"] > lines_of(result.out)[0]["think_tokens"] > 10_000


def test_less_room_than_was_asked_for_is_told(slm: Slm, model: str) -> None:
    result = slm("run", model, "x", "--think", "5000", "--ctx", "1024")
    assert re.search(
        r"there was room for \d+ of the 5,000 tokens of thinking asked for"
        r"(\nhint: --ctx 2048|: this model's context is 1,024 tokens)\n",
        result.err,
    )
    assert "there was room" not in slm("run", model, "x", "--ctx", "1024").err


def test_a_limit_for_a_model_that_does_not_think_is_told_once_and_no_error(slm: Slm) -> None:
    result = slm("run", "tiny-direct", "What is 2 + 3?", "--think", "64")
    assert result.code == 0
    assert result.err.count("tiny-direct has no thinking of its own: --think 64 changes nothing\n") == 1
    refused = slm("run", "tiny-direct", "What is 2 + 3?", "--think", "on")
    assert (refused.code, "no thinking to switch on" in refused.err) == (2, True)


def test_a_model_of_ones_own_thinks_and_is_told_things_as_its_entry_says(slm: Slm, slm_home: Path) -> None:
    (slm_home / "config").mkdir()
    entry = '[models.mine]\nbase = "tiny"\nthink = 8\nbridge = " Enough."\nadvises_against_system = true\n'
    (slm_home / "config" / "models.toml").write_text(entry, encoding="utf-8")
    result = slm("run", "mine", "What is 47 + 38?", "-s", "Add.", "-v", "--jsonl")
    thinking = lines_of(result.out)[-1]["thinking"]
    assert thinking.endswith(" Enough.\n")
    assert "think:     8: up to 8 tokens\n" in result.err
    assert "system:    at the head of the first prompt, for its makers advise against a system prompt\n" in result.err
    assert "1 of them tags" not in result.err
    assert re.search(r"eval count: +\d+ tokens \(thinking \d+, \d+ of them injected\)", result.err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_can_not_be_written_is_said() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "slm_local", "ls"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
            env=child_environment(),
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-2:] == [
        "error: the system refuses: [Errno 28] No space left on device",
        "hint: df -h",
    ]


def test_slm_is_also_a_module() -> None:
    done = slm_process("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, b"slm")


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_flags_that_can_not_be_read_still_leave_the_object_a_script_waits_for(slm: Slm, form: str) -> None:
    result = slm("run", "tiny-reasoner", "x", form, "--nope")
    assert result.code == 2
    assert json.loads(result.out)["error"]["exit_code"] == 2
