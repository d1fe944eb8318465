"""The desk: a Textual app for chatting and comparing. Only this room imports textual."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from slm_local.notes import KEEPING, LONG_KEEPING_S
from slm_local.system import signalled, told_to_end
from slm_local.tui.desk import Desk

if TYPE_CHECKING:
    from slm_local.tui.app import DeskApp

__all__ = ["Desk", "keep_chat", "run_desk"]


def run_desk(desk: Desk) -> int:
    """Open the app and block until the person leaves; return the exit code. Errors are shown inside."""
    from slm_local.tui.app import DeskApp

    app = DeskApp(desk)
    try:
        with told_to_end(app.leave, hears_interrupts=True, needs_terminal=True), signalled(app.answer_now):
            app.run()
        if not app.is_told_to_end:
            keep_chat(app)
    finally:
        app.close()
    return app.return_code or 0


def keep_chat(app: DeskApp) -> None:
    """Save the KV state of the chat that is left, and say so where it takes a while; Ctrl-C skips it."""
    told: list[str] = []

    def wait(waited_s: float) -> None:
        if waited_s > LONG_KEEPING_S and not told:
            told.append(KEEPING)
            print(f"{KEEPING} · Ctrl-C skips it", file=sys.stderr, flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        app.holder.keep(wait)
