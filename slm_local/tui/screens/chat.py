"""The chat: thinking and answer as they come, the conversation so far, a place to write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer

from slm_local.config import REPL, with_setting
from slm_local.engine import Engine
from slm_local.errors import Interrupted, PromptTooLong, SlmError, UsageError, WorkerCrashed
from slm_local.generation import Control, Reply, StreamEvent, Thinking
from slm_local.paths import paths
from slm_local.session import ChatSession
from slm_local.tui.commands import run_command
from slm_local.tui.conversation import ConversationPane
from slm_local.tui.desk import Desk
from slm_local.tui.entries import Entries
from slm_local.tui.entry import Entry
from slm_local.tui.exchange import Exchange
from slm_local.tui.frames import Frames
from slm_local.tui.holding import Holder
from slm_local.tui.screens.confirm import Fetching
from slm_local.tui.showing import Showing, show_error, show_reply
from slm_local.tui.status import StatusFacts, StatusLine
from slm_local.tui.thinking import ThinkingPane

EMBEDDED_PACE = 60.0
"""Tokens a second at which the embedded models are shown: their own speed is too fast to be watched."""

WIDE_COLUMNS = 100
"""From here on the panes stand beside each other."""

LOW_ROWS = 16
"""Below this the panes have no frames."""

LONG_WAIT_S = 30.0
"""An answer that begins after so long rings, where that is wanted."""

LEAVE_S = 2.0
"""Two presses of Ctrl+C within this time leave."""


@dataclass(slots=True)
class Turn:
    """One turn as it is shown."""

    prompt: str
    reply: Reply | None = None
    """None while it is on its way."""
    is_kept: bool = False
    """Whether the model is shown it from now on."""


class ChatScreen(Screen[None]):
    """A conversation with one model."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+c", "interrupt", "Stop, or leave", show=False, priority=True),
        Binding("ctrl+t", "toggle_thinking", "Think on/off"),
        Binding("ctrl+r", "regenerate", "Ask again"),
        Binding("ctrl+z", "undo", "Undo turn"),
        Binding("ctrl+y", "copy_answer", "Copy answer"),
        Binding("f3", "copy_all", "Copy all"),
        Binding("f2", "unfold", "Thinking"),
        Binding("f4", "models", "Models"),
        Binding("f5", "compare", "Compare"),
        Binding("f6", "chats", "Chats"),
        Binding("ctrl+n", "new", "New chat"),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("shift+pageup", "page_thinking(-1)", "Thinking: page up", show=False),
        Binding("shift+pagedown", "page_thinking(1)", "Thinking: page down", show=False),
        Binding("ctrl+up", "turn(-1)", "Earlier turn", show=False),
        Binding("ctrl+down", "turn(1)", "Later turn", show=False),
        Binding("ctrl+end", "end", "Go to the end", show=False),
    ]

    @dataclass
    class Opened(Message):
        """A model is open."""

        reference: str
        engine: Engine

    @dataclass
    class Refused(Message):
        """A model could not be opened."""

        error: SlmError

    @dataclass
    class Told(Message):
        """What goes on while a model is opened."""

        text: str

    def __init__(self, desk: Desk, holder: Holder) -> None:
        super().__init__()
        self._desk, self._holder = desk, holder
        self._reference = desk.reference
        self._session: ChatSession | None = None
        self._files = list(desk.files)
        """What goes before the first prompt."""
        self._opening: Control | None = None
        self._opening_words = ""
        self._exchange: Exchange | None = None
        self._showing: Showing | None = None
        self._pace: float | None = None
        self._prompt_in_wait: str | None = None
        """Sent before the model was open."""
        self._chat = desk.chat
        """The kept chat to go on with once a model is open."""
        self._turns: list[Turn] = []
        """What the conversation pane shows."""
        self._shown_turn = 0
        """The turn whose thinking is shown."""
        self._is_pinned = False
        """Whether the person unfolded the thinking: it stays so."""
        self._frames = Frames(self, self._frame)
        self._pressed_s = 0.0
        self._thought_before = Thinking()
        """How it was thought before that was switched off."""

    def compose(self) -> ComposeResult:
        """Lay out the panes above the entry."""
        with Container(id="panes"):
            yield ThinkingPane(id="thinking")
            yield ConversationPane(id="conversation")
        yield Entry(Entries(paths().data / "history"), id="entry")
        yield StatusLine(id="status")
        yield Footer()

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
    def is_generating(self) -> bool:
        """Return whether a reply is on its way."""
        return self._exchange is not None

    def on_mount(self) -> None:
        """Open the model, or ask for one."""
        self.thinking.border_title = "thinking"
        self.conversation.border_title = "conversation"
        self.entry.focus()
        if self._reference is None:
            self.call_after_refresh(self.action_models)
        else:
            self.open(self._reference)

    def on_resize(self, event: events.Resize) -> None:
        """Put the panes beside or above each other."""
        self.set_class(event.size.width >= WIDE_COLUMNS, "-wide")
        self.set_class(event.size.height < LOW_ROWS, "-low")

    def open(self, reference: str) -> None:
        """Open a model in the place of the one before."""
        self._stop()
        self._opening = Control()
        self._opening_words = f"opening {reference}"
        self._holder.watch(self._opening)
        self._open(reference, self._opening)
        self._frames.start()

    @work(thread=True, group="opening")
    def _open(self, reference: str, control: Control) -> None:
        """Open a model, in a thread."""
        try:
            with Fetching(self.app, control) as fetching:
                engine = self._holder.open(
                    reference,
                    control=control,
                    on_status=self._relay,
                    confirm=fetching.confirm,
                    on_fetch=fetching.on_fetch,
                )
        except SlmError as error:
            self.post_message(self.Refused(error))
        except Exception as error:  # a bug of ours ends no conversation
            self.post_message(self.Refused(SlmError(f"a bug in slm: {type(error).__name__}: {error}")))
        else:
            self.post_message(self.Opened(reference, engine))

    def _relay(self, text: str) -> None:
        self.post_message(self.Told(text))

    @on(Told)
    def _told(self, event: Told) -> None:
        self._opening_words = event.text

    @on(Refused)
    def _refused(self, event: Refused) -> None:
        self._opening = None
        if isinstance(event.error, Interrupted):
            self.say("the model was not opened", hint="F4 chooses another")
        else:
            show_error(self.conversation, event.error)
            self.say("", hint="F4 chooses another model")
        if (prompt := self._prompt_in_wait) is not None:
            self._prompt_in_wait = None
            self.entry.put(prompt)
        self._tell()

    @on(Opened)
    def _opened(self, event: Opened) -> None:
        self._opening = None
        self._reference = event.reference
        try:
            if self._session is None:
                self._session = ChatSession(event.engine, store=self._desk.store, chat=self._chat)
                self._show_turns()
            else:
                self._session.switch(event.engine)
        except SlmError as error:
            self._refused(self.Refused(error))
            return
        plan = event.engine.plan
        self.say(f"{plan.spec.id} · {plan.variant.quant} · {plan.backend} on {plan.device}")
        for note in event.engine.notes:
            self.say(note)
        self._pace = self._pace_of(event.engine)
        self._tell()
        if (prompt := self._prompt_in_wait) is not None:
            self._prompt_in_wait = None
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
        elif event.text.startswith("/"):
            self.entry.take()
            try:
                run_command(self, event.text)
            except SlmError as error:
                show_error(self.conversation, error)
        elif self._exchange is not None:
            self.notify("an answer is on its way · Escape stops it", timeout=3, markup=False)
        elif self._session is None:
            self._prompt_in_wait = self.entry.take()
            self.say("sent as soon as the model is open")
        else:
            self.ask(self.entry.take())

    def ask(self, prompt: str) -> None:
        """Send a prompt."""
        session = self._open_session()
        whole = "\n\n".join([*self._files, prompt])
        control = Control()
        self._stream(whole, session.send(whole, control), control)

    def _stream(self, prompt: str, events: Iterator[StreamEvent], control: Control) -> None:
        engine = self._open_session().engine
        self.conversation.begin(prompt)
        self._turns.append(Turn(prompt))
        self._shown_turn = len(self._turns) - 1
        self._showing = Showing(self.thinking, self.conversation, time.perf_counter(), self._answer_begins)
        if not engine.settings.hide_thinking:
            self._unfold(is_unfolded=True)
        self._holder.watch(control)
        self._exchange = Exchange(prompt, events, control, pace=self._pace, load_s=engine.load_s)
        self._frames.start()

    def _frame(self) -> bool:
        """Show what came; return whether more may come."""
        exchange, showing = self._exchange, self._showing
        if exchange is not None and showing is not None:
            for at_s, event in exchange.take(time.perf_counter()):
                showing.feed(event, at_s)
            if exchange.has_ended:
                self._end(exchange, showing)
            else:
                showing.draw()
        self._tell()
        return self._exchange is not None or self._opening is not None

    def _end(self, exchange: Exchange, showing: Showing) -> None:
        """Show how a reply ended and what can be done about it."""
        session = self._open_session()
        self._exchange = None
        reply, error = exchange.outcome()
        showing.end(reply, _in_app(error) if error is not None else None)
        turn = self._turns[-1]
        turn.reply, turn.is_kept = reply, session.unanswered is None and error is None
        if exchange.is_stopping:
            self.say("stopped")
        if turn.is_kept:
            self._files.clear()
        elif error is None:
            self.say("there was no answer, so the turn is not kept", hint="Ctrl+R asks again")
        self._say_notices()

    def _say_notices(self) -> None:
        if self._session is not None:
            while self._session.notices:
                self.conversation.remark(self._session.notices.pop(0), "warning")

    def _answer_begins(self) -> None:
        """Fold the thinking; ring, if it took long and that is wanted."""
        if not self._is_pinned:
            self._unfold(is_unfolded=False)
        if self._desk.bell and self._showing is not None:
            waited_s = time.perf_counter() - self._showing.meter.begun_s
            if waited_s > LONG_WAIT_S:
                self.app.bell()

    def _unfold(self, *, is_unfolded: bool) -> None:
        self.set_class(is_unfolded, "-unfolded")

    def _show_turns(self) -> None:
        """Show the session's conversation from its beginning."""
        session = self._open_session()
        self._turns = [Turn(prompt, reply, is_kept=True) for prompt, reply in session.turns]
        self.conversation.drop_all()
        for turn in self._turns:
            self.conversation.begin(turn.prompt)
            if turn.reply is not None:
                show_reply(self.conversation, turn.reply)
        self._show_thinking(len(self._turns) - 1)

    def _show_thinking(self, number: int) -> None:
        self._shown_turn = max(0, number)
        reply = self._turns[number].reply if self._turns else None
        self.thinking.begin(reply.thinking if reply is not None else "")
        is_last = number == len(self._turns) - 1
        self.thinking.border_title = "thinking" if is_last else f"thinking · turn {number + 1} of {len(self._turns)}"

    def say(self, text: str, *, hint: str = "") -> None:
        """Say something in the conversation, and what to do about it."""
        if text:
            self.conversation.remark(text)
        if hint:
            self.conversation.remark(hint, "hint")

    def action_stop(self) -> None:
        """Stop what is going on: a model being opened, a reply on its way."""
        if self._opening is not None:
            self._opening.cancel()
        elif self._exchange is not None:
            self._exchange.stop()
        self._tell()

    def action_interrupt(self) -> None:
        """Copy what is selected, else stop what is going on, else leave at the second press."""
        if (selected := self.get_selected_text() or self.entry.selected_text) and not self._is_busy:
            self.app.copy_to_clipboard(selected)
            self.clear_selection()
            self.notify("copied", timeout=2, markup=False)
        elif self._is_busy:
            self.action_stop()
        elif time.monotonic() - self._pressed_s < LEAVE_S:
            self.app.exit()
        else:
            self._pressed_s = time.monotonic()
            self.notify("Ctrl+C again leaves", timeout=LEAVE_S, markup=False)

    @property
    def _is_busy(self) -> bool:
        return self._opening is not None or self._exchange is not None

    def action_answer_now(self) -> None:
        """End the thinking, so that the answer begins."""
        if self._exchange is not None and self._showing is not None and self._showing.meter.phase == "thinking":
            self._exchange.answer_now()
            self._tell()

    def action_toggle_thinking(self) -> None:
        """Switch thinking off, or on again."""
        session = self._open_session()
        if session.think.mode == "off":
            session.think = self._thought_before
        else:
            self._thought_before, session.think = session.think, Thinking(mode="off", word="off")
        self._tell()

    def action_regenerate(self) -> None:
        """Ask the last prompt again."""
        session = self._idle_session()
        if session.unanswered is None and not session.turns:
            raise UsageError("there is no answer to write anew", hint="write something first")
        prompt = session.unanswered if session.unanswered is not None else session.turns[-1][0]
        if self._turns:
            self._turns.pop()
            self.conversation.drop_last()
        control = Control()
        self._stream(prompt, session.regenerate(control), control)

    def action_undo(self) -> None:
        """Take back the last turn; its prompt can be edited and sent again."""
        session = self._idle_session()
        if not self._turns:
            return
        turn = self._turns.pop()
        if turn.is_kept:
            session.undo()
        else:
            session.unanswered = None
        self.conversation.drop_last()
        self._show_thinking(len(self._turns) - 1)
        if not self.entry.text:
            self.entry.put(turn.prompt)

    def action_copy_answer(self) -> None:
        """Copy the last answer, exactly as the model wrote it."""
        answer = next((turn.reply.answer for turn in reversed(self._turns) if turn.reply is not None), "")
        self._copy(answer, "the answer")

    def action_copy_all(self) -> None:
        """Copy the whole conversation as Markdown, thinking in block quotes."""
        self._copy(self._open_session().export_markdown() if self._turns else "", "the conversation")

    def _copy(self, text: str, what: str) -> None:
        if not text:
            raise UsageError("there is nothing to copy yet")
        self.app.copy_to_clipboard(text)
        self.notify(f"{what} is copied, {len(text):,} characters", timeout=3, markup=False)

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
        if self._exchange is None and self._turns:
            self._show_thinking(min(len(self._turns) - 1, max(0, self._shown_turn + step)))
            self.conversation.go_to_turn(self._shown_turn)

    def action_end(self) -> None:
        """Go to the end of the conversation and follow it."""
        self.conversation.follow()
        self.thinking.follow()

    def action_models(self) -> None:
        """Choose a model."""
        from slm_local.tui.screens.models import ModelsScreen

        def chosen(reference: str | None) -> None:
            if reference is not None:
                self.open(reference)
            elif self._session is None and self._opening is None:
                self.say("no model is open", hint="F4 chooses one")

        self.app.push_screen(ModelsScreen(self._desk.registry, is_first=self._reference is None), chosen)

    def action_chats(self) -> None:
        """Choose a kept chat to go on with."""
        from slm_local.tui.screens.chats import ChatsScreen

        if self._desk.store is None:
            raise UsageError("chats are not kept", hint="slm chat, without --no-log")

        def chosen(number: int | None) -> None:
            if number is not None:
                self._take_up(number)

        self.app.push_screen(ChatsScreen(self._desk.store), chosen)

    def _take_up(self, number: int) -> None:
        assert self._desk.store is not None
        model = self._desk.store.chat(number).model
        self._session, self._chat = None, number
        self.open(model)

    def action_new(self) -> None:
        """Begin a new conversation with the same model."""
        self._idle_session().clear()
        self._show_turns()

    def drop_oldest(self) -> None:
        """Remove the oldest turn, to make room in the context."""
        session = self._idle_session()
        if not session.drop():
            raise UsageError("there is no turn to drop")
        first = next(number for number, turn in enumerate(self._turns) if turn.is_kept)
        del self._turns[: first + 1]
        for _ in range(first + 1):
            self.conversation.drop_first()
        self._show_thinking(len(self._turns) - 1)

    def action_compare(self) -> None:
        """Put models beside each other; the open one gives its memory back until it is asked again."""
        from slm_local.tui.screens.compare import CompareScreen

        self._stop()
        self._holder.let_go()
        references = (self._reference,) if self._reference is not None else ()
        self.app.push_screen(CompareScreen(self._desk, references, self.entry.text or None))

    def set_live(self, key: str, value: str) -> None:
        """Change a setting that can be changed while a model is open. Errors: `UsageError`."""
        session = self._open_session()
        session.engine.settings = with_setting(session.engine.settings, key, value, REPL)
        session.think = session.engine.settings.think
        session.system = session.engine.settings.system or session.engine.spec.system
        self._tell()

    @property
    def session(self) -> ChatSession | None:
        """Return the conversation, None before a model is open."""
        return self._session

    @property
    def reference(self) -> str | None:
        """Return the model as it was typed."""
        return self._reference

    def _open_session(self) -> ChatSession:
        if self._session is None:
            raise UsageError("no model is open yet", hint="F4 chooses one")
        return self._session

    def _idle_session(self) -> ChatSession:
        if self._exchange is not None:
            raise UsageError("an answer is on its way", hint="Escape stops it")
        return self._open_session()

    def _stop(self) -> None:
        """Stop a reply on its way, and wait for its end."""
        if (exchange := self._exchange) is not None and self._showing is not None:
            exchange.stop()
            exchange.join()
            for at_s, event in exchange.take(time.perf_counter()):
                self._showing.feed(event, at_s)
            self._end(exchange, self._showing)

    def _tell(self) -> None:
        """Bring the status line up to date."""
        session, now_s = self._session, time.perf_counter()
        meter = self._showing.meter if self._showing is not None else None
        state = self._state(now_s)
        if session is None:
            self.status.tell(StatusFacts(model=self._reference or "", state=state))
            return
        plan = session.engine.plan
        word = session.think.word or session.think.mode
        self.status.tell(
            StatusFacts(
                model=plan.spec.id,
                engine=f"{plan.backend} {plan.device}",
                used_tokens=meter.used_tokens if meter is not None else 0,
                context_tokens=plan.context_tokens,
                tokens_per_s=meter.tokens_per_s if meter is not None else None,
                thinks="" if word == "auto" else f"think {word}",
                state=state,
            )
        )

    def _state(self, now_s: float) -> str:
        if self._opening is not None:
            return "stopping" if self._opening.cancelled else self._opening_words
        if self._exchange is None or self._showing is None:
            return "idle" if self._session is not None else "no model"
        if self._exchange.is_stopping:
            return "stopping"
        words = self._showing.meter.words(now_s)
        return f"{words} · Enter: answer now" if self._showing.meter.phase == "thinking" else words


def _in_app(error: SlmError) -> SlmError:
    """Give the errors that can be mended here the hint that mends them."""
    if isinstance(error, PromptTooLong):
        return PromptTooLong(error.message, hint="/drop removes the oldest turn, Ctrl+N begins anew")
    if isinstance(error, WorkerCrashed):
        return WorkerCrashed(error.message, hint="Ctrl+R asks again, in a new process")
    return error
