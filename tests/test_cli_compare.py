"""`slm compare`: its forms for people and for scripts, prompts from files, and exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm_local.cli import lanes
from slm_local.cli.render import Terminal
from slm_local.compare import LaneResult
from slm_local.compare.measures import measures
from slm_local.generation import Reply, Timings, Usage
from slm_local.tiny.heldout import draw_trials
from tests.command import THINK_THEN_ANSWER, Result, child_environment, slm
from tests.conftest import ScriptWriter

__all__ = ["slm"]

CSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")

Slm = Callable[..., Result]

GUESS: tuple[dict[str, Any], ...] = ({"text": "It is **412**.", "ids": [1, 2], "end": "stop"},)
CRASH: tuple[dict[str, Any], ...] = ({"text": "half an", "ids": [1]}, {"fault": "exit"})


@pytest.fixture
def pair(script: ScriptWriter) -> tuple[str, str]:
    return f"scripted:{script(*THINK_THEN_ANSWER, name='a')}", f"scripted:{script(*GUESS, name='b')}"


def prompts_file(folder: Path, *lines: object) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


# ---- one prompt


def test_on_a_pipe_each_answer_has_its_name_and_the_table_follows(slm: Slm, pair: tuple[str, str]) -> None:
    done = slm("compare", *pair, "-p", "What is 47 + 38?", "--expect", "85")
    assert done.code == 0
    a, b = pair
    answers, table = done.out.split("\n\n", 2)[:2], done.out.rpartition("\n\n")[2].splitlines()
    assert answers[0].splitlines()[1:] == ["It is **85**."]
    assert answers[1].splitlines()[1:] == ["It is **412**."]
    assert table[0].split() == [
        *(["first", "token", "thinking", "first", "answer", "total", "tokens/s", "peak", "memory", "finish", "answer"])
    ]
    assert re.match(rf"{re.escape(a)} +\d\.\d\d s +\d tokens · .* stop +right$", table[1])
    assert re.match(rf"{re.escape(b)} +\d\.\d\d s +- .* stop +wrong$", table[2])
    assert "7 + 8 = 15, carry 1." in done.err
    assert "7 + 8" not in done.out
    assert re.search(r"seed \d+, drawn for all; again with --seed \d+", done.err)


def test_the_json_object_is_that_of_the_contract(slm: Slm, pair: tuple[str, str]) -> None:
    done = slm("compare", *pair, "-p", "What is 47 + 38?", "--expect", "85", "--json")
    values = json.loads(done.out)
    assert list(values) == ["prompt", "expected", "results"]
    assert (values["prompt"], values["expected"]) == ("What is 47 + 38?", "85")
    first, second = values["results"]
    alone = json.loads(slm("run", pair[0], "What is 47 + 38?", "--json").out)
    assert set(first) == {*alone, "ref", "correct", "total_s"}
    assert set(first["timings"]) == set(alone["timings"])
    assert (first["ref"], first["correct"], second["correct"]) == (pair[0], True, False)
    assert {key: first[key] for key in ("thinking", "answer", "usage")} == {
        key: alone[key] for key in ("thinking", "answer", "usage")
    }
    assert first["total_s"] >= first["timings"]["first_answer_s"] > 0.0
    assert "7 + 8" not in done.err


def test_without_an_expected_answer_nothing_is_judged(slm: Slm, pair: tuple[str, str]) -> None:
    values = json.loads(slm("compare", *pair, "-p", "Hello", "--json").out)
    assert values["expected"] is None
    assert [each["correct"] for each in values["results"]] == [None, None]
    assert "right" not in slm("compare", *pair, "-p", "Hello").out


def test_the_prompt_may_come_through_a_pipe_and_behind_files(slm: Slm, pair: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some notes\n")
    piped = json.loads(slm("compare", *pair, "--json", stdin=b"from a pipe\n").out)
    assert piped["prompt"] == "from a pipe"
    behind = slm("compare", *pair, "--json", "-p", "Sum up", "-f", str(tmp_path / "notes.txt"))
    assert json.loads(behind.out)["prompt"] == "some notes\n\nSum up"


def test_quiet_says_no_thinking_and_no_notes(slm: Slm, pair: tuple[str, str]) -> None:
    done = slm("compare", *pair, "-p", "Hello", "-q")
    assert done.err == ""
    assert "It is **85**." in done.out


def test_markdown_is_a_table_to_paste_and_nothing_else(slm: Slm, pair: tuple[str, str]) -> None:
    done = slm("compare", *pair, "-p", "What is\n47 + 38?", "--expect", "85", "--md")
    lines = done.out.splitlines()
    assert lines[:5] == [
        "> What is",
        "> 47 + 38?",
        "",
        "|  | first token | thinking | first answer | total | tokens/s | peak memory | finish | answer |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    assert lines[5].startswith(f"| `{pair[0]}` | ")
    assert lines[6].endswith("| wrong |")
    assert "It is" not in done.out


def test_at_once_is_marked_below_the_table(slm: Slm, pair: tuple[str, str]) -> None:
    done = slm("compare", *pair, "-p", "Hello", "--parallel", "-v")
    assert "It is **85**." in done.out
    assert "It is **412**." in done.out
    assert "run at once (--parallel)" in done.out.splitlines()[-1]
    assert "energy was not read: lanes that run at once can't be told apart" in done.err


def test_what_is_saved_is_in_the_history_and_without_the_flag_nothing_is(slm: Slm, pair: tuple[str, str]) -> None:
    slm("compare", *pair, "-p", "not kept")
    slm("compare", *pair, "-p", "kept", "--save")
    rows = json.loads(slm("history", "list", "--json").out)
    assert [(row["kind"], row["title"]) for row in rows] == [("compare", "kept")] * 2


# ---- what goes wrong


def test_a_lane_that_fails_ends_with_its_exit_code_after_the_others_answered(
    slm: Slm, script: ScriptWriter, pair: tuple[str, str]
) -> None:
    crash = f"scripted:{script(*CRASH, name='crash')}"
    done = slm("compare", crash, pair[0], "-p", "Hello")
    assert done.code == 8
    assert "It is **85**." in done.out
    assert "half an" in done.out
    assert f"{crash}: the engine process" in done.err
    values = json.loads(slm("compare", crash, pair[0], "-p", "Hello", "--json").out)
    assert (values["results"][0]["answer"], values["results"][0]["error"]["exit_code"]) == ("half an", 8)
    assert "error" not in values["results"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{a}",), "takes two models"),
        ((), "takes two models"),
        (("{a}", "{b}", "--json", "--md"), "can't be had together"),
        (("{a}", "{b}", "--save", "--no-log"), "contradict"),
        (("{a}", "{b}", "-p", "x", "--prompts", "f"), "of its own"),
        (("{a}", "{b}", "--expect", " "), "takes an answer"),
        (("{a}", "{b}"), "the prompt is empty"),
        (("{a}", "no-such-model", "-p", "x"), "no-such-model"),
        (("{a}", "{b}@temprature=1", "-p", "x"), "temprature"),
        (("{a}", "{b}", "--prompts", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_line_to_type(
    slm: Slm, pair: tuple[str, str], arguments: tuple[str, ...], message: str
) -> None:
    done = slm("compare", *(each.format(a=pair[0], b=pair[1]) for each in arguments))
    assert done.code == 2
    assert message in done.err
    assert "\nhint: " in done.err
    assert done.out == "" or "--json" in arguments


def test_a_failure_before_the_first_token_is_an_object_too(slm: Slm, pair: tuple[str, str]) -> None:
    done = slm("compare", pair[0], "no-such-model", "-p", "Hello", "--json")
    values = json.loads(done.out)
    assert (values["prompt"], values["results"], values["error"]["exit_code"]) == ("Hello", [], 2)


# ---- many prompts


def test_over_a_file_every_prompt_is_a_line_and_the_last_line_says_what_thinking_bought(
    slm: Slm, pair: tuple[str, str], tmp_path: Path
) -> None:
    file = prompts_file(
        tmp_path, {"prompt": "47 + 38?", "expected": 85}, "", {"prompt": "400 + 12?", "expected": "412"}
    )
    done = slm("compare", *pair, "--prompts", file)
    rows, means, bought = done.out.split("\n\n")
    assert [line.split()[0] for line in rows.splitlines()[1:]] == ["1", "1", "2", "2"]
    assert [line.endswith(end) for line, end in zip(rows.splitlines()[1:], ("85", "412, not 85"), strict=False)]
    assert rows.splitlines()[3].endswith("85, not 412")
    assert re.search(rf"^{re.escape(pair[0])} +1 of 2 ", means, re.MULTILINE)
    assert bought.startswith(f"what thinking bought {pair[0]} against {pair[1]}: +0 points (1 of 2 right against 1;")
    assert "tokens and " in bought


def test_over_a_file_json_is_an_object_a_line(slm: Slm, pair: tuple[str, str], tmp_path: Path) -> None:
    file = prompts_file(tmp_path, {"prompt": "one", "expected": "85"}, {"prompt": "two"})
    done = slm("compare", *pair, "--prompts", file, "--json")
    values = [json.loads(line) for line in done.out.splitlines()]
    assert [(each["prompt"], each["expected"]) for each in values] == [("one", "85"), ("two", None)]
    assert [[one["ref"] for one in each["results"]] for each in values] == [list(pair)] * 2
    assert [one["correct"] for each in values for one in each["results"]] == [True, False, None, None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
        ('{"expected": "1"}', 'line 2 has no text under "prompt"'),
        ('{"prompt": " "}', 'line 2 has no text under "prompt"'),
        ('{"prompt": "x", "expected": true}', 'line 2: "expected" is neither'),
        ('{"prompt": "x", "expected": ""}', 'line 2: "expected" is neither'),
    ],
)
def test_a_bad_line_is_named_before_anything_is_loaded(
    slm: Slm, pair: tuple[str, str], tmp_path: Path, line: str, message: str
) -> None:
    done = slm("compare", *pair, "--prompts", prompts_file(tmp_path, {"prompt": "good"}, line))
    assert done.code == 2
    assert message in done.err
    assert "starting" not in done.err


def test_a_file_of_nothing_and_one_that_is_no_text_are_refused(slm: Slm, pair: tuple[str, str], tmp_path: Path) -> None:
    assert "has no prompts" in slm("compare", *pair, "--prompts", prompts_file(tmp_path, "", " ")).err
    (tmp_path / "latin").write_bytes(b'{"prompt": "x"}\n{"prompt": "caf\xe9"}\n')
    assert "line 2 is not UTF-8" in slm("compare", *pair, "--prompts", str(tmp_path / "latin")).err


def test_keys_that_mean_nothing_are_passed_over_and_told(slm: Slm, pair: tuple[str, str], tmp_path: Path) -> None:
    done = slm("compare", *pair, "--prompts", prompts_file(tmp_path, {"prompt": "x", "id": 3, "expcted": "y"}))
    assert done.code == 0
    assert "passed over: id, expcted" in done.err


def test_the_reasoner_is_right_more_often_than_its_twin_on_fifty_unseen_problems(slm: Slm, tmp_path: Path) -> None:
    lines = unseen_problems(add=10, subtract=10, times2=10, compare=10, story=10)
    assert len(lines) == 50
    done = slm("compare", "tiny-reasoner", "tiny-direct", "--prompts", prompts_file(tmp_path, *lines), "--json")
    assert done.code == 0
    found = [json.loads(line)["results"] for line in done.out.splitlines()]
    assert len(found) == 50
    assert sum(reasoner["correct"] for reasoner, _ in found) >= 35
    assert sum(direct["correct"] for _, direct in found) <= 20
    for reasoner, direct in found:
        assert reasoner["usage"]["think_tokens"] > direct["usage"]["think_tokens"] == 0
        assert reasoner["total_s"] >= reasoner["timings"]["first_answer_s"] >= reasoner["timings"]["first_token_s"] > 0
        assert reasoner["timings"]["peak_rss_bytes"] > 0


def unseen_problems(**counts: int) -> list[dict[str, str]]:
    """Draw so many problems of each family that occur nowhere in the models' training, with their answers."""
    lines: list[dict[str, str]] = []
    for family, count in counts.items():
        drawn = [each for each in draw_trials(family, 2 * count, 31) if not each.prompt.system]
        for trial in drawn[:count]:
            final = re.search(r"\*\*(.+?)\*\*|\{(.+?)\}", trial.answer)
            assert final is not None
            lines.append({"prompt": trial.prompt.text, "expected": final[1] or final[2]})
    return lines


# ---- tables


def result(reference: str, lane: int) -> LaneResult:
    reply = Reply(
        thinking="",
        answer="85",
        finish="stop",
        cut="budget",
        usage=Usage(think_tokens=1812, answer_tokens=10),
        timings=Timings(
            first_token_s=0.3, first_answer_s=41.2, decode_s=42.0, decode_tps=44.0, peak_rss_bytes=5 * 10**9
        ),
    )
    return LaneResult(
        lane=lane, prompt=0, reference=reference, seed=1, reply=reply, total_s=43.0, joules=512.0, correct=True
    )


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    known = measures([result("a", 0)])
    assert {"energy", "cut", "answer"} <= set(known[0])
    assert ("512 J" in known[1], "budget" in known[1], "right" in known[1]) == (True, True, True)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "head"), [(200, "first token  thinking"), (70, "some/model.gguf@no-think"), (40, "some/model.gguf")]
)
def test_a_table_is_turned_round_or_stacked_rather_than_cut(
    columns: int, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen()
    rows = measures([result("some/model.gguf", 0), result("some/model.gguf@no-think", 1)])
    lanes.write_rows(Terminal(screen, io.StringIO(), {"TERM": "dumb"}), rows)
    lines = screen.getvalue().splitlines()
    assert head in lines[0]
    assert max(len(line) for line in lines) <= columns
    for cell in (*rows[0][1:], *rows[1], *rows[2]):
        assert cell in screen.getvalue()


def test_a_pipe_in_a_markdown_cell_is_escaped() -> None:
    assert "`a\\|b`" in lanes.markdown_table([["", "x"], ["a|b", "1"]])


# ---- on a terminal


@pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX pseudo-terminal")
def test_on_a_terminal_each_lane_has_its_panels_and_a_narrow_table_is_turned_round(pair: tuple[str, str]) -> None:
    child = on_terminal("compare", *pair, "-p", "What is 47 + 38?", "--expect", "85")
    text = CSI.sub(b"", child.read()).decode().replace("\r", "")
    child.close()
    assert child.exitstatus == 0, text
    for name in ("thinking", "answer"):
        assert text.count(f"── {name} · ") == (1 if name == "thinking" else 2)
    assert text.index("7 + 8 = 15, carry 1.") < text.index("It is 85.") < text.index("It is 412.")
    assert re.search(r"^ *first token +\d\.\d\d s$", text, re.MULTILINE)
    assert len(re.findall(r"^ *answer +(right|wrong)$", text, re.MULTILINE)) == 2


@pytest.mark.skipif(os.name == "nt", reason="pexpect needs a POSIX pseudo-terminal")
def test_ctrl_c_stops_all_and_shows_what_is_there(script: ScriptWriter, pair: tuple[str, str]) -> None:
    slow = f"scripted:{script({'text': 'so far'}, {'text': ' never', 'delay': 60.0, 'end': 'stop'}, name='slow')}"
    child = on_terminal("compare", pair[1], slow, pair[0], "-p", "Hello")
    child.expect("so far")
    child.sendintr()
    text = CSI.sub(b"", child.read()).decode()
    child.close()
    assert child.exitstatus == 130, text
    assert "stopped" in text
    assert text.count("cancelled") == 2


def on_terminal(*arguments: str) -> Any:
    import pexpect

    return pexpect.spawn(
        sys.executable,
        ["-m", "slm_local", *arguments],
        env=child_environment({"TERM": "xterm-256color"}),
        dimensions=(24, 80),
        timeout=120,
    )
