"""A llama-server of the package xllamacpp, in a process of its own: what remote engines are tried against."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ALIAS = "served"

PLACES = 4

SERVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params.model_alias, params.port, params.warmup, params.kv_unified = {sys.argv[4]}, 0, False, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
if sys.argv[5]:
    params.api_keys = [sys.argv[5]]
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_server(model: Path, *, context: int, places: int = PLACES, key: str = "") -> Iterator[str]:
    """Serve a model as `served` with so much context for each place; give the address of /v1."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp is not installed (extra: test)")
    arguments = [str(model), str(context * places), str(places), ALIAS, key]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = next((line.split() for line in process.stdout if line.startswith("listening")), None)
        assert said is not None, "the server did not start"
        yield f"{said[1]}/v1"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
