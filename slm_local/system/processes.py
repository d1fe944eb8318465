"""Children: a group of their own, their end, what it is called."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import TypedDict

KILL_WAIT_S = 5.0
"""Longest wait for a killed process to be gone; one inside a system call takes a while."""


NTSTATUS = {
    0xC0000005: "access violation",
    0xC0000017: "out of memory",
    0xC000001D: "illegal instruction: this processor lacks one that the engine was built for",
    0xC0000094: "integer divided by zero",
    0xC00000FD: "stack overflow",
    0xC000012D: "out of memory: the commitment limit is reached",
    0xC0000135: "a DLL was not found",
    0xC000013A: "stopped by Ctrl-C",
    0xC0000142: "a DLL failed to start",
    0xC0000374: "heap corruption",
    0xC0000409: "aborted: stack buffer overrun or fail-fast",
}
"""Exit codes of Windows processes that died. Source: [MS-ERREF] 2.3.1."""


SIGNAL_REMARKS = {
    "SIGKILL": "likely out of memory",
    "SIGILL": "this processor lacks an instruction that the engine was built for",
    "SIGABRT": "the engine gave up",
}


SECRET_ENDS = ("TOKEN", "_KEY", "_SECRET", "PASSWORD", "CREDENTIALS")
"""How names of variables end that hold secrets, HF_TOKEN and OPENAI_API_KEY among them."""

ILLEGAL_INSTRUCTION = frozenset({-4, 0xC000001D})
"""How a process ends that met an instruction which its processor lacks: SIGILL, STATUS_ILLEGAL_INSTRUCTION."""


class SpawnOptions(TypedDict, total=False):
    """Arguments of `subprocess.Popen` that give a child a process group of its own."""

    start_new_session: bool
    creationflags: int


def spawn_options() -> SpawnOptions:
    """Return what gives a child its own process group, so that Ctrl-C misses it and `kill_tree` gets all of it."""
    if sys.platform == "win32":
        options = SpawnOptions(creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW)
    else:
        options = SpawnOptions(start_new_session=True)
    return options


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a child that runs others' native code: what is named like a secret is left out."""
    return {name: value for name, value in environment.items() if not name.upper().endswith(SECRET_ENDS)}


def kill_tree(process: subprocess.Popen[bytes]) -> bool:
    """Kill a child started with `spawn_options` and all it started; return whether the child is gone.

    Blocks at most `KILL_WAIT_S`. The child's own children die even when it is already dead (not on Windows).
    """
    if sys.platform == "win32":
        _kill_descendants(process.pid)
        process.kill()
    else:
        _kill_group(process)
    try:
        process.wait(KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def ignore_interrupts() -> None:
    """Have this process pass over Ctrl-C; for a child whose parent decides. Main thread only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def restrict_core_dumps() -> None:
    """Have no core file written when this process dies: it would hold prompts."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def describe_exit(returncode: int) -> str:
    """Say how a process ended, from what `Popen.wait` returned."""
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            return f"killed by signal {-returncode}"
        remark = f", {SIGNAL_REMARKS[name]}" if name in SIGNAL_REMARKS else ""
        return f"killed by signal {name} ({-returncode}){remark}"
    if returncode >= 0xC0000000:
        return f"died with 0x{returncode:08X} ({NTSTATUS.get(returncode, 'unknown status')})"
    return f"exited with status {returncode}"


def met_illegal_instruction(returncode: int | None) -> bool:
    """Say whether a process died of an instruction that this processor lacks, from what `Popen.wait` returned."""
    return returncode in ILLEGAL_INSTRUCTION


def _kill_descendants(pid: int) -> None:
    import psutil

    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for each in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


if sys.platform != "win32":

    def _kill_group(process: subprocess.Popen[bytes]) -> None:
        try:
            leads_group = os.getpgid(process.pid) == process.pid and process.returncode is None
        except ProcessLookupError:  # reaped: what it started may still hold the group, which keeps its number taken
            leads_group = True
        if not leads_group:
            process.kill()
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            process.kill()
