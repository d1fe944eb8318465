"""A bound on how long a send may wait for the other side to take something."""

from __future__ import annotations

import socket
import struct
import sys


def bound_sends(connection: socket.socket, seconds: float) -> None:
    """Have a send on a blocking socket fail with an OSError once nothing was taken for so long; reads wait as before.

    A timeout of Python's own would hold for both. What was given up may be half sent: close the connection then.
    """
    if sys.platform == "win32":  # milliseconds, and 0 is for ever
        limit = struct.pack("I", max(1, round(seconds * 1000)))
    else:
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
