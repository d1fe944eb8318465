"""Shows a comparison while it runs, and what came of it: panels lane by lane, then tables, Markdown or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, assert_never

from slm_local import __version__, notes
from slm_local.cli import lanes
from slm_local.cli.answering import Teller
from slm_local.cli.fetching import confirm
from slm_local.cli.options import Flags
from slm_local.cli.render import DIM, RED, YELLOW, Terminal
from slm_local.cli.stream import View, noted_presses, play
from slm_local.cli.views import PlainView, Subject
from slm_local.compare import CompareEvent, LaneEvent, LaneResult, LaneStatus, Question, compare, verdicts
from slm_local.compare.measures import Rows, answers, footnotes, mean_measures, measures
from slm_local.config import Settings, draw_seed
from slm_local.engine.supply import Offer
from slm_local.errors import Interrupted
from slm_local.forecast.plans import machine_line
from slm_local.generation import Control, Reply, StreamEvent, Thinking
from slm_local.hardware import probe
from slm_local.model import Plan
from slm_local.pump import EMBEDDED_PACE
from slm_local.registry import Registry
from slm_local.system import can_type_lines, signalled

if TYPE_CHECKING:
    from slm_local.store import Store

Form = Literal["text", "json", "md"]

TOLD_SHARE = 0.1
"""Where nothing can be shown in passing, a line is written each time so much of a download has come."""


@dataclass(slots=True, kw_only=True)
class Comparison:
    """One comparison as far as it has come."""

    terminal: Terminal
    flags: Flags
    registry: Registry
    references: Sequence[str]
    questions: Sequence[Question]
    form: Form
    is_parallel: bool
    store: Store | None
    has_written: bool = False
    results: list[LaneResult] = field(default_factory=list)
    control: Control = field(default_factory=Control)
    _waiting: dict[int, list[StreamEvent]] = field(default_factory=dict)
    """Events of lanes that run at once, until each is whole."""
    _told_share: dict[int, float] = field(default_factory=dict)
    _told_failure: set[int] = field(default_factory=set)
    _is_pace_told: bool = False

    def run(self) -> int:
        """Do it and return the exit code. Errors: those that `compare` raises, `Interrupted`."""
        seed = self._seed()
        with signalled(self.control.end_thinking), noted_presses(self.control) as presses:
            messages = compare(
                self.references,
                self.questions,
                settings_for=self.settings_for,
                registry=self.registry,
                seed=seed,
                parallel=self.is_parallel,
                control=self.control,
                confirm=self._confirm,
                store=self.store,
            )
            for message in messages:
                self._take(message, messages)
        is_stopped = bool(presses) or self.control.cancelled
        if is_stopped and not any(each.tokens for each in self.results):
            if self.form != "json":
                raise Interrupted("stopped before there was an answer")
        elif self.form != "json":
            self._write()
        failures = [each.error for each in self.results if each.error is not None]
        return 130 if is_stopped else failures[0].exit_code if failures else 0

    def settings_for(self, reference: str) -> Settings:
        """Return the settings of a lane: what hangs on the reference under the flags."""
        return self.flags.settings(self.registry.resolve(reference).settings)

    @property
    def _streams(self) -> bool:
        """Whether replies are shown while they come, or when they are whole: of many prompts only the tables are."""
        return self.form == "text" and len(self.questions) == 1

    def _seed(self) -> int:
        """Return the seed of all lanes; one that was drawn is told."""
        given = self.flags.settings().sampling.seed
        if given is not None:
            return given
        seed = draw_seed()
        if not self.flags.quiet:
            self.terminal.say(f"seed {seed}, drawn for all; again with --seed {seed}", DIM)
        return seed

    def _take(self, message: CompareEvent, messages: Iterator[CompareEvent]) -> None:
        match message:
            case LaneStatus():
                self._show_status(message)
            case LaneEvent() if self._streams and self.is_parallel:
                self._waiting.setdefault(message.lane, []).append(message.event)
                self.terminal.status(" · ".join(f"{self.references[lane]} answers" for lane in sorted(self._waiting)))
            case LaneEvent() if self._streams:
                self._play(message.lane, self._reply_of(message, messages))
            case LaneEvent():
                pass
            case LaneResult():
                self._add(message)
            case _:
                assert_never(message)

    def _reply_of(self, first: LaneEvent, messages: Iterator[CompareEvent]) -> Iterator[StreamEvent]:
        """Yield the events of one reply, up to its result; read by the pump's thread."""
        yield first.event
        for message in messages:
            match message:
                case LaneEvent():
                    yield message.event
                case LaneResult():
                    self.results.append(message)
                    return
                case LaneStatus():  # another lane's download goes on: it is told of between the replies
                    pass
                case _:
                    assert_never(message)

    def _play(self, lane: int, events: Iterator[StreamEvent]) -> None:
        """Show one reply; what became of it is the last result when it is shown."""
        control = Control()  # "answer now" is for this reply alone
        control.on_cancel(self.control.cancel)
        control.on_end_thinking(self.control.end_thinking)
        pace = self._pace(lane)
        view = self._view(lane)
        self.has_written = True
        outcome = play(events, view, control, pace=pace, hears_keys=pace is None and self._may_think(lane))
        teller = Teller(terminal=self.terminal, flags=self.flags, registry=self.registry)
        teller.say_unused(outcome.typed)
        if self.results:
            self._say_ending(self.results[-1])
        self.terminal.line()

    def _view(self, lane: int) -> View:
        reference = self.references[lane]
        shows_thinking = not self.settings_for(reference).hide_thinking
        if self.terminal.out_is_rich:
            from slm_local.cli.panels import PanelView

            return PanelView(self.terminal, reference, shows_thinking=shows_thinking, is_quiet=self.flags.quiet)
        if not self.terminal.out_is_terminal or self.flags.quiet:
            self.terminal.line(f"── {reference} ──")
        subject = Subject(model=reference, prompt=self.questions[0].prompt)
        return PlainView(self.terminal, subject, shows_thinking=shows_thinking, is_quiet=self.flags.quiet)

    def _may_think(self, lane: int) -> bool:
        """Tell whether a key may end a lane's thinking: it is generated while it is shown, and there is a person."""
        spec = self.registry.resolve(self.references[lane]).spec
        is_off = self.settings_for(self.references[lane]).think.mode == "off"
        return not is_off and not self.is_parallel and (spec is None or spec.thinks) and can_type_lines()

    def _pace(self, lane: int) -> float | None:
        spec = self.registry.resolve(self.references[lane]).spec
        is_watched = self.terminal.out_is_terminal and not self.is_parallel and not self.control.cancelled
        default = EMBEDDED_PACE if spec is not None and spec.embedded and is_watched else None
        pace = self.flags.tokens_per_s(default)
        if pace is not None and self.flags.pace is None and not self.flags.quiet and not self._is_pace_told:
            self._is_pace_told = True
            told = f"shown at {pace:.0f} tokens/s, to be watched, measured as they come · --pace 0: as they come"
            self.terminal.say(told, DIM)
        return pace

    def _add(self, result: LaneResult) -> None:
        """Take the result of a reply that was not shown as it came."""
        self.results.append(result)
        if self._streams and result.lane in self._waiting:
            self._play(result.lane, iter(self._waiting.pop(result.lane)))
            return
        self._say_failure(result)
        self._say_progress()
        of_prompt = [each for each in self.results if each.prompt == result.prompt]
        if self.form == "json" and len(of_prompt) == len(self.references):
            self.has_written = True
            values = lanes.compared_object(self.questions[result.prompt], of_prompt)
            self.terminal.json(values, is_line=len(self.questions) > 1)

    def _say_progress(self) -> None:
        if len(self.questions) > 1:
            judged = [each for each in self.results if each.correct is not None]
            right = f" · {sum(bool(each.correct) for each in judged)} of {len(judged)} right" if judged else ""
            whole = len(self.questions) * len(self.references)
            self.terminal.status(f"{len(self.results):,} of {whole:,} replies{right}")

    def _say_ending(self, result: LaneResult) -> None:
        """Say why a reply ended before its time."""
        self._say_failure(result)
        if result.error is not None or result.plan is None:
            return
        if result.reply.finish == "cancelled":
            self.terminal.say("stopped", DIM)
            return
        settings = self.settings_for(result.reference)
        think = settings.think if settings.think != Thinking() else result.plan.spec.thinking
        context, longest = result.plan.context_tokens, result.plan.spec.context_tokens
        for note in notes.endings(result.reply, think, context, settings.max_tokens, longest):
            self.terminal.say(f"{result.reference}: {note.text}", YELLOW if note.is_warning else DIM)
            if note.hint:
                self.terminal.hint(note.hint)
        if self.flags.verbose:
            self._say_details(result.plan, result.reply)

    def _say_details(self, plan: Plan, reply: Reply) -> None:
        """Say how a lane ran and how long each part of it took."""
        head = f"{plan.spec.id} {plan.variant.quant} · {plan.backend} on {plan.device}{notes.threads_words(plan)}"
        for line in (f"{head} · context {plan.context_tokens:,}", *plan.reasons, *notes.timing_lines(reply)):
            self.terminal.say(line, DIM)

    def _say_failure(self, result: LaneResult) -> None:
        """Say what went wrong in a lane, once."""
        if result.error is None or result.lane in self._told_failure:
            return
        self._told_failure.add(result.lane)
        where = f" (prompt {result.prompt + 1})" if len(self.questions) > 1 else ""
        self.terminal.say(f"{result.reference}{where}: {result.error.message}", RED)
        if result.error.hint:
            self.terminal.hint(result.error.hint)

    def _show_status(self, status: LaneStatus) -> None:
        """Show what a lane does in passing; where nothing can be passed over, now and then in a line."""
        text = f"{self.references[status.lane]}: {status.text}"
        if self.flags.quiet:
            return
        if status.is_remark:
            self.terminal.say(text, DIM)
        elif self.terminal.err_is_rich:
            self.terminal.status(text if status.fraction is None else f"{text} {status.fraction:.0%}")
        elif status.fraction is not None:
            if status.fraction >= self._told_share.get(status.lane, 0.0) + TOLD_SHARE:
                self._told_share[status.lane] = status.fraction
                self.terminal.say(f"{text} {status.fraction:.0%}", DIM)
        elif status.text.startswith(("starting", "compiling")):
            self.terminal.say(text, DIM)

    def _confirm(self, offer: Offer) -> None:
        confirm(self.terminal, offer, is_quiet=self.flags.quiet)

    def _write(self) -> None:
        """Write what it came to: tables, or Markdown, and what thinking bought."""
        self.results.sort(key=lambda each: (each.prompt, each.lane))
        is_one = len(self.questions) == 1
        table = measures(self.results) if is_one else mean_measures(self.results)
        bought = [] if is_one else [each.sentence for each in verdicts(self.results)]
        if self.form == "md":
            self._write_markdown(table, bought)
            return
        if not is_one:
            lanes.write_rows(self.terminal, answers(self.questions, self.results))
            self.terminal.line()
        lanes.write_rows(self.terminal, table)
        for line in (*footnotes(self.results), *([""] if bought else []), *bought):
            self.terminal.paragraph(line, rest="  ") if line else self.terminal.line()
        if self.flags.verbose:
            for reason in dict.fromkeys(each.no_joules for each in self.results if each.no_joules):
                self.terminal.say(f"energy was not read: {reason}", DIM)

    def _write_markdown(self, table: Rows, bought: Sequence[str]) -> None:
        asked = self.questions[0].prompt if len(self.questions) == 1 else f"{len(self.questions)} prompts, means"
        quoted = "\n".join(f"> {line}".rstrip() for line in asked.splitlines())
        parts = [quoted, lanes.markdown_table(table).rstrip(), *footnotes(self.results), *bought]
        parts.append(f"slm {__version__} · {machine_line(probe())}")
        for part in parts:
            self.terminal.line(part)
            self.terminal.line()
