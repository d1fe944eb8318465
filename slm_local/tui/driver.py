"""The terminal's side of the app on POSIX, with one fault of Textual's driver mended."""

from __future__ import annotations

from typing import Any

from textual.drivers.linux_driver import LinuxDriver


class SteadyDriver(LinuxDriver):
    """Comes back well when it was stopped without notice (SIGSTOP), too.

    Textual 8.2 then starts reading keys a second time beside the first, and the process never ends.
    """

    def _sigcont_application(self, *arguments: Any) -> None:
        if self._key_thread is not None and self._key_thread.is_alive():
            self.suspend_application_mode()
            self._must_signal_resume = True  # so that everything is drawn anew
        super()._sigcont_application(*arguments)
