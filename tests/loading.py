"""Load settings for tests."""

from __future__ import annotations

from pathlib import Path

from slm_local.generation import LoadSettings, ReasoningTags, ThinkControl

THINK_TAGS = ReasoningTags(open="<think>", close="</think>")


def load_settings_for(
    backend: str, path: Path, *, context: int = 2048, tags: ReasoningTags | None = None, switch: str | None = None
) -> LoadSettings:
    """Return settings without speculation: when it drafts depends on the clock, and a tie's outcome on the batch."""
    return LoadSettings(
        backend=backend,
        model_path=str(path),
        context_tokens=context,
        threads=1,
        tags=tags,
        think=ThinkControl(switch=switch),
        speculation=False,
    )
