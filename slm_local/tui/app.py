"""The app: its screens, the keys that hold on all of them, and its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from textual.actions import ActionParseResult
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.screen import Screen

from slm_local.errors import SlmError
from slm_local.sanitize import visible
from slm_local.tui.desk import Desk
from slm_local.tui.entry import hear_alt_enter
from slm_local.tui.holding import Holder
from slm_local.tui.screens.chat import ChatScreen
from slm_local.tui.screens.help import HelpScreen


class DeskApp(App[None]):
    """The desk. `close` ends whatever it started; call it when `run` has returned, however it did."""

    CSS_PATH = "app.tcss"
    TITLE = "slm"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help"),
        Binding("ctrl+q", "quit", "Quit", priority=True),
    ]

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk
        self.holder = Holder(desk)
        hear_alt_enter()

    def on_mount(self) -> None:
        """Open the first screen."""
        self.push_screen(ChatScreen(self.desk, self.holder))
        if self.desk.compare:
            from slm_local.tui.screens.compare import CompareScreen

            self.push_screen(CompareScreen(self.desk, self.desk.compare, None))

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Do what a key says; what can't be done is told."""
        try:
            return await super().run_action(action, default_namespace, namespaces)
        except SlmError as error:
            told = f"{error.message}\n{error.hint}" if error.hint else error.message
            self.notify(visible(told), severity="warning", markup=False)
            return True

    def on_unmount(self) -> None:
        """End what was started."""
        self.close()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen())

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer what the keys do, with their names."""
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.description and active.node in (screen, self) and binding.action != "app.command_palette":
                key = self.get_key_display(binding)
                yield SystemCommand(binding.description, key, partial(self.run_action, binding.action, active.node))
        yield SystemCommand("Theme", "Change the colours", self.action_change_theme)

    def close(self) -> None:
        """Cancel whatever runs and end every child process; may be called more than once."""
        self.holder.close()
