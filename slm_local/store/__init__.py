"""Keeps chats: SQLite with numbered migrations, a row a turn; nobody else's SQL.

It knows what was said and how it was made, not who shows it. `Store` is the file, `Recorder` what writes a
conversation into it while it happens, `export` what takes it out.
"""

from slm_local.store.export import (
    Exchange,
    chat_object,
    exchange_of,
    is_example,
    markdown,
    messages_object,
    turn_object,
    utc,
)
from slm_local.store.newfile import write_new
from slm_local.store.recorder import Record, Recorder
from slm_local.store.states import States
from slm_local.store.store import Store, has_store, open_store
from slm_local.store.values import (
    ASIDE_STATES,
    Chat,
    ChatKind,
    ChatRow,
    HistoryUnusable,
    Hit,
    KeptTurn,
    PlanFacts,
    SnippetPart,
    TurnState,
    UnknownChat,
    facts_of,
)

__all__ = [
    "ASIDE_STATES",
    "Chat",
    "ChatKind",
    "ChatRow",
    "Exchange",
    "HistoryUnusable",
    "Hit",
    "KeptTurn",
    "PlanFacts",
    "Record",
    "Recorder",
    "SnippetPart",
    "States",
    "Store",
    "TurnState",
    "UnknownChat",
    "chat_object",
    "exchange_of",
    "facts_of",
    "has_store",
    "is_example",
    "markdown",
    "messages_object",
    "open_store",
    "turn_object",
    "utc",
    "write_new",
]
