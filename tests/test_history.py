"""`slm history`: kept chats listed, shown, searched, exported and removed, with nothing left out in silence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slm_local.paths import paths
from slm_local.store import Store, open_store
from tests.command import THINK_THEN_ANSWER, Result, child_environment, slm
from tests.conftest import ScriptWriter
from tests.kept_chats import FACTS, keep, reply_of
from tests.pressing import press

__all__ = ["slm"]

Slm = Callable[..., Result]

HOSTILE = "\x1b]52;c;aGk=\x07\x9b31m[/bold]\u202e\ud800\x00"
SHOWN = "␛]52;c;aGk=␇⟨U+009B⟩31m[/bold]⟨U+202E⟩⟨U+D800⟩␀"


def on_terminal(*arguments: str, kind: str = "xterm", columns: int = 70) -> Any:
    if os.name == "nt":
        pytest.skip("pexpect needs a POSIX pseudo-terminal")
    import pexpect

    return pexpect.spawn(
        sys.executable,
        ["-m", "slm_local", "history", *arguments],
        env=child_environment({"TERM": kind}),
        timeout=120,
        encoding="utf-8",
        dimensions=(24, columns),
    )


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(paths().data) as opened:
        yield opened


@pytest.fixture
def kept(store: Store) -> Store:
    """Keep two chats; the second has an answer that was written anew."""
    keep(store, ("Which weighs more?\nFeathers or lead?", "A kilo is\n\na kilo.  \n", "Both **weigh** the same."))
    chat = keep(store, ("What is 47 + 38?", "7 + 8 = 15", "84"), model="tiny-reasoner", system="be brief")
    store.mark(store.chat(chat).turns[0].id, "replaced")
    store.end_turn(store.begin_turn(chat, "What is 47 + 38?", FACTS), reply_of("carry 1", "85"))
    return store


# ---- list


def test_the_list_has_the_newest_first_with_kind_model_time_title_and_turns(slm: Slm, kept: Store) -> None:
    lines = slm("history", "list").out.splitlines()
    assert lines[0].split() == ["id", "when", "kind", "turns", "model", "title"]
    assert [line.split()[0] for line in lines[1:]] == ["2", "1"]
    when = f"{kept.chats()[0].updated_at.astimezone():%Y-%m-%d %H:%M}"
    assert lines[1].split() == ["2", *when.split(), "chat", "1", "tiny-reasoner", *["What", "is", "47", "+", "38?"]]
    assert lines[2].endswith("r1-8b@no-think  Which weighs more?")


def test_what_is_not_listed_is_counted(slm: Slm, kept: Store) -> None:
    result = slm("history", "list", "-n", "1")
    assert len(result.out.splitlines()) == 2
    assert result.err == "… 1 more · slm history list -n 2\n"
    for _ in range(30):
        keep(kept, ("p", "", "a"))
    assert "… 12 more" in slm("history", "list").err
    assert len(json.loads(slm("history", "list", "--json").out)) == 32


def test_the_list_as_json(slm: Slm, kept: Store) -> None:
    first = json.loads(slm("history", "list", "--json", "-n", "1").out)
    chat = kept.chats()[0]
    assert first == [
        {
            "id": 2,
            "kind": "chat",
            "model": "tiny-reasoner",
            "title": "What is 47 + 38?",
            "turns": 1,
            "created_at": f"{chat.created_at:%Y-%m-%dT%H:%M:%S}.{chat.created_at.microsecond // 1000:03}Z",
            "updated_at": f"{chat.updated_at:%Y-%m-%dT%H:%M:%S}.{chat.updated_at.microsecond // 1000:03}Z",
        }
    ]


def test_a_history_that_was_never_begun_is_empty_and_stays_unmade(slm: Slm) -> None:
    assert slm("history", "list") == Result(code=0, out="", err="nothing is kept yet\n")
    assert slm("history", "list", "--json").out == "[]\n"
    for words in (("show",), ("search", "x"), ("export",), ("rm", "--all", "-y")):
        result = slm("history", *words)
        assert (result.code, result.out, "nothing is kept yet" in result.err) == (2, "", True)
    assert not (paths().data / "slm.db").exists()


# ---- show


def test_show_has_system_prompt_thinking_and_answer_of_the_newest(slm: Slm, kept: Store) -> None:
    result = slm("history", "show")
    for text in ("chat 2 · chat · tiny-reasoner", "be brief\n", "What is 47 + 38?\n", "carry 1\n", "85\n"):
        assert text in result.out
    assert "84" not in result.out
    assert result.err == "1 turn undone, answered anew or other samples · slm history show 2 --all\n"
    everything = slm("history", "show", "2", "--all")
    assert "84\n" in everything.out
    assert "(answered anew below)" in everything.out
    assert everything.err == ""


def test_show_can_leave_thinking_out(slm: Slm, kept: Store) -> None:
    assert "A kilo is" in slm("history", "show", "1").out
    assert "A kilo is" not in slm("history", "show", "1", "--no-thinking").out


def test_show_as_json_has_every_turn_with_the_fields_of_run(slm: Slm, script: ScriptWriter) -> None:
    ran = json.loads(slm("run", f"scripted:{script(*THINK_THEN_ANSWER)}", "What is 47 + 38?", "--json").out)
    chat = json.loads(slm("history", "show", "--json").out)
    assert set(chat) == {"id", "kind", "model", "title", "system", "created_at", "updated_at", "turns"}
    (turn,) = chat["turns"]
    times = (ran.pop("timings"), turn.pop("timings"))
    assert set(times[0]) == set(times[1])
    assert {name: turn[name] for name in ran} == ran
    assert set(turn) - set(ran) == {"id", "state", "created_at", "updated_at", "settings"}
    assert (turn["state"], chat["kind"], turn["settings"]["threads"] > 0) == ("done", "run", True)


def test_a_failed_turn_shows_its_error(slm: Slm, script: ScriptWriter) -> None:
    slm("run", f"scripted:{script(*THINK_THEN_ANSWER, setup={'context': 400})}", "z" * 900)
    assert "(failed: the prompt has" in slm("history", "show").out
    (turn,) = json.loads(slm("history", "show", "--json").out)["turns"]
    assert (turn["error"]["type"], turn["error"]["exit_code"], turn["finish"]) == ("PromptTooLong", 6, "error")


def test_an_unknown_number_is_refused_with_what_lists_them(slm: Slm, kept: Store) -> None:
    for words in (("show", "9"), ("export", "9"), ("rm", "9", "-y")):
        assert slm("history", *words) == Result(
            code=2, out="", err="error: there is no chat 9\nhint: slm history list\n"
        )


def test_everything_shown_is_made_visible(slm: Slm, store: Store) -> None:
    store.end_turn(
        store.begin_turn(store.begin_chat(model=HOSTILE, kind="chat", system=HOSTILE), f"word {HOSTILE}", FACTS),
        reply_of(HOSTILE, HOSTILE),
    )
    for words in (("list",), ("show",), ("search", "word"), ("rm", "1", "-y")):
        out = slm("history", *words).out
        assert not set(out) & set("\x1b\x07\x9b\u202e\ud800\x00")
        assert "[/bold]" in out
    assert SHOWN in slm("history", "show").out or words[0] == "rm"


def test_on_a_terminal_every_line_of_the_list_fits_and_no_escape_of_ours_is_made_visible(store: Store) -> None:
    keep(store, ("中文 " * 60, "thought", "a"), ("p", "", "b"))
    keep(store, ("long " * 60, "", "a"))
    from slm_local.cli.render import DIM, RESET, columns_of

    lines = on_terminal("list").read().splitlines()
    assert max(columns_of(line.replace(DIM, "").replace(RESET, "")) for line in lines) <= 70
    assert [line.endswith("…") for line in lines] == [False, True, True]
    shown = on_terminal("show", "1").read()
    assert f"{DIM}thought{RESET}" in shown
    assert "␛" not in shown


# ---- search


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("feathers",), "1  WHEN  prompt: Which weighs more?␊«Feathers» or lead?"),
        (("carry",), "2  WHEN  thinking: «carry» 1"),
        (("weigh", "same"), "1  WHEN  prompt: Which «weighs» more?␊Feathers or lead?"),
    ],
)
def test_search_shows_where_the_words_are(slm: Slm, kept: Store, words: tuple[str, ...], line: str) -> None:
    number = int(line.split()[0])
    when = f"{kept.chat(number).turns[-1].created_at.astimezone():%Y-%m-%d %H:%M}"
    assert slm("history", "search", *words) == Result(code=0, out=line.replace("WHEN", when) + "\n", err="")


def test_search_as_json_carries_the_snippet_in_parts(slm: Slm, kept: Store) -> None:
    (hit,) = json.loads(slm("history", "search", "--json", "carry").out)
    assert {name: hit[name] for name in ("chat", "turn", "place", "title", "model")} == {
        "chat": 2,
        "turn": 3,
        "place": "thinking",
        "title": "What is 47 + 38?",
        "model": "tiny-reasoner",
    }
    assert hit["snippet"] == [{"text": "carry", "is_hit": True}, {"text": " 1", "is_hit": False}]


def test_search_says_what_it_leaves_out_and_when_it_finds_nothing(slm: Slm, kept: Store) -> None:
    result = slm("history", "search", "what", "-n", "1")
    assert len(result.out.splitlines()) == 1
    assert result.err == "… 1 more · slm history search what -n 2\n"
    assert slm("history", "search", "zebra") == Result(code=0, out="", err="no turn holds zebra\n")
    assert slm("history", "search", " ").code == 2


def test_search_without_full_text_search_says_so(slm: Slm, kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_local.store.schema.knows_fts5", lambda connection: False)
    result = slm("history", "search", "carry")
    assert "thinking: «carry» 1" in result.out
    assert "no full-text search (FTS5)" in result.err


# ---- export


def test_markdown_quotes_thinking_line_by_line(slm: Slm, kept: Store) -> None:
    assert slm("history", "export", "1").out == (
        "# Which weighs more?\n\n## Prompt\n\nWhich weighs more?\nFeathers or lead?\n\n"
        "### Thinking\n\n> A kilo is\n>\n> a kilo.  \n>\n\n### Answer\n\nBoth **weigh** the same.\n"
    )
    assert "Thinking" not in slm("history", "export", "1", "--no-thinking").out


def test_markdown_says_what_is_not_in_it(slm: Slm, kept: Store) -> None:
    result = slm("history", "export", "--all")
    assert result.out.count("\n# ") + result.out.startswith("# ") == 2
    assert result.err == "left out: 1 of the turns, undone, answered anew or other samples · --format json has them\n"


def messages(slm: Slm, *flags: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in slm("history", "export", "--format", "jsonl", *flags).out.splitlines()]


def test_jsonl_is_a_chat_a_line_as_trainers_read_it(slm: Slm, kept: Store) -> None:
    assert messages(slm, "2") == [
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "What is 47 + 38?"},
                {"role": "assistant", "content": "<think>\ncarry 1\n</think>\n\n85"},
            ]
        }
    ]
    (chat,) = messages(slm, "1")
    assert chat["messages"][1]["content"] == "<think>\nA kilo is\n\na kilo.  \n</think>\n\nBoth **weigh** the same."
    assert [each["messages"][-1]["content"] for each in messages(slm, "--all", "--no-thinking")] == [
        "85",
        "Both **weigh** the same.",
    ]


def test_jsonl_has_only_what_was_answered_to_the_end_and_says_so(slm: Slm, kept: Store) -> None:
    kept.begin_turn(1, "never answered", FACTS)
    result = slm("history", "export", "--all", "--format", "jsonl")
    assert "never answered" not in result.out
    assert result.err == "left out: 2 of the turns, undone, answered anew, other samples or not answered to the end\n"


def test_json_round_trips_the_exact_text_of_every_turn(slm: Slm, kept: Store, tmp_path: Path) -> None:
    odd = HOSTILE + "\r\n\u2028🧠"
    keep(kept, (odd, odd, odd), system=odd)
    target = tmp_path / "all.json"
    assert slm("history", "export", "--all", "-o", str(target)).code == 0
    chats = json.loads(target.read_bytes())
    assert [chat["id"] for chat in chats] == [3, 2, 1]
    assert [turn["state"] for turn in chats[1]["turns"]] == ["replaced", "done"]
    turn = chats[0]["turns"][0]
    assert (turn["prompt"], turn["thinking"], turn["answer"], chats[0]["system"]) == (odd, odd, odd, odd)
    (chat,) = messages(slm, "3", "--no-thinking")
    assert [each["content"] for each in chat["messages"]] == [odd, odd, odd]
    assert "thinking" not in json.loads(slm("history", "export", "1", "--format", "json", "--no-thinking").out)[0]


def test_a_markdown_file_has_the_exact_text_whatever_it_is(slm: Slm, store: Store, tmp_path: Path) -> None:
    keep(store, (HOSTILE, "", HOSTILE + "\r\n"))
    slm("history", "export", "-o", str(tmp_path / "chat.md"))
    text = (tmp_path / "chat.md").read_bytes().decode("utf-8", "surrogatepass")
    assert text == f"# {HOSTILE}\n\n## Prompt\n\n{HOSTILE}\n\n### Answer\n\n{HOSTILE}\r\n\n"


def test_no_file_is_written_over(slm: Slm, kept: Store, tmp_path: Path) -> None:
    target = tmp_path / "chat.jsonl"
    target.write_text("mine", encoding="utf-8")
    result = slm("history", "export", "1", "-o", str(target))
    assert (result.code, target.read_text(encoding="utf-8")) == (2, "mine")
    free = tmp_path / "chat-2.jsonl"
    assert result.err.endswith(f"hint: slm history export 1 --format jsonl -o {free}\n")
    assert slm(*result.err.splitlines()[-1].removeprefix("hint: slm ").split()).code == 0
    assert json.loads(free.read_text(encoding="utf-8"))["messages"][0]["role"] == "user"


def test_an_export_that_can_t_be_written_or_named_is_refused(slm: Slm, kept: Store, tmp_path: Path) -> None:
    result = slm("history", "export", "-o", str(tmp_path / "nowhere" / "chat.md"))
    assert (result.code, "can't be written: No such file" in result.err) == (2, True)
    assert slm("history", "export", "--format", "xml").code == 2
    assert slm("history", "export", "1", "--all").code == 2


# ---- rm


def test_rm_removes_what_it_names_and_nothing_else(slm: Slm, kept: Store) -> None:
    result = slm("history", "rm", "1", "-y")
    assert result == Result(code=0, out="removed chat 1 · 1 turn · Which weighs more?\n", err="")
    assert [row.id for row in kept.chats()] == [2]
    assert slm("history", "search", "feathers").out == ""
    assert slm("history", "rm", "--all", "-y").code == 0
    assert kept.chats() == []


def test_rm_with_one_unknown_number_removes_nothing(slm: Slm, kept: Store) -> None:
    assert slm("history", "rm", "1", "9", "-y").code == 2
    assert len(kept.chats()) == 2


def test_rm_where_nobody_can_be_asked_names_the_flag(slm: Slm, kept: Store) -> None:
    result = slm("history", "rm", "1", "2")
    assert result.code == 2
    assert result.err == "error: removing 2 chats is not asked about here\nhint: slm history rm 1 2 -y\n"
    assert "slm history rm --all -y" in slm("history", "rm", "--all").err
    assert slm("history", "rm").code == 2
    assert len(kept.chats()) == 2


def test_rm_leaves_a_chat_alone_while_an_answer_is_written(slm: Slm, kept: Store) -> None:
    kept.begin_turn(1, "p", FACTS)
    result = slm("history", "rm", "1", "-y")
    assert (result.code, "is being written now" in result.err) == (2, True)


@pytest.mark.parametrize(("key", "code", "left"), [("y", 0, 0), ("n", 130, 7), ("\r", 130, 7), ("\x04", 130, 7)])
def test_rm_asks_with_one_key_and_enter_keeps(store: Store, key: str, code: int, left: int) -> None:
    for number in range(7):
        keep(store, (f"prompt {number}", "", "a"))
    child = on_terminal("rm", "--all", kind="dumb")
    child.expect_exact("chat 7 · 1 turn · prompt 6")
    child.expect_exact("… 2 more")
    child.expect_exact("remove them for good? y: yes, any other key: no ")
    press(child, key)
    child.expect_exact("nothing was removed" if left else "removed chat 1")
    child.read()
    child.wait()
    assert (child.exitstatus, len(store.chats())) == (code, left)


# ---- a file that can't be used


def test_a_newer_programs_history_is_an_error_here_and_stops_no_run(
    slm: Slm, kept: Store, script: ScriptWriter
) -> None:
    kept._connection.execute("PRAGMA user_version = 999")
    kept.close()
    before = kept.path.read_bytes()
    for words in (("list",), ("show",), ("search", "x"), ("export",), ("rm", "--all", "-y")):
        result = slm("history", *words)
        assert (result.code, result.out) == (2, "")
        assert "written by a newer slm" in result.err
    result = slm("run", f"scripted:{script(*THINK_THEN_ANSWER)}", "What is 47 + 38?")
    assert (result.code, result.out) == (0, "It is **85**.\n")
    assert "written by a newer slm" in result.err
    assert kept.path.read_bytes() == before


def test_a_broken_history_is_moved_aside_with_a_notice(slm: Slm) -> None:
    paths().data.mkdir(parents=True)
    (paths().data / "slm.db").write_bytes(b"no database" * 1000)
    result = slm("history", "list")
    (backup,) = paths().data.glob("slm-broken-*.db")
    assert (result.code, str(backup) in result.err) == (0, True)


@pytest.mark.parametrize("name", ["list", "show", "search", "export", "rm"])
def test_every_command_has_its_help(slm: Slm, name: str) -> None:
    assert slm("history", name, "--help").out.startswith(f"Usage: slm history {name} ")
    assert f"  {name} " in slm("history", "--help").out
