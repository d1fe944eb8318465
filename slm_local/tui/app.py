"""The app: its screens, the keys that hold on all of them, and its end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from textual.actions import ActionParseResult
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.driver import Driver
from textual.screen import Screen

from slm_local.errors import SlmError
from slm_local.sanitize import visible
from slm_local.tui.desk import Desk
from slm_local.tui.entry import hear_alt_enter
from slm_local.tui.holding import Holder
from slm_local.tui.screens.chat import ChatScreen
from slm_local.tui.screens.compare import CompareScreen
from slm_local.tui.screens.help import HelpScreen

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
        self._told: int | None = None
        """The exit code with which the system told the app to end."""
        hear_alt_enter()

    def get_driver_class(self) -> type[Driver]:
        """Return what stands between the app and this system's terminal."""
        usual = super().get_driver_class()
        if usual.__name__ != "LinuxDriver":
            return usual
        from slm_local.tui.driver import SteadyDriver

        return SteadyDriver

    def on_mount(self) -> None:
        """Open the first screen."""
        if self._told is not None:
            self._leave()
            return
        self.push_screen(ChatScreen(self.desk, self.holder))
        if self.desk.compare:
            self.push_screen(CompareScreen(self.holder, self.desk.compare))

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
        """Stop what was started; `close` ends it, once what is to be kept of it is kept."""
        self.holder.stop()

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
        if isinstance(screen, ChatScreen):
            for word, cost in screen.thinking_choices():
                yield SystemCommand(f"Think: {word}", cost, partial(screen.set_live, "think", word))
        yield SystemCommand("Theme", "Change the colours", self.action_change_theme)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy a text as it is, by the terminal; a lone surrogate, which no terminal takes, as U+FFFD."""
        super().copy_to_clipboard(LONE_SURROGATE.sub("\ufffd", text))

    @property
    def is_told_to_end(self) -> bool:
        """Return whether the system had it end, and not the person."""
        return self._told is not None

    def leave(self, exit_code: int) -> None:
        """End the app with this exit code; for a signal's handler, perhaps before the app has begun."""
        self._told = exit_code
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._leave)

    def answer_now(self) -> None:
        """Ask for the answer now, wherever something thinks; for a signal's handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._answer_now)

    def _answer_now(self) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, ChatScreen | CompareScreen):
                screen.action_answer_now()

    def _leave(self) -> None:
        self.close()
        self.exit(return_code=self._told or 0)

    def close(self) -> None:
        """Cancel whatever runs and end every child process; may be called more than once."""
        self.holder.close()
