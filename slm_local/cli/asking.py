"""One question, one key: the same for every command that asks for a yes."""

from __future__ import annotations

from slm_local.cli.render import Terminal

YES = ("\r", "\n", "y", "Y")


def agrees(terminal: Terminal, question: str) -> bool:
    """Ask and wait for one key; Enter and y mean yes, every other key and the end of input no.

    Ctrl-C is no answer: it ends the command, as everywhere. Ask only where `can_ask` says that somebody is there.
    """
    import click

    terminal.talk(question)
    try:
        return click.getchar() in YES
    except EOFError:
        return False
    finally:
        terminal.talk("\n")
