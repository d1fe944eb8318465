"""A server without HTTP, for `--keep-alive` where none runs: it ends when nothing is kept open any more.

`python -m slm_local.server.background`; says "ready" on stdout once it can be found.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from slm_local.config import load_settings
from slm_local.errors import UsageError
from slm_local.paths import paths
from slm_local.registry import load_registry
from slm_local.server.link import Link
from slm_local.server.pool import Pool
from slm_local.system import ignore_interrupts, told_to_end
from slm_local.worker.background import READY

LOOK_S = 0.5
"""How often is looked whether anything is kept open."""
FIRST_S = 20.0
"""Longest wait for the first client; whoever started it comes at once."""


def main() -> int:
    """Serve until nothing is kept open, or until told to end; return the exit code."""
    ignore_interrupts()
    pool = Pool(
        lambda: load_registry(paths().config / "models.toml"),
        lambda own: load_settings({}, reference_settings=own),
        keep_alive_s=0.0,  # whoever wants more says so
    )
    link = Link(pool)
    try:
        link.start()
    except UsageError as error:  # another one was started at the same time: it serves as well
        print(error.message, file=sys.stderr)
        _say_ready()
        return 0
    told = threading.Event()
    try:
        with told_to_end(lambda code: told.set()):
            _say_ready()
            _wait(pool, link, told)
    finally:
        link.close()
        pool.close()
    return 0


def _say_ready() -> None:
    """Tell who started this, who then hangs up; what is printed later goes to the log."""
    os.write(1, READY)
    os.dup2(2, 1)


def _wait(pool: Pool, link: Link, told: threading.Event) -> None:
    """Return once nothing is kept open and nobody is there or may come, or when told to end."""
    first_until_s = time.monotonic() + FIRST_S
    while not told.wait(LOOK_S):
        is_due = link.was_used or time.monotonic() > first_until_s
        if (link.has_left or (is_due and not link.clients)) and not pool.running():
            return


if __name__ == "__main__":
    sys.exit(main())
