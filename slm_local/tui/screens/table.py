"""How the measures of a comparison are laid out: a row a measure, a column a model."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from slm_local.compare import LaneResult
from slm_local.compare.measures import footnotes, measures
from slm_local.sanitize import one_line

GAP = 2

Rows = list[tuple[str, list[str]]]
"""Each a measure's name and a cell a lane; the first has no name and the lanes'."""


def measures_table(results: Sequence[LaneResult], columns: int) -> Content:
    """Return what each lane took, and remarks: beside each other where so many columns allow it, else one by one.

    The same words and figures as in the table of `slm compare`.
    """
    table = zip(*measures(results), strict=True)
    rows = [(name, [one_line(cell, 40) for cell in cells]) for name, *cells in table]
    lines = _beside(rows) if _width(rows) <= columns else _below(rows)
    remarks = (Content.styled(one_line(each, 400), "dim") for each in footnotes(results))
    return Content("\n").join([*lines, *remarks])


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
