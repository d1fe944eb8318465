"""Conversations as Markdown, as JSON, and as the messages that trainers read: values and text, exactly as they were.

Thinking goes into a message's content between `<think>` tags, in the form that Qwen3 was trained on. Trainers hand
messages to the model's chat template, and most templates pass over a field of its own in silence; content reaches
all of them. Templates that cut thinking out of content (DeepSeek-R1's) do so with every form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from slm_local.store.values import Chat, KeptTurn, PlanFacts

REMARKS = {
    "live": "is being written now",
    "interrupted": "interrupted",
    "dropped": "no longer shown to the model",
    "undone": "undone",
    "replaced": "answered anew below",
    "sample": "another sample of the same prompt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A prompt and what came back."""

    prompt: str
    thinking: str
    answer: str
    remark: str = ""
    """What is to be known of it, such as that it was interrupted."""


def exchange_of(turn: KeptTurn) -> Exchange:
    """Return a kept turn as it is shown and exported."""
    alone = f"one of {turn.facts.samples} samples" if turn.facts.samples else ""
    remark = REMARKS.get(turn.state, alone)
    if turn.error is not None:
        remark = "; ".join(filter(None, (remark, f"failed: {turn.error.message}")))
    elif turn.finish == "cancelled":
        remark = "; ".join(filter(None, (remark, "stopped")))
    return Exchange(prompt=turn.prompt, thinking=turn.thinking, answer=turn.answer, remark=remark)


def markdown(title: str, system: str | None, exchanges: Iterable[Exchange]) -> str:
    """Return a conversation as Markdown, thinking in block quotes, a line for a line."""
    parts = [f"# {title}"]
    if system:
        parts.append(f"**System**\n\n{system}")
    for each in exchanges:
        parts.append(f"## Prompt\n\n{each.prompt}")
        if each.thinking:
            quoted = "\n".join(f"> {line}" if line else ">" for line in each.thinking.split("\n"))
            parts.append(f"### Thinking\n\n{quoted}")
        if each.answer or not each.remark:
            parts.append(f"### Answer\n\n{each.answer}")
        if each.remark:
            parts.append(f"*({each.remark})*")
    return "\n\n".join(parts) + "\n"


def chat_object(chat: Chat) -> dict[str, Any]:
    """Return a chat as JSON values, every turn of it."""
    return {
        "id": chat.id,
        "kind": chat.kind,
        "model": chat.model,
        "title": chat.title,
        "system": chat.system,
        "created_at": utc(chat.created_at),
        "updated_at": utc(chat.updated_at),
        "turns": [turn_object(turn) for turn in chat.turns],
    }


def turn_object(turn: KeptTurn) -> dict[str, Any]:
    """Return a turn as JSON values: those of `slm run --json`, and what else is kept of it."""
    facts = turn.facts
    values = {
        "id": turn.id,
        "state": turn.state,
        "created_at": utc(turn.created_at),
        "updated_at": utc(turn.updated_at),
        "model": facts.model,
        "backend": facts.backend,
        "device": facts.device,
        "quant": facts.quant,
        "prompt": turn.prompt,
        "thinking": turn.thinking,
        "answer": turn.answer,
        "finish": turn.finish,
        "cut": turn.cut,
        "usage": asdict(turn.usage),
        "timings": asdict(turn.timings),
        "settings": _settings(facts),
    }
    return values if turn.error is None else {**values, "error": asdict(turn.error)}


def messages_object(chat: Chat, *, with_thinking: bool) -> dict[str, Any] | None:
    """Return a chat in the messages form of supervised fine-tuning; None where no turn was answered to its end.

    Only what the model is shown again is in it, without answers that were stopped, cut short or failed.
    """
    turns = [turn for turn in chat.turns if is_example(turn)]
    if not turns:
        return None
    messages = [{"role": "system", "content": chat.system}] if chat.system else []
    for turn in turns:
        answer = turn.answer
        if with_thinking and turn.thinking:
            end = "" if turn.thinking.endswith("\n") else "\n"
            answer = f"<think>\n{turn.thinking}{end}</think>\n\n{answer}"
        messages += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def is_example(turn: KeptTurn) -> bool:
    """Return whether a model may learn from a turn."""
    return turn.state in ("done", "dropped") and turn.finish == "stop" and bool(turn.answer) and turn.error is None


def utc(moment: datetime) -> str:
    """Return a time as JSON carries it."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _settings(facts: PlanFacts) -> dict[str, Any]:
    return {
        "context_tokens": facts.context_tokens,
        "threads": facts.threads,
        "think": facts.think,
        "think_tokens": facts.think_tokens,
        "think_s": facts.think_s,
        "max_tokens": facts.max_tokens,
        "samples": facts.samples,
        **asdict(facts.sampling),
    }
