"""Should the ways to run a model be raced now? Asked once a machine, at the first load that leaves a choice."""

from __future__ import annotations

from slm_local.cli.asking import agrees
from slm_local.cli.measures import name_of, progress
from slm_local.cli.render import DIM, YELLOW, Terminal, can_ask
from slm_local.config import Settings
from slm_local.engine import Choice, choose
from slm_local.errors import SlmError
from slm_local.hardware import probe
from slm_local.measured import remember_asked_to_measure, was_asked_to_measure
from slm_local.paths import paths
from slm_local.registry import Registry
from slm_local.sanitize import shell_word
from slm_local.selector import duration

ROUNDED_S = 5
"""The time that is foretold is no more exact."""


def may_ask(terminal: Terminal, *, is_quiet: bool = False) -> bool:
    """Say whether there is a person to ask, who was not asked before, about a machine with more than one device."""
    if is_quiet or not can_ask(terminal) or was_asked_to_measure(paths().cache):
        return False
    return len(probe(devices=True).devices) > 1


def offer_calibration(
    terminal: Terminal, reference: str, *, settings: Settings, registry: Registry, is_quiet: bool = False
) -> None:
    """Ask whether to race the plans of a model before it is opened, where `may_ask` and its files leave a choice.

    What is measured is kept, so that the model is opened as it is fastest. A race in which all fail is told of and no
    more. Errors: those of `choose`.
    """
    if not may_ask(terminal, is_quiet=is_quiet):
        return
    from slm_local.bench import calibrate, raceable  # once a machine

    choice = choose(reference, settings=settings, registry=registry)
    if len({plan.device for plan in raceable(choice)}) < 2:
        return
    remember_asked_to_measure(paths().cache)
    later = f"slm bench {shell_word(reference)} --calibrate"
    if not _agrees(terminal, choice):
        terminal.say(f"not measured; whenever you like: {later}", DIM)
        return
    try:
        race = calibrate(choice, probe(devices=True), tell=progress(terminal))
    except SlmError as error:
        terminal.say(f"nothing was measured: {error.message}; to try again: {later}", YELLOW)
        return
    for remark in race.remarks:
        terminal.say(remark, YELLOW)


def _agrees(terminal: Terminal, choice: Choice) -> bool:
    from slm_local.bench import expected_s, raceable

    plans = raceable(choice)
    seconds = max(1, round(expected_s(plans) / ROUNDED_S)) * ROUNDED_S
    terminal.say(f"{choice.spec.id} can run here in {len(plans)} ways; which is fastest was never measured:")
    for plan in plans:
        terminal.say(f"  {name_of(plan)}")
    return agrees(terminal, f"measure now? {duration(seconds)}  Enter: yes · any other key: no, and don't ask again ")
