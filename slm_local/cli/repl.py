"""A conversation line by line, with commands that begin with a slash: `slm chat --plain`, and where no app can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from slm_local import notes
from slm_local.cli.answering import Teller, subject_of
from slm_local.cli.keeping import Kept
from slm_local.cli.lines import Lines
from slm_local.cli.prompt import file_text
from slm_local.cli.render import DIM, Terminal
from slm_local.config import KINDS, LIVE_SETTINGS, REPL, setting_name, with_setting
from slm_local.errors import PromptTooLong, SlmError, UsageError
from slm_local.forecast.thinking import thinking_words
from slm_local.generation import Control, StreamEvent
from slm_local.paths import paths
from slm_local.session import ChatSession
from slm_local.store import write_new
from slm_local.system import signalled


def talk(teller: Teller, reference: str, kept: Kept | None = None) -> int:
    """Open a model and talk until the person leaves; return the exit code. Errors: those of `open_model`."""
    history, current = paths().data / "history", _Current()
    with (
        signalled(current.end_thinking),
        Lines(teller.terminal, history) as lines,
        _Chat(teller, reference, kept, lines, current) as open_chat,
    ):
        while (entry := _next(lines, teller.terminal)) is not None:
            if not open_chat.take(entry):
                break
    return 0


def _next(lines: Lines, terminal: Terminal) -> str | None:
    while True:
        try:
            return lines.read()
        except KeyboardInterrupt:
            terminal.say("\nCtrl-D or /bye leaves", DIM)


@dataclass(slots=True)
class _Current:
    """The reply that is being written, if any: what a signal is about."""

    control: Control | None = None

    def end_thinking(self) -> None:
        """Have its answer begin."""
        if self.control is not None:
            self.control.end_thinking()


class _Chat:
    """A conversation and what can be done to it. A context manager that closes its model."""

    def __init__(self, teller: Teller, reference: str, kept: Kept | None, lines: Lines, current: _Current) -> None:
        self._lines, self._current = lines, current
        self._teller, self._terminal = replace(teller, is_chat=True), teller.terminal
        self._reference = reference
        self._files = [file_text(path) for path in teller.flags.file or []]
        """What goes before the first prompt."""
        self._changes: dict[str, str] = {}
        """What `/set` changed, for the next model."""
        self._engine = teller.open(reference)
        self._session = ChatSession(self._engine, store=teller.store, chat=kept.id if kept else None)
        self._greet()
        self._pace = teller.pace(self._engine)
        self._warm()
        self._first_warming = self._session.warming
        """What a kept state was restored for, if one was."""

    def __enter__(self) -> _Chat:
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            self._say_warmed()
            if failure[0] is None:
                self._teller.keep(self._session)
        finally:
            self._engine.close()

    def take(self, entry: str) -> bool:
        """Do what was typed; return whether the chat goes on. An error is told, and the chat goes on."""
        self._say_warmed()
        try:
            if entry.startswith("/"):
                goes_on = self._command(entry)
                self._warm()
                return goes_on
            if entry.strip():
                self._answer("\n\n".join([*self._files, entry]))
        except SlmError as error:
            self._terminal.error(_in_chat(error))
        except KeyboardInterrupt:  # while a model was being opened
            self._terminal.say("stopped", DIM)
        return True

    def _warm(self) -> None:
        """Have what the next prompt will begin with read while the person types."""
        self._session.prepare("".join(f"{file}\n\n" for file in self._files))

    def _say_warmed(self) -> None:
        """Say what was read while the person typed, to those who want to know."""
        first, newest = self._first_warming, self._session.warming
        if self._teller.flags.verbose:
            lines = (first.take_resumed() if first is not None else "", newest.summary if newest is not None else "")
            for line in filter(None, lines):
                self._terminal.say(line, DIM)

    def _answer(self, prompt: str) -> None:
        control = Control()
        self._show(self._session.send(prompt, control), control, prompt)
        if self._session.unanswered is None:
            self._files.clear()

    def _show(self, events: Iterator[StreamEvent], control: Control, prompt: str) -> None:
        self._current.control = control
        outcome = self._teller.show(self._engine, events, control, subject_of(self._engine, prompt), self._pace)
        self._current.control = None
        self._lines.typed_before(outcome.typed)
        self._teller.say_unkept(self._session)
        if self._terminal.out_is_terminal:
            self._terminal.line()
        if outcome.error is not None:
            raise outcome.error
        if self._session.unanswered is not None:
            self._terminal.say("there was no answer, so the turn is not kept · /regen asks again", DIM)

    def _command(self, entry: str) -> bool:
        word, _, rest = entry.partition(" ")
        if word in LEAVING:
            return False
        if word not in COMMANDS:
            close = get_close_matches(word, [*COMMANDS, *LEAVING], 1, 0.7)
            raise UsageError(f"there is no command {word}", hint=close[0] if close else "/?")
        COMMANDS[word][0](self, rest.strip())
        return True

    def _think(self, what: str) -> None:
        if what:
            self._set(f"think {what}")
            unused = notes.unused_thinking(self._engine)
            self._terminal.say(unused or f"think {notes.think_words(self._engine)}", DIM)
            return
        self._terminal.say(f"think {notes.think_words(self._engine)}")
        for line in thinking_words(self._engine.plan):
            self._terminal.say(f"  {line}", DIM)

    def _set(self, text: str) -> None:
        key, _, value = text.partition(" ")
        name, value = setting_name(key), value.strip()
        if not value:
            raise UsageError("/set takes a name and a value", hint="/set temperature 0.6")
        if name in KINDS and name not in LIVE_SETTINGS:
            joint = "," if "@" in self._reference else "@"
            raise UsageError(
                f"{name} is fixed when a model is opened", hint=f"/model {self._reference}{joint}{name}={value}"
            )
        self._engine.settings = with_setting(self._engine.settings, key, value, REPL)
        self._changes[name] = value
        if name == "system":
            self._session.system = self._engine.settings.system or self._engine.spec.system
        if name in ("think", "no_think"):
            self._session.think = self._engine.settings.think
        unused = notes.unused_early_exit(self._engine) if name == "early_exit" else None
        if unused:
            self._terminal.say(unused, DIM)

    def _system(self, text: str) -> None:
        if text:
            self._set(f"system {text}")
        self._terminal.say(f"system {self._session.system or '(none)'}", DIM)

    def _show_all(self, _: str) -> None:
        for line in notes.plan_lines(self._engine):
            self._terminal.say(line)
        for name, value in notes.chosen_settings(self._engine.settings).items():
            self._terminal.say(f"{name + ':':<11}{value}")
        messages = self._session.messages
        self._terminal.say(f"history:   {_messages(len(messages))}")

    def _stats(self, _: str) -> None:
        if self._session.last_reply is None:
            raise UsageError("there is no reply yet", hint="say something first")
        for line in notes.timing_lines(self._session.last_reply):
            self._terminal.say(line)

    def _regenerate(self, _: str) -> None:
        control = Control()
        last = self._session.turns[-1][0] if self._session.turns else ""
        prompt = self._session.unanswered or last
        self._show(self._session.regenerate(control), control, prompt)

    def _model(self, reference: str) -> None:
        if not reference:
            self._terminal.say(self._reference)
            return
        self._teller.registry.resolve(reference)
        self._teller.keep(self._session)
        self._engine.close()  # two models at once may not fit; if the new one fails, this one starts again when asked
        engine = self._teller.open(reference)
        for name, value in self._changes.items():
            engine.settings = with_setting(engine.settings, name, value, REPL)
        self._engine, self._reference = engine, reference
        self._session.switch(engine)
        self._session.think = engine.settings.think
        self._greet()
        self._pace = self._teller.pace(engine)

    def _drop(self, _: str) -> None:
        dropped = self._session.drop()
        self._terminal.say(f"dropped {_messages(dropped)}; left: {len(self._session.messages)}", DIM)

    def _clear(self, _: str) -> None:
        self._teller.keep(self._session)
        self._session.clear()
        self._terminal.say("the conversation is empty", DIM)

    def _export(self, name: str) -> None:
        if not name:
            raise UsageError("/export takes a file", hint="/export chat.md")
        path = Path(name).expanduser()
        write_new(path, self._session.export_markdown(), hint="/export {}")
        self._terminal.say(f"written to {path}", DIM)

    def _help(self, _: str) -> None:
        for word, (_do, usage, summary) in COMMANDS.items():
            self._terminal.say(f"  {f'{word} {usage}':<24}{summary}")
        self._terminal.say(f"  {', '.join(LEAVING):<24}leave; so does Ctrl-D")
        self._terminal.say('  """ before and after text of many lines · Ctrl-C stops an answer')

    def _greet(self) -> None:
        plan = self._engine.plan
        if not self._teller.flags.quiet:
            where = f"{plan.backend} on {plan.device}"
            self._terminal.say(f"{plan.spec.id} · {plan.variant.quant} · {where} · /? lists commands", DIM)


def _in_chat(error: SlmError) -> SlmError:
    """Give the errors that a chat can mend the hint that mends them."""
    if isinstance(error, PromptTooLong):
        return PromptTooLong(error.message, hint="/drop removes the oldest turn, /clear all")
    return error


def _messages(count: int) -> str:
    return f"{count} message" if count == 1 else f"{count} messages"


LEAVING = ("/exit", "/bye", "/quit")

COMMANDS: dict[str, tuple[Callable[[_Chat, str], None], str, str]] = {
    "/think": (_Chat._think, "WHAT", "how far the model thinks first; without WHAT, what can be asked and costs"),
    "/set": (_Chat._set, "NAME VALUE", "change a setting: temperature, top_p, seed, max_tokens, ..."),
    "/show": (_Chat._show_all, "", "model, plan and settings"),
    "/stats": (_Chat._stats, "", "timings of the last reply"),
    "/regen": (_Chat._regenerate, "", "answer the last prompt anew"),
    "/model": (_Chat._model, "MODEL", "go on with another model; the conversation stays"),
    "/system": (_Chat._system, "TEXT", "what the model is told first; without TEXT, show it"),
    "/drop": (_Chat._drop, "", "remove the oldest turn"),
    "/clear": (_Chat._clear, "", "remove all turns"),
    "/export": (_Chat._export, "FILE", "write the conversation as Markdown"),
    "/?": (_Chat._help, "", "this list"),
    "/help": (_Chat._help, "", "this list"),
}
