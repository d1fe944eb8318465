"""What did other programs take while we measured, and what did that cost? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CALM_CORES = 0.1
"""A round is calm where other programs took less than this of one core: a desktop that does nothing takes some 0.05."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyCost:
    """Rounds beside other programs, and rounds without; None where there was none of a kind."""

    others_cores: float | None
    """Taken by others in the busiest round; None where the system does not tell."""
    busy_rounds: int
    calm_decode_tps: float | None
    busy_decode_tps: float | None

    @property
    def lost_share(self) -> float | None:
        """Return the share of the calm decode speed that busy rounds lost; below zero where they were faster."""
        if self.calm_decode_tps is None or self.busy_decode_tps is None:
            return None
        return 1.0 - self.busy_decode_tps / self.calm_decode_tps


def busy_cost(rounds: Sequence[tuple[float | None, float]]) -> BusyCost:
    """Part rounds, each the cores that others took and its decode speed, into calm and busy ones."""
    told = [(cores, tps) for cores, tps in rounds if cores is not None]
    calm = [tps for cores, tps in told if cores < CALM_CORES]
    busy = [tps for cores, tps in told if cores >= CALM_CORES]
    return BusyCost(
        others_cores=max((cores for cores, _ in told), default=None),
        busy_rounds=len(busy),
        calm_decode_tps=median(calm) if calm else None,
        busy_decode_tps=median(busy) if busy else None,
    )


def cost_remarks(cost: BusyCost) -> list[str]:
    """Say what other programs took, and what it cost as far as that can be told; nothing where all was calm."""
    if not cost.busy_rounds:
        return []
    taken = f"other programs took up to {cost.others_cores:.1f} cores"
    if cost.lost_share is None:
        return [f"{taken} in every round: what that cost shows beside a run on a quiet machine (--compare)"]
    found = f"{cost.busy_decode_tps:.1f} tok/s in busy rounds, {cost.calm_decode_tps:.1f} in calm ones"
    lost = f"that cost {cost.lost_share:.0%}" if cost.lost_share > 0.0 else "that cost nothing"
    return [f"{taken}: {found}, {lost}"]
