"""Where `slm` begins: the engine's process is started first, where one will be wanted; then everything is imported."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ANSWERING = ("run", "chat")
"""Commands that, with a model named, start an engine."""


def main() -> int:
    """Run the command line of this process and return its exit code.

    While it imports, garbage is not looked for: there is none, and looking takes a sixth of the time.
    """
    gc.disable()
    try:
        with _engine_ahead(sys.argv[1:]):
            from slm_local.cli.app import main as run

            return run()
    except KeyboardInterrupt:  # while it imports
        return 130


@contextlib.contextmanager
def _engine_ahead(words: Sequence[str]) -> Iterator[None]:
    """Start the engine's process for the model that is named behind a command: it imports while this one does, too."""
    if len(words) < 2 or words[0] not in ANSWERING or "--help" in words:
        yield
        return
    from slm_local.errors import SlmError
    from slm_local.paths import make_folder, paths
    from slm_local.worker import ahead

    references = [os.path.abspath(word) if os.path.exists(word) else word for word in words[1:]]
    backend = words[words.index("--backend") + 1] if "--backend" in words[:-1] else None
    with contextlib.suppress(SlmError):  # a folder that can't be made: said by who needs it
        if "--fresh" in words or not (_wants_server(words) or _is_served(paths().server_file)):
            ahead.start(make_folder(paths().logs), ahead.likely_for(paths().cache, references, backend))
    try:
        yield
    finally:
        ahead.end()


def _is_served(file: Path) -> bool:
    """Tell whether a server of the user's runs, which most likely opens the model or has it open."""
    if not file.exists():
        return False
    from slm_local.worker.attached import is_up

    return is_up(file)


def _wants_server(words: Sequence[str]) -> bool:
    """Tell whether a server is started where none runs."""
    return bool(os.environ.get("SLM_KEEP_ALIVE")) or any(word.startswith("--keep-alive") for word in words)
