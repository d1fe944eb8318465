"""slm-local: distilled reasoning small language models on a laptop.

The Python API is loaded on first use; importing the package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm_local.engine import Engine, open_model
    from slm_local.errors import SlmError
    from slm_local.generation import (
        AnswerDelta,
        Control,
        Done,
        Message,
        Note,
        PromptProgress,
        Reply,
        Sampling,
        Started,
        ThinkDelta,
        Thinking,
    )
    from slm_local.samples import Vote, vote
    from slm_local.session import ChatSession

__version__ = "0.3.0"

_HOMES = {
    "open_model": "engine",
    "Engine": "engine",
    "ChatSession": "session",
    "SlmError": "errors",
    "Control": "generation",
    "Thinking": "generation",
    "Message": "generation",
    "Sampling": "generation",
    "Started": "generation",
    "PromptProgress": "generation",
    "Note": "generation",
    "ThinkDelta": "generation",
    "AnswerDelta": "generation",
    "Done": "generation",
    "Reply": "generation",
    "Vote": "samples",
    "vote": "samples",
}

__all__ = [
    "AnswerDelta",
    "ChatSession",
    "Control",
    "Done",
    "Engine",
    "Message",
    "Note",
    "PromptProgress",
    "Reply",
    "Sampling",
    "SlmError",
    "Started",
    "ThinkDelta",
    "Thinking",
    "Vote",
    "__version__",
    "open_model",
    "vote",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'slm_local' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"slm_local.{home}"), name)
