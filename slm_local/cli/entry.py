"""Where `slm` begins: the engine's process is started first, where one will be wanted; then everything is imported."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

ANSWERING = ("run", "chat")
"""Commands that, with a model named, start an engine."""


def main() -> int:
    """Run the command line of this process and return its exit code."""
    with _engine_ahead(sys.argv[1:]):
        from slm_local.cli.app import main as run

        return run()


@contextlib.contextmanager
def _engine_ahead(words: Sequence[str]) -> Iterator[None]:
    """Start the engine's process for the model that stands behind a command: it imports while this one does, too."""
    if len(words) < 2 or words[0] not in ANSWERING or words[1].startswith("-") or "--help" in words:
        yield
        return
    from slm_local.errors import SlmError
    from slm_local.paths import make_folder, paths
    from slm_local.worker import ahead

    reference = os.path.abspath(words[1]) if os.path.exists(words[1]) else words[1]
    backend = words[words.index("--backend") + 1] if "--backend" in words[:-1] else None
    with contextlib.suppress(SlmError):  # a folder that can't be made: said by who needs it
        ahead.start(make_folder(paths().logs), ahead.likely_for(paths().cache, reference, backend))
    try:
        yield
    finally:
        ahead.end()
