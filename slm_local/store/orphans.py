"""Turns that were being generated when their process died: found, and made whole from the text that was kept.

A live turn names its process and when that opened the history. The process is gone when none has the number, or when
the one that has it began later.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence

from slm_local.store.rows import exact, kept

CLOCK_STEP_S = 2.0
"""How far a clock may be set forward before a process is taken for a later one of the same number."""


def holder_now() -> str:
    """Return the name that this process gives to the turns it generates."""
    return f"{os.getpid()} {time.time():.3f}"


def orphans(connection: sqlite3.Connection) -> list[int]:
    """Return the live turns whose process is gone."""
    live = connection.execute("SELECT id, holder FROM turns WHERE state = 'live'").fetchall()
    alive: dict[str, bool] = {}
    for _, holder in live:
        if holder not in alive:
            alive[holder] = _is_alive(holder)
    return [turn for turn, holder in live if not alive[holder]]


def is_growing(connection: sqlite3.Connection, chat: int) -> bool:
    """Return whether a process is writing an answer into a chat now."""
    live = connection.execute("SELECT id FROM turns WHERE state = 'live' AND chat = ?", (chat,)).fetchall()
    return not {turn for (turn,) in live} <= set(orphans(connection))


def settle(connection: sqlite3.Connection, turns: Sequence[int]) -> None:
    """Mark turns as interrupted and give them the text that was kept of them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for turn in turns:
            fold(connection, turn)
            connection.execute("UPDATE turns SET state = 'interrupted' WHERE id = ? AND state = 'live'", (turn,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def fold(connection: sqlite3.Connection, turn: int) -> None:
    """Join the pieces of a turn's text to it."""
    pieces = connection.execute("SELECT thinking, answer FROM pieces WHERE turn = ? ORDER BY id", (turn,)).fetchall()
    if not pieces:
        return
    texts = [connection.execute("SELECT thinking, answer FROM turns WHERE id = ?", (turn,)).fetchone(), *pieces]
    thinking, answer = ("".join(exact(text[side]) for text in texts) for side in (0, 1))
    connection.execute("UPDATE turns SET thinking = ?, answer = ? WHERE id = ?", (kept(thinking), kept(answer), turn))
    connection.execute("DELETE FROM pieces WHERE turn = ?", (turn,))


def _is_alive(holder: str) -> bool:
    import psutil

    pid, opened_s = holder.split()
    try:
        return bool(psutil.Process(int(pid)).create_time() <= float(opened_s) + CLOCK_STEP_S)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
