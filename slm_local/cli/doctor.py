"""`slm doctor`: this machine, its engines and devices, and what is missing or broken with the line that mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from slm_local import __version__
from slm_local.cli.diagnosis import Diagnosis, EngineState, diagnose
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.errors import EngineMissing
from slm_local.hardware import Device, Hardware
from slm_local.selector import gigabytes
from slm_local.system import Accelerator, driver_marks

LABEL_COLUMNS = 14

SYSTEMS = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}

MAKERS = {"intel": "Intel", "amd": "AMD", "nvidia": "NVIDIA", "apple": "Apple", "qualcomm": "Qualcomm"}

POWER = {"mains": "mains", "battery": "battery", None: "the system does not say"}


def command(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> int:
    """Tell what this machine is, which engines and devices can be used, and the line that mends what can't.

    Ends with 0 when an engine runs here, else with 4.
    """
    terminal: Terminal = context.obj
    terminal.status("asking the engines for their devices")
    found = diagnose()
    if json:
        terminal.json(found.values())
    else:
        _write_machine(terminal, found)
        _write_engines(terminal, found)
        _write_surroundings(terminal, found)
        _write_problems(terminal, found)
    return 0 if found.can_run else EngineMissing.exit_code


def _write_machine(terminal: Terminal, found: Diagnosis) -> None:
    machine = found.hardware
    _head(terminal, f"This machine, as slm {__version__} sees it", is_first=True)
    _row(terminal, "system", f"{SYSTEMS.get(machine.os, machine.os)} {driver_marks()[0]}")
    _row(terminal, "processor", f"{machine.cpu_name}, {_cores(machine)}")
    _row(terminal, "computes with", _instruction_sets(machine))
    read = f"; read at {machine.read_gb_s:.0f} GB/s" if machine.read_gb_s else "; speed not measured yet"
    free = f"{gigabytes(machine.free_ram_bytes)} of {gigabytes(machine.total_ram_bytes)} free"
    _row(terminal, "memory", free + read)
    _row(terminal, "power", POWER[machine.power])
    for card in found.cards:
        _row(terminal, card.kind.upper(), _card(card))


def _write_engines(terminal: Terminal, found: Diagnosis) -> None:
    _head(terminal, "Engines and what they can use", is_first=False)
    for state in found.engines:
        _row(terminal, state.name, _state(state))
        for device in state.listing.devices if state.listing else ():
            _row(terminal, "", f"{device.name}: {_device(device)}")
    for extra, line in found.missing_extras:
        _row(terminal, extra, f"not installed; adding it: {line}")


def _write_surroundings(terminal: Terminal, found: Diagnosis) -> None:
    _head(terminal, "Folders", is_first=False)
    told: str | None = None
    for folder in found.folders:
        size = gigabytes(folder.free_bytes) if folder.free_bytes is not None else None
        free = f", {size} free" if size not in (None, told) else ""  # else the disk of the row before
        told = size
        _row(terminal, folder.name, f"{folder.path}{'' if folder.exists else ' (not there yet)'}{free}")
    _head(terminal, "Hub", is_first=False)
    _row(terminal, "address", found.hub.endpoint or "none that can be used")
    _row(terminal, "network", f"forbidden by {found.hub.offline}" if found.hub.offline else "allowed")
    _row(terminal, "token", found.hub.token)


def _write_problems(terminal: Terminal, found: Diagnosis) -> None:
    terminal.line()
    if not found.problems:
        terminal.line("Nothing is missing or broken.")
        return
    count = len(found.problems)
    terminal.write(terminal.paint("1 problem" if count == 1 else f"{count} problems", YELLOW) + "\n")
    for number, problem in enumerate(found.problems, 1):
        terminal.paragraph(problem.what, first=f"{number}. ", rest="   ")
        if problem.mend_line is not None:
            terminal.line(f"     {problem.mend_line}")  # on a line of its own, unfolded: it is copied
    if not found.can_run:
        terminal.line("\nNo engine runs here: no model can answer before that is mended.")


def _head(terminal: Terminal, text: str, *, is_first: bool) -> None:
    terminal.write(("" if is_first else "\n") + terminal.paint(text, DIM) + "\n")


def _row(terminal: Terminal, label: str, text: str) -> None:
    terminal.paragraph(text, first=f"  {label:<{LABEL_COLUMNS}}", rest=" " * (LABEL_COLUMNS + 4))


def _cores(machine: Hardware) -> str:
    strong, weak = machine.physical_cores, machine.efficiency_cores
    if weak:
        return f"{strong} performance and {weak} efficiency cores"
    return f"{strong} {'core' if strong == 1 else 'cores'}"


def _instruction_sets(machine: Hardware) -> str:
    if machine.instruction_sets is None:
        return "the system does not say"
    return ", ".join(machine.instruction_sets) or "none of those that engines gain by"


def _card(card: Accelerator) -> str:
    maker = MAKERS.get(card.vendor, card.vendor)
    driver = f"driver {card.driver}" if card.driver else "no driver"
    node = f", {card.node}" if card.node else ""
    closed = {"denied": " (you may not open it)", "absent": " (not there)"}.get(card.access or "", "")
    return f"{maker} {card.device_id}, {driver}{node}{closed}"


def _state(state: EngineState) -> str:
    if state.version is None:
        return "not installed"
    failure = state.listing.failure if state.listing else None
    return f"{state.version}{'' if state.runs else ', does not run here'}{f': {failure}' if failure else ''}"


def _device(device: Device) -> str:
    parts = [device.description]
    if device.kind != "cpu":
        shared = {True: "integrated", False: "memory of its own", None: ""}[device.integrated]
        size = gigabytes(device.memory_bytes) if device.memory_bytes else ""
        driver = f"driver {device.driver}" if device.driver else ""
        through = f"through {device.architecture}" if device.engine == "llamacpp" and device.architecture else ""
        parts += [shared, size, through, driver]
    return ", ".join(each for each in [*parts, " ".join(device.capabilities)] if each)
