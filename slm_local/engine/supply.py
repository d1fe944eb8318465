"""Fetches what a model needs and this disk lacks: an offer first, with size, fit and time; then the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from slm_local.download.fetch import fetch, order_of
from slm_local.download.hub import Hub
from slm_local.download.ranged import remote_header
from slm_local.download.values import Fetched, FetchProgress, Order, RemoteRepo
from slm_local.engine.choice import Choice, Meaning, ranked, with_shape
from slm_local.errors import DownloadFailed, EngineMissing, UsageError
from slm_local.generation import Control
from slm_local.hardware import measured_probe, probe
from slm_local.measured import load_measured, remember
from slm_local.model import ModelSpec, Plan, Variant
from slm_local.paths import paths
from slm_local.sanitize import shell_word
from slm_local.selector import does_not_fit, gigabytes, rank
from slm_local.selector.sentences import key
from slm_local.system import kept_awake, largest_program


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What would be fetched, and what it would be good for here."""

    reference: str
    """The model as it was typed."""
    spec: ModelSpec
    variant: Variant
    order: Order
    notes: tuple[str, ...] = ()
    """Remarks on what was chosen, and why."""
    plan: Plan | None = None
    """How it would run here; None where it would not run or is fetched for another machine."""
    expected_s: float | None = None
    """At the speed of the last download; None where there was none."""


TELLING_BYTES = 16 * 10**6
"""A smaller download says more of the connection's beginning than of its speed."""

Confirm = Callable[[Offer], None]
"""Asks the person; raises `Interrupted` where they decline."""

OnFetch = Callable[[FetchProgress], None]


def make_offer(
    meaning: Meaning, variant: Variant, hub: Hub, *, runs_here: bool = True, models_dir: Path | None = None
) -> Offer:
    """Ask the Hub what fetching a variant means, and foretell from its true size how it would run here.

    Of a GGUF file whose shape nobody stated the header is read, by range. Errors: `DownloadFailed`, offline with what
    is missing; `ModelBroken` for a header that is none.
    """
    if hub.is_offline:
        raise _offline(meaning, variant, hub)
    order = order_of(variant, hub, models_dir or paths().models_dir)
    speed = load_measured(paths().cache).download_bytes_s
    return Offer(
        reference=meaning.reference,
        spec=meaning.spec,
        variant=variant,
        order=order,
        notes=meaning.notes,
        plan=_plan(meaning, variant, order, hub) if runs_here else None,
        expected_s=order.missing_bytes / speed if speed else None,
    )


def _plan(meaning: Meaning, variant: Variant, order: Order, hub: Hub) -> Plan | None:
    """Return how a variant would run here, from the size that the Hub states; None where no engine here runs it."""
    spec = meaning.spec
    sized = replace(variant, path=None, size_bytes=order.total_bytes, size_is_exact=True)
    if variant.kind == "gguf" and spec.shape.kv_bytes_per_token() is None:
        listed = RemoteRepo(repo=order.repo, commit=order.commit, files=tuple(each.remote for each in order.files))
        header = remote_header(listed, order.files[0].remote, hub, paths().cache)
        spec = with_shape(spec, header)
        sized = replace(sized, decode_bytes=header.decode_bytes)
    spec = replace(spec, variants=tuple(sized if key(each) == key(variant) else each for each in spec.variants))
    try:
        plans = rank(spec, probe(devices=True), meaning.settings, ())
    except (EngineMissing, UsageError):  # it may be meant for another machine
        return None
    return next((plan for plan in plans if plan.runs and key(plan.variant) == key(sized)), None)


def take(
    offer: Offer,
    hub: Hub,
    *,
    on_fetch: OnFetch | None = None,
    control: Control | None = None,
    again: str | None = None,
    keeps_awake: bool = True,
) -> Fetched:
    """Fetch what was offered; `again` is the line that goes on with it, if not `slm pull`.

    Errors: `DownloadFailed`, `Interrupted`; what came is kept.
    """
    again = again or f"slm pull {shell_word(offer.reference)}"
    with kept_awake(is_wanted=keeps_awake):
        fetched = fetch(offer.order, hub, on_progress=on_fetch, control=control, again=again)
    if fetched.bytes_per_s is not None and fetched.received_bytes >= TELLING_BYTES:
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
    hub = Hub(offline=choice.settings.offline, again=f"slm pull {shell_word(choice.reference)}")
    if not hub.is_offline and measured_probe().read_gb_s is not None:
        choice = ranked(choice)  # with the speed that was just measured
    plan = choice.plans[0]
    offer = make_offer(choice, plan.variant, hub)
    if offer.plan is not None and not offer.plan.fits:
        raise does_not_fit(offer.plan, largest_program())
    if confirm is not None and offer.order.missing_bytes:
        confirm(offer)
    fetched = take(offer, hub, on_fetch=on_fetch, control=control, keeps_awake=choice.settings.keep_awake)
    here = replace(plan.variant, path=str(fetched.target), size_bytes=offer.order.total_bytes, size_is_exact=True)
    return ranked(replace(choice, here=(here, *choice.here), notes=(*choice.notes, *fetched.warnings)))


def _offline(meaning: Meaning, variant: Variant, hub: Hub) -> DownloadFailed:
    what = f"{variant.file} of {variant.repo}" if variant.file else variant.repo
    size = f", {gigabytes(variant.size_bytes)}" if variant.size_bytes else ""
    return DownloadFailed(
        f"{meaning.spec.id} {variant.quant} is not on this disk ({what}{size}), and {hub.no_network} allows no network",
        hint=f"slm pull {shell_word(meaning.reference)}   without that, or: slm import DIR",
    )
