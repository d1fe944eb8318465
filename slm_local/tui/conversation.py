"""The pane with the conversation: of every turn the prompt, the thinking folded to a line, the answer."""

from __future__ import annotations

from bisect import bisect_right

from slm_local.sanitize import visible
from slm_local.tui.answer import AnswerParts
from slm_local.tui.flow import FlowView
from slm_local.tui.parts import Part, TextPart, Tone

PROMPT_LEAD = "› "


class ConversationPane(FlowView):
    """Turns below each other, the last of them growing. `feed` draws nothing, `draw` shows what came."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._turns: list[int] = []
        """The part at which each turn begins."""
        self._answer: AnswerParts | None = None
        self._base = 0
        """The part at which the answer begins."""
        self._is_behind_answer = False

    @property
    def turn_count(self) -> int:
        """Return how many turns are shown."""
        return len(self._turns)

    def begin(self, prompt: str | None = None) -> None:
        """Begin a turn; None for one whose prompt is shown elsewhere."""
        self._answer = None
        self._is_behind_answer = False
        self._turns.append(len(self.parts))
        parts: list[Part] = [TextPart()] if self.parts else []
        if prompt is not None:
            parts += [TextPart(visible(prompt), tone="prompt", lead=PROMPT_LEAD), TextPart()]
        self.add(*parts)
        self.follow()

    def remark(self, text: str, tone: Tone = "remark") -> Part:
        """Add a line of ours to the turn, and return it."""
        self.end()
        gap = [TextPart()] if self._is_behind_answer else []
        line = TextPart(visible(text), tone=tone)
        self.add(*gap, line)
        self._is_behind_answer = False
        return line

    def amend(self, line: Part, text: str) -> Part:
        """Give a line of ours another text; return what it is now."""
        new = TextPart(visible(text), tone=line.tone)
        self.exchange(line, new)
        return new

    def feed(self, text: str) -> None:
        """Take what the model answered next."""
        if self._answer is None:
            self._answer, self._base = AnswerParts(), len(self.parts)
        self._answer.feed(text)

    def draw(self) -> None:
        """Show what came."""
        if self._answer is not None:
            first, parts = self._answer.take()
            self.replace(self._base + first, parts)

    def end(self) -> None:
        """Show the rest of the answer; nothing follows."""
        if self._answer is not None:
            self._answer.end()
            self.draw()
            self._answer = None
            self._is_behind_answer = True

    def drop_last(self) -> None:
        """Remove the last turn."""
        self._answer = None
        self.replace(self._turns.pop(), ())

    def drop_first(self) -> None:
        """Remove the first turn."""
        parts = list(self.parts[self._turns[1] + 1 :]) if len(self._turns) > 1 else []
        gone = len(self.parts) - len(parts)
        self._turns = [max(0, at - gone) for at in self._turns[1:]]
        self.replace(0, parts)

    def drop_all(self) -> None:
        """Remove everything."""
        self._answer = None
        self._turns.clear()
        self.clear()

    def turn_at(self, row: int) -> int | None:
        """Return the number of the turn that has a row."""
        part = self.part_at(row)
        return None if part is None or not self._turns else max(0, bisect_right(self._turns, part) - 1)

    def go_to_turn(self, number: int) -> None:
        """Put a turn's first row at the top."""
        self.scroll_to(y=self.row_of(self._turns[number]), animate=False, immediate=True)
