"""How a comparison's tables are laid out for a terminal or as Markdown, and its JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slm_local.cli.render import Terminal, columns_of
from slm_local.cli.views import Subject, reply_object
from slm_local.compare import LaneResult, Question
from slm_local.compare.measures import Rows
from slm_local.sanitize import one_line

GAP = 2
"""Blanks between two columns of `Terminal.table`."""


def compared_object(question: Question, results: Sequence[LaneResult]) -> dict[str, Any]:
    """Return the JSON object of a prompt: a result of each lane, in the order in which they were named."""
    ordered = sorted(results, key=lambda each: each.lane)
    return {
        "prompt": question.prompt,
        "expected": question.expected,
        "results": [_result_object(question, each) for each in ordered],
    }


def _result_object(question: Question, result: LaneResult) -> dict[str, Any]:
    model = result.plan.spec.id if result.plan is not None else result.reference
    subject = Subject(model=model, prompt=question.prompt, plan=result.plan)
    energy = {} if result.joules is None else {"joules": result.joules}
    return {
        "ref": result.reference,
        **reply_object(subject, result.reply, result.error),
        "correct": result.correct,
        "total_s": result.total_s,
        **energy,
    }


def write_rows(terminal: Terminal, rows: Rows) -> None:
    """Write a table as wide as the terminal allows: as it is, turned round, or one lane below the other.

    Nothing is cut: what fits in no other way comes below each other. On a pipe it is written as it is.
    """
    if not terminal.out_is_terminal or _width(rows) <= terminal.columns:
        terminal.table(rows[1:], head=rows[0])
        return
    turned = [list(column) for column in zip(*rows, strict=True)]
    if _width(turned) <= terminal.columns:
        terminal.table(turned[1:], head=turned[0])
        return
    width = max(columns_of(name) for name in rows[0])
    for row in rows[1:]:
        terminal.line(row[0])
        for name, cell in zip(rows[0][1:], row[1:], strict=True):
            terminal.line(f"  {name:<{width}}  {cell}")


def markdown_table(rows: Rows) -> str:
    """Return a table as Markdown; numbers line up at the right."""
    lines = [_markdown_row(rows[0]), _markdown_row([":--", *["--:"] * (len(rows[0]) - 1)])]
    lines += [_markdown_row([f"`{row[0]}`", *row[1:]]) for row in rows[1:]]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(one_line(cell, 400).replace("|", "\\|") for cell in cells) + " |"


def _width(rows: Rows) -> int:
    widths = [max(columns_of(one_line(row[at], 400)) for row in rows) for at in range(len(rows[0]))]
    return sum(widths) + GAP * (len(widths) - 1)
