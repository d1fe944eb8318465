"""What a comparison came to, as people and scripts read it: tables that fit the terminal, Markdown, JSON objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from slm_local.answers import final_answer
from slm_local.cli.render import Terminal, columns_of
from slm_local.cli.views import Subject, reply_object
from slm_local.compare import LaneResult, Question
from slm_local.sanitize import one_line
from slm_local.selector import gigabytes

Rows = list[list[str]]

GAP = 2
"""Blanks between two columns of `Terminal.table`."""

TELLING_DECODE_S = 0.05
"""Tokens that all came within less tell how the system shared out its time, not how fast the model is."""

NONE = "-"
MARKED = "*"


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


def measures(results: Sequence[LaneResult]) -> Rows:
    """Return a table of one prompt: head, then a row a lane. Columns of which nothing is known are left out."""
    columns: list[tuple[str, Callable[[LaneResult], str]]] = [
        ("", lambda each: each.reference),
        ("first token", lambda each: _seconds(each.reply.timings.first_token_s) + MARKED * bool(each.remarks)),
        ("thinking", _thinking),
        ("first answer", lambda each: _seconds(each.reply.timings.first_answer_s)),
        ("total", lambda each: _seconds(each.total_s)),
        ("tokens/s", lambda each: _rate(_decode_tps([each]))),
        ("peak memory", lambda each: gigabytes(each.peak_rss_bytes) if each.peak_rss_bytes else NONE),
        ("energy", lambda each: _joules(each.joules)),
        ("finish", lambda each: each.reply.finish),
        ("cut", lambda each: each.reply.cut),
        ("answer", lambda each: _verdict(each.correct)),
    ]
    has_cut = any(each.reply.cut != "none" for each in results)
    left_out = {"cut"} if not has_cut else set()
    left_out |= {"energy"} if all(each.joules is None for each in results) else set()
    left_out |= {"answer"} if all(each.correct is None for each in results) else set()
    shown = [(name, cell) for name, cell in columns if name not in left_out]
    return [[name for name, _ in shown], *([cell(each) for _, cell in shown] for each in results)]


def mean_measures(results: Sequence[LaneResult]) -> Rows:
    """Return a table over many prompts: head, then a row a lane, with means of the replies that came to their end."""
    has_energy = any(each.joules is not None for each in results)
    has_expected = any(each.correct is not None for each in results)
    head = ["", *(["right"] if has_expected else []), "first token", "thinking", "first answer", "total", "tokens/s"]
    rows: Rows = [[*head, "peak memory", *(["energy"] if has_energy else []), "cut", "failed"]]
    for lane in sorted({each.lane for each in results}):
        own = [each for each in results if each.lane == lane]
        rows.append(_mean_row(own, has_energy=has_energy, has_expected=has_expected))
    return rows


def _mean_row(own: Sequence[LaneResult], *, has_energy: bool, has_expected: bool) -> list[str]:
    whole = [each for each in own if each.error is None and each.reply.finish != "cancelled"]
    answered = [each for each in whole if each.reply.timings.first_answer_s]
    judged = [each for each in own if each.correct is not None]
    read = [each.joules for each in whole if each.joules is not None]
    cut = sum(each.reply.cut != "none" or each.reply.finish != "stop" for each in whole)
    tokens = [each.reply.usage.think_tokens for each in whole if each.reply.usage.think_tokens is not None]
    think_s = fmean(each.think_s for each in whole) if whole else 0.0
    peak = max((each.peak_rss_bytes for each in own), default=0)
    return [
        own[0].reference,
        *([f"{sum(bool(each.correct) for each in judged)} of {len(judged)}"] if has_expected else []),
        _mean(whole, lambda each: each.reply.timings.first_token_s, _seconds),
        f"{_tokens(round(fmean(tokens)))} · {_seconds(think_s)}" if tokens and any(tokens) else NONE,
        _mean(answered, lambda each: each.reply.timings.first_answer_s, _seconds),
        _mean(whole, lambda each: each.total_s, _seconds),
        _rate(_decode_tps(whole)),
        gigabytes(peak) if peak else NONE,
        *([_joules(fmean(read) if len(read) == len(whole) and read else None)] if has_energy else []),
        f"{cut} of {len(whole)}",
        f"{len(own) - len(whole)}" if len(own) > len(whole) else NONE,
    ]


def answers(questions: Sequence[Question], results: Sequence[LaneResult]) -> Rows:
    """Return a table of many prompts: head, then a row a prompt and lane, its final answer last."""
    rows: Rows = [["#", "", "", "tokens", "total", "answer"]]
    for each in sorted(results, key=lambda each: (each.prompt, each.lane)):
        expected = questions[each.prompt].expected
        given = final_answer(each.reply.answer) or NONE
        said = given if each.correct is not False else f"{given}, not {expected}"
        rows.append(
            [
                f"{each.prompt + 1}",
                each.reference,
                _verdict(each.correct) if each.error is None else "failed",
                NONE if each.tokens is None else f"{each.tokens:,}",
                _seconds(each.total_s),
                one_line(said),
            ]
        )
    return rows


def footnotes(results: Sequence[LaneResult]) -> list[str]:
    """Return what is to be known of a table's figures, each once."""
    lines: dict[str, None] = {}
    if any(each.is_parallel for each in results):
        lines["run at once (--parallel): they shared the machine, so no time and no speed here is a model's own"] = None
    for each in results:
        lines |= dict.fromkeys(f"{MARKED} {each.reference}: {remark}" for remark in each.remarks)
    return list(lines)


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


def _decode_tps(results: Sequence[LaneResult]) -> float:
    """Return the speed of all tokens after each reply's first, 0 where they came too fast to tell.

    A mean of speeds would be that of the short replies.
    """
    timings = [each.reply.timings for each in results]
    decode_s = sum(each.decode_s for each in timings)
    return sum(each.decode_tps * each.decode_s for each in timings) / decode_s if decode_s >= TELLING_DECODE_S else 0.0


def _mean(results: Sequence[LaneResult], value: Callable[[LaneResult], float], written: Callable[[float], str]) -> str:
    return written(fmean(value(each) for each in results)) if results else NONE


def _thinking(result: LaneResult) -> str:
    tokens = result.reply.usage.think_tokens
    return f"{_tokens(tokens)} · {_seconds(result.think_s)}" if tokens else NONE


def _tokens(count: int) -> str:
    return f"{count:,} token" if count == 1 else f"{count:,} tokens"


def _seconds(seconds: float) -> str:
    return NONE if not seconds else f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _rate(tps: float) -> str:
    return NONE if not tps else f"{tps:,.0f}" if tps >= 100 else f"{tps:.1f}"


def _joules(joules: float | None) -> str:
    return NONE if joules is None else f"{joules:,.1f} J" if joules < 100 else f"{joules:,.0f} J"


def _verdict(correct: bool | None) -> str:
    return NONE if correct is None else "right" if correct else "wrong"
