"""What the model is asked: words, stdin and files, joined in the order of the contract.

Nothing is replaced in silence: bytes that are no UTF-8 are told of, a file that is no text is refused.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from slm_local.cli.render import DIM, Terminal
from slm_local.errors import UnknownModel, UsageError
from slm_local.registry import Registry

STDIN_PATIENCE_S = 2.0
"""Wait before a person is told that stdin is being read."""

EMPTY_HINT = 'slm run tiny-reasoner "What is 47 + 38?"'


def split_model(
    words: Sequence[str], model: str | None, default: str | None, registry: Registry
) -> tuple[str, list[str]]:
    """Return the model reference and the words of the prompt.

    With `model` (`-m`) every word is prompt; else the first one names the model, unless it names none and there is a
    `default` (`SLM_MODEL`). Errors: `UnknownModel`, `UsageError`.
    """
    if model is not None:
        return model, list(words)
    if not words:
        if default is None:
            raise UsageError("which model?", hint=EMPTY_HINT)
        return default, []
    try:
        registry.resolve(words[0])
    except UnknownModel:
        if default is None:
            raise
        return default, list(words)
    return words[0], list(words[1:])


def joined_prompt(
    terminal: Terminal, words: Sequence[str], files: Sequence[str], *, hint: str = EMPTY_HINT
) -> str | None:
    """Return the prompt; None where nothing was given and a person sits at stdin. `files` are texts.

    Order: words, stdin; with files: files, stdin, words. `UsageError` for an empty prompt, with `hint`.
    """
    clean = whole_text(" ".join(words).encode("utf-8", "surrogateescape"), terminal, "the prompt")
    is_person = sys.stdin is not None and sys.stdin.isatty()
    piped = "" if is_person else _stdin(terminal)
    if is_person and not words and not files:
        return None
    parts = [*files, piped, clean] if files else [clean, piped]
    joined = "\n\n".join(part for part in parts if part.strip())
    if not joined:
        raise UsageError("the prompt is empty", hint=hint)
    return joined


def _stdin(terminal: Terminal) -> str:
    if sys.stdin is None:
        return ""
    notice = threading.Timer(STDIN_PATIENCE_S, terminal.status, ["reading the prompt from stdin (Ctrl-D ends it)…"])
    notice.daemon = True
    notice.start()
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise UsageError(f"stdin can't be read: {error.strerror}", hint=EMPTY_HINT + " < /dev/null") from error
    finally:
        notice.cancel()
    return whole_text(data, terminal, "stdin").rstrip("\r\n")


def whole_text(data: bytes, terminal: Terminal, where: str) -> str:
    """Return bytes as text; what is not UTF-8 in them is replaced by U+FFFD and told of."""
    text = data.decode("utf-8-sig", "replace")
    if text.encode() != data.removeprefix(b"\xef\xbb\xbf"):
        terminal.say(f"{where} holds bytes that are not UTF-8; they were replaced by U+FFFD", DIM)
    return text


def schema_text(name: str) -> str:
    """Return the text of a file with a JSON Schema. `UsageError` for one that is missing or no JSON."""
    text = file_text(name, "--schema")
    try:
        json.loads(text)
    except ValueError as error:
        raise UsageError(f"--schema {name} is no JSON: {error}", hint=f"python -m json.tool {name}") from error
    return text


def file_text(name: str, flag: str = "-f") -> str:
    """Return the text of a file given with a flag. `UsageError` for one that is missing or no text."""
    path = Path(name).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{flag} {name}: {error.strerror}", hint=f"ls -l {name}") from error
    if b"\0" in data:
        raise UsageError(f"{flag} {name} is a binary file, not text", hint=f"file {name}")
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{flag} {name} is not UTF-8 text: byte {error.start + 1}",
            hint=f"iconv -f latin1 -t utf-8 {name} > text.txt",
        ) from error
