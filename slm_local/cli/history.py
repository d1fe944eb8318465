"""`slm history`: the chats that were kept, listed, shown, searched, exported, removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from slm_local.cli.kept import (
    ASIDE_WORDS,
    FORMATS,
    HEAD,
    exported,
    found_line,
    hit_object,
    list_cells,
    row_object,
    show_chat,
)
from slm_local.cli.render import DIM, YELLOW, Terminal, can_ask
from slm_local.errors import Interrupted, UsageError
from slm_local.paths import paths
from slm_local.sanitize import shell_word, visible
from slm_local.store import Chat, ChatRow, Store, chat_object, has_store, open_store, write_new

SHOWN_AT_ONCE = 20
REMOVALS_NAMED = 5

Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="exact text and all facts, for programs")]
Limit = Annotated[
    int | None, typer.Option("-n", metavar="N", min=1, help=f"so many; {SHOWN_AT_ONCE} without it, all with --json")
]
Thinking = Annotated[
    bool, typer.Option("--thinking/--no-thinking", show_default=False, help="with its thoughts, or without")
]


def list_chats(context: typer.Context, limit: Limit = None, json: Json = False) -> int:
    """List the chats that were kept, the one that was written to last first."""
    terminal: Terminal = context.obj
    rows: list[ChatRow] = []
    if has_store(paths().data):
        with _opened(terminal) as store:
            rows = store.chats()
    shown = rows[: _limit(limit, json)]
    if json:
        terminal.json([row_object(row) for row in shown])
        return 0
    if shown:
        terminal.table(list_cells(shown, terminal), head=HEAD)
    else:
        terminal.say("nothing is kept yet", DIM)
    _say_more(terminal, len(rows) - len(shown), f"slm history list -n {len(rows)}")
    return 0


def show(
    context: typer.Context,
    number: Annotated[int | None, typer.Argument(metavar="[ID]", show_default=False)] = None,
    thinking: Thinking = True,
    everything: Annotated[bool, typer.Option("--all", help="undone turns and other samples, too")] = False,
    json: Json = False,
) -> int:
    """Show a chat; without ID the one that was written to last."""
    terminal: Terminal = context.obj
    with _opened(terminal) as store:
        (chat,) = _chosen(store, [number] if number is not None else [], everything=False)
    if json:
        terminal.json(chat_object(chat))
        return 0
    left_out = show_chat(terminal, chat, with_thinking=thinking, with_undone=everything)
    if left_out:
        terminal.say(f"{_turns(left_out)} {ASIDE_WORDS} · slm history show {chat.id} --all", DIM)
    return 0


def search(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", show_default=False)],
    limit: Limit = None,
    json: Json = False,
) -> int:
    """Find the turns that hold all WORDS, or words that begin so, in prompt, thinking or answer; newest first."""
    terminal: Terminal = context.obj
    text = " ".join(words)
    if not text.strip():
        raise UsageError("there is nothing to search for", hint="slm history search WORDS")
    with _opened(terminal) as store:
        hits = store.search(text)
        if not store.has_index:
            terminal.say("this Python's SQLite has no full-text search (FTS5): every text was read", DIM)
    shown = hits[: _limit(limit, json)]
    if json:
        terminal.json([hit_object(hit) for hit in shown])
        return 0
    for hit in shown:
        terminal.write(found_line(terminal, hit) + "\n")
    if not hits:
        terminal.say(f"no turn holds {text}", DIM)
    _say_more(terminal, len(hits) - len(shown), f"slm history search {shell_word(text)} -n {len(hits)}")
    return 0


def export(
    context: typer.Context,
    numbers: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="all chats")] = False,
    form: Annotated[
        str | None, typer.Option("--format", metavar="|".join(FORMATS), help="without it: that of FILE's name, else md")
    ] = None,
    thinking: Thinking = True,
    target: Annotated[Path | None, typer.Option("-o", metavar="FILE", help="a new file; else stdout")] = None,
) -> int:
    """Write chats with their exact text: Markdown, JSON, or JSON lines of messages to fine-tune on.

    Without ID the chat that was written to last. With jsonl, thinking stands in the content between <think> tags.
    """
    terminal: Terminal = context.obj
    form = form or _form_of(target)
    if form not in FORMATS:
        raise UsageError(f"there is no format {form!r}", hint="slm history export --format md   or json, jsonl")
    with _opened(terminal) as store:
        chats = _chosen(store, numbers or [], everything=everything)
    text, remark = exported(chats, form, with_thinking=thinking)
    if target is None:
        terminal.write(visible(text) if terminal.out_is_terminal else text)
    else:
        given = "--all" if everything else " ".join(str(chat.id) for chat in chats)
        write_new(target.expanduser(), text, hint=f"slm history export {given} --format {form} -o {{}}")
        terminal.say(f"written to {target}", DIM)
    if remark:
        terminal.say(remark, YELLOW)
    return 0


def rm(
    context: typer.Context,
    numbers: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="all chats")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="don't ask")] = False,
) -> int:
    """Remove chats for good, after asking."""
    terminal: Terminal = context.obj
    if not numbers and not everything:
        raise UsageError("which chat is to go?", hint="slm history rm ID   or --all")
    with _opened(terminal) as store:
        chats = _chosen(store, numbers or [], everything=everything)
        if not yes:
            _confirm(terminal, chats, "--all" if everything else " ".join(str(chat.id) for chat in chats))
        for chat in chats:
            store.remove(chat.id)
            terminal.line(f"removed {_line(chat)}")
        store.tidy()
    return 0


commands: Mapping[str, Callable[..., int]] = {
    "list": list_chats,
    "show": show,
    "search": search,
    "export": export,
    "rm": rm,
}


@contextmanager
def _opened(terminal: Terminal) -> Iterator[Store]:
    """Open the history, which is not made for this. Errors: `UsageError`, `HistoryUnusable`."""
    if not has_store(paths().data):
        raise UsageError("nothing is kept yet", hint='slm run MODEL "..."')
    with open_store(paths().data) as store:
        for notice in store.notices:
            terminal.say(notice, YELLOW)
        yield store


def _chosen(store: Store, numbers: Sequence[int], *, everything: bool) -> list[Chat]:
    """Return the chats that are meant, the newest where none is named. Errors: `UnknownChat`, `UsageError`."""
    if everything and numbers:
        raise UsageError("--all and numbers contradict each other", hint="slm history list")
    if not numbers:
        numbers = [row.id for row in store.chats(None if everything else 1)]
    if not numbers:
        raise UsageError("nothing is kept yet", hint='slm run MODEL "..."')
    return [store.chat(number) for number in dict.fromkeys(numbers)]


def _confirm(terminal: Terminal, chats: Sequence[Chat], given: str) -> None:
    """Have a person press y. Errors: `Interrupted` where they don't, `UsageError` where nobody can."""
    import click

    if not can_ask(terminal):
        raise UsageError(f"removing {_chats(len(chats))} is not asked about here", hint=f"slm history rm {given} -y")
    for chat in chats[:REMOVALS_NAMED]:
        terminal.say(f"  {_line(chat)}")
    if len(chats) > REMOVALS_NAMED:
        terminal.say(f"  … {len(chats) - REMOVALS_NAMED} more")
    terminal.talk(f"remove {'it' if len(chats) == 1 else 'them'} for good? y: yes, any other key: no ")
    try:
        agreed = click.getchar() in ("y", "Y")
    except EOFError:
        agreed = False
    terminal.talk("\n")
    if not agreed:
        raise Interrupted("nothing was removed", hint="slm history list")


def _form_of(target: Path | None) -> str:
    """Return the format that a file's name asks for, else Markdown."""
    suffix = target.suffix.removeprefix(".").lower() if target is not None else ""
    return suffix if suffix in FORMATS else "md"


def _limit(given: int | None, is_json: bool) -> int | None:
    return given if given is not None or is_json else SHOWN_AT_ONCE


def _say_more(terminal: Terminal, count: int, command: str) -> None:
    if count > 0:
        terminal.say(f"… {count} more · {command}", DIM)


def _line(chat: Chat) -> str:
    return f"chat {chat.id} · {_turns(len(chat.turns))} · {chat.title}"


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count} turns"


def _chats(count: int) -> str:
    return "1 chat" if count == 1 else f"{count} chats"
