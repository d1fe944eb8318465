"""What is said of a download: the offer with size, fit and time, and how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slm_local.model import ModelSpec, Variant
from slm_local.selector import duration, gigabytes

if TYPE_CHECKING:
    from slm_local.download.values import FetchProgress
    from slm_local.engine.supply import Offer  # `slm ls` comes by here and opens nothing

TO_FETCH = "to fetch"
"""What a plan says of a download: the offer says it of what is still missing."""

STAGES = {
    "waiting": "waiting",
    "checking": "checking what is here",
    "downloading": "fetching",
    "retrying": "trying again",
    "verifying": "verifying",
    "copying": "copying",
}


def offer_lines(offer: Offer) -> list[str]:
    """Return what is to be known before a download: what comes from where, whether it fits, how long it takes."""
    order, variant = offer.order, offer.variant
    files = f"{len(order.files)} files" if len(order.files) > 1 else variant.file or "1 file"
    lines = [f"fetching {title_of(offer.spec, variant)}: {gigabytes(order.total_bytes)} from {order.repo}"]
    lines.append(f"  {files}{f' · licence {offer.spec.licence}' if offer.spec.licence else ''}")
    if order.missing_bytes < order.total_bytes:
        here = gigabytes(order.total_bytes - order.missing_bytes)
        lines.append(f"  {here} of it came earlier: {gigabytes(order.missing_bytes)} to go")
    if offer.expected_s is not None:
        lines.append(f"  about {duration(offer.expected_s)} at the speed of the last download")
    reasons = offer.plan.reasons if offer.plan else ()
    return lines + [f"  {reason}" for reason in reasons if TO_FETCH not in reason]


def title_of(spec: ModelSpec, variant: Variant) -> str:
    """Return a model's name with its quantization, once."""
    return spec.id if spec.id.endswith(f":{variant.quant}") else f"{spec.id} {variant.quant}"


def pace(progress: FetchProgress) -> str:
    """Return speed and time left, as far as they are known."""
    if progress.stage != "downloading" or not progress.bytes_per_s:
        return ""
    left = f" · {duration(progress.remaining_s)} left" if progress.remaining_s is not None else ""
    return f"{gigabytes(round(progress.bytes_per_s))}/s{left}"
