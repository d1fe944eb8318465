"""Which model, when none was named: three that suit this machine, those that are here first, the embedded one last."""

from __future__ import annotations

from slm_local.cli.render import DIM, Terminal, can_ask
from slm_local.errors import UsageError
from slm_local.forecast.plans import forecast, machine_line
from slm_local.forecast.suited import models_here, offers
from slm_local.hardware import measured_probe
from slm_local.registry import Registry


def chosen_model(terminal: Terminal, registry: Registry) -> str:
    """Ask the person for a model and return its reference. `UsageError` where nobody can be asked, or none is taken.

    The first time of all this measures the memory for half a second.
    """
    hint = "slm chat tiny-reasoner"
    if not can_ask(terminal):
        raise UsageError("which model?", hint=hint)
    hardware = measured_probe(lambda text: terminal.say(text, DIM))
    suited = offers(registry, hardware, models_here(registry))
    embedded = next((spec for spec in registry.models if spec.embedded), None)
    rows = [(plan.spec.id, forecast(plan, hardware).line()) for plan in suited]
    rows += [(embedded.id, "inside slm: sums, weighing and word problems only")] if embedded else []
    if suited:
        terminal.say(f"what suits {machine_line(hardware)}:", DIM)
    width = max((len(name) for name, _ in rows), default=0)
    for number, (name, remark) in enumerate(rows, 1):
        terminal.say(f"  {number}  {name:<{width}}  {remark}")
    while True:
        terminal.talk("a number, or any model by its name: ")
        try:
            typed = input().strip()
        except EOFError:
            raise UsageError("no model was chosen", hint=hint) from None
        if typed.isascii() and typed.isdigit() and 1 <= int(typed) <= len(rows):
            return rows[int(typed) - 1][0]
        if typed and not typed.isdigit():
            return typed
