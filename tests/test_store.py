"""The history file: what goes in comes out exactly, survives what may happen, and is found again."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm_local.errors import PromptTooLong, UsageError
from slm_local.store import HistoryUnusable, Hit, Store, TurnState, UnknownChat, open_store, schema
from tests.kept_chats import FACTS, child, keep, reply_of

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with open_store(folder) as opened:
        yield opened


def raw(folder: Path, *statements: str) -> list[tuple[object, ...]]:
    """Run SQL on the file behind the store's back; return what the last statement gives."""
    with closing(sqlite3.connect(folder / "slm.db")) as connection, connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows


def marked(hit: Hit) -> str:
    return "".join(f"«{part.text}»" if part.is_hit else part.text for part in hit.snippet)


# ---- what goes in comes out


@given(prompt=ANY_TEXT, thinking=ANY_TEXT, answer=ANY_TEXT, system=ANY_TEXT)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_out_exactly(store: Store, prompt: str, thinking: str, answer: str, system: str) -> None:
    chat = store.chat(keep(store, (prompt, thinking, answer), system=system))
    (turn,) = chat.turns
    assert (turn.prompt, turn.thinking, turn.answer, chat.system) == (prompt, thinking, answer, system)
    store.search("word")


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "\x1b]52;c;x\x07", "\u202e\u2028\ufeff", "\r\n\r", "🧠" * 3])
def test_awkward_text_survives_closing_and_opening(folder: Path, text: str) -> None:
    with open_store(folder) as store:
        turn = store.begin_turn(store.begin_chat(model=text, kind="run"), text, FACTS)
        store.add_text(turn, text, text)
        store.add_text(turn, text, "")
    with open_store(folder) as store:
        chat = store.chat(1)
        kept = (chat.model, chat.turns[0].prompt, chat.turns[0].thinking, chat.turns[0].answer)
    assert kept == (text, text, text * 2, text)


def test_a_turn_keeps_its_measures_its_plan_and_its_settings(store: Store) -> None:
    (turn,) = store.chat(keep(store, ("p", "t", "a"))).turns
    assert turn.reply == reply_of("t", "a")
    assert turn.facts == FACTS
    assert turn.error is None
    assert (turn.created_at.utcoffset() is not None, turn.created_at <= turn.updated_at) == (True, True)


def test_a_failure_is_kept_with_what_came_before_it(store: Store) -> None:
    error = PromptTooLong("9 tokens are too many", hint="/drop")
    turn = store.begin_turn(store.begin_chat(model="m", kind="run"), "p", FACTS)
    store.end_turn(turn, replace(reply_of(answer=""), finish="error"), error)
    kept = store.chat(1).turns[0]
    assert (kept.error, kept.thinking, kept.is_shown_to_the_model) == (error.record(), "hmm", False)


@pytest.mark.parametrize("state", ["undone", "replaced", "dropped"])
def test_a_marked_turn_stays_with_its_text(store: Store, state: TurnState) -> None:
    chat = keep(store, ("p", "t", "a"), ("q", "u", "b"))
    store.mark(store.chat(chat).turns[0].id, state)
    first, second = store.chat(chat).turns
    assert (first.state, first.prompt, first.thinking, first.answer) == (state, "p", "t", "a")
    assert (first.is_shown_to_the_model, second.is_shown_to_the_model) == (False, True)
    assert store.chats()[0].turn_count == (2 if state == "dropped" else 1)


def test_the_title_is_the_first_line_of_the_first_prompt(store: Store) -> None:
    chat = keep(store, ("\n  What is it?  \nmore", "", "a"), ("second", "", "b"))
    assert store.chat(chat).title == "What is it?"
    assert store.chat(keep(store, ("x" * 500, "", "a"))).title == "x" * 199 + "…"


def test_the_chat_written_to_last_comes_first_and_comparisons_are_not_gone_on_with(store: Store) -> None:
    first, second = keep(store, ("p", "", "a")), keep(store, ("q", "", "b"))
    store.begin_chat(model="never used", kind="chat")
    raw(store.path.parent, f"UPDATE chats SET updated_at = '2020-01-01T00:00:00+00:00' WHERE id = {second}")
    assert [row.id for row in store.chats()] == [first, second]
    assert [row.id for row in store.chats(1)] == [first]
    raw(store.path.parent, f"UPDATE chats SET kind = 'compare' WHERE id = {first}")
    assert store.newest() == second


def test_numbers_are_never_given_twice(store: Store) -> None:
    first = keep(store, ("p", "", "a"))
    store.remove(first)
    assert keep(store, ("p", "", "a")) > first
    with pytest.raises(UnknownChat, match=f"there is no chat {first}"):
        store.chat(first)
    for change in (store.remove, lambda chat: store.begin_turn(chat, "p", FACTS)):
        with pytest.raises(UnknownChat):
            change(first)


def test_a_store_that_was_closed_says_so(folder: Path) -> None:
    with open_store(folder) as store:
        pass
    with pytest.raises(HistoryUnusable, match="closed"):
        store.chats()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_only_its_owner_may_read_it(folder: Path) -> None:
    before = os.umask(0)
    try:
        with open_store(folder) as store:
            keep(store, ("p", "", "a"))
            rights = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (folder, *folder.iterdir())}
    finally:
        os.umask(before)
    assert rights.pop("data") == 0o700
    assert len(rights) >= 3
    assert set(rights.values()) == {0o600}


def test_what_is_removed_is_nowhere_in_the_file(folder: Path) -> None:
    with open_store(folder) as store:
        keep(store, ("the ordinary prompt", "", "a"))
        secret = keep(store, ("the zebrafish password", "a zebrafish thought", "zebrafish " * 3000))
        turn = store.begin_turn(secret, "zebrafish again", FACTS)
        store.add_text(turn, "zebrafish", "zebrafish")
        store.end_turn(turn, reply_of("zebrafish", "zebrafish"))
        store.remove(secret)
        store.tidy()
        found = [each.name for each in folder.iterdir() if b"zebra" in each.read_bytes()]
        assert (found, len(store.chats())) == ([], 1)


# ---- what may happen to it


DIE_WHILE_WRITING = """
import os, sys
from pathlib import Path
from slm_local.store import open_store
from tests.kept_chats import FACTS, keep
store = open_store(Path(sys.argv[1]))
chat = keep(store, ("first", "thought", "done"))
turn = store.begin_turn(chat, "second", FACTS)
store.add_text(turn, "a marvellous ", "")
store.add_text(turn, "thought", "half an ans")
os._exit(9)
"""


def test_a_turn_whose_process_died_is_interrupted_with_its_text_and_found(folder: Path) -> None:
    assert child(DIE_WHILE_WRITING, folder).returncode == 9
    with open_store(folder) as store:
        first, second = store.chat(1).turns
        assert (first.state, first.answer) == ("done", "done")
        assert (second.state, second.finish) == ("interrupted", None)
        assert (second.thinking, second.answer) == ("a marvellous thought", "half an ans")
        assert second.usage.think_tokens is None
        assert [hit.turn for hit in store.search("marvellous")] == [second.id]
        assert store.notices == ()


def test_a_program_that_dies_is_noticed_by_one_that_goes_on(store: Store, folder: Path) -> None:
    assert child(DIE_WHILE_WRITING, folder).returncode == 9
    dead = store.chat(1).turns[1]
    assert (dead.state, dead.answer) == ("interrupted", "half an ans")
    store.remove(1)


def test_a_turn_that_another_program_writes_is_left_alone(store: Store, folder: Path) -> None:
    chat = keep(store, ("p", "", "a"))
    turn = store.begin_turn(chat, "q", FACTS)
    store.add_text(turn, "so far", "")
    with open_store(folder) as other:
        live = other.chat(chat).turns[1]
        assert (live.state, live.thinking) == ("live", "so far")
        with pytest.raises(UsageError, match="is being written now"):
            other.remove(chat)
    store.end_turn(turn, reply_of())
    assert store.chat(chat).turns[1].state == "done"
    store.remove(chat)


WRITE_MANY = """
import sys
from pathlib import Path
from slm_local.store import open_store, opening
from tests.kept_chats import keep
opening.BUSY_S = 60.0
print("ready", flush=True)
sys.stdin.readline()
with open_store(Path(sys.argv[1])) as store:
    for number in range(25):
        keep(store, (f"{sys.argv[2]} {number}", "t", "a"))
"""


def test_programs_that_begin_and_write_at_once_all_get_through(folder: Path) -> None:
    import subprocess

    from tests.command import child_environment

    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_MANY, str(folder), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )
        for name in ("anna", "bert", "carl")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.communicate(timeout=120)[1] for writer in writers] == ["", "", ""]
    with open_store(folder) as store:
        titles = {row.title for row in store.chats()}
        assert titles == {f"{name} {number}" for name in ("anna", "bert", "carl") for number in range(25)}


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no file that is open")
def test_a_file_deleted_while_it_is_open_is_made_anew(store: Store) -> None:
    keep(store, ("p", "", "a"))
    store.path.unlink()
    before = store.generation
    assert store.chats() == []
    keep(store, ("q", "", "b"))
    assert [row.title for row in store.chats()] == ["q"]
    assert before == store.generation == 1
    (notice,) = store.take_notices()
    assert "was deleted" in notice
    assert (store.take_notices(), store.path.exists()) == ([], True)


def test_a_newer_programs_file_is_refused_and_not_touched(folder: Path) -> None:
    with open_store(folder) as store:
        keep(store, ("p", "", "a"))
    raw(folder, "PRAGMA user_version = 999")
    before = (folder / "slm.db").read_bytes()
    with pytest.raises(HistoryUnusable, match="written by a newer slm") as failure:
        open_store(folder)
    assert failure.value.exit_code == 2
    assert failure.value.hint == "python -m pip install --upgrade slm-local"
    assert (folder / "slm.db").read_bytes() == before
    assert [each.name for each in folder.iterdir() if "broken" in each.name] == []


@pytest.mark.parametrize("garbage", [b"not a database, but quite long" * 200, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_moved_aside(folder: Path, garbage: bytes) -> None:
    folder.mkdir()
    (folder / "slm.db").write_bytes(garbage)
    with open_store(folder) as store:
        (notice,) = store.notices
        (backup,) = folder.glob("slm-broken-*.db")
        assert str(backup) in notice
        assert backup.read_bytes() == garbage
        keep(store, ("p", "", "a"))
        assert len(store.chats()) == 1
    with open_store(folder) as store:
        assert (store.notices, len(store.chats())) == ((), 1)


def spoil(path: Path, table: str = "pieces_by_turn") -> bytes:
    """Overwrite the first page of a table or index and return the whole file as it is then."""
    ((page,),) = raw(path.parent, f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'")
    assert isinstance(page, int)
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    return bytes(content)


def test_damage_is_looked_for_after_an_unclean_end(folder: Path) -> None:
    assert child(DIE_WHILE_WRITING, folder).returncode == 9
    raw(folder, "PRAGMA wal_checkpoint(TRUNCATE)")
    damaged = spoil(folder / "slm.db")
    with open_store(folder) as store:
        assert "damaged" in store.notices[0]
        assert store.chats() == []
    (backup,) = folder.glob("slm-broken-*.db")
    assert backup.read_bytes() == damaged


def test_damage_met_while_it_is_open_is_said_and_a_new_file_begun(folder: Path) -> None:
    with open_store(folder) as store:
        keep(store, ("an old prompt", "", "a"))
    spoil(folder / "slm.db", "chats")
    with open_store(folder) as store:
        assert store.notices == ()
        with pytest.raises(HistoryUnusable, match="malformed"):
            store.chats()
        assert "damaged" in store.take_notices()[0]
        keep(store, ("p", "", "a"))
        assert [row.title for row in store.chats()] == ["p"]
    assert len(list(folder.glob("slm-broken-*.db"))) == 1


def test_a_lock_that_is_held_too_long_is_told_plainly(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store._connection.execute("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryUnusable, match="another program holds the history"):
            store.begin_chat(model="m", kind="chat")
    assert store.begin_chat(model="m", kind="chat") == 1


def test_a_folder_that_takes_no_file_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "data" / "slm.db").mkdir(parents=True)
    with pytest.raises(HistoryUnusable, match="can't be used"):
        open_store(tmp_path / "data")


# ---- migrations


def test_a_file_of_version_one_is_brought_up_to_date_with_its_chats(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
    with open_store(folder) as store:
        keep(store, ("p", "t", "a"))
    assert raw(folder, "PRAGMA user_version") == [(1,)]
    later = ("ALTER TABLE turns ADD COLUMN mood TEXT; UPDATE turns SET mood = 'good';", "CREATE TABLE tags (id);")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS[:1], *later))
    monkeypatch.setattr("slm_local.store.opening.MIGRATIONS", schema.MIGRATIONS)
    with open_store(folder) as store:
        assert store.chat(1).turns[0].reply == reply_of("t", "a")
    assert raw(folder, "PRAGMA user_version") == [(3,)]
    assert raw(folder, "SELECT mood FROM turns") == [("good",)]


def test_a_migration_that_fails_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(folder) as store:
        keep(store, ("p", "t", "a"))
    bad = "ALTER TABLE turns ADD COLUMN mood TEXT; INSERT INTO nowhere VALUES (1);"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, bad))
        patch.setattr("slm_local.store.opening.MIGRATIONS", schema.MIGRATIONS)
        with pytest.raises(HistoryUnusable, match="nowhere"):
            open_store(folder)
    with open_store(folder) as store:
        assert store.chat(1).turns[0].answer == "a"
    assert "mood" not in {row[1] for row in raw(folder, "PRAGMA table_info(turns)")}


# ---- search


@pytest.mark.parametrize(
    ("words", "place", "snippet"),
    [
        ("riddle", "prompt", "a «riddle» of Überlingen"),
        ("uberling", "prompt", "a riddle of «Überlingen»"),
        ("CAREFULLY", "thinking", "I weigh it «carefully»: 中文字符"),
        ("feath", "answer", "«feathers», said (he)"),
        ("riddle carefully", "prompt", "a «riddle» of Überlingen"),
        ("文字", "thinking", "I weigh it carefully: 中«文字»符"),
        ("eather", "answer", "f«eather»s, said (he)"),
        ("(he)", "answer", "feathers, said («he»)"),
        ('AND NOT "', None, None),
        ("riddle nowhere", None, None),
        ("***", None, None),
        ("\ud800", None, None),
        ("  ", None, None),
    ],
)
@pytest.mark.parametrize("has_fts5", [True, False])
def test_words_are_found_in_prompt_thinking_and_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_fts5: bool, words: str, place: str | None, snippet: str | None
) -> None:
    if not has_fts5:
        monkeypatch.setattr(schema, "knows_fts5", lambda connection: False)
    with open_store(folder) as store:
        keep(store, ("something else", "", "entirely"))
        keep(store, ("a riddle of Überlingen", "I weigh it carefully: 中文字符", "feathers, said (he)"))
        assert store.has_index is has_fts5
        hits = store.search(words)
    if not has_fts5 and words == "uberling":  # without the index, letters are found as they are written
        assert hits == []
        return
    assert [(hit.chat, hit.place) for hit in hits] == ([(2, place)] if place else [])
    if hits and has_fts5:
        assert marked(hits[0]) == snippet


@pytest.mark.parametrize(
    ("words", "is_found"),
    [
        *[
            ('said (he"', True),
            ("said:", True),
            ("-said", True),
            ("sai*", True),
            ("^feathers", True),
            ("said he", True),
        ],
        *[("NEAR(said he)", False), ("said AND he", False), ("said OR she", False), ("answer:said", False)],
    ],
)
def test_no_word_is_read_as_syntax_of_the_index(store: Store, words: str, is_found: bool) -> None:
    keep(store, ("p", "", "feathers, said (he)"))
    assert [hit.chat for hit in store.search(words)] == ([1] if is_found else [])


def test_a_long_text_is_shown_around_the_hit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(store, ("p", "word " * 2000 + "needle" + " word" * 2000, "a"))
    for words in ("needle", "eedl"):
        (hit,) = store.search(words)
        assert len(marked(hit)) < 200
        assert marked(hit).count("…") == 2


def test_a_sqlite_without_full_text_search_writes_what_another_indexes_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(folder) as store:
        keep(store, ("first prompt", "", "a"))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "knows_fts5", lambda connection: False)
        with open_store(folder) as store:
            second = keep(store, ("second prompt", "", "a"))
            assert [hit.chat for hit in store.search("prompt")] == [2, 1]
            store.remove(second - 1)
            keep(store, ("third prompt", "", "a"))
    with open_store(folder) as store:
        assert store.has_index
        assert [hit.chat for hit in store.search("prom")] == [3, 2]
