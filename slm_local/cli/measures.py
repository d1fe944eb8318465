"""How a measurement goes on and what came of it: words and JSON objects that `slm bench` and its offer share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from slm_local.cli.render import DIM, Terminal
from slm_local.measured import engine_version
from slm_local.model import Plan
from slm_local.selector.rules import READ_HEAVY, THINK_HEAVY

if TYPE_CHECKING:
    from slm_local.bench import Bench, Race, Racer, Spread  # `slm run` comes by here and measures nothing


def progress(terminal: Terminal) -> Callable[[str], None]:
    """Return what tells how far a measurement is: one passing line on a terminal, lines elsewhere."""
    return terminal.status if terminal.err_is_rich else lambda text: terminal.say(text, DIM)


def name_of(plan: Plan) -> str:
    """Return how a plan is called among others of the same model."""
    return f"{plan.variant.quant} · {plan.backend} on {plan.device}"


def by_speed(done: Race) -> list[Racer]:
    """Return the racers, fastest thinker first, those that dropped out last."""

    def thinking_s(racer: Racer) -> float:
        measured = racer.measurement
        return float("inf") if measured is None else measured.seconds(*THINK_HEAVY)

    return sorted(done.racers, key=thinking_s)


def bench_values(done: Bench) -> dict[str, Any]:
    """Return the JSON object that docs/cli.md lists."""
    return {
        **_plan_values(done.plan),
        "context_tokens": done.plan.context_tokens,
        "prompt_tokens": done.prompt_tokens,
        "decoded_tokens": done.decoded_tokens,
        "rounds": len(done.rounds),
        "load_s": _spread_values(done.spread("load_s")),
        "first_token_cold_s": _spread_values(done.spread("cold_s")),
        "first_token_warm_s": _spread_values(done.spread("warm_s")),
        "prefill_tps": _spread_values(done.spread("prefill_tps")),
        "decode_tps": _spread_values(done.spread("decode_tps")),
        "depths": [{"depth_tokens": each.depth_tokens, "decode_tps": each.decode_tps} for each in done.shape.depths],
        "batches": [
            {"sequences": each.sequences, "step_s": each.step_s, "tps": each.tps} for each in done.shape.batches
        ],
        "later_turn": asdict(done.shape.later_turn) if done.shape.later_turn else None,
        "memory_bytes": done.shape.memory_bytes,
        "tokens_per_joule": done.tokens_per_joule,
        "read_gb_s": done.limit.read_gb_s,
        "bytes_per_token": done.limit.bytes_per_token,
        "limit_tps": done.limit.decode_tps,
        "share": done.limit.share,
        "busy_share": done.busy_share,
        "busy": {**asdict(done.busy_cost), "lost_share": done.busy_cost.lost_share},
        "remarks": [*([done.limit.remark] if done.limit.remark else []), *done.remarks],
    }


def race_values(done: Race, best: Plan) -> dict[str, Any]:
    """Return the JSON object that docs/cli.md lists."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "decoded_tokens": done.decoded_tokens,
        "plans": [_racer_values(racer) for racer in by_speed(done)],
        "chosen": _plan_values(best),
        "busy_share": done.busy_share,
        "remarks": list(done.remarks),
    }


def _racer_values(racer: Racer) -> dict[str, Any]:
    measured, failure = racer.measurement, racer.failure
    return {
        **_plan_values(racer.plan),
        "prefill_tps": measured.prefill_tps if measured else None,
        "decode_tps": measured.decode_tps if measured else None,
        "first_token_s": measured.first_token_s if measured else None,
        "read_heavy_s": measured.seconds(*READ_HEAVY) if measured else None,
        "think_heavy_s": measured.seconds(*THINK_HEAVY) if measured else None,
        "failure": failure.message if failure else None,
    }


def _plan_values(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.spec.id,
        "quant": plan.variant.quant,
        "backend": plan.backend,
        "engine_version": engine_version(plan.backend) or None,
        "device": plan.device,
        "threads": plan.threads,
    }


def _spread_values(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}
