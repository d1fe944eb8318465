"""What a comparison came to, as tables of text: a head, then a row a lane. How they are laid out is not known here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from slm_local.answers import final_answer
from slm_local.compare.values import LaneResult, Question
from slm_local.metrics import telling_tps
from slm_local.sanitize import one_line
from slm_local.selector import gigabytes

Rows = list[list[str]]

NONE = "-"
MARKED = "*"

SELDOM_KNOWN = ("energy", "cut", "answer")
"""Columns that are left out where nothing is known of them."""


def measures(results: Sequence[LaneResult]) -> Rows:
    """Return the table of one prompt: head, then a row a lane; energy, cut and verdict only where one is known."""
    columns: list[tuple[str, Callable[[LaneResult], str]]] = [
        ("", lambda each: each.reference),
        ("first token", lambda each: _seconds(each.reply.timings.first_token_s) + MARKED * bool(each.remarks)),
        ("thinking", _thinking),
        ("first answer", lambda each: _seconds(each.reply.timings.first_answer_s)),
        ("total", lambda each: _seconds(each.total_s)),
        ("tokens/s", lambda each: _rate(telling_tps([each.reply.timings]))),
        ("peak memory", lambda each: gigabytes(each.peak_rss_bytes) if each.peak_rss_bytes else NONE),
        ("energy", lambda each: _joules(each.joules)),
        ("finish", lambda each: each.reply.finish),
        ("cut", lambda each: NONE if each.reply.cut == "none" else each.reply.cut),
        ("answer", lambda each: _verdict(each.correct)),
    ]
    lanes = sorted(results, key=lambda each: each.lane)
    table = [(name, [cell(each) for each in lanes]) for name, cell in columns]
    shown = [[name, *cells] for name, cells in table if name not in SELDOM_KNOWN or set(cells) != {NONE}]
    return [list(row) for row in zip(*shown, strict=True)]


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
        _rate(telling_tps([each.reply.timings for each in whole])),
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
