"""The prompts of a comparison: one from the command line or stdin, or many from a file, each line checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm_local.cli.prompt import file_text, joined_prompt
from slm_local.cli.render import DIM, Terminal
from slm_local.compare import Question
from slm_local.errors import UsageError

LINE_HINT = '{"prompt": "What is 47 + 38?", "expected": "85"}'
ASK_HINT = 'slm compare tiny-reasoner tiny-direct -p "What is 47 + 38?"'


def one_question(terminal: Terminal, prompt: str | None, files: list[str], expected: str | None) -> Question:
    """Return the prompt of `-p`, files and stdin. Errors: `UsageError` where there is none."""
    if expected is not None and not expected.strip():
        raise UsageError("--expect takes an answer", hint="--expect 85")
    words, texts = [] if prompt is None else [prompt], [file_text(path) for path in files]
    text = joined_prompt(terminal, words, texts, hint=ASK_HINT)
    if text is None:
        raise UsageError("what shall they be asked?", hint=ASK_HINT)
    return Question(prompt=text, expected=expected)


def many_questions(terminal: Terminal, name: str, files: list[str]) -> list[Question]:
    """Return the prompts of a file, a JSON object a line; texts of `-f` go before each.

    Empty lines are passed over, and keys that mean nothing here, which a line on stderr says. Errors: `UsageError`
    with the line's number.
    """
    contents = [file_text(path) for path in files]
    unknown: dict[str, None] = {}
    found: list[Question] = []
    for number, line in _lines(name):
        values = _object(f"{name}, line {number}", line)
        unknown |= dict.fromkeys(key for key in values if key not in ("prompt", "expected"))
        question = _question(f"{name}, line {number}", values)
        prompt = "\n\n".join([*contents, question.prompt])
        found.append(Question(prompt=prompt, expected=question.expected))
    if not found:
        raise UsageError(f"{name} has no prompts", hint=LINE_HINT)
    if unknown:
        terminal.say(f"{name}: keys that mean nothing here were passed over: {', '.join(unknown)}", DIM)
    return found


def _lines(name: str) -> Iterator[tuple[int, str]]:
    try:
        data = Path(name).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"--prompts {name}: {error.strerror}", hint=f"ls -l {name}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{name}, line {at} is not UTF-8", hint=f"iconv -f latin1 -t utf-8 {name}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {error}", hint=LINE_HINT) from error
    if not isinstance(values, dict):
        raise UsageError(f"{place} is no JSON object", hint=LINE_HINT)
    return values


def _question(place: str, values: dict[str, Any]) -> Question:
    prompt, expected = values.get("prompt"), values.get("expected")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f'{place} has no text under "prompt"', hint=LINE_HINT)
    if isinstance(expected, int | float) and not isinstance(expected, bool):
        expected = str(expected)
    if expected is not None and (not isinstance(expected, str) or not expected.strip()):
        raise UsageError(f'{place}: "expected" is neither a text nor a number', hint=LINE_HINT)
    return Question(prompt=prompt, expected=expected)
