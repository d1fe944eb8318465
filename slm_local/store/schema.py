"""The tables of the history file: numbered migrations, and the index of words, where this SQLite has FTS5.

`PRAGMA user_version` is the number of migrations that a file has seen. A migration that was released never changes.
Text that UTF-8 can't carry (lone surrogates) is kept as bytes; see `rows`.
"""

from __future__ import annotations

import sqlite3

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        model TEXT NOT NULL,
        system TEXT,
        title TEXT NOT NULL DEFAULT '',
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    );
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
        state TEXT NOT NULL,
        prompt TEXT NOT NULL,
        thinking TEXT NOT NULL DEFAULT '',
        answer TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL,
        backend TEXT NOT NULL,
        device TEXT NOT NULL,
        quant TEXT NOT NULL,
        context_tokens INTEGER NOT NULL,
        threads INTEGER NOT NULL,
        settings TEXT NOT NULL,
        finish TEXT,
        cut TEXT NOT NULL DEFAULT 'none',
        usage TEXT,
        timings TEXT,
        error TEXT,
        holder TEXT,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    );
    CREATE INDEX turns_by_chat ON turns (chat);
    CREATE INDEX live_turns ON turns (state) WHERE state = 'live';
    CREATE TABLE pieces (
        id INTEGER PRIMARY KEY,
        turn INTEGER NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
        thinking TEXT NOT NULL,
        answer TEXT NOT NULL
    );
    CREATE INDEX pieces_by_turn ON pieces (turn);
    """,
)
"""`pieces` is the text of a live turn as it comes, so that a second costs as much to write as it brought."""

WORDS = """
    CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (
        prompt, thinking, answer,
        content = 'turns', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
    );
    CREATE TRIGGER words_in AFTER INSERT ON turns BEGIN
        INSERT INTO words (rowid, prompt, thinking, answer) VALUES (new.id, new.prompt, new.thinking, new.answer);
    END;
    CREATE TRIGGER words_out AFTER DELETE ON turns BEGIN
        INSERT INTO words (words, rowid, prompt, thinking, answer)
        VALUES ('delete', old.id, old.prompt, old.thinking, old.answer);
    END;
    CREATE TRIGGER words_anew AFTER UPDATE OF prompt, thinking, answer ON turns BEGIN
        INSERT INTO words (words, rowid, prompt, thinking, answer)
        VALUES ('delete', old.id, old.prompt, old.thinking, old.answer);
        INSERT INTO words (rowid, prompt, thinking, answer) VALUES (new.id, new.prompt, new.thinking, new.answer);
    END;
    INSERT INTO words (words) VALUES ('rebuild');
"""
TRIGGERS = ("words_in", "words_out", "words_anew")


def version_of(connection: sqlite3.Connection) -> int:
    """Return the number of migrations that a file has seen."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a file up to date, all or nothing, and its index of words to what this SQLite can do.

    Two programs may do so at once: the second finds it done.
    """
    if version_of(connection) == len(MIGRATIONS) and has_words(connection) == knows_fts5(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number, script in enumerate(MIGRATIONS[version_of(connection) :], version_of(connection) + 1):
            _run(connection, script)
            connection.execute(f"PRAGMA user_version = {number}")
        if knows_fts5(connection) and not has_words(connection):
            _run(connection, WORDS)
        elif has_words(connection) and not knows_fts5(connection):
            for trigger in TRIGGERS:  # no turn could be written; a SQLite with FTS5 builds the index again
                connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def knows_fts5(connection: sqlite3.Connection) -> bool:
    """Return whether this SQLite was built with full-text search."""
    return bool(connection.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone())


def has_words(connection: sqlite3.Connection) -> bool:
    """Return whether the file keeps its index of words up to date."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = ?", TRIGGERS[:1])
    return found.fetchone() is not None


def _run(connection: sqlite3.Connection, script: str) -> None:
    """Run statements one by one: `executescript` would commit first."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if part.strip() and sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
