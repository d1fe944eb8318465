"""`slm run MODEL [PROMPT]`: one answer; without a prompt and with a person at stdin, a chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from slm_local.cli.answering import Form, Teller, registry_here, subject_of
from slm_local.cli.keeping import Kept, kept_chat, opened_store
from slm_local.cli.options import ASKED, SAMPLING, SHOWN, ChatFlags, takes
from slm_local.cli.prompt import file_text, joined_prompt, schema_text, split_model
from slm_local.cli.render import Terminal
from slm_local.cli.views import Subject, nothing_yet, reply_object
from slm_local.engine import Engine
from slm_local.errors import Interrupted, SlmError, UsageError
from slm_local.generation import Control
from slm_local.session import ChatSession
from slm_local.system import signalled

if TYPE_CHECKING:
    from slm_local.cli.sampling import Samples  # what draws several is imported where several are asked for


@takes(ChatFlags)
def command(
    context: typer.Context,
    flags: ChatFlags,
    words: Annotated[list[str] | None, typer.Argument(metavar="MODEL [PROMPT]...", show_default=False)] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema", metavar="FILE", help="a JSON Schema that the answer has to match", rich_help_panel=ASKED
        ),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option("--samples", metavar="N", help="answer it N times at once", rich_help_panel=SAMPLING),
    ] = None,
    vote: Annotated[
        bool,
        typer.Option("--vote", help="show the answer that most samples give", rich_help_panel=SAMPLING),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object at the end", rich_help_panel=SHOWN)] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="one JSON event a line", rich_help_panel=SHOWN)] = False,
) -> int:
    """Answer a prompt: all words behind the model, and what comes through a pipe.

    MODEL is a name from `slm ls --all`, a path to a .gguf file or a name of your own; with SLM_MODEL set it may be
    left out. Without a prompt, a chat begins.
    """
    terminal: Terminal = context.obj
    if json and jsonl:
        raise UsageError("--json and --jsonl can't be had together", hint="--jsonl")
    form: Form = "json" if json else "jsonl" if jsonl else "text"
    run = _Run(terminal, flags, form)
    try:
        run.schema = None if schema is None else schema_text(schema)
        run.has_samples = vote or samples is not None
        if run.has_samples:
            from slm_local.cli.sampling import wanted

            run.samples = wanted(samples, votes=vote)
        return run.run(words or [])
    except KeyboardInterrupt:
        raise Interrupted("stopped before there was an answer") from None
    except SlmError as error:
        if form != "text" and not run.has_written:
            run.write_failure(error)
        raise


class _Run:
    """One run, as far as it has come: what a failure is about, and whether it was written already."""

    def __init__(self, terminal: Terminal, flags: ChatFlags, form: Form) -> None:
        self._terminal, self._flags, self._form = terminal, flags, form
        self.subject = Subject(model="", prompt="")
        self.has_samples = False
        self.samples: Samples | None = None
        self.schema: str | None = None
        self.has_written = False

    def write_failure(self, error: SlmError) -> None:
        """Write the JSON of what never began."""
        is_line = self._form == "jsonl"
        if self.has_samples:
            from slm_local.cli.ballots import NOTHING, samples_object, votes_line

            values = votes_line(NOTHING, error) if is_line else samples_object(self.subject, NOTHING, error)
        else:
            values = {**({"event": "error"} if is_line else {}), **reply_object(self.subject, nothing_yet(), error)}
        self._terminal.json(values, is_line=is_line)

    def run(self, words: list[str]) -> int:
        """Do it and return the exit code. Errors: everything that can go wrong before the first event, and after."""
        flags = self._flags
        is_named = bool(flags.model or flags.goes_on or flags.chat)
        guess, rest = (flags.model or "", words) if is_named else ("".join(words[:1]), words[1:])
        self.subject = Subject(model=guess, prompt=" ".join(rest))
        flags.tokens_per_s(None)
        settings = flags.settings()
        registry = registry_here(self._terminal)
        with opened_store(self._terminal, settings) as store:
            kept = kept_chat(flags, store)
            model = flags.model or (kept.model if kept else None)
            reference, words = split_model(words, model, settings.model, registry)
            self.subject = Subject(model=reference, prompt=" ".join(words))
            own = registry.resolve(reference).settings
            if self.samples is not None:
                from slm_local.samples import check_variety

                check_variety(self.samples.count, flags.settings(own).sampling)
            teller = Teller(terminal=self._terminal, flags=flags, registry=registry, form=self._form, store=store)
            files = [file_text(path) for path in flags.file or []]
            prompt = joined_prompt(self._terminal, words, files)
            if prompt is None:
                return self._chat(teller, reference, kept)
            begins = "".join(f"{file}\n\n" for file in files if file.strip())
            return self._answer(teller, reference, prompt, kept, begins)

    def _answer(self, teller: Teller, reference: str, prompt: str, kept: Kept | None, begins: str) -> int:
        self.subject = Subject(model=reference, prompt=prompt)
        control = Control()
        with signalled(control.end_thinking), teller.open(reference, schema=self.schema) as engine:
            self.subject = subject_of(engine, prompt)
            number = kept.id if kept else None
            session = ChatSession(engine, store=teller.store, kind="run", chat=number, begins=begins)
            session.schema = self.schema
            if self.samples is not None:
                return self._sample(teller, engine, session, self.samples)
            events = session.send(prompt, control)
            pace = teller.pace(engine)
            self.has_written = True
            outcome = teller.show(engine, events, control, self.subject, pace)
            teller.say_unkept(session)
            teller.say_unused(outcome.typed)
            teller.say_restored(session, outcome.reply)
            if outcome.error is None and not outcome.was_interrupted:
                teller.keep(session)
        if outcome.error is not None:
            raise outcome.error
        return 130 if outcome.was_interrupted else 0

    def _sample(self, teller: Teller, engine: Engine, session: ChatSession, asked: Samples) -> int:
        from slm_local.cli.sampling import sampled

        self.has_written = True
        try:
            shown = sampled(teller, engine, session, self.subject, asked)
        finally:
            teller.say_unkept(session)
        teller.say_unused(shown.typed)
        if shown.vote.samples:
            teller.say_restored(session, shown.vote.samples[0].reply)
        if shown.error is None and not shown.was_interrupted:
            teller.keep(session)
        if shown.error is not None:
            raise shown.error
        return 130 if shown.was_interrupted else 0

    def _chat(self, teller: Teller, reference: str, kept: Kept | None) -> int:
        if self.samples is not None:
            raise UsageError("samples are drawn of a prompt", hint=f'slm run {reference} "..." --samples 8 --vote')
        if self.schema is not None:
            raise UsageError("--schema needs a prompt", hint=f'slm run {reference} "..." --schema FILE')
        if self._form != "text":
            raise UsageError(f"--{self._form} needs a prompt", hint=f'slm run {reference} "..." --{self._form}')
        from slm_local.cli.chat import chat

        return chat(teller, reference, kept)
