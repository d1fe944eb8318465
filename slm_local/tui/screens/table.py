"""The measures of a comparison as lines: a row a measure, a column a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from slm_local.compare import LaneResult
from slm_local.sanitize import one_line
from slm_local.selector import gigabytes

GAP = 2

Rows = list[tuple[str, list[str]]]
"""Each a measure's name and a cell a lane; the first has no name and the lanes'."""


def measures_table(results: Sequence[LaneResult], columns: int) -> Content:
    """Return what each lane took, and remarks: beside each other where so many columns allow it, else one by one.

    A measure that no lane has is left out, one that is missing is "-".
    """
    ordered = sorted(results, key=lambda each: each.lane)
    rows = [("", [one_line(each.reference, 40) for each in ordered])]
    for name, of in MEASURES:
        cells = [of(each) for each in ordered]
        if any(cells):
            rows.append((name, [each or "-" for each in cells]))
    lines = _beside(rows) if _width(rows) <= columns else _below(rows)
    remarks = dict.fromkeys(remark for each in ordered for remark in each.remarks)
    return Content("\n").join([*lines, *(Content.styled(one_line(each, 400), "dim") for each in remarks)])


def _beside(rows: Rows) -> list[Content]:
    widths = _widths(rows)
    return [
        Content.assemble(
            (set_cell_size(name, widths[0]), "dim"),
            ("".join(map(set_cell_size, cells, widths[1:])), "" if name else "bold"),
        )
        for name, cells in rows
    ]


def _below(rows: Rows) -> list[Content]:
    lines = []
    for at, title in enumerate(rows[0][1]):
        lines.append(Content.styled(title, "bold"))
        lines += [
            Content.assemble((set_cell_size(name, _widths(rows)[0]), "dim"), cells[at]) for name, cells in rows[1:]
        ]
    return lines


def _width(rows: Rows) -> int:
    return sum(_widths(rows)) - GAP


def _widths(rows: Rows) -> list[int]:
    """Return the columns that names and cells take, with the gap behind them."""
    return [max(map(cell_len, column)) + GAP for column in zip(*([name, *cells] for name, cells in rows), strict=True)]


def _thinking(result: LaneResult) -> str:
    tokens = result.reply.usage.think_tokens
    return f"{tokens:,} tokens · {_seconds(result.think_s)}" if tokens else "none" if tokens == 0 else ""


def _end(result: LaneResult) -> str:
    if result.error is not None:
        return f"{type(result.error).__name__}: {one_line(result.error.message, 40)}"
    cut = result.reply.cut
    return result.reply.finish + (f" · cut: {cut}" if cut != "none" else "")


def _seconds(seconds: float) -> str:
    return f"{seconds:.{0 if seconds >= 100 else 1 if seconds >= 10 else 2}f} s" if seconds else ""


MEASURES: tuple[tuple[str, Callable[[LaneResult], str]], ...] = (
    ("first token", lambda each: _seconds(each.reply.timings.first_token_s)),
    ("thinking", _thinking),
    ("first answer", lambda each: _seconds(each.reply.timings.first_answer_s)),
    ("total", lambda each: _seconds(each.total_s)),
    ("tokens/s", lambda each: f"{each.reply.timings.decode_tps:,.1f}" if each.reply.timings.decode_tps else ""),
    ("peak memory", lambda each: gigabytes(each.peak_rss_bytes) if each.peak_rss_bytes else ""),
    ("energy", lambda each: f"{each.joules:,.1f} J" if each.joules is not None else ""),
    ("end", _end),
)
