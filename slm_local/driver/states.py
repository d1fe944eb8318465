"""KV states through a backend that can keep them; one that can't says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from slm_local.backends.base import Backend, KeepsState
from slm_local.generation import StateMoved, StateOrder


def moved_state(backend: Backend, order: StateOrder, start: Callable[[], Sequence[int]]) -> StateMoved:
    """Save what is held of `start`, or restore a file, as ordered. Errors: those of `start`."""
    if not isinstance(backend, KeepsState):
        return StateMoved(tokens=0, note="this engine keeps no states")
    path = Path(order.path)
    if order.request is None:
        return backend.restore_state(path, order.model)
    ids = start()
    if len(ids) < order.least_tokens:
        return StateMoved(tokens=0, note=f"its {len(ids):,} tokens are read again soon enough")
    return backend.save_state(ids, path, order.model, order.most_bytes)
