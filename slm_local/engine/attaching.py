"""An engine of this process's own that is the user's server's, where one runs and has the model open, or opens it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from slm_local import __version__
from slm_local.config import Settings
from slm_local.engine import Choice, Engine
from slm_local.engine.sharing import fixed_settings
from slm_local.errors import Interrupted, SlmError, UsageError
from slm_local.generation import Control
from slm_local.paths import make_folder, paths
from slm_local.registry import Registry
from slm_local.worker import Worker, ahead
from slm_local.worker.attached import Attached, Opened, ServerFile, forget, is_up, open_there, read_server_file


def attach(
    reference: str, settings: Settings, registry: Registry, control: Control, on_status: Callable[[str], None]
) -> Engine | str:
    """Return an engine that the server has open; else why not, empty where there is no server. See `serving`."""
    resolved = registry.resolve(reference)
    if resolved.kind == "url":
        return ""  # it is open elsewhere
    if settings.fresh and settings.keep_alive_s:
        raise UsageError("--fresh and --keep-alive contradict each other", hint="leave --fresh out")
    server = _server(settings)
    if server is None:
        return ""
    if settings.fresh:
        return f"the server (process {server.pid}) is not used: --fresh"
    if server.version != __version__:
        return f"the server (process {server.pid}) is slm {server.version}, this is {__version__}"
    begun = time.perf_counter()
    try:
        fixed, keep_alive_s = _elsewhere(settings), settings.keep_alive_s
        opened = open_there(server, resolved.lasting, fixed, control, on_status, keep_alive_s=keep_alive_s)
    except Interrupted:
        raise
    except SlmError as error:
        return f"the server (process {server.pid}) did not open it: {error.message}"
    except ConnectionRefusedError:
        forget(paths().server_file, server)
        return ""
    except OSError as error:
        return f"no server answers where {paths().server_file} says: {error}"
    engine = _engine(resolved.lasting, settings, opened, on_status)
    engine.adopt(Worker(Attached(opened.link)), opened.facts, time.perf_counter() - begun)
    engine.service = _words(server)
    ahead.end()  # what was started in case there is none
    return engine


def _server(settings: Settings) -> ServerFile | None:
    """Return the server that runs; where none does and something is to be kept, start one."""
    file = paths().server_file
    if settings.keep_alive_s and not is_up(file):
        from slm_local.worker.background import start_server

        start_server(make_folder(paths().logs))
    return read_server_file(file)


def _engine(reference: str, settings: Settings, opened: Opened, on_status: Callable[[str], None] | None) -> Engine:
    plan = opened.plan
    choice = Choice(
        reference=reference,
        spec=plan.spec,
        settings=settings,
        here=(plan.variant,),
        notes=opened.notes,
        plans=(plan,),
    )
    return Engine(choice, on_status=on_status)


def _elsewhere(settings: Settings) -> Settings:
    """Return what decides how a model is opened, as it means the same in a process of another folder."""
    fixed = fixed_settings(settings)
    if fixed.template_file is None:
        return fixed
    return replace(fixed, template_file=str(Path(fixed.template_file).expanduser().absolute()))


def _words(server: ServerFile) -> str:
    where = f", {server.address}" if server.address else ""
    return f"open in the server (process {server.pid}{where})"
