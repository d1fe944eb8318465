"""A child for tests of `run_child`: `python -m tests.talker JSON` writes what it was told to and ends as told."""

from __future__ import annotations

import json
import os
import sys
import threading

from slm_local.convert.child import enter


def main(order: dict[str, object]) -> int:
    """Write `text`, `repeat` times, and its process id with `pid`; stay until killed with `stays`."""
    text = str(order.get("text", ""))
    for _ in range(int(str(order.get("repeat", 1)))):
        sys.stdout.write(text)
    if order.get("pid"):
        print(os.getpid())
    if order.get("variable"):
        print(os.environ.get(str(order["variable"])))
    sys.stdout.flush()
    if order.get("stays"):
        threading.Event().wait()
    return int(str(order.get("status", 0)))


if __name__ == "__main__":
    enter()
    sys.exit(main(json.loads(sys.argv[1])))
