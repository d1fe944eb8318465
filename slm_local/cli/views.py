"""The plain ways to show a reply: on a pipe, on a terminal without escapes, as JSON, as JSON lines.

The panels of a terminal are in `panels`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, assert_never

from slm_local.cli.render import DIM, RESET, Terminal, rule
from slm_local.cli.stream import Outcome
from slm_local.errors import SlmError
from slm_local.generation import (
    AnswerDelta,
    Done,
    Note,
    PromptProgress,
    PromptScores,
    Reply,
    Started,
    StreamEvent,
    ThinkDelta,
    Usage,
)
from slm_local.metrics import Collector
from slm_local.model import Plan
from slm_local.sanitize import Visible

PIPE_FRAME_S = 0.02
"""Short beside what a reader at the other end notices, long beside the time of a token."""


SLOW_PROMPT_TOKENS = 256
"""So many tokens left to read take long enough to be told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a reply is about: who answers and what was asked."""

    model: str
    prompt: str
    plan: Plan | None = None

    def values(self) -> dict[str, Any]:
        """Return the head of the JSON object; null where no plan was made."""
        plan = self.plan
        return {
            "model": self.model,
            "backend": plan.backend if plan else None,
            "device": plan.device if plan else None,
            "quant": plan.variant.quant if plan else None,
            "prompt": self.prompt,
        }


def reply_object(subject: Subject, reply: Reply, error: SlmError | None = None) -> dict[str, Any]:
    """Return the JSON object of a reply, with its exact text."""
    values = {
        **subject.values(),
        "thinking": reply.thinking,
        "answer": reply.answer,
        "finish": reply.finish,
        "cut": reply.cut,
        "usage": asdict(reply.usage),
        "timings": asdict(reply.timings),
    }
    return values if error is None else {**values, "error": asdict(error.record())}


def nothing_yet() -> Reply:
    """Return the reply of a request that failed before it began."""
    return Reply(thinking="", answer="", finish="error", cut="none", usage=Usage(), timings=Collector().reply().timings)


def show_reading(terminal: Terminal, event: Started | PromptProgress) -> None:
    """Show in a passing line how far a prompt has been read, where that takes a while."""
    if isinstance(event, Started):
        done, total = event.cached_tokens or 0, event.prompt_tokens or 0
    else:
        done, total = event.done_tokens, event.total_tokens
    if total - done >= SLOW_PROMPT_TOKENS:
        terminal.status(f"reading the prompt · {total:,} tokens · {100 * done // total} %")


def thinking_head(title: str, columns: int, limit: str) -> list[str]:
    """Return the rule above thinking with how far that may go, in a line of its own where the rule has no room."""
    line = rule(title, columns, limit)
    return [line] if title in line and limit in line else [rule(title, columns), limit]


def delta_values(event: StreamEvent) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the values of an event's JSON line, where it has text."""
    match event:
        case ThinkDelta() | AnswerDelta() if event.text:
            injected = {"injected": True} if event.injected else {}
            return "think" if isinstance(event, ThinkDelta) else "answer", {"text": event.text, **injected}
        case Note():
            return "note", {"text": event.text}
        case ThinkDelta() | AnswerDelta() | Started() | PromptProgress() | PromptScores() | Done():
            return None
        case _:
            assert_never(event)


class PlainView:
    """The answer on stdout as it comes, thinking on stderr; on a terminal without escapes titled rules part them."""

    frame_s = PIPE_FRAME_S

    def __init__(
        self, terminal: Terminal, subject: Subject, *, shows_thinking: bool, limit: str = "", is_quiet: bool = False
    ) -> None:
        """`limit` says how far thinking may go; it is shown where it begins."""
        self._terminal = terminal
        self._subject = subject
        self._is_quiet = is_quiet
        self._shows_thinking = shows_thinking and not is_quiet
        self._has_rules = terminal.out_is_terminal and not is_quiet
        self._limit = limit
        self._dims = terminal.err_is_rich and not self._has_rules
        self._side = ""
        self._visible = Visible()
        self._is_at_line_start = True

    def feed(self, event: StreamEvent, at_s: float) -> None:
        """Show an event's text at once."""
        match event:
            case ThinkDelta():
                if self._shows_thinking:
                    self._to_side("thinking")
                    self._put(self._visible.feed(event.text))
            case AnswerDelta():
                self._to_side("answer")
                self._put(self._visible.feed(event.text))
            case Started() | PromptProgress():
                if not self._is_quiet:
                    show_reading(self._terminal, event)
            case Note() | PromptScores() | Done():
                pass
            case _:
                assert_never(event)

    def draw(self, now_s: float, *, remark: str) -> None:
        """Do nothing: text was shown as it came."""

    def close(self, outcome: Outcome) -> None:
        """End the last line."""
        self._to_side("")

    def _to_side(self, side: str) -> None:
        if side == self._side:
            return
        if self._side:
            self._put(self._visible.flush())
            if not self._is_at_line_start:
                self._put("\n")
        self._side, self._is_at_line_start = side, True
        title, columns = f"{side} · {self._subject.model}", self._terminal.columns
        if side == "thinking" and self._has_rules:
            for line in thinking_head(title, columns, self._limit):
                self._terminal.line(line)
        elif side and self._has_rules:
            self._terminal.line(rule(title, columns))
        elif side == "thinking" and self._limit and self._terminal.err_is_terminal:
            self._terminal.say(self._limit, DIM)

    def _put(self, text: str) -> None:
        if not text:
            return
        self._is_at_line_start = text.endswith("\n")
        if self._side == "thinking" and not self._has_rules:
            self._terminal.talk(f"{DIM}{text}{RESET}" if self._dims else text)
        else:
            self._terminal.write(text)


class JsonView:
    """One object when all is done."""

    frame_s = PIPE_FRAME_S

    def __init__(self, terminal: Terminal, subject: Subject) -> None:
        self._terminal = terminal
        self._subject = subject

    def feed(self, event: StreamEvent, at_s: float) -> None:
        """Do nothing: the outcome holds it all."""

    def draw(self, now_s: float, *, remark: str) -> None:
        """Do nothing."""

    def close(self, outcome: Outcome) -> None:
        """Write the object."""
        self._terminal.json(reply_object(self._subject, outcome.reply, outcome.error))


class JsonLinesView:
    """One event a line, the object last."""

    frame_s = PIPE_FRAME_S

    def __init__(self, terminal: Terminal, subject: Subject) -> None:
        self._terminal = terminal
        self._subject = subject

    def feed(self, event: StreamEvent, at_s: float) -> None:
        """Write an event with text, and the first; the last one waits for `close`."""
        if isinstance(event, Started):
            self._write("started", {**self._subject.values(), **asdict(event)})
        elif (values := delta_values(event)) is not None:
            self._write(*values)

    def draw(self, now_s: float, *, remark: str) -> None:
        """Do nothing."""

    def close(self, outcome: Outcome) -> None:
        """Write the last line."""
        self._write("error" if outcome.error else "done", reply_object(self._subject, outcome.reply, outcome.error))

    def _write(self, event: str, values: dict[str, Any]) -> None:
        self._terminal.json({"event": event, **values}, is_line=True)
