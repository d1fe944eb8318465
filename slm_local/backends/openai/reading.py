"""Event streams to stretches of raw text: thinking that came in a field of its own stands between its tags again.

So the driver's splitter and governor do with it what they do with any model's text. Tokens are counted where the
server tells; those of a chunk without text (a tag that it keeps to itself) belong to the next stretch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slm_local.backends.openai.kinds import Kind
from slm_local.generation import Cut, Finish, PieceEnd, ReasoningTags, ThinkState, Told
from slm_local.reasoning import line_break

CUTS: tuple[Cut, ...] = ("budget", "time", "context", "max_tokens", "loop", "user", "converged")
FINISHES: tuple[Finish, ...] = ("stop", "length", "context", "loop", "empty")
"""The words of slm serve for why thinking and the reply ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Text that came at once; `tokens` 0 where the server does not count."""

    text: str
    tokens: int
    ids: tuple[int, ...] = ()


@dataclass(slots=True, kw_only=True)
class Reader:
    """Reads one stream. `state` is how the prompt left thinking; a raw completion is text, whatever it holds."""

    kind: Kind
    tags: ReasoningTags | None
    state: ThinkState
    is_chat: bool
    close_id: int | None = None
    """The closing tag's token, where it is one."""
    end_text: str = ""
    """The text of the token that ends a reply, which is no part of it (llama-server sends it with some templates)."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    read_tokens: int | None = None
    """How much of the prompt was read by now, where the server tells."""
    is_ended: bool = False
    """Whether a reason for the end has come: without one the stream broke off."""
    warnings: list[str] = field(default_factory=list)
    """What the server says it did not heed."""
    _reason: str = ""
    _usage: Mapping[str, Any] | None = None
    _cut: Cut = "none"
    _finish: Finish | None = None
    _seen: int = 0
    _pending: int = 0
    _pending_ids: list[int] = field(default_factory=list)
    _has_text: bool = False
    _thinks: bool = False
    """Whether the last text came as thinking."""
    _is_closed: bool = False

    def feed(self, event: Mapping[str, Any]) -> list[Stretch]:
        """Return the text of an event, tags in their places."""
        self._note_counts(event)
        choice = next(iter(event.get("choices") or ()), None)
        if not isinstance(choice, Mapping):
            return []
        self._note_tokens(event, choice)
        delta = choice.get("delta") or {}
        thought = _text(delta, "reasoning_content") or _text(delta, "reasoning")
        text = _text(delta, "content") if self.is_chat else _text(choice, "text")
        found: list[Stretch] = []
        if thought:
            found += self._thought(thought)
        if text := self._own(text):
            found += self._answer(text)
        if isinstance(choice.get("finish_reason"), str):
            self.is_ended, self._reason = True, choice["finish_reason"]
            own = choice.get("slm")
            said = own if isinstance(own, Mapping) else {}
            self._cut = next((each for each in CUTS if each == said.get("cut")), "none")
            self._finish = next((each for each in FINISHES if each == said.get("finish")), None)
        return found

    def end(self, asked_tokens: int | None) -> tuple[Stretch, PieceEnd, Told | None]:
        """Return the tokens that came without text, why it ended, and what is told of the whole.

        `asked_tokens` is the limit that was sent.
        """
        total = _count(self._usage, "completion_tokens") or self._seen
        left = self._take(total - self._seen if self.kind.counts else 0)
        ended: PieceEnd = "stop"
        if self._reason == "length":
            ended = "length" if asked_tokens is not None and (not total or total >= asked_tokens) else "context"
        return Stretch(text="", tokens=left, ids=self._take_ids()), ended, self._told()

    def _own(self, text: str) -> str:
        """Return the text without what stands in the prompt already, and without the last token's."""
        if self.end_text and text.endswith(self.end_text):
            text = text.removesuffix(self.end_text)
        if self.is_chat and self.state == "open" and self.tags is not None and not self._has_text:
            bare = text.removeprefix(self.tags.open)
            return bare.removeprefix(line_break(self.tags)) if bare != text else text
        return text

    def _thought(self, text: str) -> list[Stretch]:
        opening: list[Stretch] = []
        if not self._thinks and self.state != "open" and self.tags is not None and not self._has_text:
            opening = [Stretch(text=self.tags.open, tokens=0)]
        self._thinks = self._has_text = True
        return [*opening, self._stretch(text, self._before_close)]

    def _answer(self, text: str) -> list[Stretch]:
        found: list[Stretch] = []
        if self.tags is not None and not self._is_closed and self._has_closed(text):
            tag, at = self.tags.close + self.tags.answer_open, self._before_close
            if at is not None:
                found = [self._stretch(tag, at + 1)]
            else:
                own = 1 if self._pending > 1 else 0  # the tag's tokens came before, the text's own with it
                found, self._pending = [Stretch(text=tag, tokens=self._pending - own)], own
            self._is_closed = True
        elif self.tags is not None and self.tags.close in text:  # several tokens in a chunk: its sides come apart
            before, _, text = text.partition(self.tags.close)
            at = self._before_close
            found = [self._stretch(before, at)] if before else []
            found.append(self._stretch(self.tags.close, None if at is None else 1))
        self._thinks, self._has_text = False, True
        return [*found, self._stretch(text)] if text or not found else found

    def _has_closed(self, text: str) -> bool:
        """Tell whether the server took the closing tag out before this text."""
        if self._thinks:
            return True
        if self._has_text or self.state != "open" or not self.is_chat:
            return False
        if self.kind.tells_thinking is not None:
            return self.kind.tells_thinking
        assert self.tags is not None
        return self.close_id in self._pending_ids and self.tags.close not in text

    def _note_counts(self, event: Mapping[str, Any]) -> None:
        usage, progress = event.get("usage"), event.get("prompt_progress")
        if isinstance(usage, Mapping):
            self._usage = usage
            self.prompt_tokens = _count(usage, "prompt_tokens") or self.prompt_tokens
            cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")
            self.cached_tokens = cached if cached is not None else self.cached_tokens
        if isinstance(progress, Mapping):
            self.prompt_tokens, self.cached_tokens = _count(progress, "total"), _count(progress, "cache")
            self.read_tokens = _count(progress, "processed")
        warnings = event.get("warnings")
        if isinstance(warnings, list):
            self.warnings = [each for each in warnings if isinstance(each, str)]

    def _note_tokens(self, event: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        if not self.kind.counts:
            return
        ids = choice.get("token_ids")
        if isinstance(ids, list):
            self._pending_ids += [each for each in ids if isinstance(each, int)]
            new = len(ids)
        else:
            now = _count(event.get("timings"), "predicted_n") or _count(event.get("usage"), "completion_tokens")
            new = max(0, (now or self._seen) - self._seen)
        self._pending += new
        self._seen += new

    @property
    def _before_close(self) -> int | None:
        """How many of the tokens that wait came before the closing tag; None where it is not among them."""
        if self.close_id not in self._pending_ids or len(self._pending_ids) != self._pending:
            return None
        return self._pending_ids.index(self.close_id)

    def _stretch(self, text: str, tokens: int | None = None) -> Stretch:
        """Return text with the first tokens that wait, or all."""
        if tokens is None:
            return Stretch(text=text, tokens=self._take(), ids=self._take_ids())
        ids, self._pending_ids = self._pending_ids[:tokens], self._pending_ids[tokens:]
        self._pending -= tokens
        return Stretch(text=text, tokens=tokens, ids=tuple(ids))

    def _take(self, more: int = 0) -> int:
        taken, self._pending = self._pending + max(0, more), 0
        return taken

    def _take_ids(self) -> tuple[int, ...]:
        taken, self._pending_ids = tuple(self._pending_ids), []
        return taken

    def _told(self) -> Told | None:
        """Return what is said of the whole reply by a server that does not count chunks."""
        if self.kind.counts:
            return None
        details = (self._usage or {}).get("completion_tokens_details")
        return Told(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=_count(self._usage, "completion_tokens"),
            think_tokens=_count(details, "reasoning_tokens") or None,  # 0 from those that don't tell them apart (vLLM)
            cut=self._cut,
            finish=self._finish,
        )


def _count(body: Any, key: str) -> int | None:
    found = body.get(key) if isinstance(body, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def _text(body: Any, key: str) -> str:
    found = body.get(key) if isinstance(body, Mapping) else None
    return found if isinstance(found, str) else ""
