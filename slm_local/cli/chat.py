"""`slm chat [MODEL]`: a conversation; in the app on a terminal, else or with `--plain` line by line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from slm_local.cli.answering import Teller, registry_here
from slm_local.cli.calibration import offer_calibration
from slm_local.cli.choice import chosen_model
from slm_local.cli.keeping import Kept, kept_chat, opened_store
from slm_local.cli.options import ASKED, ChatFlags, takes
from slm_local.cli.prompt import file_text
from slm_local.cli.render import Terminal
from slm_local.errors import UsageError


@takes(ChatFlags)
def command(
    context: typer.Context,
    flags: ChatFlags,
    word: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False)] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="line by line, in the terminal's own scrollback", rich_help_panel=ASKED)
    ] = False,
) -> int:
    """Talk with a model; it is shown the whole conversation at every turn, without its old thoughts.

    Without MODEL and SLM_MODEL, models that suit this machine are offered. Inside, F1 (with --plain: /?) says what can
    be done.
    """
    terminal: Terminal = context.obj
    if word is not None and flags.model is not None:
        raise UsageError("two models are given, one by word and one by -m", hint=f"slm chat {flags.model}")
    flags.tokens_per_s(None)
    registry = registry_here(terminal)
    settings = flags.settings()
    with opened_store(terminal, settings) as store:
        kept = kept_chat(flags, store)
        reference = word or flags.model or (kept.model if kept else settings.model)
        teller = Teller(terminal=terminal, flags=flags, registry=registry, store=store)
        return chat(teller, reference, kept, is_plain=plain)


def chat(teller: Teller, reference: str | None, kept: Kept | None, *, is_plain: bool = False) -> int:
    """Talk until the person leaves, in the app where it can be; return the exit code.

    Errors: those of `open_model`, where no app shows them.
    """
    if not is_plain and _has_desk(teller):
        return _at_the_desk(teller, reference, kept)
    from slm_local.cli.repl import talk

    return talk(teller, reference or chosen_model(teller.terminal, teller.registry), kept)


def _has_desk(teller: Teller) -> bool:
    """Tell whether a person sits at a terminal that the app can draw on, and wants to see more than answers."""
    is_person = sys.stdin is not None and sys.stdin.isatty()
    draws = teller.terminal.out_is_rich and teller.terminal.err_is_rich  # the app draws on stderr
    return is_person and draws and not teller.flags.quiet


def _at_the_desk(teller: Teller, reference: str | None, kept: Kept | None) -> int:
    from slm_local.tui import Desk, run_desk

    flags, settings = teller.flags, teller.flags.settings()
    files = tuple(file_text(path) for path in flags.file or [])
    if reference is not None:
        own = flags.settings(teller.registry.resolve(reference).settings)
        offer_calibration(teller.terminal, reference, settings=own, registry=teller.registry)
    desk = Desk(
        reference=reference,
        registry=teller.registry,
        flags=flags.given(),
        store=teller.store,
        chat=kept.id if kept else None,
        files=files,
        pace=None if flags.pace is None else flags.tokens_per_s(None) or 0.0,
        bell=settings.bell,
    )
    return run_desk(desk)
