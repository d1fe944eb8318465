"""Finds and loads OpenVINO GenAI, reads back what it decided, and words what it refused."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from slm_local.errors import DoesNotFit, EngineMissing, ModelBroken, UsageError

CONVERTER = "openvino.tools.ovc"
"""Loaded by `import openvino` where it can be: a third of the time that takes, and the one part with telemetry."""

LOG_LEVEL = "OPENVINO_LOG_LEVEL"
SHOWS_PROPERTIES = "5"
"""From this level OpenVINO GenAI prints the compiled model's properties; it has no call that gives them."""

IDLE_TOKENIZER = Path(__file__).parents[2] / "tiny" / "weights" / "tokenizer"
"""A pipeline insists on a tokenizer, which is never asked where prompts are token ids. For a GGUF file it would make
one of its own: 3 s for 49,000 tokens, and wrong for most vocabularies (the embedded models': no prompt alike)."""

SHOWN_REASON = 300

PROPERTY = re.compile(r"^  ([A-Z_]+): (.*)$", re.M)


def genai() -> Any:
    """Return the module `openvino_genai`, with `openvino` loaded. Errors: `EngineMissing`."""
    loaded = sys.modules.get("openvino_genai")
    if loaded is not None:
        return loaded
    is_hidden = CONVERTER not in sys.modules
    if is_hidden:
        sys.modules[CONVERTER] = None  # type: ignore[assignment]  # an import of it fails, and openvino does without
    try:
        return importlib.import_module("openvino_genai")
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineMissing(
            f"OpenVINO GenAI does not load: {error}", hint="pip install --force-reinstall openvino-genai"
        ) from error
    finally:
        if is_hidden:
            del sys.modules[CONVERTER]


def openvino() -> Any:
    """Return the module `openvino`. Errors: `EngineMissing`."""
    genai()
    return importlib.import_module("openvino")


def check_device(name: str) -> None:
    """Raise `EngineMissing` where OpenVINO finds no such device; the processor is always there."""
    if name == "CPU":
        return
    found = [str(each) for each in openvino().Core().available_devices]
    if name not in found and not any(each.startswith(f"{name}.") for each in found):
        raise EngineMissing(
            f"OpenVINO finds no {name} on this machine, only {', '.join(found) or 'no device at all'}",
            hint="slm doctor",
        )


class SignalStack(ctypes.Structure):
    """Where a thread handles signals apart from its own stack: `stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size_bytes", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Leave this thread's alternate signal stack as it was, whatever OpenVINO loads meanwhile; it changes it on Linux.

    Its plugin for the processor puts a stack of its own in place when loaded, and the one before back when freed. Two
    that are freed in the order they were loaded leave one in place that is gone: the next signal with a handler, Ctrl-C
    too, then kills the process, and a crash leaves no trace. One that is not in place is freed and puts nothing back.
    """
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


class Report:
    """What a compiled model said of itself while it was loaded."""

    def __init__(self) -> None:
        self.properties: dict[str, str] = {}
        """Names as OpenVINO has them: INFERENCE_PRECISION_HINT, KV_CACHE_PRECISION, ..."""
        self.devices = ""


@contextlib.contextmanager
def reported() -> Iterator[Report]:
    """Catch what is printed on descriptor 1 meanwhile, pass it on to descriptor 2, the log, and read it."""
    report, before = Report(), os.environ.get(LOG_LEVEL)
    sys.stdout.flush()
    saved = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.environ[LOG_LEVEL] = SHOWS_PROPERTIES
        os.dup2(file.fileno(), 1)
        try:
            yield report
        finally:
            _flush_c()
            os.dup2(saved, 1)
            os.close(saved)
            os.environ.pop(LOG_LEVEL)
            if before is not None:
                os.environ[LOG_LEVEL] = before
            file.seek(0)
            printed = file.read()
            os.write(2, printed)
            _read_report(printed.decode("utf-8", "replace"), report)


def _read_report(printed: str, report: Report) -> None:
    own = printed.rpartition("\nModel: ")[2]  # tokenizers, which come first, are models too
    report.properties = dict(PROPERTY.findall(own))
    devices = own.partition("EXECUTION_DEVICES:\n")[2].split("\n\n")[0]
    named = [line.strip().partition(": ") for line in devices.splitlines() if line.startswith(" ")]
    report.devices = ", ".join(f"{device} ({name})" for device, _, name in named)


def _flush_c() -> None:
    library = ctypes.cdll.ucrtbase if sys.platform == "win32" else ctypes.CDLL(None)
    library.fflush(None)


def refuse_load(error: Exception, path: str, device: str) -> NoReturn:
    """Raise what a failure to load means: `DoesNotFit` where memory ran out, else `ModelBroken`."""
    reason = reason_of(error)
    if isinstance(error, MemoryError) or re.search(r"bad_alloc|allocat|out of memory|more memory", reason, re.I):
        raise DoesNotFit(
            f"OpenVINO found no memory for {path} on {device}: {reason}", hint="ask for a shorter context: --ctx 4096"
        ) from error
    raise ModelBroken(f"OpenVINO would not load {path} on {device}: {reason}", hint="--backend llamacpp") from error


def refuse_sampling(error: Exception) -> NoReturn:
    """Raise `UsageError` for a sampling field that OpenVINO GenAI does not take."""
    raise UsageError(
        f"OpenVINO does not take this sampling: {reason_of(error)}", hint="change it, or: --backend llamacpp"
    ) from error


def reason_of(error: Exception) -> str:
    """Return the last line of a native exception, which says why; the lines before say where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:SHOWN_REASON]
