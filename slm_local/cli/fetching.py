"""What a person sees of a download: the offer with size, fit and time, one key to agree, and how far it is."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from slm_local.cli.asking import agrees
from slm_local.cli.render import DIM, YELLOW, Terminal, can_ask
from slm_local.errors import Interrupted
from slm_local.forecast.offers import STAGES, offer_lines, pace
from slm_local.sanitize import shell_word
from slm_local.selector import gigabytes

if TYPE_CHECKING:
    from rich.progress import Progress

    from slm_local.download.values import FetchProgress
    from slm_local.engine.supply import Offer

LINES_SHARE = 0.1
"""Where no bar can be drawn, a line is written each time so much of the whole has come."""


def confirm(terminal: Terminal, offer: Offer, *, is_agreed: bool = False, is_quiet: bool = False) -> None:
    """Say what would be fetched; on a terminal, wait for one key. Raises `Interrupted` where it is not the right one.

    Where nobody can be asked it begins at once, and stderr says so.
    """
    is_asked = not is_agreed and can_ask(terminal)
    lines = offer_lines(offer)
    for line in lines if is_asked or not is_quiet else lines[:1]:
        terminal.say(line)
    if not is_asked:
        return
    if not agrees(terminal, "fetch it?  Enter: yes · any other key: no "):
        raise Interrupted("nothing was fetched", hint=f"slm plan {shell_word(offer.reference)}")


class FetchView:
    """Shows how far a download is, on stderr: a bar on a terminal, a line now and then elsewhere. A context manager."""

    def __init__(self, terminal: Terminal, *, is_quiet: bool = False) -> None:
        self._terminal = terminal
        self._is_quiet = is_quiet
        self._bar: Progress | None = None
        self._told_share = 0.0

    def __enter__(self) -> FetchView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def feed(self, progress: FetchProgress) -> None:
        """Show a step; a message is always shown."""
        if progress.message:
            self._say(progress.message)
        if self._is_quiet:
            return
        if self._terminal.err_is_rich:
            self._draw(progress)
        else:
            self._tell(progress)

    def close(self) -> None:
        """End the bar; what it showed last stays."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, message: str) -> None:
        if self._bar is None:
            self._terminal.say(message, YELLOW)
            return
        from rich.text import Text

        from slm_local.sanitize import visible

        self._bar.console.print(Text(visible(message), style="yellow"))

    def _draw(self, progress: FetchProgress) -> None:
        if self._bar is None:
            self._bar = _bar(self._terminal)
            self._bar.add_task("", total=progress.total_bytes, stage="", pace="")
            self._bar.start()
        self._bar.update(
            self._bar.task_ids[0],
            completed=progress.done_bytes,
            total=progress.total_bytes,
            stage=STAGES[progress.stage],
            pace=pace(progress),
        )

    def _tell(self, progress: FetchProgress) -> None:
        share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 1.0
        if progress.stage == "downloading" and share >= self._told_share + LINES_SHARE:
            self._told_share = share
            done = f"{gigabytes(progress.done_bytes)} of {gigabytes(progress.total_bytes)}"
            self._terminal.say(f"{share:.0%}  {done}  {pace(progress)}".rstrip(), DIM)


def _bar(terminal: Terminal) -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.fields[stage]}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        DownloadColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        console=terminal.err_console,
    )
