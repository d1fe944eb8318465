"""The terminal's side of the app on POSIX: a fault of Textual's driver mended, a frame written as one."""

from __future__ import annotations

from typing import Any

from textual.drivers.linux_driver import LinuxDriver

FRAME_BEGINS, FRAME_ENDS = "\x1b[?2026h", "\x1b[?2026l"
"""Between these a terminal draws nothing (synchronized output); Textual writes them where it is said to know them."""


class SteadyDriver(LinuxDriver):
    """Comes back well when it was stopped without notice (SIGSTOP), too; wakes its thread once a frame.

    Stopped so, Textual 8.2 starts reading keys a second time beside the first, and the process never ends.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._frame: list[str] = []
        """What was written of a frame that has not ended."""

    def write(self, data: str) -> None:
        """Write; a frame once it is whole, for each piece would wake the thread that writes."""
        if self._frame or data == FRAME_BEGINS:
            self._frame.append(data)
            if data != FRAME_ENDS:
                return
            data = "".join(self._frame)
            self._frame.clear()
        super().write(data)

    def stop_application_mode(self) -> None:
        """Give the terminal back; what a signal cut short is drawn anew."""
        self._frame.clear()
        super().stop_application_mode()

    def _sigcont_application(self, *arguments: Any) -> None:
        if self._key_thread is not None and self._key_thread.is_alive():
            self.suspend_application_mode()
            self._must_signal_resume = True  # so that everything is drawn anew
        super()._sigcont_application(*arguments)
