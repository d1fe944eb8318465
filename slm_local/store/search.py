"""Finds words in prompts, thinking and answers: by the index where there is one, else, or where that finds nothing
(parts of words, scripts without spaces), by reading every text.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime

from slm_local.store.rows import exact
from slm_local.store.schema import has_words
from slm_local.store.values import Hit, Place, SnippetPart

PLACES: tuple[Place, ...] = ("prompt", "thinking", "answer")

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Noncharacters, kept by Unicode for a program's own use: they mark a hit in the index's snippets."""

SNIPPET_WORDS = 16
SNIPPET_CHARS = 48
"""What is shown before and after a hit that was found by reading."""

COLUMNS = "turns.id AS turn, turns.chat, turns.created_at, chats.title, chats.model"


def find(connection: sqlite3.Connection, text: str) -> list[Hit]:
    """Return the turns that hold every word of a text, newest first."""
    words = text.split()
    if not words:
        return []
    found = list(_by_index(connection, words)) if has_words(connection) else []
    return found or list(_by_reading(connection, words))


def _by_index(connection: sqlite3.Connection, words: Sequence[str]) -> Iterator[Hit]:
    query = " ".join('"{}"*'.format(word.replace('"', '""')) for word in map(_encodable, words))
    snippets = ", ".join(
        f"CAST(snippet(words, {at}, '{OPEN}', '{CLOSE}', '…', {SNIPPET_WORDS}) AS BLOB) AS in_{place}"
        for at, place in enumerate(PLACES)
    )
    rows = connection.execute(
        f"SELECT {COLUMNS}, {snippets} FROM words JOIN turns ON turns.id = words.rowid"
        " JOIN chats ON chats.id = turns.chat WHERE words MATCH ? ORDER BY turns.id DESC",
        (query,),
    )
    for row in rows:
        for place in PLACES:
            snippet = bytes(row[f"in_{place}"] or b"").decode("utf-8", "replace")
            if OPEN in snippet:
                yield _hit(row, place, tuple(_parts(snippet)))
                break


def _by_reading(connection: sqlite3.Connection, words: Sequence[str]) -> Iterator[Hit]:
    wanted = [re.compile(re.escape(word), re.IGNORECASE) for word in words]
    rows = connection.execute(
        f"SELECT {COLUMNS}, prompt, thinking, answer FROM turns JOIN chats ON chats.id = turns.chat"
        " ORDER BY turns.id DESC"
    )
    for row in rows:
        texts = {place: exact(row[place]) for place in PLACES}
        if not all(any(word.search(text) for text in texts.values()) for word in wanted):
            continue
        for place, text in texts.items():
            if first := next((match for word in wanted if (match := word.search(text))), None):
                yield _hit(row, place, _around(text, first.start(), first.end()))
                break


def _hit(row: sqlite3.Row, place: Place, snippet: tuple[SnippetPart, ...]) -> Hit:
    return Hit(
        chat=row["chat"],
        turn=row["turn"],
        place=place,
        snippet=snippet,
        title=exact(row["title"]),
        model=exact(row["model"]),
        created_at=datetime.fromisoformat(row["created_at"]),
    )


def _parts(marked: str) -> Iterator[SnippetPart]:
    """Cut a snippet of the index at its marks."""
    for part in re.split(f"({OPEN}[^{CLOSE}]*{CLOSE})", marked):
        if part:
            yield SnippetPart(part.strip(OPEN + CLOSE), part.startswith(OPEN))


def _around(text: str, start: int, end: int) -> tuple[SnippetPart, ...]:
    before, after = text[max(0, start - SNIPPET_CHARS) : start], text[end : end + SNIPPET_CHARS]
    if start > SNIPPET_CHARS:
        before = "…" + before
    if end + SNIPPET_CHARS < len(text):
        after += "…"
    parts = (SnippetPart(before, False), SnippetPart(text[start:end], True), SnippetPart(after, False))
    return tuple(part for part in parts if part.text)


def _encodable(word: str) -> str:
    return word.encode("utf-8", "replace").decode("utf-8")
