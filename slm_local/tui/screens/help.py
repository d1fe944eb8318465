"""All keys of the screen below and of the app, read off their bindings: nothing is listed twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.dom import DOMNode
from textual.screen import ModalScreen
from textual.widgets import Static

from slm_local.tui.footer import Keys

OURS = "slm_local."
"""Where our own classes come from; other widgets' keys (arrows, editing) are those of any text field."""


class HelpScreen(ModalScreen[None]):
    """Shows what each key does; is dismissed with nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "dismiss(None)", "Back")]
    DEFAULT_CSS = """
    HelpScreen {
        align: center middle;
        & > Vertical { width: 100%; max-width: 80; height: 100%; max-height: 32; background: $surface; padding: 0 1; }
        VerticalScroll { height: 1fr; scrollbar-gutter: stable; }
    }
    """

    def compose(self) -> ComposeResult:
        """Lay out the keys of the screen that this one was opened over."""
        with Vertical():
            with VerticalScroll():
                yield Static(self._table(), markup=False)
            yield Keys()

    def _table(self) -> Content:
        below = self.app.screen_stack[-2]
        bindings = _declared([below, *below.query("*"), self.app])
        for active in below.active_bindings.values():  # the app has some from Textual, such as the palette's
            if active.node is self.app and not active.binding.system:
                bindings.setdefault(active.binding.action, [active.binding])
        rows = [(" · ".join(map(self.app.get_key_display, same)), same[0]) for same in bindings.values()]
        width = max((len(keys) for keys, _ in rows), default=0)
        return Content("\n").join(
            Content.assemble((f"{keys:>{width}}", "bold"), "  ", each.description, (f"  {each.tooltip}", "dim"))
            for keys, each in rows
        )


def _declared(nodes: Iterable[DOMNode]) -> dict[str, list[Binding]]:
    """Return the bindings that say what they do, of our own classes only, by action: two keys may do the same."""
    found: dict[str, list[Binding]] = {}
    for kind in dict.fromkeys(kind for node in nodes for kind in type(node).__mro__):
        if not _is_ours(kind):
            continue
        inherited = {each.action for base in kind.__mro__ if not _is_ours(base) for each in _bindings(base)}
        for binding in _bindings(kind):
            if binding.description and binding.action not in inherited:
                found.setdefault(binding.action, []).append(binding)
    return found


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith(OURS)


def _bindings(kind: type) -> list[Binding]:
    return list(Binding.make_bindings(vars(kind).get("BINDINGS", [])))
