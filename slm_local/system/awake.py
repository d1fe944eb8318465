"""Keeping the machine from going to sleep by itself while it works: by the desktop's, macOS's or Windows' own way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

AWAKE_AFTER_S = 20.0
"""What ends sooner needs nobody to keep the machine awake: none goes to sleep after so short a time."""

LET_GO_S = 3.0
"""Longest wait for a desktop to take note of the end; it waits itself at most two seconds, and forgets a process that
is gone."""


@contextlib.contextmanager
def kept_awake(*, is_wanted: bool = True, after_s: float = AWAKE_AFTER_S) -> Iterator[None]:
    """Keep the machine from sleeping, from `after_s` on; the screen may go dark. Never fails and never waits to begin.

    On Linux the session's D-Bus is asked, by its local socket; where there is none, or no desktop, nothing happens.
    """
    if not is_wanted:
        yield
        return
    is_over = threading.Event()
    thread = threading.Thread(target=_keep, args=(is_over, after_s), name="awake", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(LET_GO_S)


def _keep(is_over: threading.Event, after_s: float) -> None:
    """Hold the machine awake until it is over; the library wants begin and end in one thread."""
    if is_over.wait(after_s):
        return
    with contextlib.suppress(Exception):  # whatever a desktop does, the work goes on
        from wakepy import keep

        with keep.running(on_fail="pass"):
            is_over.wait()
