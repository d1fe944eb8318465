"""Starts a server without HTTP in the background, for a model that is to stay open behind the command that asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from slm_local.errors import WorkerCrashed
from slm_local.system import spawn_options
from slm_local.worker.channels import child_environment, new_log

READY = b"ready\n"
"""What the server says once it can be found."""


def start_server(log_folder: Path) -> None:
    """Start it and wait until it listens; it goes on when this process ends. Errors: `WorkerCrashed` with its log."""
    log_path = new_log(log_folder, "server")
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "slm_local.server.background"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=log_folder,
            env=child_environment(),
            **spawn_options(),
        )
    assert process.stdout is not None
    with process.stdout as pipe:
        said = pipe.readline()
    if said != READY:
        process.wait()
        raise WorkerCrashed("the server in the background did not start", hint=f"its log: {log_path}")
    process.returncode = 0  # it outlives this process, which is not to be warned of
