"""`slm chat` on a pipe: turns and commands, a line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command import THINK_THEN_ANSWER, Result, slm
from tests.conftest import ScriptWriter

__all__ = ["slm"]

Slm = Callable[..., Result]
Chat = Callable[..., Result]


@pytest.fixture
def chat(slm: Slm, script: ScriptWriter) -> Chat:
    """Talk, a line each, with a model that plays the rows, or thinks and says 85."""

    def talk(*lines: str, rows: tuple[dict[str, Any], ...] = THINK_THEN_ANSWER, flags: tuple[str, ...] = ()) -> Result:
        model = f"scripted:{script(*rows)}"
        return slm("chat", model, "--plain", *flags, stdin="".join(f"{line}\n" for line in lines).encode())

    return talk


def said(*texts: str) -> tuple[dict[str, Any], ...]:
    return tuple({"text": text, "ids": [1], "end": "stop"} for text in texts)


def test_every_line_is_a_turn_and_stdout_holds_the_answers(chat: Chat) -> None:
    result = chat("one", "two", rows=said("first", "second"))
    assert (result.code, result.out) == (0, "first\nsecond\n")


def test_text_between_triple_quotes_is_one_turn(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "chat.md"
    assert chat('"""one', "two", 'three"""', f"/export {file}").code == 0
    assert "## Prompt\n\none\ntwo\nthree\n" in file.read_text(encoding="utf-8")


def test_text_without_its_closing_quotes_is_not_sent_in_silence(chat: Chat) -> None:
    result = chat('"""one', "two")
    assert result.out == ""
    assert "was not sent" in result.err


def test_an_exported_chat_holds_thinking_and_answer_and_is_not_written_over(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "chat.md"
    result = chat("What is 47 + 38?", f"/export {file}", f"/export {file}")
    text = file.read_text(encoding="utf-8")
    assert "What is 47 + 38?" in text
    assert "7 + 8 = 15" in text
    assert "It is **85**." in text
    assert f"is there already and stays as it is\nhint: /export {tmp_path / 'chat-2.md'}\n" in result.err


def test_a_misspelt_command_names_the_nearest_and_the_chat_goes_on(chat: Chat) -> None:
    result = chat("/sttas", "hi")
    assert "error: there is no command /sttas\nhint: /stats\n" in result.err
    assert result.out == "It is **85**.\n"


@pytest.mark.parametrize("word", ["/exit", "/bye", "/quit"])
def test_a_leaving_word_ends_the_chat(chat: Chat, word: str) -> None:
    assert chat(word, "hi").out == ""


def test_the_help_names_every_command(chat: Chat) -> None:
    from slm_local.cli.repl import COMMANDS, LEAVING

    err = chat("/?").err
    assert all(word in err for word in (*COMMANDS, *LEAVING))


def test_think_and_set_change_what_show_shows(chat: Chat) -> None:
    err = chat("/think off", "/set temperature 0.25", "/set seed 7", "/system Be brief.", "/show").err
    for line in ("think off", "temperature 0.25", "seed:      7", "system:    Be brief.", "history:   1 message"):
        assert line in err


@pytest.mark.parametrize(
    ("line", "said_of_it", "hint"),
    [
        ("/set temperature 99", "takes a number from 0 to 10", "/set temperature 0.6"),
        ("/set temprature 0.5", "there is no setting of that name", "/set temperature 0.6"),
        ("/set temperature", "takes a name and a value", "/set temperature 0.6"),
        ("/think maybe", "takes off, on, auto, low", "/set think off"),
        ("/export", "takes a file", "/export chat.md"),
        ("/regen", "no answer to write anew", "say something first"),
        ("/stats", "there is no reply yet", "say something first"),
        ("/model no-such-model", "no model is named 'no-such-model'", "slm ls --all"),
    ],
)
def test_what_a_command_can_not_do_is_said_with_a_hint(chat: Chat, line: str, said_of_it: str, hint: str) -> None:
    result = chat(line, "hi")
    assert said_of_it in result.err
    assert f"hint: {hint}" in result.err
    assert (result.code, result.out) == (0, "It is **85**.\n")


def test_a_setting_that_is_fixed_at_load_names_the_way_to_have_it(chat: Chat) -> None:
    assert "hint: /model scripted:" in chat("/set ctx 4096").err


def test_regen_answers_the_last_prompt_anew(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "chat.md"
    result = chat("hi", "/regen", f"/export {file}", rows=said("first", "second"))
    assert result.out == "first\nsecond\n"
    text = file.read_text(encoding="utf-8")
    assert "second" in text
    assert "first" not in text


def test_stats_are_those_of_the_last_reply(chat: Chat) -> None:
    assert "eval count:            10 tokens" in chat("hi", "/stats").err


def test_a_history_that_no_longer_fits_refuses_the_turn_and_drop_makes_room(chat: Chat) -> None:
    long = "x" * 150
    result = chat(long, "y" * 100, "/drop", "z" * 100, flags=("--ctx", "256"), rows=said("one", "two"))
    assert result.out == "one\ntwo\n"
    assert "the context holds 256\nhint: /drop removes the oldest turn, /clear all\n" in result.err
    assert "dropped 2 messages; left: 0" in result.err


def test_clear_empties_the_conversation(chat: Chat) -> None:
    err = chat("hi", "/clear", "/show").err
    assert "history:   0 messages" in err


def test_another_model_goes_on_with_the_conversation(chat: Chat, script: ScriptWriter) -> None:
    other = script(*said("other"), name="other")
    result = chat("hi", f"/model scripted:{other}", "hi", "/show")
    assert result.out == "It is **85**.\nother\n"
    assert "history:   4 messages" in result.err


def test_a_model_that_can_not_be_opened_leaves_the_old_one_usable(chat: Chat, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    result = chat(f"/model {broken}", "hi")
    assert "error: " in result.err
    assert result.out == "It is **85**.\n"


def test_after_a_crash_the_conversation_goes_on_with_a_new_child(chat: Chat) -> None:
    rows = ({"text": "fine", "ids": [1], "end": "stop"}, {"fault": "segv"})
    result = chat("one", "two", "three", "/show", rows=rows)
    assert result.out == "fine\nfine\n"  # the new child plays its script from the start
    assert "SIGSEGV" in result.err or "access violation" in result.err
    assert "history:   4 messages" in result.err
    assert result.code == 0


def test_a_file_goes_before_the_first_prompt_only(chat: Chat, tmp_path: Path) -> None:
    notes, file = tmp_path / "notes.txt", tmp_path / "chat.md"
    notes.write_text("the notes\n", encoding="utf-8")
    chat("one", "two", f"/export {file}", flags=("-f", str(notes)))
    text = file.read_text(encoding="utf-8")
    assert "the notes\n\none\n" in text
    assert text.count("the notes") == 1


def test_a_line_that_is_not_utf8_is_replaced_and_told_of(slm: Slm, script: ScriptWriter) -> None:
    result = slm("chat", f"scripted:{script(*said('fine'))}", stdin=b"caf\xe9\n")
    assert result.out == "fine\n"
    assert "the line holds bytes that are not UTF-8" in result.err


def test_without_a_model_and_a_terminal_there_is_nothing_to_ask(slm: Slm) -> None:
    result = slm("chat", "--plain")
    assert (result.code, result.err) == (2, "error: which model?\nhint: slm chat tiny-reasoner\n")
