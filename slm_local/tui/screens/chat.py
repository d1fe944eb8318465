"""The chat: thinking and answer as they come, the conversation so far, a place to write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import Screen

from slm_local.config import REPL, UNSET, setting_name, with_setting
from slm_local.engine import Engine
from slm_local.errors import Interrupted, PromptTooLong, SlmError, UsageError, WorkerCrashed
from slm_local.forecast.thinking import limit_words, thinking_words
from slm_local.generation import Control, StreamEvent
from slm_local.notes import unused_early_exit
from slm_local.paths import paths
from slm_local.pump import EMBEDDED_PACE
from slm_local.sanitize import visible
from slm_local.session import ChatSession
from slm_local.tui.commands import run_command
from slm_local.tui.conversation import ConversationPane
from slm_local.tui.desk import Desk
from slm_local.tui.endings import notes_of
from slm_local.tui.entries import Entries
from slm_local.tui.entry import Entry
from slm_local.tui.exchange import Exchange
from slm_local.tui.footer import Keys
from slm_local.tui.frames import Frames
from slm_local.tui.holding import Holder
from slm_local.tui.news import news
from slm_local.tui.opening import Opened, Opener, Refused
from slm_local.tui.showing import Showing
from slm_local.tui.status import StatusLine, answer_now_hint, is_warming, status_facts, warming_words
from slm_local.tui.thinking import ThinkingPane
from slm_local.tui.turns import Turns

LONG_WAIT_S = 30.0
"""An answer that begins after so long rings, where that is wanted."""

TELL_S = 0.3
"""Time from one status line to the next while a reply grows: numbers that change with every frame can't be read, and
the rows between pane and line would be drawn with them."""

LEAVE_S = 2.0
"""Two presses of Ctrl+C within this time leave."""


class Panes(Container):
    """What the panes lie on; nothing of it is seen."""

    BLANK = True  # its children cover it: so its own lines are not drawn with each frame


class ChatScreen(Screen[None]):
    """A conversation with one model at a time."""

    BLANK = True  # as of the panes
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (16, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+c", "interrupt", "Copy what is selected, stop, or leave", show=False, priority=True),
        Binding("ctrl+t", "switch_thinking", "Think"),
        Binding("f2", "unfold", "Thoughts"),
        Binding("ctrl+r", "regenerate", "Again"),
        Binding("ctrl+z", "undo", "Undo"),
        Binding("ctrl+y", "copy_answer", "Copy"),
        Binding("f3", "copy_all", "Copy all"),
        Binding("f4", "models", "Model"),
        Binding("f5", "compare", "Compare"),
        Binding("f6", "chats", "Chats"),
        Binding("ctrl+n", "new", "New"),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("shift+pageup", "page_thinking(-1)", "Page up in the thinking", show=False),
        Binding("shift+pagedown", "page_thinking(1)", "Page down in the thinking", show=False),
        Binding("ctrl+up", "turn(-1)", "The turn before, with its thinking", show=False),
        Binding("ctrl+down", "turn(1)", "The turn after, with its thinking", show=False),
        Binding("ctrl+end", "end", "To the end", show=False),
    ]

    def __init__(self, desk: Desk, holder: Holder) -> None:
        super().__init__()
        self._desk, self._holder = desk, holder
        self._reference = desk.reference
        self._files = list(desk.files)
        """What goes before the first prompt."""
        self._chat = desk.chat
        """The kept chat to go on with once a model is open."""
        self._session: ChatSession | None = None
        self._opener = Opener(self, holder)
        self._prompt_in_wait: str | None = None
        """Sent before the model was open."""
        self._exchange: Exchange | None = None
        self._pace: float | None = None
        self._is_pinned = False
        """Whether the person unfolded the thinking: it stays so."""
        self._thought_before = UNSET
        """What was asked for before thinking was switched off."""
        self._changes: dict[str, str] = {}
        """What was set while a model was open: it holds for the next one, too."""
        self._pressed_s = 0.0
        self._told_s = 0.0
        self.frames = Frames(self, self._frame)

    def compose(self) -> ComposeResult:
        """Lay out the panes above the entry."""
        thinking, conversation = ThinkingPane(id="thinking"), ConversationPane(id="conversation")
        self.turns = Turns(thinking, conversation)
        with Panes(id="panes"):
            yield thinking
            yield conversation
        yield Entry(Entries(paths().data / "history"), id="entry")
        yield StatusLine(id="status")
        yield Keys()

    def on_mount(self) -> None:
        """Open the model, or ask for one."""
        if not self.is_attached:
            return  # the app is going, and nothing was laid out
        self.thinking.border_title = "thinking"
        self.conversation.border_title = "conversation"
        self.entry.focus()
        if self._reference is not None:
            self.open(self._reference)
        elif not self._desk.compare:
            self.action_models()

    @property
    def thinking(self) -> ThinkingPane:
        """Return the pane of the thinking."""
        return self.query_one("#thinking", ThinkingPane)

    @property
    def conversation(self) -> ConversationPane:
        """Return the pane of the conversation."""
        return self.query_one("#conversation", ConversationPane)

    @property
    def entry(self) -> Entry:
        """Return the place to write."""
        return self.query_one("#entry", Entry)

    @property
    def status(self) -> StatusLine:
        """Return the status line."""
        return self.query_one("#status", StatusLine)

    @property
    def session(self) -> ChatSession:
        """Return the conversation. `UsageError` before a model is open."""
        if self._session is None:
            raise UsageError("no model is open yet", hint="F4 chooses one")
        return self._session

    @property
    def reference(self) -> str:
        """Return the model as it was typed, empty before there is one."""
        return self._reference or ""

    @property
    def is_busy(self) -> bool:
        """Return whether there is something to be stopped."""
        return self._opener.is_opening or self._exchange is not None

    @property
    def is_generating(self) -> bool:
        """Return whether a reply is on its way."""
        return self._exchange is not None

    def warm(self) -> None:
        """Have what the next prompt will begin with read while the person reads or types."""
        if self._session is not None and self._exchange is None:
            self._session.prepare("".join(f"{file}\n\n" for file in self._files))
            self.frames.start()

    def say(self, text: str, hint: str | None = None, *, is_warning: bool = False) -> None:
        """Say something in the conversation, and what to do about it; beside it while an answer grows there."""
        if self._exchange is not None:
            self.notify(visible("\n".join(filter(None, (text, hint)))), markup=False)
            return
        self.conversation.remark(text, "warning" if is_warning else "remark")
        if hint:
            self.conversation.remark(hint, "hint")

    def open(self, reference: str) -> None:
        """Open a model in the place of the one before; the conversation stays."""
        self.stop()
        self._opener.open(reference)
        self.frames.start()

    @news(Refused)
    def _refused(self, event: Refused) -> None:
        self._opener.end()
        if isinstance(event.error, Interrupted):
            self.say(f"the model was not opened: {event.error.message}", "F4 chooses one")
        else:
            self.say(event.error.message, event.error.hint, is_warning=True)
        if self._prompt_in_wait is not None:
            self.entry.put(self._prompt_in_wait)
            self._prompt_in_wait = None
        self._tell()

    @news(Opened)
    def _opened(self, event: Opened) -> None:
        engine = event.engine
        try:
            for name, value in self._changes.items():
                engine.settings = with_setting(engine.settings, name, value, REPL)
            if self._session is None:
                self._session = ChatSession(engine, store=self._desk.store, chat=self._chat)
                self.turns.show(self._session.turns)
            else:
                self._session.switch(engine)
                self._session.think = engine.settings.think
        except SlmError as error:
            self._refused(Refused(error))
            return
        self._opener.end()
        self._holder.session = self._session
        self._reference = event.reference
        self.say(f"{engine.plan.spec.id} · {engine.plan.variant.quant} · {engine.plan.backend} on {engine.plan.device}")
        for note in filter(None, (*engine.notes, unused_early_exit(engine))):
            self.say(note)
        self._pace = self._pace_of(engine)
        self._say_notices()
        self.warm()
        self._tell()
        if self._prompt_in_wait is not None:
            prompt, self._prompt_in_wait = self._prompt_in_wait, None
            self.ask(prompt)

    def _pace_of(self, engine: Engine) -> float | None:
        """Return how fast tokens are shown; say so where that is not as they come and nobody asked."""
        if self._desk.pace is not None or not engine.spec.embedded:
            return self._desk.pace or None
        self.say(f"shown at {EMBEDDED_PACE:.0f} tokens/s, to be watched · slm chat --pace 0: as they come")
        return EMBEDDED_PACE

    @on(Entry.Sent)
    def _sent(self, event: Entry.Sent) -> None:
        if not event.text.strip():
            self.action_answer_now()
        elif event.text.startswith("/") and "\n" not in event.text:
            self.entry.take()
            try:
                run_command(self, event.text)
            except SlmError as error:
                self.say(error.message, error.hint, is_warning=True)
        elif self._exchange is not None:
            self.notify("an answer is on its way · Escape stops it", timeout=3, markup=False)
        elif self._session is None or self._opener.is_opening:
            self._prompt_in_wait = self.entry.take()
            self.say("sent as soon as a model is open")
        else:
            self.ask(self.entry.take())

    def ask(self, prompt: str) -> None:
        """Send a prompt."""
        whole, control = "\n\n".join([*self._files, prompt]), Control()
        self._stream(whole, self.session.send(whole, control), control)

    def _stream(self, prompt: str, events: Iterator[StreamEvent], control: Control) -> None:
        engine = self.session.engine
        self.turns.begin(prompt, time.perf_counter(), self._answer_begins)
        if not engine.settings.hide_thinking and self.session.think.mode != "off":
            self._unfold(is_unfolded=True)
        if engine.spec.thinks and (limit := limit_words(engine.thinking(self.session.think), engine.plan)):
            self.thinking.border_title = f"thinking · {limit}"
        self._holder.watch(control)
        self._exchange = Exchange(prompt, events, control, pace=self._pace, load_s=engine.load_s)
        self.frames.start()
        self._tell()

    def _frame(self) -> bool:
        """Show what came; return whether more may come."""
        exchange, showing = self._exchange, self.turns.showing
        if exchange is not None and showing is not None:
            for at_s, event in exchange.take():
                showing.feed(event, at_s)
            if exchange.has_ended:
                self._end(exchange, showing)
            else:
                showing.draw()
        if not self.is_busy or time.monotonic() - self._told_s >= TELL_S:
            self._tell()
        self._say_resumed()
        return self.is_busy or is_warming(self._session)

    def _say_resumed(self) -> None:
        warming = self._session.warming if self._session is not None else None
        words = warming.take_resumed() if warming is not None else ""
        if words:
            self.notify(words, timeout=4, markup=False)

    def _end(self, exchange: Exchange, showing: Showing) -> None:
        """Show how a reply ended and what can be done about it."""
        self._exchange = None
        reply, error = exchange.outcome()
        is_kept = error is None and self.session.unanswered is None
        self.turns.end(reply, _in_app(error), is_kept=is_kept)
        if is_kept:
            self._files.clear()
        if exchange.is_stopping:
            self.say("stopped")
        elif error is None:
            for note in notes_of(self.session.engine, reply, showing.meter.started):
                self.say(note.text, note.hint, is_warning=note.is_warning)
        if not is_kept and error is None:
            self.say("there was no answer, so the turn is not kept", "Ctrl+R asks again")
        self._say_notices()

    def _say_notices(self) -> None:
        notices = self._session.notices if self._session is not None else []
        while notices:
            self.say(notices.pop(0), is_warning=True)

    def _answer_begins(self) -> None:
        """Fold the thinking; ring, if it took long and that is wanted."""
        if not self._is_pinned:
            self._unfold(is_unfolded=False)
        if self._desk.bell and self.turns.showing is not None:
            waited_s = time.perf_counter() - self.turns.showing.meter.begun_s
            if waited_s > LONG_WAIT_S:
                self.app.bell()

    def _unfold(self, *, is_unfolded: bool) -> None:
        self.set_class(is_unfolded, "-unfolded")

    def stop(self) -> None:
        """Stop what is going on, and wait for the end of a reply."""
        self._opener.stop()
        if (exchange := self._exchange) is not None and self.turns.showing is not None:
            exchange.stop()
            exchange.join()
            for at_s, event in exchange.take():
                self.turns.showing.feed(event, at_s)
            self._end(exchange, self.turns.showing)

    def action_stop(self) -> None:
        """Stop what is going on: a model being opened, a reply on its way."""
        self._opener.stop()
        if self._exchange is not None:
            self._exchange.stop()
        self._tell()

    def action_interrupt(self) -> None:
        """Copy what is selected, else stop what is going on, else leave at the second press."""
        selected = self.get_selected_text() or self.entry.selected_text
        if selected:
            self._copy(selected, "the selection")
            self.clear_selection()
        elif self.is_busy:
            self.action_stop()
        elif time.monotonic() - self._pressed_s < LEAVE_S:
            self.app.exit()
        else:
            self._pressed_s = time.monotonic()
            self.notify("Ctrl+C again leaves", timeout=LEAVE_S, markup=False)

    def action_answer_now(self) -> None:
        """End the thinking, so that the answer begins."""
        if (
            self._exchange is not None
            and self.turns.showing is not None
            and self.turns.showing.meter.phase == "thinking"
        ):
            self._exchange.answer_now()
            self._tell()

    def action_switch_thinking(self) -> None:
        """Switch thinking off, or on again; holds from the next prompt on."""
        think = self.session.think
        if think.mode != "off":
            self._thought_before = think.word or UNSET
        self.set_live("think", self._thought_before if think.mode == "off" else "off")

    def action_regenerate(self) -> None:
        """Ask the last prompt again."""
        session = self._idle_session()
        if session.unanswered is None and not session.turns:
            raise UsageError("there is no answer to write anew", hint="write something first")
        prompt = session.unanswered if session.unanswered is not None else session.turns[-1][0]
        if len(self.turns):
            self.turns.drop_last()
        control = Control()
        self._stream(prompt, session.regenerate(control), control)

    def action_undo(self) -> None:
        """Take back the last turn; its prompt can be edited and sent again."""
        session = self._idle_session()
        if not len(self.turns):
            raise UsageError("there is no turn to take back")
        turn = self.turns.drop_last()
        if turn.is_kept:
            session.undo()
        else:
            session.unanswered = None
        if not self.entry.text:
            self.entry.put(turn.prompt)
        self.warm()

    def action_copy_answer(self) -> None:
        """Copy the last answer, exactly as the model wrote it."""
        self._copy(self.turns.last_answer, "the answer")

    def action_copy_all(self) -> None:
        """Copy the whole conversation as Markdown, thinking in block quotes."""
        self._copy(self.session.export_markdown() if self.session.turns else "", "the conversation")

    def _copy(self, text: str, what: str) -> None:
        if not text:
            raise UsageError("there is nothing to copy yet")
        self.app.copy_to_clipboard(text)
        self.notify(f"copied: {what}, {len(text):,} characters", timeout=3, markup=False)

    def action_unfold(self) -> None:
        """Fold the thinking, or unfold it."""
        self._is_pinned = not self.has_class("-unfolded")
        self._unfold(is_unfolded=self._is_pinned)

    def action_page(self, direction: int) -> None:
        """Scroll the conversation by a page."""
        self.conversation.page(direction)

    def action_page_thinking(self, direction: int) -> None:
        """Scroll the thinking by a page."""
        self.thinking.page(direction)

    def action_turn(self, step: int) -> None:
        """Go to an earlier or later turn, and show its thinking."""
        if self._exchange is None:
            self.turns.go(step)

    def action_end(self) -> None:
        """Go to the end of both panes and follow them."""
        self.conversation.follow()
        self.thinking.follow()

    def action_models(self) -> None:
        """Choose a model."""
        from slm_local.tui.screens.models import ModelsScreen

        def chosen(reference: str | None) -> None:
            if reference is not None:
                self.open(reference)
            elif self._session is None and not self._opener.is_opening:
                self.say("no model is open", "F4 chooses one")

        self.app.push_screen(ModelsScreen(self._desk.registry, is_first=self._reference is None), chosen)

    def action_chats(self) -> None:
        """Choose a kept chat to go on with."""
        from slm_local.tui.screens.chats import ChatsScreen

        store = self._desk.store
        if store is None:
            raise UsageError("chats are not kept here", hint="slm chat, without --no-log")

        def chosen(number: int | None) -> None:
            if number is not None:
                self.stop()
                self._session, self._chat = None, number
                self.open(store.chat(number).model)

        self.app.push_screen(ChatsScreen(store, current=self._session.chat if self._session else None), chosen)

    def action_new(self) -> None:
        """Begin a new conversation with the same model."""
        self._idle_session().clear()
        self.turns.show(())
        self.warm()

    def action_compare(self) -> None:
        """Put models beside each other; the open one gives its memory back until it is asked again."""
        from slm_local.tui.screens.compare import CompareScreen

        self.stop()
        self._holder.let_go()
        references = (self._reference,) if self._reference is not None else ()
        self.app.push_screen(CompareScreen(self._holder, references))

    def thinking_choices(self) -> list[tuple[str, str]]:
        """Return the words that say how far to think, each with what it costs here; none where that can't be said."""
        if self._session is None or not self._session.engine.spec.thinks:
            return []
        lines = (line.partition(": ") for line in thinking_words(self._session.engine.plan))
        return [(word, cost) for word, _, cost in lines if word.isalpha()]

    def drop_oldest(self) -> None:
        """Remove the oldest turn, to make room in the context."""
        if not self._idle_session().drop():
            raise UsageError("there is no turn to drop")
        self.turns.drop_oldest_kept()
        self.warm()

    def set_live(self, key: str, value: str) -> None:
        """Change a setting that can be changed while a model is open. Errors: `UsageError`."""
        session, name = self.session, setting_name(key)
        session.engine.settings = with_setting(session.engine.settings, key, value, REPL)
        self._changes[name] = value
        if name == "system":
            session.system = session.engine.settings.system or session.engine.spec.system
        session.think = session.engine.settings.think
        self.warm()
        self._tell()

    def _idle_session(self) -> ChatSession:
        if self._exchange is not None:
            raise UsageError("an answer is on its way", hint="Escape stops it")
        return self.session

    def _tell(self) -> None:
        """Bring the status line up to date."""
        self._told_s = time.monotonic()
        meter = self.turns.showing.meter if self.turns.showing is not None else None
        idle = "idle" if self._session is not None else "no model"
        state, hint, note = warming_words(self._session) or idle, "", ""
        if self._opener.is_opening:
            state = self._opener.words
        elif self._exchange is not None and meter is not None:
            now_s = self._exchange.now_s()
            state, note = "stopping" if self._exchange.is_stopping else meter.words(now_s), meter.note(now_s)
            if not self._exchange.is_stopping and meter.phase == "thinking":
                hint = "the answer comes" if self._exchange.is_hurried else answer_now_hint(self.session.engine, meter)
        self.status.tell(status_facts(self.reference, self._session, meter, state, hint, note))


def _in_app(error: SlmError | None) -> SlmError | None:
    """Give the errors that can be mended here the hint that mends them."""
    if isinstance(error, PromptTooLong):
        return PromptTooLong(error.message, hint="/drop removes the oldest turn, Ctrl+N begins anew")
    if isinstance(error, WorkerCrashed):
        return WorkerCrashed(error.message, hint="Ctrl+R asks again, in a new process")
    return error
