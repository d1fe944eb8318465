"""Measures how fast a model is here, beside what the machine allows, and which of its plans is fastest."""

from __future__ import annotations

from slm_local.bench.busy import BusyCost
from slm_local.bench.curves import Batch, Depth
from slm_local.bench.history import Kept, Run, append_run, load_runs, run_asked
from slm_local.bench.race import Race, Racer, calibrate, expected_s, race, raceable
from slm_local.bench.speeds import Bench, Limit, Round, Shape, Spread, bench, spread
from slm_local.bench.turns import LaterTurn

__all__ = [
    "Batch",
    "Bench",
    "BusyCost",
    "Depth",
    "Kept",
    "LaterTurn",
    "Limit",
    "Race",
    "Racer",
    "Round",
    "Run",
    "Shape",
    "Spread",
    "append_run",
    "bench",
    "calibrate",
    "expected_s",
    "load_runs",
    "race",
    "raceable",
    "run_asked",
    "spread",
]
