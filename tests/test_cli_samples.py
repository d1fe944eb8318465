"""`slm run --samples N [--vote]`: its forms for people and for scripts, what is refused, what is kept."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slm_local.cli.columns import ColumnsView
from slm_local.cli.render import Terminal, columns_of
from slm_local.cli.watching import Sampled, watch
from slm_local.errors import UsageError
from slm_local.generation import AnswerDelta, Control, Reply, Started, ThinkDelta, Timings, Usage
from slm_local.samples import Ballot, Sample, SampleEvent, SampleMessage, Vote
from tests.command import Result, child_environment, slm
from tests.conftest import ScriptWriter

__all__ = ["slm"]

Slm = Callable[..., Result]

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SIZES = ((80, 24), (200, 60), (40, 12), (20, 5))


def says(answer: str) -> dict[str, Any]:
    return {"text": f"<think>hm</think>It is **{answer}**.", "ids": [1, 2], "end": "stop"}


@pytest.fixture
def refer(script: ScriptWriter) -> Callable[..., str]:
    return lambda *answers: f"scripted:{script(*map(says, answers))}"


# ---- on a pipe


def test_with_a_vote_stdout_is_the_winning_answer_and_stderr_tells_the_rest(
    slm: Slm, refer: Callable[..., str]
) -> None:
    done = slm("run", refer("84", "85", "85"), "x", "--samples", "3", "--vote")
    assert (done.code, done.out) == (0, "It is **85**.\n")
    assert "2 of 3 say 85\n85 ×2 · 84 ×1\n" in done.err
    assert re.search(r"── thinking · sample [123] of 3 ──\nhm\nsample [123] of 3: 84\n", done.err)
    first = re.search(r"seeds (\d+) to (\d+), drawn; again with --seed (\d+)", done.err)
    assert first is not None
    assert first[1] == first[3]


def test_without_a_vote_every_answer_stands_under_its_number(slm: Slm, refer: Callable[..., str]) -> None:
    done = slm("run", refer("84", "85", "84"), "x", "--samples", "3", "--seed", "5")
    parts = done.out.split("\n\n")
    assert (done.code, parts[-1]) == (0, "")
    assert [part.splitlines()[0] for part in parts[:-1]] == [f"── sample {n} of 3 ──" for n in (1, 2, 3)]
    assert sorted(part.splitlines()[1] for part in parts[:-1]) == ["It is **84**.", "It is **84**.", "It is **85**."]
    assert "2 of 3 say 84" in done.err
    assert "again with" not in done.err


def test_quiet_says_nothing_but_the_answer(slm: Slm, refer: Callable[..., str]) -> None:
    done = slm("run", refer("85", "85", "85"), "x", "--samples", "3", "--vote", "-q")
    assert (done.code, done.out) == (0, "It is **85**.\n")
    assert done.err in ("", "starting the engine…\n")


def test_vote_alone_means_eight_samples(slm: Slm, refer: Callable[..., str]) -> None:
    done = slm("run", refer("85"), "x", "--vote", "--json")
    assert json.loads(done.out)["asked"] == 8


def test_a_tie_is_said_also_where_nothing_else_is(slm: Slm, refer: Callable[..., str]) -> None:
    done = slm("run", refer("84", "85", "84", "85"), "x", "--samples", "4", "--vote", "-q")
    assert done.code == 0
    assert re.search(r"a tie: 2 of 4 say 8[45], 2 say 8[45]; the answer of the one that thought least", done.err)


def test_why_samples_were_cut_is_said_once_with_how_many(slm: Slm, script: ScriptWriter) -> None:
    endless = f"scripted:{script({'text': 'word {n} ', 'ids': [1], 'times': 400})}"
    done = slm("run", endless, "x", "--samples", "3", "--vote", "-n", "8", "--no-loop-guard")
    assert (done.code, done.out) == (0, "")
    assert "none of 3 samples came to an answer" in done.err
    assert "3 of 3 samples: the answer was cut" in done.err
    assert done.err.count("hint:") == 1


# ---- JSON


def test_the_json_object_is_that_of_the_contract(slm: Slm, refer: Callable[..., str]) -> None:
    done = slm("run", refer("84", "85", "85"), "x", "--samples", "3", "--vote", "--json", "--seed", "7")
    values = json.loads(done.out)
    assert list(values) == [
        *("answer", "winner", "tied", "votes", "asked", "ending", "probability", "saved", "samples"),
    ]
    assert (values["answer"], values["tied"], values["asked"]) == ("It is **85**.", False, 3)
    assert [(each["answer"], each["count"]) for each in values["votes"]] == [("85", 2), ("84", 1)]
    assert values["winner"] in values["votes"][0]["samples"]
    assert (values["ending"], values["probability"]) == ("all", None)
    assert values["saved"] == {"samples": 0, "tokens": 0}
    alone = json.loads(slm("run", refer("85"), "x", "--json").out)
    for number, each in enumerate(values["samples"]):
        assert list(each) == ["sample", "seed", "vote", *alone]
        assert (each["sample"], each["seed"]) == (number, 7 + number)
    assert "hm" not in done.err


def test_every_json_line_has_the_number_of_its_sample_and_the_last_is_the_vote(
    slm: Slm, refer: Callable[..., str]
) -> None:
    done = slm("run", refer("84", "85", "85"), "x", "--samples", "3", "--vote", "--jsonl")
    *lines, last = [json.loads(line) for line in done.out.splitlines()]
    assert last["event"] == "votes"
    assert "samples" not in last
    assert {each["sample"] for each in lines} == {0, 1, 2}
    for number in range(3):
        own = [each["event"] for each in lines if each["sample"] == number]
        assert (own[0], own[-1], own.count("done")) == ("started", "done", 1)
    texts = [each["text"] for each in lines if each["event"] == "answer" and each["sample"] == last["winner"]]
    assert "".join(texts) == last["answer"]


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_a_failure_is_in_the_object(slm: Slm, script: ScriptWriter, form: str) -> None:
    crash = f"scripted:{script({'text': 'half an', 'ids': [1]}, {'fault': 'exit'})}"
    done = slm("run", crash, "x", "--samples", "2", form)
    values = json.loads(done.out.splitlines()[-1])
    assert done.code == 8
    assert (values["error"]["type"], values["ending"], values["answer"]) == ("WorkerCrashed", "failed", None)


# ---- what is refused


@pytest.mark.parametrize("number", ["0", "-1", "65", "many", "1.5", ""])
def test_a_number_that_cannot_be_is_refused_before_anything_is_loaded(slm: Slm, number: str) -> None:
    done = slm("run", "tiny-reasoner", "x", f"--samples={number}", "--json")
    assert done.code == 2
    assert f"--samples takes a number from 1 to 64, not {number!r}\nhint: --samples 8\n" in done.err
    assert json.loads(done.out)["error"]["exit_code"] == 2
    assert json.loads(done.out)["votes"] == []


def test_greed_that_was_asked_for_is_refused_with_what_to_type(slm: Slm, refer: Callable[..., str]) -> None:
    for words in (("--temp", "0"), ("-o", "temperature=0")):
        done = slm("run", refer("85"), "x", "--samples", "4", *words)
        assert (done.code, done.out) == (2, "")
        assert done.err == "error: at temperature 0 all 4 samples are the same\nhint: --temp 0.6\n"


def test_a_model_that_is_greedy_by_default_is_sampled_and_that_is_said(slm: Slm) -> None:
    done = slm("run", "tiny-reasoner", "What is 47 + 38?", "--samples", "2", "--vote")
    assert (done.code, done.out) == (0, "The answer is **85**.\n")
    assert "its samples are drawn at temperature 0.6 · --temp X" in done.err
    (turn,) = (each for each in kept(slm) if each["state"] == "done")
    assert turn["settings"]["temperature"] == 0.6


# ---- what is kept


def kept(slm: Slm) -> list[dict[str, Any]]:
    return list(json.loads(slm("history", "show", "--json").out)["turns"])


def test_the_history_shows_the_winner_as_one_of_several_and_has_the_others(slm: Slm, refer: Callable[..., str]) -> None:
    told = slm("run", refer("84", "85", "85"), "x", "--samples", "3", "--vote").err
    shown = slm("history", "show")
    assert "It is **85**." in shown.out
    assert "(one of 3 samples)" in shown.out
    assert "84" not in shown.out
    hint = re.search(r"all 3 are kept · slm (history show \d+ --all)", told)
    assert hint is not None
    assert "(another sample of the same prompt)" in slm(*hint[1].split()).out
    assert "2 turns undone, answered anew or other samples" in shown.err
    assert sorted(turn["state"] for turn in kept(slm)) == ["done", "sample", "sample"]
    assert {turn["settings"]["samples"] for turn in kept(slm)} == {3}
    assert len(slm("history", "export", "--format", "jsonl").out.splitlines()) == 1


def test_a_conversation_goes_on_with_samples_and_with_the_winner_of_them(slm: Slm, refer: Callable[..., str]) -> None:
    model = refer("85")
    slm("run", model, "first", "--samples", "2")
    done = slm("run", "-c", "second", "--samples", "2", "--json")
    assert done.code == 0, done.err
    prompts = [turn["prompt"] for turn in kept(slm) if turn["state"] == "done"]
    assert prompts == ["first", "second"]
    alone = json.loads(slm("run", model, "second", "--json").out)
    with_history = json.loads(done.out)["samples"][0]
    assert with_history["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]


def test_nothing_is_kept_where_that_is_not_wanted(slm: Slm, refer: Callable[..., str]) -> None:
    done = slm("run", refer("85", "85"), "x", "--samples", "2", "--no-log")
    assert "are kept" not in done.err
    assert slm("history", "show").code == 2


# ---- in columns


class Screen(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True

    def taken(self) -> str:
        """Return what was written since the last time, without escapes."""
        text = ESCAPES.sub("", self.getvalue())
        self.seek(0)
        self.truncate()
        return text


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    return Screen()


def sized(monkeypatch: pytest.MonkeyPatch, columns: int, rows: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))


def columns_view(screen: Screen, asked: int = 8, *, votes: bool = True) -> ColumnsView:
    terminal = Terminal(screen, Screen(), {"TERM": "xterm-256color"})
    return ColumnsView(terminal, "tiny", asked=asked, votes=votes, shows_thinking=True)


def ended(number: int, answer: str | None) -> Sample:
    text = "" if answer is None else f"It is **{answer}**."
    usage = Usage(think_tokens=5)
    finish = "stop" if answer is not None else "cancelled"
    reply = Reply(thinking="t", answer=text, finish=finish, cut="none", usage=usage, timings=Timings())  # type: ignore[arg-type]
    return Sample(number=number, seed=number, reply=reply, vote=answer)


def vote_of(*samples: Sample, asked: int = 8) -> Vote:
    answers = list(dict.fromkeys(each.vote for each in samples if each.vote))
    ballots = [Ballot(answer=a, samples=tuple(each.number for each in samples if each.vote == a)) for a in answers]
    return Vote(
        asked=asked, samples=samples, ballots=tuple(sorted(ballots, key=lambda each: -each.count)), ending="likely"
    )


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_columns_and_tally_fit_every_terminal(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, columns: int, rows: int
) -> None:
    sized(monkeypatch, columns, rows)
    view = columns_view(screen)
    for number in range(8):
        view.feed(number, Started(prompt_tokens=3, cached_tokens=0, context_tokens=512, think_state="open"))
        view.feed(number, ThinkDelta(text=f"thought of {number} " + "日本語 and more words " * 40, tokens=99))
    view.draw(None, remark="Ctrl-C stops")
    lines = screen.taken().splitlines()
    assert max(columns_of(line) for line in lines) <= columns
    assert len(lines) <= rows + 1  # the title goes into the scrollback


def test_as_many_columns_as_fit_and_the_rest_in_one_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, 80, 24)
    view = columns_view(screen)
    for number in range(8):
        view.feed(number, Started(prompt_tokens=3, cached_tokens=0, context_tokens=512, think_state="open"))
        view.feed(number, ThinkDelta(text=f"idea {number}", tokens=9))
    view.end(ended(0, "85"))
    view.draw(vote_of(ended(0, "85")), remark="Ctrl-C stops")
    lines = screen.taken().splitlines()
    assert [cell.strip() for cell in lines[1].split("│")] == ["5 thinks 9", "2 thinks 9", "3 thinks 9", "4 thinks 9"]
    assert [cell.strip() for cell in lines[2].split("│")] == ["idea 4", "idea 1", "idea 2", "idea 3"]
    assert lines[3].strip() == "1 → 85   6 thinks 9   7 thinks 9   8 thinks 9"
    assert lines[4] == "85  ■ 1 of 8 · 1"
    assert lines[5] == "1 of 8 samples ended · 72 tokens · Ctrl-C stops"


def test_a_row_of_columns_is_one_line_also_where_an_answer_begins_between_two_frames(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 80, 24)
    view = columns_view(screen, 2)
    view.feed(0, ThinkDelta(text="thought\n", tokens=5))
    view.feed(0, AnswerDelta(text="It is an answer that is longer than a column is wide.", tokens=9))
    view.draw(None, remark="")
    lines = [line.rstrip() for line in screen.taken().splitlines()]
    assert [line.partition("│")[0].strip() for line in lines[2:6]] == [
        *("thought", "", "It is an answer that is longer than a", "column is wide."),
    ]


def test_what_stays_is_the_tally_and_the_winning_answer(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, 80, 24)
    view = columns_view(screen)
    samples = [ended(0, "84"), *(ended(number, "85") for number in range(1, 6)), ended(6, None), ended(7, None)]
    for each in samples:
        view.feed(each.number, ThinkDelta(text="t", tokens=5))
        view.end(each)
    view.close(Sampled(vote=vote_of(*samples)))
    lines = screen.taken().splitlines()
    assert lines[0].startswith("── 8 samples · tiny ──")
    assert [line.rstrip() for line in lines[1:3]] == ["85  ■■■■■ 5 of 8 · 2, 3, 4, 5, 6", "84  ■ 1 of 8 · 1"]
    assert lines[3].startswith("── answer · tiny ──")
    assert lines[4] == "It is 85."


def test_without_a_vote_answers_are_shown_in_the_order_of_their_numbers(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 80, 24)
    view = columns_view(screen, 3, votes=False)
    for number in range(3):
        view.feed(number, AnswerDelta(text="x", tokens=1))
    view.end(ended(1, "85"))
    view.draw(None, remark="")
    assert "── sample" not in screen.taken()
    view.end(ended(0, "84"))
    view.draw(None, remark="")
    shown = screen.taken()
    assert shown.index("── sample 1 of 3") < shown.index("It is 84.") < shown.index("── sample 2 of 3")
    view.end(ended(2, "85"))
    view.close(Sampled(vote=vote_of(ended(0, "84"), ended(1, "85"), ended(2, "85"), asked=3)))
    assert screen.taken().count("── sample 3 of 3") == 1


def test_each_sample_is_shown_at_its_own_pace_and_its_vote_with_its_end() -> None:
    class Noting:
        frame_s = 0.001

        def __init__(self) -> None:
            self.noted: list[str] = []

        def feed(self, sample: int, event: object) -> None:
            self.noted.append(f"token {sample}")

        def end(self, sample: Sample) -> None:
            self.noted.append(f"end {sample.number}")

        def draw(self, vote: Vote | None, *, remark: str) -> None:
            pass

        def close(self, outcome: Sampled) -> None:
            self.noted.append("closed")

    view = Noting()
    messages: list[SampleMessage] = [
        SampleEvent(sample=n, event=ThinkDelta(text="t", tokens=1)) for n in (0, 0, 0, 0, 1)
    ]
    messages += [ended(0, "85"), ended(1, "85"), vote_of(ended(0, "85"), ended(1, "85"), asked=2)]
    outcome = watch(iter(messages), view, Control(), asked=2, pace=100.0)
    assert outcome.vote.most == 2
    assert view.noted.count("token 0") == 4
    assert view.noted.index("end 1") < view.noted.index("end 0")
    assert view.noted[-2:] == ["end 0", "closed"]


def test_an_error_before_the_first_sample_is_part_of_the_outcome() -> None:
    def failing(error: UsageError | None) -> Iterator[SampleMessage]:
        if error is not None:
            raise error
        yield vote_of()

    view = columns_view(Screen())
    outcome = watch(failing(UsageError("no", hint="yes")), view, Control(), asked=4)
    assert isinstance(outcome.error, UsageError)
    assert outcome.vote.ending == "failed"


# ---- a person at the terminal

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pseudo-terminal and its signals")

THINKS: tuple[dict[str, Any], ...] = (
    {"text": "<think>", "ids": [1]},
    {"text": "<think>", "ids": [1]},
    {"text": "thought number {n}. ", "ids": [2], "delay": 0.02, "times": 4000},
    {"text": "</think>", "ids": [3]},
    {"text": "</think>", "ids": [3]},
    {"text": "It is 85.", "ids": [4], "end": "stop"},
    {"text": "It is 85.", "ids": [4], "end": "stop"},
)


def spawned(model: str) -> Any:
    import pexpect

    words = ["-m", "slm_local", "run", model, "x", "--samples", "2", "--vote", "--no-loop-guard"]
    environment = child_environment({"TERM": "xterm-256color"})
    return pexpect.spawn(sys.executable, words, env=environment, dimensions=(24, 100), timeout=60)


@needs_posix
def test_enter_ends_the_thinking_of_all_and_the_vote_is_told(script: ScriptWriter) -> None:
    child = spawned(f"scripted:{script(*THINKS)}")
    child.expect_exact("thought number")
    child.sendline("")
    text = ESCAPES.sub("", child.read().decode())
    child.close()
    assert child.exitstatus == 0
    assert "2 of 2 say 85" in text
    assert re.search(r"[12] of 2 samples: thinking was ended, as you asked", text)


@needs_posix
def test_ctrl_c_stops_all_and_what_is_there_is_told(script: ScriptWriter) -> None:
    child = spawned(f"scripted:{script(*THINKS)}")
    child.expect_exact("thought number")
    child.sendintr()
    text = ESCAPES.sub("", child.read().decode())
    child.close()
    assert child.exitstatus == 130
    assert "none of 2 samples came to an answer; stopped when 0 of 2 had ended" in text
