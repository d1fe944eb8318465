"""One reply from an open session to the terminal: the view that fits, the notes beside it, for `run` and `chat`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slm_local import notes
from slm_local.backends import check_schema
from slm_local.cli.calibration import offer_calibration
from slm_local.cli.fetching import FetchView, confirm
from slm_local.cli.options import Flags
from slm_local.cli.render import DIM, YELLOW, Terminal
from slm_local.cli.stream import ANSWER_NOW, Outcome, View, play
from slm_local.cli.views import JsonLinesView, JsonView, PlainView, Subject
from slm_local.engine import Engine, open_model
from slm_local.forecast.thinking import limit_words
from slm_local.generation import Control, Reply, StreamEvent
from slm_local.hardware import probe
from slm_local.paths import paths
from slm_local.pump import EMBEDDED_PACE
from slm_local.registry import Registry, find_local, load_registry
from slm_local.selector import suggest
from slm_local.session import ChatSession
from slm_local.system import TypedLine, can_type_lines
from slm_local.thinking import PATIENCE_S

if TYPE_CHECKING:
    from slm_local.engine.supply import Offer
    from slm_local.store import Store

Form = Literal["text", "json", "jsonl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teller:
    """How replies are shown and what is said beside them."""

    terminal: Terminal
    flags: Flags
    registry: Registry
    store: Store | None = None
    """Where replies are kept; None: nowhere."""
    form: Form = "text"
    is_chat: bool = False

    def open(self, reference: str, *, schema: str | None = None) -> Engine:
        """Open a model and say what is to be known of it. Errors: those of `open_model`.

        A schema that its engine can't hold an answer to is refused before it is opened here: `UsageError`.
        """
        settings = self.flags.settings(self.registry.resolve(reference).settings)
        offer_calibration(
            self.terminal, reference, settings=settings, registry=self.registry, is_quiet=self.flags.quiet
        )
        told: list[str] = []
        with FetchView(self.terminal, is_quiet=self.flags.quiet) as view:

            def ask(offer: Offer) -> None:
                self._say_notes(offer.notes, told)
                confirm(self.terminal, offer, is_quiet=self.flags.quiet)

            def tell(text: str) -> None:
                view.close()
                self._tell_start(text)

            engine = open_model(
                reference,
                settings=settings,
                registry=self.registry,
                on_status=tell,
                confirm=ask,
                on_fetch=view.feed,
                on_plan=lambda plan: check_schema(plan.backend, schema) if schema is not None else None,
            )
        engine.patience_s = PATIENCE_S if self.terminal.out_is_terminal else None
        unused = (notes.unused_thinking(engine), notes.unused_early_exit(engine), notes.kept_open(engine))
        self._say_notes((*engine.notes, *filter(None, unused)), told)
        if self.flags.verbose:
            for line in notes.plan_lines(engine):
                self.terminal.say(line, DIM)
        return engine

    def _say_notes(self, lines: tuple[str, ...], told: list[str]) -> None:
        for line in () if self.flags.quiet else lines:
            if line not in told:
                self.terminal.say(line, DIM)
                told.append(line)

    def say_unkept(self, session: ChatSession) -> None:
        """Say what of a session could not be kept, once."""
        while session.notices:
            self.terminal.say(session.notices.pop(0), YELLOW)

    def pace(self, engine: Engine) -> float | None:
        """Return how fast tokens are shown; say so where that is not as they come and nobody asked."""
        is_watched = self.terminal.out_is_terminal and self.form == "text"
        default = EMBEDDED_PACE if engine.spec.embedded and is_watched else None
        pace = self.flags.tokens_per_s(default)
        if pace is not None and self.flags.pace is None and not self.flags.quiet:
            self.terminal.say(f"shown at {pace:.0f} tokens/s, to be watched · --pace 0: as they come", DIM)
        return pace

    def show(
        self, engine: Engine, events: Iterator[StreamEvent], control: Control, subject: Subject, pace: float | None
    ) -> Outcome:
        """Show one reply and say why it ended, where that is not plain. Its error is left to the caller."""
        hears_keys = engine.spec.thinks and engine.thinking().mode != "off" and can_type_lines()
        view = self._view(engine, subject, hears_keys=hears_keys)
        outcome = play(events, view, control, pace=pace, load_s=engine.load_s, hears_keys=hears_keys)
        if outcome.error is None:
            self._say_ending(engine, outcome, subject.prompt)
        if self.flags.verbose:
            for line in (*notes.noted_lines(outcome.noted), *notes.timing_lines(outcome.reply)):
                self.terminal.say(line, DIM)
        return outcome

    def keep(self, session: ChatSession) -> None:
        """Save the KV state of a conversation that is left; say so where it takes a while. Ctrl-C skips it."""
        told: list[str] = []

        def wait(waited_s: float) -> None:
            if waited_s > notes.LONG_KEEPING_S and not told and not self.flags.quiet:
                told.append(notes.KEEPING)
                self.terminal.say(f"{notes.KEEPING} · Ctrl-C skips it", DIM)

        try:
            note = session.keep(wait)
        except KeyboardInterrupt:
            note = "skipped"
        if note and (self.flags.verbose or note == "skipped"):
            self.terminal.say(f"the chat is not kept warm: {note}", DIM)

    def say_restored(self, session: ChatSession, reply: Reply) -> None:
        """Say what came of a kept KV state, to those who want to know."""
        moved, usage = session.restored, reply.usage
        if not self.flags.verbose or moved is None:
            return
        if moved.tokens:
            self.terminal.say(f"restored: {usage.cached_tokens:,} of {usage.prompt_tokens:,} tokens were held", DIM)
        else:
            self.terminal.say(f"the kept state was not used, {moved.note}: the prompt was read anew", DIM)

    def say_unused(self, typed: Sequence[TypedLine]) -> None:
        """Say what was typed while it thought and reached nobody."""
        lines = [line.decode(errors="replace") for line in typed if line is not None]
        if lines:
            self.terminal.say(f"typed while it thought, and not used: {' · '.join(lines)}", DIM)

    def _view(self, engine: Engine, subject: Subject, *, hears_keys: bool) -> View:
        shows_thinking, is_quiet = not engine.settings.hide_thinking, self.flags.quiet
        limit = limit_words(engine.thinking(), engine.plan) if engine.spec.thinks else ""
        key = ANSWER_NOW if hears_keys else ""
        match self.form:
            case "json":
                return JsonView(self.terminal, subject)
            case "jsonl":
                return JsonLinesView(self.terminal, subject)
        if not self.terminal.out_is_rich:
            limit = " · ".join(filter(None, (limit, key)))
            return PlainView(self.terminal, subject, shows_thinking=shows_thinking, limit=limit, is_quiet=is_quiet)
        from slm_local.cli.panels import PanelView

        limit = f"{limit} · {key}" if limit and key else limit
        return PanelView(self.terminal, subject.model, shows_thinking=shows_thinking, limit=limit, is_quiet=is_quiet)

    def _say_ending(self, engine: Engine, outcome: Outcome, prompt: str) -> None:
        if outcome.was_interrupted:
            self.terminal.say("stopped", DIM)
            return
        think, context = engine.thinking(), engine.plan.context_tokens
        limit = engine.settings.max_tokens
        longest = engine.facts.trained_context_tokens
        endings = notes.endings(outcome.reply, think, context, limit, longest)
        lowered = None
        if outcome.started is not None and engine.spec.thinks:
            lowered = notes.lowered(outcome.started, think, limit, longest)
        outgrown = None if self.flags.quiet else notes.outgrown(engine.plan, outcome.reply)
        for note in (*([lowered] if lowered else []), *endings):
            self.terminal.say(note.text, YELLOW if note.is_warning else DIM)
            if note.hint and outgrown is None:
                self.terminal.hint(notes.in_chat(note.hint) if self.is_chat else note.hint)
        if outgrown is not None:
            self.terminal.say(outgrown, YELLOW)
            for better in suggest(self.registry.models, probe(), 1):
                is_here = bool(find_local(better, paths().models_dir))
                self.terminal.say(
                    f"{better.id} would suit this machine{'' if is_here else '; it is not here yet'}", YELLOW
                )
                self.terminal.hint(notes.better_line(better, prompt, is_here=is_here))

    def _tell_start(self, text: str) -> None:
        if self.terminal.err_is_rich:
            self.terminal.status(text)
        elif text.startswith(("starting", "compiling")) and not self.flags.quiet:
            self.terminal.say(text)


def registry_here(terminal: Terminal) -> Registry:
    """Read the registry and the user's own; say what was passed over in it. Errors: `ConfigError`."""
    registry = load_registry(paths().config / "models.toml")
    for warning in registry.warnings:
        terminal.say(warning, YELLOW)
    return registry


def subject_of(engine: Engine, prompt: str) -> Subject:
    """Return what a reply of this engine is about."""
    return Subject(model=engine.spec.id, prompt=prompt, plan=engine.plan)
