"""A conversation with an open model: history plus engine.

The history holds no thinking, whatever the model's template would do with it, and nothing leaves it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from slm_local.engine import Engine
from slm_local.errors import UsageError
from slm_local.generation import Control, Done, Message, Reply, StreamEvent, ThinkMode


class ChatSession:
    """One conversation. A turn that was refused, failed or gave no answer leaves the history as it was."""

    def __init__(self, engine: Engine, *, system: str | None = None) -> None:
        self.engine = engine
        self.system = system if system is not None else engine.system
        self.think: ThinkMode = engine.settings.think
        self.last_reply: Reply | None = None
        self.unanswered: str | None = None
        """The prompt said last, where no answer to it was kept; `regenerate` asks it again."""
        self._turns: list[tuple[str, Reply]] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """Return the conversation as the model is shown it."""
        shown = [Message(role="system", content=self.system)] if self.system else []
        for prompt, reply in self._turns:
            shown += [Message(role="user", content=prompt), Message(role="assistant", content=reply.answer)]
        return tuple(shown)

    @property
    def turns(self) -> tuple[tuple[str, Reply], ...]:
        """Return every prompt with its reply, thinking included, oldest first."""
        return tuple(self._turns)

    def send(self, text: str, control: Control | None = None) -> Iterator[StreamEvent]:
        """Say something; yield the reply's events. Errors: those of `Engine.stream`."""
        self.unanswered = text
        request = self.engine.request((*self.messages, Message(role="user", content=text)), think=self.think)
        for event in self.engine.stream(request, control):
            if isinstance(event, Done):
                self.last_reply = event.reply
                if event.reply.answer:
                    self._turns.append((text, event.reply))
                    self.unanswered = None
            yield event

    def regenerate(self, control: Control | None = None) -> Iterator[StreamEvent]:
        """Answer the last prompt anew; the old answer stays when there is no new one. Errors: `UsageError`."""
        if self.unanswered is not None:
            yield from self.send(self.unanswered, control)
            return
        if not self._turns:
            raise UsageError("there is no answer to write anew", hint="say something first")
        old = self._turns.pop()
        before = len(self._turns)
        try:
            yield from self.send(old[0], control)
        finally:
            if len(self._turns) == before:
                self._turns.append(old)
                self.unanswered = None

    def undo(self) -> str | None:
        """Remove the newest turn; return its prompt, or None when there is none."""
        return self._turns.pop()[0] if self._turns else None

    def drop(self) -> int:
        """Remove the oldest turn; return how many messages went."""
        if not self._turns:
            return 0
        del self._turns[0]
        return 2

    def clear(self) -> None:
        """Remove all turns; the system prompt stays."""
        self._turns.clear()
        self.unanswered = None

    def switch(self, engine: Engine) -> None:
        """Go on with another model; the history is kept, the old engine is the caller's to close."""
        self.engine = engine

    def export_markdown(self) -> str:
        """Return the conversation as Markdown, thinking in block quotes."""
        parts = [f"# Chat with {self.engine.spec.id}"]
        if self.system:
            parts.append(f"**System**\n\n{self.system}")
        for prompt, reply in self._turns:
            parts.append(f"## Prompt\n\n{prompt}")
            if reply.thinking:
                quoted = "\n".join(f"> {line}".rstrip() for line in reply.thinking.splitlines())
                parts.append(f"### Thinking\n\n{quoted}")
            parts.append(f"### Answer\n\n{reply.answer}")
        return "\n\n".join(parts) + "\n"
