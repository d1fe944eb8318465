"""The child side of the pipe: one model, driven by messages; `python -m slm_local.worker LOG`.

File descriptors 1 and 2 go to a bounded log before anything else is imported, so that nothing native reaches the
terminal; what was descriptor 1 is the pipe to the parent. It ends when its pipe does.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import sys

LOG_LIMIT_BYTES = 1_000_000


def redirect_output(log_path: str) -> int:
    """Send descriptors 1 and 2 to the log; return a descriptor for what 1 was."""
    pipe = os.dup(1)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable(2)  # a crash leaves where it happened
    return pipe


def bound_log() -> None:
    """Empty the log when it has outgrown its limit, saying so in it."""
    if os.fstat(2).st_size > LOG_LIMIT_BYTES:
        os.ftruncate(2, 0)
        os.write(2, b"[log emptied: it had outgrown its limit]\n")


if __name__ == "__main__":
    _pipe = redirect_output(sys.argv[1])
    gc.disable()  # what is imported and loaded is no garbage
    from slm_local.worker.child import serve

    serve(_pipe, bound_log)
