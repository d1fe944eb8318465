"""Load settings for tests."""

from __future__ import annotations

from pathlib import Path

from slm_local.generation import LoadSettings, Tags, ThinkControl

THINK_TAGS = Tags(open="<think>", close="</think>")


def load_settings_for(
    backend: str, path: Path, *, context: int = 2048, tags: Tags | None = None, switch: str | None = None
) -> LoadSettings:
    return LoadSettings(
        backend=backend,
        model_path=str(path),
        context_tokens=context,
        threads=1,
        tags=tags,
        think=ThinkControl(switch=switch),
    )
