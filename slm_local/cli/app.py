"""The command `slm`: finds the command that was meant, imports that one alone, and turns errors into exit codes."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib import import_module

import click
import typer
from typer.core import TyperCommand, TyperGroup

from slm_local import __version__
from slm_local.cli.render import Terminal, standard_terminal
from slm_local.errors import SlmError, UsageError
from slm_local.system import ToldToEnd, told_to_end, unwind


@dataclass(frozen=True, slots=True)
class _Entry:
    """A command: where it lives, what it is called with, what it does."""

    module: str
    usage: str
    summary: str


COMMANDS = {
    "run": _Entry("run", "MODEL [PROMPT]", "one answer; without a prompt, a chat"),
    "chat": _Entry("chat", "[MODEL]", "a conversation"),
    "compare": _Entry("compare", "MODEL MODEL", "one prompt, several models, measured side by side"),
    "history": _Entry("history", "", "what was kept: list, show, search, export, rm"),
    "pull": _Entry("pull", "MODEL", "fetch a model; goes on where it stopped, verifies"),
    "ls": _Entry("ls", "", "the models that are here; --all: the registry, too"),
    "show": _Entry("show", "MODEL", "what is known about a model"),
    "plan": _Entry("plan", "MODEL", "every way to run it on this machine, with reasons"),
    "ps": _Entry("ps", "", "the models that a server has open"),
    "stop": _Entry("stop", "[MODEL]", "close one, or all"),
    "doctor": _Entry("doctor", "", "this machine, what it can use, what mends the rest"),
    "bench": _Entry("bench", "MODEL", "how fast it is, beside what the memory allows"),
    "serve": _Entry("serve", "[MODEL...]", "an OpenAI-compatible server over warm models"),
    "rm": _Entry("rm", "MODEL", "remove what was fetched"),
    "verify": _Entry("verify", "[MODEL]", "hash the files that are here again"),
    "convert": _Entry("convert", "MODEL", "to OpenVINO, from the original weights"),
    "quantize": _Entry("quantize", "FILE --to Q", "a GGUF file in another quantization"),
    "import": _Entry("importing", "DIR", "take models from a folder or a stick"),
}
ALIASES = {"list": "ls"}
EXAMPLES = """\
  slm run tiny-reasoner "What is 47 + 38?"   watch it think, then answer
  cat notes.txt | slm run MODEL "Sum up"     stdout is the answer, nothing else
"""


DEBUG_HINT = "SLM_DEBUG=1 slm ... shows where"


class _Command(TyperCommand):
    """A command whose help lists its flags in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags under the headings they were given."""
        from slm_local.cli.options import GROUPS

        groups: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            row = each.get_help_record(ctx) if isinstance(each, click.Option) else None
            if row is not None:
                groups.setdefault(getattr(each, "rich_help_panel", None) or "Options", []).append(row)
        for heading in sorted(groups, key=lambda each: GROUPS.index(each) if each in GROUPS else len(GROUPS)):
            with formatter.section(heading):
                formatter.write_dl(groups[heading], col_max=34)


class _Parts(TyperGroup):
    """The parts of a command, such as `history list`; without one the first is meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the first part where none is named."""
        is_named = bool(args) and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if is_named else [next(iter(self.commands)), *args])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the part; `UsageError` names the nearest."""
        if args[0] not in self.commands:
            close = get_close_matches(args[0], self.commands, 1) or list(self.commands)
            raise UsageError(f"{ctx.command_path} has no {args[0]!r}", hint=f"{ctx.command_path} {close[0]}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order they were given."""
        return list(self.commands)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the parts with what they do."""
        formatter.write_usage(ctx.command_path, f"[{'|'.join(self.commands)}] [FLAGS]")
        with formatter.section("Parts"):
            formatter.write_dl([(name, part.get_short_help_str(200)) for name, part in self.commands.items()])
        formatter.write(f"\n{ctx.command_path} PART --help lists its flags.\n")


class _Commands(TyperGroup):
    """The commands by name; each is imported when it is the one that was typed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = import_module(f"slm_local.cli.{COMMANDS[name].module}")
        gc.enable()  # off since `entry`
        parts: Mapping[str, Callable[..., int]] | None = getattr(module, "commands", None)
        made = typer.Typer(cls=_Parts, add_completion=False, rich_markup_mode=None)
        for word, command in (parts or {name: module.command}).items():
            made.command(word, cls=_Command, options_metavar="[FLAGS]")(command)
        if parts is None:
            return typer.main.get_command(made)
        return typer.main.get_group(made)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; `UsageError` names the nearest."""
        if args and args[0] not in (*COMMANDS, *ALIASES):
            close = get_close_matches(args[0], [*COMMANDS, *ALIASES], 1)
            hint = f"slm {close[0]}" if close else f'slm run {args[0]} "..."   or   slm --help'
            raise UsageError(f"there is no command {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what slm is, three examples and the commands, without importing any."""
        formatter.write(f"slm {__version__} · small language models that think, on this machine\n{EXAMPLES}")
        with formatter.section("Commands"):
            formatter.write_dl([(f"{name} {entry.usage}".strip(), entry.summary) for name, entry in COMMANDS.items()])
        formatter.write("slm COMMAND --help lists its flags; slm --version says which slm this is.\n")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        click.echo(f"slm {__version__}")
        raise typer.Exit


application = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode=None, invoke_without_command=True)


@application.callback()
def _no_command(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True),
) -> None:
    """Show the help when no command is given."""
    del version
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are two lines on stderr."""
    terminal = standard_terminal()
    try:
        with told_to_end(unwind):
            return _invoke(list(sys.argv[1:] if arguments is None else arguments), terminal)
    except ToldToEnd as end:
        return end.exit_code
    except SlmError as error:
        return _tell(terminal, error)
    except BrokenPipeError:  # the reader at the other end has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except OSError as error:
        hint = "df -h" if error.errno == errno.ENOSPC else DEBUG_HINT
        return _tell(terminal, SlmError(f"the system refuses: {error}", hint=hint))
    except Exception as error:
        return _tell(terminal, SlmError(f"a bug of slm: {type(error).__name__}: {error}", hint=DEBUG_HINT))


def _tell(terminal: Terminal, error: SlmError) -> int:
    if os.environ.get("SLM_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError):  # stderr is gone, too
        terminal.error(error)
    return error.exit_code


def _invoke(arguments: list[str], terminal: Terminal) -> int:
    command = typer.main.get_command(application)
    try:
        with command.make_context("slm", arguments, obj=terminal) as context:
            return int(command.invoke(context) or 0)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        mistake = _usage_error(error, arguments)
        _print_failure(terminal, arguments, mistake)
        raise mistake from error


def _print_failure(terminal: Terminal, arguments: list[str], error: UsageError) -> None:
    """Print the object that a script waits for, where it asked for one and the flags could not even be read."""
    form = next((each for each in arguments if each in ("--json", "--jsonl")), None)
    if form is None or arguments[0] not in ("run", "compare"):
        return
    if arguments[0] == "compare":
        from slm_local.cli.lanes import compared_object
        from slm_local.compare import Question

        nothing = compared_object(Question(prompt="", expected=None), [])
        terminal.json({**nothing, "error": asdict(error.record())})
        return
    from slm_local.cli.views import Subject, nothing_yet, reply_object

    values = reply_object(Subject(model="", prompt=""), nothing_yet(), error)
    terminal.json({**({"event": "error"} if form == "--jsonl" else {}), **values}, is_line=form == "--jsonl")


def _usage_error(error: click.UsageError, arguments: list[str]) -> UsageError:
    """Say a mistake that click found in our words, with what to type."""
    name = ALIASES.get(arguments[0], arguments[0]) if arguments else ""
    command = f"slm {name}" if name in COMMANDS else "slm"
    if not isinstance(error, click.NoSuchOption):
        return UsageError(error.format_message().rstrip("."), hint=f"{command} --help")
    close = get_close_matches(error.option_name, error.possibilities or [], 1, 0.7)
    hint = f"{command} {close[0]}" if close else f"{command} --help"
    if name == "run" and not close:
        hint += '   or, for a prompt that begins with a dash: slm run MODEL -- "-5 + 3"'
    return UsageError(f"there is no flag {error.option_name}", hint=hint)
