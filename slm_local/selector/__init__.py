"""Ranks the ways to run a model on this machine, each with its reasons, and names models that suit it. Pure."""

from __future__ import annotations

from slm_local.model import gigabytes
from slm_local.selector.ranking import DEFAULT_CONTEXT_TOKENS, rank
from slm_local.selector.sentences import does_not_fit, duration
from slm_local.selector.suggestions import suggest

__all__ = ["DEFAULT_CONTEXT_TOKENS", "does_not_fit", "duration", "gigabytes", "rank", "suggest"]
