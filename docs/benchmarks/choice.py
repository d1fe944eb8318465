"""Is the way that slm chooses as fast as the best? python docs/benchmarks/choice.py MODEL.gguf --help

Calibrates as `slm bench --calibrate` does, with nothing known before; asks which plan is chosen then; races every plan
for longer, in turns; and compares the chosen one with the best of that race, pair by pair, by the time of a reply of
200 tokens to a prompt of 2,000 (read-heavy) and of one of 2,000 to a prompt of 200 (think-heavy). Under the load for
which slm chooses (think-heavy for a model that thinks, read-heavy for others) the chosen plan should take at most 1.05
of the best plan's time. Let nothing else run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from slm_local.bench import Racer, calibrate, race
from slm_local.config import load_settings
from slm_local.engine import choose
from slm_local.hardware import probe
from slm_local.measured import Measurement
from slm_local.selector.rules import READ_HEAVY, THINK_HEAVY, load_of

MOST = 1.05

LOADS = {"read-heavy": READ_HEAVY, "think-heavy": THINK_HEAVY}


def name(racer: Racer) -> str:
    """Return what a plan is called in the tables."""
    return f"{racer.plan.variant.quant} {racer.plan.backend} on {racer.plan.device}"


def seconds(racer: Racer, load: str) -> list[float]:
    """Return the time that a load takes by the speeds of each lap."""
    prompt, decoded = LOADS[load]
    return [prompt / lap.reading.prefill_tps + decoded / lap.thinking.decode_tps for lap in racer.laps]


def ratio(chosen: Racer, best: Racer, load: str) -> float:
    """Return the median of the pairs' ratios: laps of the same round stand side by side."""
    return median(own / other for own, other in zip(seconds(chosen, load), seconds(best, load), strict=True))


def calibrated(model: str, device: str) -> tuple[float, list[Measurement]]:
    """Calibrate from nothing; return how long that took and what was measured."""
    begun = time.perf_counter()
    settings = load_settings({"device": device, "offline": True})
    done = calibrate(choose(model, settings=settings), probe(devices=True), tell=lambda text: None)
    for racer in done.racers:
        if racer.failure is not None:
            print(f"  {name(racer)} dropped out: {racer.failure}")
    measured = [racer.measurement for racer in done.racers if racer.measurement is not None]
    return time.perf_counter() - begun, measured


def main() -> int:
    """Measure and print; 1 where the chosen plan is too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a path or a name; its files are here")
    parser.add_argument("--device", default="cpu", help="auto, cpu, gpu or npu: the plans that race")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn-s", type=float, default=4.0, help="seconds of a load of the slowest plan")
    given = parser.parse_args()
    os.environ["SLM_HOME"] = tempfile.mkdtemp(prefix="slm-choice-")

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    took_s, measured = calibrated(given.model, given.device)
    for each in measured:
        print(f"  {each.backend} on {each.device}: {each.prefill_tps:.1f} prefill, {each.decode_tps:.1f} decode tok/s")
    choice = choose(given.model, settings=load_settings({"device": given.device, "offline": True}))
    plan = choice.plans[0]
    print(f"calibrated in {took_s:.1f} s; chosen: {plan.variant.quant} {plan.backend} on {plan.device}")

    done = race(choice, probe(devices=True), rounds=given.rounds, turn_s=given.turn_s, tell=print)
    racers = [racer for racer in done.racers if racer.failure is None]
    chosen = next((racer for racer in racers if racer.plan == plan), None)
    if chosen is None:
        sys.exit("the chosen plan dropped out of the long race")
    if len(racers) < 2:
        sys.exit("only one plan could race: install the other engine, or give a file that both can read")
    shares: dict[str, float] = {}
    for load in LOADS:
        best = min(racers, key=lambda racer, load=load: median(seconds(racer, load)))  # type: ignore[misc]
        shares[load] = ratio(chosen, best, load)
        least = f"{median(seconds(best, load)):8.1f} s"
        print(f"{load:14} best: {name(best):32} {least}   chosen takes {shares[load]:.3f} of it")
    for remark in done.remarks:
        print(remark)
    print(json.dumps({"model": Path(given.model).name, "chosen": name(chosen), "calibration_s": took_s, **shares}))
    deciding = next(load for load, tokens in LOADS.items() if tokens == load_of(choice.spec))
    return 0 if shares[deciding] <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
