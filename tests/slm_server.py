"""`slm serve` in a process of its own, as a remote engine's other end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from tests.command import child_environment


@contextmanager
def slm_server(model: Path, home: Path, *, context: int) -> Iterator[tuple[str, str]]:
    """Serve a file from an SLM_HOME of its own; give the address of /v1 and the model's name."""
    words = ["serve", str(model), "--port", "0", "--ctx", str(context), "--backend", "llamacpp", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "slm_local", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**child_environment(), "SLM_HOME": str(home)},
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), "slm serve did not start"
        with urlopen(f"{url}/models") as answer:
            name = json.load(answer)["data"][0]["id"]
        yield url, name
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
