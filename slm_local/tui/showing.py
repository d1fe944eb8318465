"""One reply from its events to two panes: counts, the thinking, the line it folds to, the answer."""

from __future__ import annotations

from collections.abc import Callable

from slm_local.errors import SlmError
from slm_local.generation import AnswerDelta, Reply, StreamEvent, ThinkDelta
from slm_local.tui.conversation import ConversationPane
from slm_local.tui.meter import ReplyMeter, thought_counts
from slm_local.tui.parts import Part
from slm_local.tui.thinking import ThinkingPane

UNFOLDS = "F2 shows it"


class Showing:
    """Shows one reply. `feed` draws nothing, `draw` shows what came."""

    def __init__(
        self,
        thinking: ThinkingPane,
        conversation: ConversationPane,
        begun_s: float,
        on_fold: Callable[[], None],
    ) -> None:
        self.meter = ReplyMeter(begun_s)
        self._thinking, self._conversation = thinking, conversation
        self._on_fold = on_fold
        """Called when the answer begins."""
        self._is_folded = False
        self._fold_line: Part | None = None
        self._thinking.begin()

    def feed(self, event: StreamEvent, at_s: float) -> None:
        """Take an event that came at `at_s` by `time.perf_counter`."""
        self.meter.feed(event, at_s)
        if isinstance(event, ThinkDelta):
            self._thinking.feed(event.text)
        elif isinstance(event, AnswerDelta):
            self._fold()
            self._conversation.feed(event.text)

    def draw(self) -> None:
        """Show what came."""
        self._thinking.draw()
        self._conversation.draw()

    def end(self, reply: Reply, error: SlmError | None) -> None:
        """Show the rest, and what went wrong."""
        self.meter.end(reply)
        self._fold()
        self._conversation.end()
        if self._fold_line is not None:  # now that the last of its tokens are counted
            self._fold_line = self._conversation.amend(self._fold_line, self._thought())
        if error is not None:
            show_error(self._conversation, error)

    def _fold(self) -> None:
        if not self._is_folded:
            self._is_folded = True
            self._thinking.end()
            if self.meter.has_thought:
                self._fold_line = self._conversation.remark(self._thought())
            self._on_fold()

    def _thought(self) -> str:
        return f"thought {self.meter.counts()} · {UNFOLDS}"


def show_reply(conversation: ConversationPane, reply: Reply) -> None:
    """Show a reply that came before."""
    if reply.thinking:
        took_s = reply.timings.first_answer_s - reply.timings.first_token_s
        counts = thought_counts(reply.usage.think_tokens, took_s if took_s > 0.0 else None)
        conversation.remark(f"thought {counts} · {UNFOLDS}" if counts else f"thought · {UNFOLDS}")
    conversation.feed(reply.answer)
    conversation.end()


def show_error(conversation: ConversationPane, error: SlmError) -> None:
    """Say what went wrong and what to do."""
    conversation.remark(error.message, "warning")
    if error.hint:
        conversation.remark(error.hint, "hint")
