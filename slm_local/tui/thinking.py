"""The pane with what a model thinks: plain text, as it comes, of any length."""

from __future__ import annotations

from slm_local.sanitize import Visible
from slm_local.tui.flow import FlowView
from slm_local.tui.parts import TextPart


class ThinkingPane(FlowView):
    """Thinking that grows. `feed` draws nothing, `draw` shows what came."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._visible = Visible()
        self._waiting: list[str] = []

    def begin(self, text: str = "") -> None:
        """Show another reply's thinking, from its beginning."""
        self._visible = Visible()
        self._waiting.clear()
        self.replace(0, [TextPart(tone="remark")])
        if text:
            self.feed(text)
            self.end()

    def feed(self, text: str) -> None:
        """Take what the model thought next."""
        self._waiting.append(self._visible.feed(text))

    def end(self) -> None:
        """Show the rest; nothing follows."""
        self._waiting.append(self._visible.flush())
        self.draw()

    def draw(self) -> None:
        """Show what came."""
        text = "".join(self._waiting)
        self._waiting.clear()
        if text and isinstance(part := self.parts[0], TextPart):
            part.append(text)
            self.grow()
