"""Measures how fast a model is here, beside what the machine allows, and which of its plans is fastest."""

from __future__ import annotations

from slm_local.bench.race import Race, Racer, calibrate, expected_s, race, raceable
from slm_local.bench.speeds import Bench, Limit, Round, Spread, bench, spread

__all__ = [
    "Bench",
    "Limit",
    "Race",
    "Racer",
    "Round",
    "Spread",
    "bench",
    "calibrate",
    "expected_s",
    "race",
    "raceable",
    "spread",
]
