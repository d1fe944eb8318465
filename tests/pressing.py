"""A single key on a pseudo-terminal, pressed when a program waits for one."""

from __future__ import annotations

from typing import Any

from tests.hub.pulling import wait_until


def press(child: Any, key: str) -> None:
    """Press a key once a program of pexpect's reads keys one by one: what is typed before that is thrown away."""
    import termios

    wait_until(lambda: not termios.tcgetattr(child.child_fd)[3] & termios.ICANON)
    child.send(key)
