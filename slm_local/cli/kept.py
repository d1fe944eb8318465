"""How kept chats are shown and written: lines of a list, a chat as a person reads it, hits, exports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from slm_local.cli.render import DIM, YELLOW, Terminal, columns_of, json_text, rule
from slm_local.sanitize import one_line, visible
from slm_local.store import (
    ASIDE_STATES,
    Chat,
    ChatRow,
    Hit,
    chat_object,
    exchange_of,
    is_example,
    markdown,
    messages_object,
    utc,
)

HEAD = ("id", "when", "kind", "turns", "model", "title")
FORMATS = ("md", "json", "jsonl")

MIN_TITLE_COLUMNS = 12
MODEL_COLUMNS = 24
MAX_RULE_COLUMNS = 100
ASIDE_WORDS = "undone, answered anew or other samples"


def row_object(row: ChatRow) -> dict[str, Any]:
    """Return a line of the list as JSON values."""
    return {
        "id": row.id,
        "kind": row.kind,
        "model": row.model,
        "title": row.title,
        "turns": row.turn_count,
        "created_at": utc(row.created_at),
        "updated_at": utc(row.updated_at),
    }


def list_cells(rows: Sequence[ChatRow], terminal: Terminal) -> list[list[str]]:
    """Return the list in the columns of `HEAD`; on a terminal models and titles are cut where they must be."""
    is_cut = terminal.out_is_terminal
    models = [_cut_model(one_line(row.model)) if is_cut else one_line(row.model) for row in rows]
    lines = [
        [str(row.id), when(row.updated_at), row.kind, str(row.turn_count), model]
        for row, model in zip(rows, models, strict=True)
    ]
    widths = [max(map(columns_of, column)) for column in zip(HEAD[:-1], *lines, strict=True)]
    room = max(MIN_TITLE_COLUMNS, terminal.columns - sum(widths) - 2 * len(widths))
    titles = [_cut(one_line(row.title), room) if is_cut else one_line(row.title) for row in rows]
    return [[*line, title] for line, title in zip(lines, titles, strict=True)]


def _cut(text: str, columns: int) -> str:
    while columns_of(text) > columns:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _cut_model(reference: str) -> str:
    """Cut a reference where it must be: of a path the end tells the most."""
    return _cut(reference[::-1], MODEL_COLUMNS)[::-1] if os.path.isabs(reference) else _cut(reference, MODEL_COLUMNS)


def when(moment: datetime) -> str:
    """Return a time as the person's clock shows it."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def show_chat(terminal: Terminal, chat: Chat, *, with_thinking: bool, with_undone: bool) -> int:
    """Write a chat to stdout; return how many turns, undone, answered anew or other samples, were left out."""
    shown = [turn for turn in chat.turns if with_undone or turn.state not in ASIDE_STATES]
    terminal.write(terminal.paint(f"chat {chat.id} · {chat.kind} · {one_line(chat.model)}", DIM) + "\n")
    if chat.system:
        _part(terminal, "system", chat.system)
    for turn in shown:
        exchange = exchange_of(turn)
        _part(terminal, "prompt", exchange.prompt, when(turn.created_at))
        if exchange.thinking and with_thinking:
            _part(terminal, f"thinking · {turn.facts.model}", exchange.thinking, style=DIM)
        if exchange.answer:
            _part(terminal, f"answer · {turn.facts.model}", exchange.answer)
        if exchange.remark:
            terminal.write(terminal.paint(f"({one_line(exchange.remark, 1000)})", YELLOW) + "\n")
    return len(chat.turns) - len(shown)


def found_line(terminal: Terminal, hit: Hit) -> str:
    """Return a hit as a line: where it is, and the words around it, marked."""
    marked = ""
    for part in hit.snippet:
        text = one_line(part.text, 1000)
        if part.is_hit:
            text = terminal.paint(text, YELLOW) if terminal.out_is_rich else f"«{text}»"
        marked += text
    return f"{hit.chat}  {when(hit.created_at)}  {hit.place}: {marked}"


def hit_object(hit: Hit) -> dict[str, Any]:
    """Return a hit as JSON values."""
    return {
        "chat": hit.chat,
        "turn": hit.turn,
        "place": hit.place,
        "snippet": [{"text": part.text, "is_hit": part.is_hit} for part in hit.snippet],
        "title": hit.title,
        "model": hit.model,
        "created_at": utc(hit.created_at),
    }


def exported(chats: Sequence[Chat], form: str, *, with_thinking: bool) -> tuple[str, str]:
    """Return chats in one of `FORMATS`, and a remark on what of them is not in it."""
    if form == "json":
        values = [chat_object(chat) for chat in chats]
        for turn in (turn for value in values for turn in value["turns"] if not with_thinking):
            del turn["thinking"]
        return json_text(values, 2) + "\n", ""
    if form == "jsonl":
        lines = [each for chat in chats if (each := messages_object(chat, with_thinking=with_thinking))]
        left_out = sum(not is_example(turn) for chat in chats for turn in chat.turns)
        remark = f"left out: {left_out} of the turns, undone, answered anew, other samples or not answered to the end"
        return "".join(json_text(each) + "\n" for each in lines), remark if left_out else ""
    aside = sum(turn.state in ASIDE_STATES for chat in chats for turn in chat.turns)
    remark = f"left out: {aside} of the turns, {ASIDE_WORDS} · --format json has them"
    return "\n".join(_markdown(chat, with_thinking) for chat in chats), remark if aside else ""


def _markdown(chat: Chat, with_thinking: bool) -> str:
    exchanges = [exchange_of(turn) for turn in chat.turns if turn.state not in ASIDE_STATES]
    if not with_thinking:
        exchanges = [replace(each, thinking="") for each in exchanges]
    return markdown(chat.title or f"Chat {chat.id}", chat.system, exchanges)


def _part(terminal: Terminal, title: str, text: str, remark: str = "", *, style: str = "") -> None:
    terminal.write(rule(title, min(terminal.columns, MAX_RULE_COLUMNS), remark) + "\n")
    shown = visible(text).rstrip("\n")
    terminal.write("\n".join(terminal.paint(line, style) if style else line for line in shown.split("\n")) + "\n\n")
