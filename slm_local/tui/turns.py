"""The turns of a conversation as they are shown: which the model still sees, and whose thinking is in the pane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slm_local.errors import SlmError
from slm_local.generation import Reply
from slm_local.tui.conversation import ConversationPane
from slm_local.tui.showing import Showing, show_reply
from slm_local.tui.thinking import ThinkingPane


@dataclass(slots=True)
class Turn:
    """One prompt with its reply."""

    prompt: str
    reply: Reply | None = None
    """None while it is on its way."""
    is_kept: bool = False
    """Whether the model is shown it from now on."""


class Turns:
    """Shows turns in two panes."""

    def __init__(self, thinking: ThinkingPane, conversation: ConversationPane) -> None:
        self._thinking, self._conversation = thinking, conversation
        self._turns: list[Turn] = []
        self._shown = 0
        """The turn whose thinking is in the pane."""
        self.showing: Showing | None = None
        """The newest reply, as it is shown."""

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def last(self) -> Turn | None:
        """Return the newest turn."""
        return self._turns[-1] if self._turns else None

    @property
    def last_answer(self) -> str:
        """Return the newest answer, exactly as the model wrote it; empty before the first."""
        answers = (turn.reply.answer for turn in reversed(self._turns) if turn.reply is not None)
        return next(filter(None, answers), "")

    def show(self, turns: Sequence[tuple[str, Reply]]) -> None:
        """Show a conversation that was had, from its beginning."""
        self._turns = [Turn(prompt, reply, is_kept=True) for prompt, reply in turns]
        self._conversation.drop_all()
        for prompt, reply in turns:
            self._conversation.begin(prompt)
            show_reply(self._conversation, reply)
        self._show_thinking(len(turns) - 1)

    def begin(self, prompt: str, begun_s: float, on_fold: Callable[[], None]) -> Showing:
        """Begin a turn; return what its events are fed to."""
        self._conversation.begin(prompt)
        self._turns.append(Turn(prompt))
        self._shown = len(self._turns) - 1
        self._name()
        self.showing = Showing(self._thinking, self._conversation, begun_s, on_fold)
        return self.showing

    def end(self, reply: Reply, error: SlmError | None, *, is_kept: bool) -> None:
        """Show how the newest turn ended."""
        assert self.showing is not None
        self.showing.end(reply, error)
        self._turns[-1].reply, self._turns[-1].is_kept = reply, is_kept

    def drop_last(self) -> Turn:
        """Take the newest turn away, and return it."""
        turn = self._turns.pop()
        self._conversation.drop_last()
        self._show_thinking(len(self._turns) - 1)
        return turn

    def drop_oldest_kept(self) -> None:
        """Take away the oldest turn that the model is shown, with those before it."""
        first = next(number for number, turn in enumerate(self._turns) if turn.is_kept)
        for _ in range(first + 1):
            del self._turns[0]
            self._conversation.drop_first()
        self._show_thinking(len(self._turns) - 1)

    def go(self, step: int) -> None:
        """Go to an earlier (-1) or later (1) turn, and show its thinking."""
        if self._turns:
            self._show_thinking(min(len(self._turns) - 1, max(0, self._shown + step)))
            self._conversation.go_to_turn(self._shown)

    def _show_thinking(self, number: int) -> None:
        self._shown = max(0, number)
        reply = self._turns[number].reply if self._turns else None
        self._thinking.begin(reply.thinking if reply is not None else "")
        self._name()

    def _name(self) -> None:
        count, number = len(self._turns), self._shown + 1
        self._thinking.border_title = "thinking" if number >= count else f"thinking · turn {number} of {count}"
