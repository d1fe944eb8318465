"""How `slm bench` shows what changes with depth and width: tables, on a terminal with a bar for each row."""

from __future__ import annotations

from slm_local.bench import LaterTurn, Shape
from slm_local.cli.render import Terminal
from slm_local.selector import gigabytes

BAR_COLUMNS = 30


def write_shape(terminal: Terminal, shape: Shape) -> None:
    """Write depths, batches, a later turn's first token and memory, as far as they were measured."""
    if shape.depths:
        speeds = [each.decode_tps for each in shape.depths]
        names = [f"{each.depth_tokens:,}" for each in shape.depths]
        shares = [f"{each / speeds[0]:.0%}" for each in speeds]
        _write_curve(terminal, "decode at depth", names, speeds, shares, "of the first")
    if shape.batches:
        speeds = [each.tps for each in shape.batches]
        names = [str(each.sequences) for each in shape.batches]
        steps = [f"{1000 * each.step_s:.1f} ms" for each in shape.batches]
        _write_curve(terminal, "sequences at once", names, speeds, steps, "a step")
    terminal.line()
    if shape.later_turn is not None:
        terminal.paragraph(_turn_line(shape.later_turn), rest="  ")
    held = "not known" if shape.memory_bytes is None else gigabytes(shape.memory_bytes)
    terminal.line(f"memory of all our processes: {held}")


def number(tps: float) -> str:
    """Return a speed in as many digits as tell something."""
    return f"{tps:,.0f}" if tps >= 100 else f"{tps:.1f}"


def bars(terminal: Terminal, values: list[float]) -> list[str]:
    """Return a bar for each value, the longest for the greatest; drawn in eighths of a column."""
    from rich.bar import Bar

    console, most = terminal.console, max(values)
    drawn = [console.render(Bar(most, 0.0, value, width=BAR_COLUMNS)) for value in values]
    return ["".join(segment.text for segment in each).rstrip() for each in drawn]


def _write_curve(
    terminal: Terminal, title: str, names: list[str], speeds: list[float], remarks: list[str], remark: str
) -> None:
    terminal.line()
    columns = [names, [f"{number(each)} tok/s" for each in speeds], remarks]
    head = [title, "", remark]
    if terminal.out_is_rich:
        columns.append(bars(terminal, speeds))
        head.append("")
    terminal.table(list(zip(*columns, strict=True)), head=head)


def _turn_line(turn: LaterTurn) -> str:
    at_once = f"first token of turn {turn.turn} ({turn.prompt_tokens:,} tokens): {turn.first_token_s:.2f} s"
    if turn.read_first_token_s is None:
        return f"{at_once} asked at once"
    held = "" if turn.read_cached_tokens is None else f", {turn.read_cached_tokens:,} tokens held by then"
    return f"{at_once} asked at once, {turn.read_first_token_s:.2f} s after reading the answer{held}"
