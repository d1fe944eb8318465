"""Fixtures for programs on a pseudo-terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.pty.terminal import OnTerminal

collect_ignore_glob = ["test_*.py"] if os.name == "nt" else []
"""Windows has no POSIX pseudo-terminals."""

Start = Callable[..., "OnTerminal"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `slm` with arguments on a terminal of its own; ended with the test."""
    from tests.pty.terminal import OnTerminal

    with ExitStack() as open_terminals:

        def one(*arguments: str, **options: Any) -> OnTerminal:
            return open_terminals.enter_context(OnTerminal(*arguments, **options))

        yield one
