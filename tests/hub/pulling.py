"""Pulls from the stand-in with the real downloader: in this process, or in a child that may be killed.

As a module (`python -m tests.hub.pulling MODELS_DIR REPO FILE FLAGS`) it prints a JSON line for every report of
progress and one at the end, and exits as `slm` would. Flags: `--no-sockets` ends the process at the first use of a
socket, `--offline` pulls so, `--file-limit=N` lets no file grow beyond N bytes, `--patient` waits as a person's pull
does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slm_local.download import places
from slm_local.download.fetch import fetch, order_of
from slm_local.download.hub import Hub
from slm_local.download.values import PATIENCE, Fetched, FetchProgress, Patience
from slm_local.errors import DownloadFailed, Interrupted, SlmError
from slm_local.generation import Control
from slm_local.model import Variant
from tests.hub.repository import Blob

REPO = "maker/model-GGUF"
FILE = "model-Q8_0.gguf"

ROOT = Path(__file__).parents[2]

QUICK = Patience(connect_s=10.0, stall_s=20.0, waits_s=(0.0,) * 6, longest_wait_s=0.0)
"""No waits between tries."""
RESTLESS = Patience(connect_s=10.0, stall_s=0.2, waits_s=(0.0,) * 6, longest_wait_s=0.0)
"""For tests of stalls: a slow machine may look like one, which then costs a try more."""
UNTIRING = replace(RESTLESS, waits_s=(0.0,) * 600)
"""The same where a pull must not give up, however often the machine looks like that."""


def variant(repo: str = REPO, file: str | None = FILE, **more: Any) -> Variant:
    """Return a GGUF file of a repository as the registry would name it."""
    return Variant(kind="gguf", quant="Q8_0", repo=repo, file=file, **more)


def pull(
    models_dir: Path,
    wanted: Variant | None = None,
    *,
    control: Control | None = None,
    on_progress: Callable[[FetchProgress], None] | None = None,
    patience: Patience = QUICK,
    offline: bool = False,
) -> Fetched:
    """Order and fetch a variant as `slm pull` does, without waiting between tries."""
    hub = Hub(offline=offline, patience=patience)
    order = order_of(wanted or variant(), hub, models_dir)
    return fetch(order, hub, control=control, on_progress=on_progress, patience=patience)


def outcome(models_dir: Path, wanted: Variant | None = None, patience: Patience = QUICK) -> Fetched | DownloadFailed:
    """Pull; return what came or the download's error. Any other error is a bug and is let through."""
    try:
        return pull(models_dir, wanted, patience=patience)
    except DownloadFailed as error:
        failed = error
    assert failed.exit_code == 3
    assert failed.hint, f"no hint with {failed.message!r}"
    return failed


def place(models_dir: Path, repo: str = REPO, file: str = FILE) -> Path:
    """Return where a file is to lie."""
    return models_dir.joinpath(*repo.split("/"), *file.split("/"))


def part(models_dir: Path, repo: str = REPO, file: str = FILE) -> Path:
    """Return where its partial file lies."""
    return places.part_of(place(models_dir, repo, file))


def is_right(models_dir: Path, blob: Blob, repo: str = REPO) -> bool:
    """Tell whether a file is here, is what the Hub serves, and is recorded as that."""
    here = place(models_dir, repo, blob.path)
    record = places.read_record(here)
    is_recorded = record is not None and (record.sha256, record.size_bytes) == (blob.sha256, len(blob.content))
    return here.exists() and here.read_bytes() == blob.content and is_recorded


def is_clean(models_dir: Path, *, but: tuple[str, ...] = ()) -> bool:
    """Tell whether nothing lies here under a final name and nothing is recorded as verified.

    Partial files and their records may be here; `but` names files that are right.
    """
    for path in models_dir.rglob("*"):
        if not path.is_file() or path.name.endswith((".part", ".part.json", ".lock")):
            continue
        if path.name.removesuffix(".json") not in but:
            return False
    return True


def wait_until(is_so: Callable[[], bool], *, within_s: float = 60.0) -> None:
    """Return as soon as something holds; fail where it does not come to hold."""
    pause = threading.Event()
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, "it did not come about"
        pause.wait(0.005)


def break_off(models_dir: Path, after: int) -> None:
    """Stop a pull that stalls once so many bytes are here; they stay."""
    control = Control()

    def stop() -> None:
        wait_until(lambda: part(models_dir).exists() and part(models_dir).stat().st_size == after)
        control.cancel()

    watcher = threading.Thread(target=stop)
    watcher.start()
    with contextlib.suppress(Interrupted):
        pull(models_dir, control=control)
    watcher.join()


def child(
    models_dir: Path, *flags: str, out: Path | None = None, variables: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a child that pulls `FILE`; its stdout goes to a file where one is named."""
    with out.open("w") if out else contextlib.nullcontext() as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.hub.pulling", str(models_dir), REPO, FILE, *flags],
            stdout=file or subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a child left."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> dict[str, Any]:
        """Return the last line: what came, or the error."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for a child."""
    out, err = process.communicate(timeout=120)
    return Ended(code=process.returncode, out=out or "", err=err)


def deny_sockets() -> None:
    """Have every attempt to connect, or to ask for a host's address, end this process with status 99."""
    denied = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto")

    def deny(event: str, _: tuple[object, ...]) -> None:
        if event in denied:
            print(f"a socket was used: {event}", file=sys.stderr, flush=True)
            os._exit(99)

    sys.addaudithook(deny)


def limit_files(size_bytes: int) -> None:
    """Let no file of this process grow beyond a size, as a full disk does; POSIX only."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def _write(line: object) -> None:
    print(json.dumps(line), flush=True)


def main(models_dir: str, repo: str, file: str, *flags: str) -> int:
    """Pull and report; see the module."""
    if "--no-sockets" in flags:
        deny_sockets()
    for flag in flags:
        if flag.startswith("--file-limit="):
            limit_files(int(flag.partition("=")[2]))
    try:
        fetched = pull(
            Path(models_dir),
            variant(repo, file),
            on_progress=lambda progress: _write(asdict(progress)),
            patience=PATIENCE if "--patient" in flags else QUICK,
            offline="--offline" in flags,
        )
    except SlmError as error:
        traceback.print_exc()
        _write(asdict(error.record()))
        return error.exit_code
    digest = hashlib.sha256(fetched.target.read_bytes()).hexdigest()
    _write({"target": str(fetched.target), "sha256": digest, "received_bytes": fetched.received_bytes})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
