"""What is promised about speed, a file a goal; docs/benchmarks/peers.py runs them."""

from . import cancel, decode, footprint, overhead, prefill, resume, samples, serve, start, turns
from .scripts import GOALS as SCRIPTS
from .setup import Goal, Setup

GOALS: tuple[Goal, ...] = (
    decode.GOAL,
    overhead.GOAL,
    prefill.GOAL,
    turns.GOAL,
    samples.GOAL,
    start.GOAL,
    footprint.GOAL,
    resume.GOAL,
    cancel.GOAL,
    serve.GOAL,
    *SCRIPTS,
)
"""In the order of the table in docs/benchmarks.md."""

__all__ = ["GOALS", "Goal", "Setup"]
