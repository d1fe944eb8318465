"""Finds and loads llama.cpp's C library through llama-cpp-python's low-level bindings, and nothing else of it.

The package's own `__init__` imports its high-level classes, numpy and a server's worth of helpers (0.7 s of the
0.9 s that `import llama_cpp` took where this was written); only the bindings are wanted here.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
import types
from typing import Any

from slm_local.errors import EngineMissing

LOG_INFO, LOG_CONTINUES = 2, 5
"""Levels of ggml's log: debug is below info; a continuation has the level of what it continues."""


def bindings() -> Any:
    """Import `llama_cpp.llama_cpp` without its package's `__init__`.

    Errors: `EngineMissing` when the package is not installed or its library does not load.
    """
    loaded = sys.modules.get("llama_cpp.llama_cpp")
    if loaded is not None:
        return loaded
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise EngineMissing(
            "llama.cpp is not installed", hint='pip install "slm-local[llamacpp]"  (builds it; needs a C compiler)'
        )
    shell = types.ModuleType("llama_cpp")
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = shell
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineMissing(
            f"llama.cpp is installed but does not load: {error}",
            hint='pip install --force-reinstall --no-cache-dir "slm-local[llamacpp]"',
        ) from error
    finally:
        if sys.modules.get("llama_cpp") is shell:
            del sys.modules["llama_cpp"]  # whoever imports the real package later gets the real package


def quiet_log(library: Any) -> None:
    """Have llama.cpp write its log to descriptor 2 without debug lines, for the rest of this process."""
    if hasattr(library, "slm_log_callback"):
        return
    shown = True

    def write(level: int, text: bytes, _data: object) -> None:
        nonlocal shown
        shown = shown if level == LOG_CONTINUES else level >= LOG_INFO
        if shown:
            os.write(2, text)

    library.slm_log_callback = library.llama_log_callback(write)  # C keeps the pointer: it lives with the library
    library.llama_log_set(library.slm_log_callback, None)


class AbortFlag:
    """A flag that llama.cpp polls between graph nodes without entering Python.

    The C library's own `strlen` is the callback and a two-byte buffer its data: empty means go on, one character
    means abort. So no interpreter lock is taken inside a decode.
    """

    def __init__(self, library: Any) -> None:
        libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
        self._buffer = ctypes.create_string_buffer(b"\x00", 2)
        self.callback = ctypes.cast(libc.strlen, library.ggml_abort_callback)
        self.data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def set(self) -> None:
        """Abort the decode that is under way, and every later one until `clear`."""
        self._buffer[0] = b"\x01"

    def clear(self) -> None:
        """Let decodes run."""
        self._buffer[0] = b"\x00"
