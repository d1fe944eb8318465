"""The history as `run` and `chat` use it: opened unless it is not wanted, and the kept conversation to go on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slm_local.cli.options import ChatFlags
from slm_local.cli.render import YELLOW, Terminal
from slm_local.config import Settings
from slm_local.errors import SlmError, UsageError
from slm_local.paths import paths

if TYPE_CHECKING:
    from slm_local.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A kept conversation to go on with."""

    id: int
    model: str
    """The reference as it was typed."""


@contextmanager
def opened_store(terminal: Terminal, settings: Settings) -> Iterator[Store | None]:
    """Open the history; None where it is not wanted, or can't be opened: then a line says so, and nothing is kept."""
    if not settings.log:
        yield None
        return
    from slm_local.store import open_store  # sqlite3, for a command that may never need it

    try:
        store = open_store(paths().data)
    except SlmError as error:
        terminal.say(f"this is not kept in the history: {error.message}", YELLOW)
        yield None
        return
    with store:
        for notice in store.notices:
            terminal.say(notice, YELLOW)
        yield store


def kept_chat(flags: ChatFlags, store: Store | None) -> Kept | None:
    """Return the kept conversation that `-c` or `--chat` means, None for a new one.

    Errors: `UsageError` where there is none, or the history can't be read.
    """
    if not flags.goes_on and flags.chat is None:
        return None
    if flags.goes_on and flags.chat is not None:
        raise UsageError("-c takes the last conversation, --chat names one", hint=f"--chat {flags.chat}")
    if store is None:
        raise UsageError("what is not kept can't be gone on with", hint="slm history")
    if flags.chat is not None and not flags.chat.isdecimal():
        raise UsageError(f"--chat takes the number of a kept chat, not {flags.chat!r}", hint="slm history list")
    number = int(flags.chat) if flags.chat is not None else store.newest()
    if number is None:
        raise UsageError("there is no kept conversation to go on with", hint='slm run MODEL "..."')
    chat = store.chat(number)
    return Kept(id=number, model=chat.model)
