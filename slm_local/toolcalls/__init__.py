"""Calls of functions in a model's answer: which way a model writes them, and a parser for each way.

Ways are data (`families`); which one a model has is read off what its chat template makes of a call.
"""

from slm_local.toolcalls.families import FAMILIES, ToolFamily
from slm_local.toolcalls.finding import family_named, family_of
from slm_local.toolcalls.forcing import ForcedCall, forced_call
from slm_local.toolcalls.parser import ToolCall, ToolCallParser

__all__ = [
    "FAMILIES",
    "ForcedCall",
    "ToolCall",
    "ToolCallParser",
    "ToolFamily",
    "family_named",
    "family_of",
    "forced_call",
]
