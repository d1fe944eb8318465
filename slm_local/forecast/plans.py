"""What running a model here would be like: the sum behind a plan, what getting its file takes, what the machine has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from slm_local.fit import Fit, predict
from slm_local.hardware import Hardware
from slm_local.model import Plan
from slm_local.selector import duration, gigabytes
from slm_local.selector.sentences import THOUGHT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A plan with the sum behind it, and what getting its file takes."""

    plan: Plan
    fit: Fit
    fetch_bytes: int | None
    """0 where the file is here; None where its size is not known."""
    fetch_s: float | None
    """At the speed of the last download; None where there was none."""

    @property
    def thought_s(self) -> float | None:
        """Return the seconds that `THOUGHT_TOKENS` take; None where the speed is not foretold."""
        tps = self.plan.expected_decode_tps
        return THOUGHT_TOKENS / tps if tps else None

    def line(self) -> str:
        """Say whether it fits, how fast it should be, and whether it is here or what is to be fetched."""
        tps = self.plan.expected_decode_tps
        speed = [f"about {tps:.{0 if tps >= 10 else 1}f} tok/s"] if tps else []
        return " · ".join([self.fit.verdict, *speed, self._place()])

    def _place(self) -> str:
        variant = self.plan.variant
        if variant.kind == "remote":
            return "elsewhere"
        about = "" if variant.size_is_exact else "about "
        size = f"{about}{gigabytes(variant.size_bytes)}" if variant.size_bytes is not None else ""
        if variant.path is not None:
            return f"{size}, here" if size else "here"
        time = f", about {duration(self.fetch_s)}" if self.fetch_s is not None else ""
        return f"{size} to fetch{time}" if size else "to fetch, size not known"

    def values(self) -> dict[str, Any]:
        """Return the JSON object that docs/cli.md lists."""
        plan, fit = self.plan, self.fit
        return {
            "model": plan.spec.id,
            "quant": plan.variant.quant,
            "backend": plan.backend,
            "device": plan.device,
            "context_tokens": plan.context_tokens,
            "prompt_tokens": plan.prompt_tokens,
            "response_tokens": plan.response_tokens,
            "threads": plan.threads,
            "memory_bytes": plan.memory_bytes,
            "weights_bytes": fit.weights_bytes,
            "kv_bytes": fit.kv_bytes,
            "compute_bytes": fit.compute_bytes,
            "output_bytes": fit.output_bytes,
            "runtime_bytes": fit.runtime_bytes,
            "free_ram_bytes": plan.free_ram_bytes,
            "fit": fit.verdict,
            "fits": plan.fits,
            "short_bytes": fit.short_bytes,
            "largest_context_tokens": fit.largest_context_tokens,
            "fitting_quant": plan.fitting_quant,
            "read_bytes_per_token": fit.read_bytes_per_token,
            "read_gb_s": fit.read_gb_s,
            "read_gb_s_is_measured": fit.is_measured,
            "engine_share": fit.engine_share,
            "engine_share_is_measured": fit.is_share_measured,
            "expected_decode_tps": plan.expected_decode_tps,
            "thought_1000_s": self.thought_s,
            "here": plan.variant.path is not None and plan.variant.kind != "remote",
            "path": plan.variant.path,
            "repo": plan.variant.repo,
            "file": plan.variant.file,
            "size_bytes": plan.variant.size_bytes,
            "fetch_bytes": self.fetch_bytes,
            "fetch_s": self.fetch_s,
            "runs": plan.runs,
            "reasons": list(plan.reasons),
            "lost_because": plan.lost_because,
        }


def forecast(plan: Plan, hardware: Hardware) -> Forecast:
    """Add to a plan the sum behind it and what getting its file takes; pure."""
    size = 0 if plan.variant.path is not None else plan.variant.size_bytes
    speed = hardware.download_bytes_s
    fit = predict(plan.spec, plan.variant, plan.context_tokens, hardware, backend=plan.backend, device=plan.device)
    return Forecast(
        plan=plan,
        fit=nothing_here(fit) if plan.variant.kind == "remote" else fit,
        fetch_bytes=size,
        fetch_s=size / speed if size and speed else None,
    )


def nothing_here(fit: Fit) -> Fit:
    """Return what a model takes of this machine that runs elsewhere."""
    return replace(
        fit,
        weights_bytes=0,
        kv_bytes=0,
        compute_bytes=0,
        output_bytes=0,
        runtime_bytes=0,
        total_bytes=0,
        verdict="Fits",
        read_bytes_per_token=None,
        decode_tps=None,
    )


def machine_line(hardware: Hardware) -> str:
    """Say what the machine has: processor, memory now free, memory bandwidth, other devices that were listed."""
    weaker = f" + {hardware.efficiency_cores}" if hardware.efficiency_cores else ""
    cores = f"{hardware.physical_cores}{weaker} {'core' if hardware.physical_cores == 1 and not weaker else 'cores'}"
    free = f"{gigabytes(hardware.free_ram_bytes)} of {gigabytes(hardware.total_ram_bytes)} free"
    read = f", read at {hardware.read_gb_s:.0f} GB/s" if hardware.read_gb_s is not None else ""
    others = "".join(f"; {each.name}: {each.description}" for each in hardware.devices if each.kind != "cpu")
    return f"{hardware.cpu_name}, {cores}; memory {free}{read}{others}"
