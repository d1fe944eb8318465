"""`slm compare MODEL MODEL…`: one prompt, or a file of them, through several models or settings, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from slm_local.cli import lanes
from slm_local.cli.answering import registry_here
from slm_local.cli.comparison import Comparison, Form
from slm_local.cli.keeping import opened_store
from slm_local.cli.options import ASKED, SHOWN, Flags, takes
from slm_local.cli.questions import ASK_HINT, many_questions, one_question
from slm_local.cli.render import Terminal
from slm_local.compare import Question
from slm_local.errors import Interrupted, SlmError, UsageError

if TYPE_CHECKING:
    from slm_local.store import Store


@takes(Flags)
def command(
    context: typer.Context,
    flags: Flags,
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL MODEL...", show_default=False)] = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="what all are asked", rich_help_panel=ASKED)
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="many: JSON lines with prompt, expected", rich_help_panel=ASKED),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option("--expect", metavar="TEXT", help="the right answer: each is marked", rich_help_panel=ASKED),
    ] = None,
    parallel: Annotated[
        bool, typer.Option("--parallel", help="all at once, sharing the machine", rich_help_panel=SHOWN)
    ] = False,
    save: Annotated[bool, typer.Option("--save", help="keep all in the history", rich_help_panel=SHOWN)] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object a prompt", rich_help_panel=SHOWN)] = False,
    markdown: Annotated[
        bool, typer.Option("--md", help="the table alone, as Markdown, to paste", rich_help_panel=SHOWN)
    ] = False,
) -> int:
    """Put one prompt to several models, or to one in several settings (r1-8b@no-think), and measure each.

    One after the other, each with the same seed; then a table. Over a file of prompts with expected answers the last
    line says what thinking bought, and what it cost.
    """
    terminal: Terminal = context.obj
    form: Form = "json" if json else "md" if markdown else "text"
    references = [*([flags.model] if flags.model else []), *(models or [])]
    question = Question(prompt=prompt or "", expected=expect)
    comparison: Comparison | None = None
    try:
        _check(flags, references, has_both_forms=json and markdown, saves=save)
        if prompts is None:
            question = one_question(terminal, prompt, flags.file or [], expect)
        elif prompt is not None or expect is not None:
            raise UsageError("--prompts brings prompts and answers of its own", hint=f"slm compare --prompts {prompts}")
        questions = [question] if prompts is None else many_questions(terminal, prompts, flags.file or [])
        registry = registry_here(terminal)
        for reference in references:
            registry.resolve(reference)
        with _store(terminal, flags, saves=save) as store:
            comparison = Comparison(
                terminal=terminal,
                flags=flags,
                registry=registry,
                references=references,
                questions=questions,
                form=form,
                is_parallel=parallel,
                store=store,
            )
            return comparison.run()
    except KeyboardInterrupt:
        raise Interrupted("stopped before there was an answer") from None
    except SlmError as error:
        if json and (comparison is None or not comparison.has_written):
            terminal.json({**lanes.compared_object(question, []), "error": asdict(error.record())})
        raise


def _check(flags: Flags, references: list[str], *, has_both_forms: bool, saves: bool) -> None:
    """Raise `UsageError` for what can't be had together, and where there is nothing to compare."""
    flags.tokens_per_s(None)
    if has_both_forms:
        raise UsageError("--json and --md can't be had together", hint="--json")
    if saves and flags.no_log:
        raise UsageError("--save and --no-log contradict each other", hint="--save")
    if len(references) < 2:
        raise UsageError("a comparison takes two models, or one in two settings", hint=ASK_HINT)


@contextmanager
def _store(terminal: Terminal, flags: Flags, *, saves: bool) -> Iterator[Store | None]:
    """Open the history where replies are to be kept; said in so many words, that goes before the settings."""
    if not saves:
        yield None
        return
    with opened_store(terminal, replace(flags.settings(), log=True)) as store:
        yield store
