"""Fetches what a model needs and this disk lacks: an offer first, with size, fit and time; then the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from slm_local.download.fetch import fetch, order_of
from slm_local.download.hub import Hub
from slm_local.download.values import Fetched, FetchProgress, Order
from slm_local.engine.choice import Choice, Meaning, ranked
from slm_local.errors import DownloadFailed
from slm_local.generation import Control
from slm_local.hardware import measured_probe
from slm_local.measured import load_measured, remember
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.paths import paths
from slm_local.selector import gigabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What would be fetched, and what it would be good for here."""

    reference: str
    """The model as it was typed."""
    spec: ModelSpec
    variant: Variant
    order: Order
    plan: Plan | None = None
    """How it would run here; None where it would not run or is fetched for another machine."""
    expected_s: float | None = None
    """At the speed of the last download; None where there was none."""


Confirm = Callable[[Offer], None]
"""Asks the person; raises `Interrupted` where they decline."""

OnFetch = Callable[[FetchProgress], None]


def make_offer(
    meaning: Meaning, variant: Variant, hub: Hub, *, plan: Plan | None = None, models_dir: Path | None = None
) -> Offer:
    """Ask the Hub what fetching a variant means. Errors: `DownloadFailed`, offline with what is missing."""
    if hub.is_offline:
        raise _offline(meaning, variant)
    order = order_of(variant, hub, models_dir or paths().models_dir)
    speed = load_measured(paths().cache).download_bytes_s
    return Offer(
        reference=meaning.reference,
        spec=meaning.spec,
        variant=variant,
        order=order,
        plan=plan,
        expected_s=order.missing_bytes / speed if speed else None,
    )


def take(
    offer: Offer,
    hub: Hub,
    *,
    on_fetch: OnFetch | None = None,
    control: Control | None = None,
    again: str | None = None,
) -> Fetched:
    """Fetch what was offered; `again` is the line that goes on with it, if not `slm pull`.

    Errors: `DownloadFailed`, `Interrupted`; what came is kept.
    """
    again = again or f"slm pull {quote(offer.reference)}"
    fetched = fetch(offer.order, hub, on_progress=on_fetch, control=control, again=again)
    if fetched.bytes_per_s is not None:
        remember(paths().cache, download_bytes_s=fetched.bytes_per_s)
    return fetched


def supplied(
    choice: Choice,
    *,
    confirm: Confirm | None = None,
    on_fetch: OnFetch | None = None,
    control: Control | None = None,
) -> Choice:
    """Return the choice with its best plan's files here, fetching them where they are not.

    `confirm` None fetches at once. Errors: those of `make_offer`, `take` and `confirm`.
    """
    if choice.plans[0].variant.path is not None:
        return choice
    hub = Hub(offline=choice.settings.offline)
    if not hub.is_offline and measured_probe().read_gb_s is not None:
        choice = ranked(choice)  # with the speed that was just measured
    plan = choice.plans[0]
    offer = make_offer(choice, plan.variant, hub, plan=plan)
    if confirm is not None and offer.order.missing_bytes:
        confirm(offer)
    fetched = take(offer, hub, on_fetch=on_fetch, control=control)
    here = replace(plan.variant, path=str(fetched.target), size_bytes=offer.order.total_bytes, size_is_exact=True)
    return ranked(replace(choice, here=(here, *choice.here), notes=(*choice.notes, *fetched.warnings)))


def _offline(meaning: Meaning, variant: Variant) -> DownloadFailed:
    what = f"{variant.file} of {variant.repo}" if variant.file else variant.repo
    size = f", {gigabytes(variant.size_bytes)}" if variant.size_bytes else ""
    return DownloadFailed(
        f"{meaning.spec.id} {variant.quant} is not on this disk ({what}{size}), and offline nothing is fetched",
        hint=f"slm pull {quote(meaning.reference)}   without --offline and HF_HUB_OFFLINE, or: slm import DIR",
    )
