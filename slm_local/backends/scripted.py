"""A backend that plays a file: text, delays, faults and ends, for tests of everything above a runtime.

The file is JSON lines. A first line may be `{"setup": {"context": 4096, "template": "...", "control": [...]}}`;
every other line is one step: `{"text": "...", "ids": [1], "delay": 0.01, "fault": "segv", "end": "stop"}`, all keys
optional. `end` ends a reply; the next request goes on behind it (also when its reply was cut short before), and the
script starts over when it is used up. With `times` a step is played so often, `{n}` in its text being the number of the
time; with `"until": "/path"` it waits for that file to be there. `{"note": "..."}` is a step that decides something and
writes nothing. When something is injected, the reply goes on behind the step that closes its thinking, else behind its
end. A prompt's tokens, and those of what is injected, are UTF-8 bytes; `prefill` of them are read a step, each step
after `prefill_delay` seconds, both given in the setup.

Where log-probabilities are asked for, a step's `"logprob": -0.5` is that of each of its tokens, and those in
`"top": [["a", -0.5]]` are the likeliest in their place; all bytes of a prompt are as likely. A schema is taken, and the
script trusted.

A fork says, piece by piece, what the last step played that has `"fork": ["85", "."]` names, and stops. Where the reply
has named nothing it plays on from where the original is, without moving it; with a text, as after its injection.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slm_local.backends.base import known_ids, prompt_too_long, shared_prefix
from slm_local.errors import ModelBroken, UsageError
from slm_local.generation import (
    Control,
    Handle,
    LoadSettings,
    ModelFacts,
    Note,
    Piece,
    Prompt,
    PromptProgress,
    PromptScores,
    Sampling,
    TokenScore,
    Update,
)

DEFAULT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
DEFAULT_CONTROL = ("<think>", "</think>", "<|system|>", "<|user|>", "<|assistant|>")
PREFILL_BYTES_A_STEP = 4096
FORKS = 4
ABORT_POLL_S = 0.005


@dataclass(slots=True)
class _Live:
    handle: Handle
    prompt: bytes
    read: int = 0
    ended: bool = False
    is_read_only: bool = False
    injected: list[str] = field(default_factory=list)
    written: int = 0
    """Tokens of its pieces."""
    reader: _Live | None = None
    """The one that reads, or has read, the first `read` bytes."""
    own_steps: list[dict[str, Any]] | None = None
    """What a fork plays; None: the script."""
    logprobs: int | None = None
    is_unscored: bool = False
    """Whether the scores of its prompt are still to be told."""


class ScriptedBackend:
    """Plays a script; deterministic, without a model."""

    capabilities = frozenset({"cached_tokens", "fork", "logprobs", "scores", "schema"})
    max_sequences = 4

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._next = 0
        self._context_tokens = 0
        self._close = ""
        self._live: dict[int, _Live] = {}
        self._last: _Live | None = None
        self._fork_says: list[str] | None = None
        self._prefill_bytes, self._prefill_delay_s = PREFILL_BYTES_A_STEP, 0.0
        self._handles = 0
        self.constrained: list[tuple[int, str, str]] = []
        """Handle, schema and beginning of every answer that was to match one."""

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

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Return a byte for each. Errors: `UsageError` for ids that are none."""
        return [bytes([token]) for token in known_ids(ids, 256)]

    def add(self, prompt: Prompt, sampling: Sampling | None) -> Handle:
        """Queue a prompt. Errors: `PromptTooLong`."""
        data, last = bytes(self.token_ids(prompt)), self._last
        held = (
            b""
            if last is None or prompt.scores_prompt
            else last.prompt
            if last.handle.id in self._live
            else last.prompt[: last.read]
        )
        live = self._last = self._begin(data, last, shared_prefix(data, held), reads_only=sampling is None)
        live.logprobs, live.is_unscored = prompt.logprobs, prompt.scores_prompt
        if self._next >= len(self._steps):
            self._next = 0
        return live.handle

    def check_schema(self, schema: str) -> None:
        """Take a schema that is JSON. Errors: `UsageError`."""
        try:
            json.loads(schema)
        except ValueError as error:
            raise UsageError(f"the schema is no JSON: {error}", hint='{"type": "object"}') from error

    def constrain(self, handle: Handle, schema: str, begun: str = "") -> None:
        """Take note of it: what the script says is as it should be."""
        self.constrained.append((handle.id, schema, begun))

    def fork(self, handle: Handle, text: str, sampling: Sampling) -> Handle | None:
        """Begin a sequence that says what the script has for forks. Errors: `PromptTooLong`."""
        del sampling
        if sum(live.own_steps is not None for live in self._live.values()) >= FORKS:
            return None
        parent = self._live[handle.id]
        known = len(parent.prompt) + parent.written
        data = parent.prompt + bytes(parent.written) + "".join([*parent.injected, text]).encode()
        fork = self._begin(data, parent, known)
        fork.own_steps = [{"text": said} for said in self._fork_says or ()]
        if self._fork_says is None:
            begin = self._behind(self._next, self._close) if text and not parent.ended else self._next
            fork.own_steps = self._steps[begin : self._behind(begin)]
        return fork.handle

    def _begin(self, data: bytes, reader: _Live | None, shared: int, *, reads_only: bool = False) -> _Live:
        """Queue a prompt of which another one reads, or has read, the first `shared` bytes."""
        if len(data) >= self._context_tokens:
            raise prompt_too_long(len(data), self._context_tokens, self._context_tokens)
        self._handles += 1
        is_held = reads_only and reader is not None and reader.read == shared == len(data)
        cached = len(data) if is_held else min(shared, len(data) - 1)
        handle = Handle(id=self._handles, prompt_tokens=len(data), cached_tokens=cached)
        live = _Live(handle=handle, prompt=data, read=cached, reader=reader, is_read_only=reads_only)
        live.ended = cached == len(data)
        self._live[handle.id] = live
        return live

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
                live.ended |= live.is_read_only and live.read == len(live.prompt) and not live.is_unscored
        return updates

    def inject(self, handle: Handle, text: str) -> None:
        """Queue `text` as the sequence's next piece, and go on as if the model had been convinced by it."""
        live = self._live[handle.id]
        live.injected.append(text)
        if not live.ended and live.own_steps is None:
            self._next = self._behind(self._next, self._close)
        live.ended = False

    def token_count(self, text: str) -> int:
        """Return the number of a text's bytes."""
        return len(text.encode())

    def remove(self, handle: Handle) -> None:
        """Forget the sequence, and what is left of its reply if it plays alone."""
        live = self._live.pop(handle.id, None)
        if live is None or live.ended or live.is_read_only or live.own_steps is not None:
            return
        if all(other.own_steps is not None for other in self._live.values()):
            self._next = self._behind(self._next)

    def _behind(self, begin: int, text: str = "") -> int:
        """Return the place behind the next step that ends a reply or, where one is given, holds a text."""
        for place, step in enumerate(self._steps[begin:], begin + 1):
            if step.get("end") or (text and text in step.get("text", "")):
                return place
        return len(self._steps)

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
        if not self._has_its_share(live):
            return None
        if live.read < len(live.prompt):
            if not _wait(self._prefill_delay_s, control):
                return None
            live.read = min(len(live.prompt), live.read + self._prefill_bytes)
            return PromptProgress(handle=live.handle, done_tokens=live.read, total_tokens=len(live.prompt))
        if live.is_unscored:
            live.is_unscored = False
            return PromptScores(handle=live.handle, scores=_prompt_scores(live.prompt, live.logprobs or 0))
        if live.injected:
            text = live.injected.pop(0)
            live.written += len(text.encode())
            return Piece(handle=live.handle, text=text, ids=tuple(text.encode()), injected=True)
        steps, place = (self._steps, self._next) if live.own_steps is None else (live.own_steps, 0)
        if place >= len(steps):
            return Piece(handle=live.handle, text="", ids=(0,), end="stop")
        row = steps[place]
        if not _wait(float(row.get("delay", 0.0)), control) or not _wait_for(row.get("until"), control):
            return None
        if live.own_steps is None:
            self._next += 1
            self._fork_says = None if row.get("end") else row.get("fork", self._fork_says)
        else:
            del live.own_steps[0]
        if row.get("fault"):
            _fail(str(row["fault"]), control)
        if "note" in row:
            return Note(handle=live.handle, text=str(row["note"]))
        ids = tuple(row.get("ids", (0,)))
        live.written += 0 if row.get("end") else len(ids)
        scores = () if live.logprobs is None else _scores(row, ids, live.logprobs)
        return Piece(handle=live.handle, text=row.get("text", ""), ids=ids, scores=scores, end=row.get("end"))

    def _has_its_share(self, live: _Live) -> bool:
        """Tell whether what another one reads for this is read; take what there is when that one is gone."""
        reader = live.reader
        if reader is None or live.read <= reader.read + reader.written:
            live.reader = None
        elif reader.handle.id not in self._live:
            live.reader, live.read = None, reader.read
            live.handle = replace(live.handle, cached_tokens=live.read)
        return live.reader is None


def _played(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line as often as it is to be played."""
    times = row.get("times")
    if times is None:
        return [row]
    return [{**row, "text": row.get("text", "").replace("{n}", str(n))} for n in range(1, times + 1)]


def _scores(row: dict[str, Any], ids: Sequence[int], most: int) -> tuple[TokenScore, ...]:
    """Return what a step says of its tokens; the text is the first one's."""
    top = tuple(
        TokenScore(id=number, data=tuple(text.encode()), logprob=logprob)
        for number, (text, logprob) in enumerate(row.get("top", ())[:most])
    )
    texts = [row.get("text", ""), *("" for _ in ids[1:])]
    logprob = float(row.get("logprob", 0.0))
    return tuple(
        TokenScore(id=token, data=tuple(text.encode()), logprob=logprob, top=top)
        for token, text in zip(ids, texts, strict=True)
    )


def _prompt_scores(prompt: bytes, most: int) -> tuple[TokenScore, ...]:
    even = -math.log(256)
    top = tuple(TokenScore(id=token, data=(token,), logprob=even) for token in range(most))
    return tuple(
        TokenScore(id=token, data=(token,), logprob=even if place else None, top=top if place else ())
        for place, token in enumerate(prompt)
    )


def _wait(seconds: float, control: Control) -> bool:
    """Wait; return False when cancelled meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if control.cancelled:
            return False
        time.sleep(min(left, ABORT_POLL_S))
    return True


def _wait_for(path: str | None, control: Control) -> bool:
    """Wait for a file, where one is named; return False when cancelled meanwhile."""
    while path is not None and not os.path.exists(path):
        if control.cancelled:
            return False
        time.sleep(ABORT_POLL_S)
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
