"""The runtimes behind one narrow protocol; a runtime is imported when its backend loads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from slm_local.backends.base import Backend
from slm_local.errors import SlmError, UsageError
from slm_local.generation import Control


def backend_named(name: str) -> Backend:
    """Make the backend of that name; it is empty until `load`.

    Errors: `UsageError` for a name that is none.
    """
    match name:
        case "llamacpp":
            from slm_local.backends.llamacpp import LlamaCppBackend

            return LlamaCppBackend()
        case "openvino":
            from slm_local.backends.openvino.backend import OpenVinoBackend

            return OpenVinoBackend()
        case "openai":
            from slm_local.backends.openai.backend import OpenAiBackend

            return OpenAiBackend()
        case "scripted":
            from slm_local.backends.scripted import ScriptedBackend

            return ScriptedBackend()
        case _:
            raise UsageError(f"there is no backend named {name!r}", hint="--backend llamacpp")


def check_schema(name: str, schema: str) -> None:
    """Compile a JSON Schema as the backend of that name would, without a model; one elsewhere checks it itself.

    Errors: `UsageError` saying what of it can't be, `EngineMissing`.
    """
    match name:
        case "llamacpp":
            from slm_local.backends.llamacpp import schemas

            schemas.check(schema)
        case "openvino":
            from slm_local.backends.openvino.grammar import grammar_of

            grammar_of(schema)


def read_ahead(name: str, model_path: str, control: Control, on_progress: Callable[[float], None]) -> Backend | None:
    """Make a backend that will most likely be wanted, import its runtime and read a model, if there is a path; blocks.

    None where it can't be: what is wrong is said when it loads.
    """
    with contextlib.suppress(SlmError):
        if name != "llamacpp":
            return backend_named(name)
        from slm_local.backends.llamacpp import LlamaCppBackend

        backend = LlamaCppBackend()
        backend.read_ahead(model_path, control, on_progress)
        return backend
    return None
