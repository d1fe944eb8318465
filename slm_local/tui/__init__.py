"""The desk: a Textual app for chatting and comparing. Only this room imports textual."""

from __future__ import annotations

from slm_local.system import signalled, told_to_end
from slm_local.tui.desk import Desk

__all__ = ["Desk", "run_desk"]


def run_desk(desk: Desk) -> int:
    """Open the app and block until the person leaves; return the exit code. Errors are shown inside."""
    from slm_local.tui.app import DeskApp

    app = DeskApp(desk)
    try:
        with told_to_end(app.leave, hears_interrupts=True, needs_terminal=True), signalled(app.answer_now):
            app.run()
    finally:
        app.close()
    return app.return_code or 0
