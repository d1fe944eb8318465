"""What is kept of chats, as values, and what can go wrong with the file they are kept in."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from slm_local.errors import FailureRecord, SlmError, UsageError
from slm_local.generation import Cut, Finish, GenerationRequest, Reply, Sampling, ThinkMode, Timings, Usage
from slm_local.model import Plan

ChatKind = Literal["chat", "run", "compare"]

TurnState = Literal["live", "done", "interrupted", "dropped", "undone", "replaced", "sample"]
"""`live`: being generated now; `interrupted`: its process died; `dropped`: no longer shown to the model, to make room;
`undone` and `replaced`: taken back, or answered anew; `sample`: one of several, and not the one that the conversation
goes on with."""

Place = Literal["prompt", "thinking", "answer"]

MARKED_STATES = ("done", "dropped", "undone", "replaced", "sample")
"""States that a finished turn is put into."""

ASIDE_STATES = ("undone", "replaced", "sample")
"""States of turns that a conversation is shown without, and that are not counted."""


class HistoryUnusable(SlmError):
    """The file of kept chats can't be read or written: a newer program's, damaged, locked, or the disk is full."""

    exit_code = 2


class UnknownChat(UsageError):
    """No chat of that number is kept."""

    def __init__(self, chat: int) -> None:
        super().__init__(f"there is no chat {chat}", hint="slm history list")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """How a reply was made: the plan, and the settings that mattered."""

    model: str
    """The model's id; the reference as typed belongs to the chat."""
    backend: str
    device: str
    quant: str
    context_tokens: int
    threads: int
    think: ThinkMode = "auto"
    think_tokens: int | None = None
    think_s: float | None = None
    max_tokens: int | None = None
    samples: int | None = None
    """Of how many samples of its prompt it is one; None: it was the only one."""
    sampling: Sampling = field(default_factory=Sampling)


def facts_of(plan: Plan, request: GenerationRequest, *, samples: int | None = None) -> PlanFacts:
    """Return what is kept of how a request is answered, alone or as one of so many samples."""
    return PlanFacts(
        model=plan.spec.id,
        backend=plan.backend,
        device=plan.device,
        quant=plan.variant.quant,
        context_tokens=plan.context_tokens,
        threads=plan.threads,
        think=request.think,
        think_tokens=request.think_tokens,
        think_s=request.think_s,
        max_tokens=request.max_tokens,
        samples=samples,
        sampling=request.sampling,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTurn:
    """One prompt with what came back, as far as it came."""

    id: int
    chat: int
    state: TurnState
    prompt: str
    thinking: str
    answer: str
    facts: PlanFacts
    finish: Finish | None
    """None while it is live and where its process died."""
    cut: Cut
    usage: Usage
    """All None where nobody counted: while it is live, and where its process died."""
    timings: Timings
    error: FailureRecord | None
    created_at: datetime
    updated_at: datetime

    @property
    def is_shown_to_the_model(self) -> bool:
        """Whether the turn is part of the conversation when the chat goes on."""
        return self.state == "done" and bool(self.answer) and self.error is None

    @property
    def reply(self) -> Reply:
        """Return what came back; the finish of a turn without one is `error`."""
        return Reply(
            thinking=self.thinking,
            answer=self.answer,
            finish=self.finish or "error",
            cut=self.cut,
            usage=self.usage,
            timings=self.timings,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRow:
    """One line in the list of chats."""

    id: int
    kind: ChatKind
    model: str
    """The reference as it was typed last."""
    title: str
    """The first line of the first prompt; "…" marks what was cut."""
    system: str | None
    created_at: datetime
    updated_at: datetime
    turn_count: int
    """Turns that were not undone or replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat(ChatRow):
    """A chat with all its turns, oldest first, the undone and replaced among them."""

    turns: tuple[KeptTurn, ...]


@dataclass(frozen=True, slots=True)
class SnippetPart:
    """A stretch of a text around a hit."""

    text: str
    is_hit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A turn in which something was found."""

    chat: int
    turn: int
    place: Place
    snippet: tuple[SnippetPart, ...]
    title: str
    model: str
    created_at: datetime
