"""A backend that plays a file: text, delays, faults and ends, for tests of everything above a runtime.

The file is JSON lines. A first line may be `{"setup": {"context": 4096, "template": "...", "control": [...]}}`;
every other line is one step: `{"text": "...", "ids": [1], "delay": 0.01, "fault": "segv", "end": "stop"}`, all keys
optional. `end` ends a reply; the next request goes on behind it (also when its reply was cut short before), and the
script starts over when it is used up. With `times` a step is played so often, `{n}` in its text being the number of the
time. When something is injected, the reply goes on behind the step that closes its thinking, else behind its end. A
prompt's tokens, and those of what is injected, are UTF-8 bytes; `prefill` of them are read a step, each step after
`prefill_delay` seconds, both given in the setup.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm_local.backends.base import prompt_too_long, shared_prefix
from slm_local.errors import ModelBroken
from slm_local.generation import (
    Control,
    Handle,
    LoadSettings,
    ModelFacts,
    Piece,
    Prompt,
    PromptProgress,
    Sampling,
    Update,
)

DEFAULT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
DEFAULT_CONTROL = ("<think>", "</think>", "<|system|>", "<|user|>", "<|assistant|>")
PREFILL_BYTES_A_STEP = 4096
ABORT_POLL_S = 0.005


@dataclass(slots=True)
class _Live:
    handle: Handle
    prompt: bytes
    read: int = 0
    ended: bool = False
    is_read_only: bool = False
    injected: list[str] = field(default_factory=list)


class ScriptedBackend:
    """Plays a script; deterministic, without a model."""

    capabilities = frozenset({"cached_tokens"})
    max_sequences = 4

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._next = 0
        self._context_tokens = 0
        self._close = ""
        self._live: dict[int, _Live] = {}
        self._last_prompt = b""
        self._prefill_bytes, self._prefill_delay_s = PREFILL_BYTES_A_STEP, 0.0
        self._handles = 0

    def load(self, settings: LoadSettings, control: Control, on_progress: Callable[[float], None]) -> ModelFacts:
        """Read the script. Errors: `ModelBroken` naming the line that is not what it should be."""
        setup = self._read(Path(settings.model_path))
        if setup.get("load_fault"):
            _fail(str(setup["load_fault"]), control)
        on_progress(1.0)
        self._prefill_bytes = int(setup.get("prefill", PREFILL_BYTES_A_STEP))
        self._prefill_delay_s = float(setup.get("prefill_delay", 0.0))
        self._close = settings.tags.close if settings.tags is not None else ""
        self._context_tokens = min(settings.context_tokens, int(setup.get("context", settings.context_tokens)))
        return ModelFacts(
            architecture="scripted",
            name=Path(settings.model_path).stem,
            context_tokens=self._context_tokens,
            trained_context_tokens=self._context_tokens,
            vocabulary_size=256,
            chat_template=setup.get("template", DEFAULT_TEMPLATE),
            bos_text="",
            eos_text="",
            adds_bos=False,
            control_texts=tuple(setup.get("control", DEFAULT_CONTROL)),
            capabilities=tuple(sorted(self.capabilities)),
        )

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt's bytes."""
        if prompt.ids is not None:
            return [token % 256 for token in prompt.ids]
        return list("".join(run.text for run in prompt.runs).encode())

    def add(self, prompt: Prompt, sampling: Sampling | None) -> Handle:
        """Queue a prompt. Errors: `PromptTooLong`."""
        data = bytes(self.token_ids(prompt))
        if len(data) >= self._context_tokens:
            raise prompt_too_long(len(data), self._context_tokens, self._context_tokens)
        cached = shared_prefix(data if sampling is None else data[:-1], self._last_prompt)
        if self._next >= len(self._steps):
            self._next = 0
        self._handles += 1
        handle = Handle(id=self._handles, prompt_tokens=len(data), cached_tokens=cached)
        is_read = sampling is None and cached == len(data)
        self._live[handle.id] = _Live(
            handle=handle, prompt=data, read=cached, ended=is_read, is_read_only=sampling is None
        )
        if sampling is not None:
            self._last_prompt = data
        return handle

    def step(self, control: Control) -> list[Update]:
        """Play one line for each live sequence."""
        updates: list[Update] = []
        for live in self._live.values():
            if control.cancelled:
                break
            update = self._advance(live, control) if not live.ended else None
            if update is not None:
                updates.append(update)
                live.ended = isinstance(update, Piece) and update.end is not None
                live.ended |= live.is_read_only and live.read == len(live.prompt)
        return updates

    def inject(self, handle: Handle, text: str) -> None:
        """Queue `text` as the sequence's next piece, and go on as if the model had been convinced by it."""
        live = self._live[handle.id]
        live.injected.append(text)
        if not live.ended:
            self._skip(self._close)
        live.ended = False

    def token_count(self, text: str) -> int:
        """Return the number of a text's bytes."""
        return len(text.encode())

    def remove(self, handle: Handle) -> None:
        """Forget the sequence, and what is left of its reply if it plays alone."""
        live = self._live.pop(handle.id, None)
        if live is not None and not live.ended and not live.is_read_only and not self._live:
            self._skip()

    def _skip(self, text: str = "") -> None:
        """Go on behind the next step that ends a reply or, where one is given, holds a text."""
        while self._next < len(self._steps):
            self._next += 1
            step = self._steps[self._next - 1]
            if step.get("end") or (text and text in step.get("text", "")):
                return

    def close(self) -> None:
        """Forget everything."""
        self._live.clear()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            rows = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise ModelBroken(f"{path} is no script: {error}", hint="one JSON object a line") from error
        setup = rows.pop(0)["setup"] if rows and "setup" in rows[0] else {}
        self._steps = [step for row in rows for step in _played(row)]
        return dict(setup)

    def _advance(self, live: _Live, control: Control) -> Update | None:
        if live.read < len(live.prompt):
            if not _wait(self._prefill_delay_s, control):
                return None
            live.read = min(len(live.prompt), live.read + self._prefill_bytes)
            if live.is_read_only:
                self._last_prompt = live.prompt[: live.read]
            return PromptProgress(handle=live.handle, done_tokens=live.read, total_tokens=len(live.prompt))
        if live.injected:
            text = live.injected.pop(0)
            return Piece(handle=live.handle, text=text, ids=tuple(text.encode()), injected=True)
        if self._next >= len(self._steps):
            return Piece(handle=live.handle, text="", ids=(0,), end="stop")
        row = self._steps[self._next]
        if not _wait(float(row.get("delay", 0.0)), control):
            return None
        self._next += 1
        if row.get("fault"):
            _fail(str(row["fault"]), control)
        return Piece(handle=live.handle, text=row.get("text", ""), ids=tuple(row.get("ids", (0,))), end=row.get("end"))


def _played(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line as often as it is to be played."""
    times = row.get("times")
    if times is None:
        return [row]
    return [{**row, "text": row.get("text", "").replace("{n}", str(n))} for n in range(1, times + 1)]


def _wait(seconds: float, control: Control) -> bool:
    """Wait; return False when cancelled meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if control.cancelled:
            return False
        time.sleep(min(left, ABORT_POLL_S))
    return True


def _fail(fault: str, control: Control) -> None:
    match fault:
        case "segv":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "hang":
            while True:
                time.sleep(60.0)
        case "slow":
            _wait(60.0, control)
        case "raise":
            raise RuntimeError("the script asked for an exception")
        case _:
            raise ModelBroken(f"the script names an unknown fault {fault!r}", hint="segv, exit, hang, slow or raise")
