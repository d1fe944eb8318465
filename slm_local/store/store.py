"""The history: chats and their turns, each change committed to the disk before the call returns.

It knows what is to be kept, not when: that is the recorder's.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from slm_local.errors import SlmError, UsageError
from slm_local.generation import Reply
from slm_local.store.opening import FILE, identity_of, is_broken, open_file, unusable
from slm_local.store.orphans import holder_now, is_growing, orphans, settle
from slm_local.store.rows import chat_row_of, json_of, kept, now, settings_text, turn_of
from slm_local.store.schema import has_words
from slm_local.store.search import find
from slm_local.store.states import forget_states
from slm_local.store.values import (
    ASIDE_STATES,
    MARKED_STATES,
    Chat,
    ChatKind,
    ChatRow,
    HistoryUnusable,
    Hit,
    KeptTurn,
    PlanFacts,
    TurnState,
    UnknownChat,
)

MAX_TITLE_CHARS = 200

CHATS = f"""
    SELECT chats.*, SUM(turns.state NOT IN {ASIDE_STATES}) AS turn_count
    FROM chats JOIN turns ON turns.chat = chats.id
"""


def open_store(folder: Path) -> Store:
    """Open the history in a folder, made if it must be. Errors: `HistoryUnusable`, `ConfigError` for the folder."""
    return Store(folder)


def has_store(folder: Path) -> bool:
    """Return whether anything was ever kept in a folder."""
    return (folder / FILE).exists()


class Store:
    """The open history. A context manager; any thread may use it, and any number of programs at once.

    A file that is found damaged, or was deleted while it was open, is made anew: `take_notices` says so, and
    `generation` grows.
    Every method: `HistoryUnusable` where the file can't be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.notices: tuple[str, ...] = ()
        """What a person is to be told of the opening."""
        self._news: list[str] = []
        self._generation = 0
        self._lock = threading.RLock()
        self._holder = holder_now()
        self._is_closed = self._is_used = False
        self.notices = self._open()

    @property
    def generation(self) -> int:
        """Return how often the file was made anew: ids of an earlier one mean nothing now."""
        with self._reading():
            return self._generation

    def take_notices(self) -> list[str]:
        """Return what a person is to be told of what happened since the opening, once."""
        with self._lock:
            taken, self._news = self._news, []
            return taken

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all changes inside one: on the disk, all or none, when it is left."""
        with self._writing():
            yield

    def begin_chat(self, *, model: str, kind: ChatKind, system: str | None = None) -> int:
        """Begin a chat and return its number; `model` is the reference as typed. It is listed once it has a turn."""
        with self._writing() as connection:
            cursor = connection.execute(
                "INSERT INTO chats (kind, model, system, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
                (kind, kept(model), None if system is None else kept(system), now(), now()),
            )
            return int(cursor.lastrowid or 0)

    def change_chat(self, chat: int, *, model: str, system: str | None) -> None:
        """Note that a chat goes on with another model or system prompt. Errors: `UnknownChat`."""
        with self._writing() as connection:
            _must_exist(connection, chat)
            connection.execute(
                "UPDATE chats SET model = ?, system = ? WHERE id = ?",
                (kept(model), None if system is None else kept(system), chat),
            )

    def begin_turn(self, chat: int, prompt: str, plan: PlanFacts) -> int:
        """Keep a prompt that is about to be answered and return the turn's number. Errors: `UnknownChat`."""
        with self._writing() as connection:
            _must_exist(connection, chat)
            row = {
                "chat": chat,
                "state": "live",
                "prompt": kept(prompt),
                **{name: kept(getattr(plan, name)) for name in ("model", "backend", "device", "quant")},
                "context_tokens": plan.context_tokens,
                "threads": plan.threads,
                "settings": settings_text(plan),
                "holder": self._holder,
                "created_at": now(),
                "updated_at": now(),
            }
            cursor = connection.execute(
                f"INSERT INTO turns ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values())
            )
            connection.execute(
                "UPDATE chats SET updated_at = ?, title = CASE title WHEN '' THEN ? ELSE title END WHERE id = ?",
                (now(), kept(_title(prompt)), chat),
            )
            return int(cursor.lastrowid or 0)

    def add_text(self, turn: int, thinking: str, answer: str) -> None:
        """Keep what a live turn's thinking and answer grew by."""
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO pieces (turn, thinking, answer) VALUES (?, ?, ?)", (turn, kept(thinking), kept(answer))
            )

    def end_turn(self, turn: int, reply: Reply, error: SlmError | None = None) -> None:
        """Keep a whole reply, and what ended it before its time."""
        changes = {
            "state": "done",
            "thinking": kept(reply.thinking),
            "answer": kept(reply.answer),
            "finish": reply.finish,
            "cut": reply.cut,
            "usage": json_of(reply.usage),
            "timings": json_of(reply.timings),
            "error": None if error is None else json_of(error.record()),
            "holder": None,
            "updated_at": now(),
        }
        with self._writing() as connection:
            connection.execute("DELETE FROM pieces WHERE turn = ?", (turn,))
            connection.execute(
                f"UPDATE turns SET {', '.join(f'{name} = ?' for name in changes)} WHERE id = ?",
                (*changes.values(), turn),
            )
            connection.execute(
                "UPDATE chats SET updated_at = ? WHERE id = (SELECT chat FROM turns WHERE id = ?)", (now(), turn)
            )

    def mark(self, turn: int, state: TurnState) -> None:
        """Mark a finished turn with one of `MARKED_STATES`; its text stays."""
        assert state in MARKED_STATES
        with self._writing() as connection:
            connection.execute("UPDATE turns SET state = ? WHERE id = ?", (state, turn))

    def remove(self, chat: int) -> None:
        """Remove a chat and the KV states that are kept of it; `tidy` overwrites its last traces.

        Errors: `UnknownChat`, `UsageError` while it grows.
        """
        with self._writing() as connection:
            _must_exist(connection, chat)
            if is_growing(connection, chat):
                raise UsageError(f"an answer in chat {chat} is being written now", hint=f"slm history show {chat}")
            forget_states(self.path.parent, chat)
            connection.execute("DELETE FROM turns WHERE chat = ?", (chat,))
            connection.execute("DELETE FROM chats WHERE id = ?", (chat,))

    @property
    def has_index(self) -> bool:
        """Whether words are found by an index; where SQLite has no FTS5, every text is read."""
        with self._reading() as connection:
            return has_words(connection)

    def tidy(self) -> None:
        """Overwrite what was removed wherever SQLite still has it: in the index of words and in the log of writes."""
        with self._reading() as connection:
            if has_words(connection):
                connection.execute("INSERT INTO words (words) VALUES ('optimize')")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def chats(self, limit: int | None = None) -> list[ChatRow]:
        """Return the chats, the one that was written to last first; `limit` None: all."""
        with self._reading() as connection:
            rows = connection.execute(
                f"{CHATS} GROUP BY chats.id ORDER BY chats.updated_at DESC, chats.id DESC LIMIT ?",
                (-1 if limit is None else limit,),
            )
            return [chat_row_of(row) for row in rows]

    def count(self) -> int:
        """Return how many chats there are."""
        with self._reading() as connection:
            return int(connection.execute(f"SELECT COUNT(*) FROM ({CHATS} GROUP BY chats.id)").fetchone()[0])

    def newest(self) -> int | None:
        """Return the conversation that was written to last, which a comparison is none; None where there is none."""
        return next((row.id for row in self.chats() if row.kind != "compare"), None)

    def chat(self, chat: int) -> Chat:
        """Return a chat with its turns. Errors: `UnknownChat`."""
        with self._reading() as connection:
            if lost := orphans(connection):  # another program died since the opening
                settle(connection, lost)
            row = connection.execute(f"{CHATS} WHERE chats.id = ? GROUP BY chats.id", (chat,)).fetchone()
            if row is None:
                raise UnknownChat(chat)
            about = chat_row_of(row)
            turns = tuple(_turns(connection, chat))
        return Chat(**{name: getattr(about, name) for name in ChatRow.__slots__}, turns=turns)

    def search(self, text: str) -> list[Hit]:
        """Return the turns in which all words of a text are found, newest first."""
        with self._reading() as connection:
            return find(connection, text)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._is_closed = True
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, *, is_suspect: bool = False) -> tuple[str, ...]:
        opened = open_file(self.path.parent, is_suspect=is_suspect)
        self._connection, self._identity = opened.connection, opened.identity
        self._connection.row_factory = sqlite3.Row
        return opened.notices

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection inside a transaction that is on the disk when the outermost is left."""
        with self._reading() as connection:
            is_outermost = not connection.in_transaction
            if is_outermost:
                connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                if is_outermost:
                    connection.execute("COMMIT")
            except BaseException:
                if is_outermost and connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, of the file that is there now."""
        with self._lock:
            if self._is_closed:
                raise HistoryUnusable("the history was closed")
            if self._is_used:
                yield self._connection
                return
            self._is_used = True
            try:
                self._renew_if_gone()
                yield self._connection
            except sqlite3.Error as error:
                failure = unusable(error, self.path)
                if is_broken(error):
                    self._renew(is_suspect=True)
                raise failure from error
            finally:
                self._is_used = False

    def _renew_if_gone(self) -> None:
        if identity_of(self.path) != self._identity:
            self._renew()
            self._news.append(f"the history in {self.path} was deleted; a new one begins with what is said now")

    def _renew(self, *, is_suspect: bool = False) -> None:
        self._connection.close()
        self._generation += 1
        self._news += self._open(is_suspect=is_suspect)


def _turns(connection: sqlite3.Connection, chat: int) -> Iterator[KeptTurn]:
    rows = connection.execute("SELECT * FROM turns WHERE chat = ? ORDER BY id", (chat,)).fetchall()
    for row in rows:
        yield turn_of(row, connection.execute("SELECT * FROM pieces WHERE turn = ? ORDER BY id", (row["id"],)))


def _must_exist(connection: sqlite3.Connection, chat: int) -> None:
    if connection.execute("SELECT 1 FROM chats WHERE id = ?", (chat,)).fetchone() is None:
        raise UnknownChat(chat)


def _title(prompt: str) -> str:
    line = next((line for line in prompt.split("\n") if line.strip()), "").strip()
    return line if len(line) <= MAX_TITLE_CHARS else line[: MAX_TITLE_CHARS - 1] + "…"
