"""The runtimes behind one narrow protocol; a runtime is imported when its backend loads."""

from __future__ import annotations

import contextlib

from slm_local.backends.base import Backend
from slm_local.errors import SlmError, UsageError


def backend_named(name: str) -> Backend:
    """Make the backend of that name; it is empty until `load`.

    Errors: `UsageError` for a name that is none.
    """
    match name:
        case "llamacpp":
            from slm_local.backends.llamacpp import LlamaCppBackend

            return LlamaCppBackend()
        case "openvino":
            from slm_local.backends.openvino import OpenVinoBackend

            return OpenVinoBackend()
        case "scripted":
            from slm_local.backends.scripted import ScriptedBackend

            return ScriptedBackend()
        case _:
            raise UsageError(f"there is no backend named {name!r}", hint="--backend llamacpp")


def preload(name: str) -> None:
    """Import the runtime that a backend will load; what is missing is said when it loads."""
    with contextlib.suppress(SlmError):
        backend_named(name)
        if name == "llamacpp":
            from slm_local.backends.llamacpp.library import bindings

            bindings()
