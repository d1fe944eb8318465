"""A conversation with an open model: history plus engine, kept while it happens where there is a store.

The history holds no thinking, whatever the model's template would do with it, and nothing leaves it by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slm_local.engine import Engine, Warming
from slm_local.errors import UsageError
from slm_local.generation import Control, Done, GenerationRequest, Message, Reply, StateMoved, StreamEvent, Thinking
from slm_local.resuming import Leaving, Resuming, Waiting
from slm_local.store import (
    ChatKind,
    Exchange,
    HistoryUnusable,
    PlanFacts,
    Record,
    Recorder,
    States,
    Store,
    UnknownChat,
    facts_of,
    markdown,
)

if TYPE_CHECKING:
    from slm_local.samples import SampleMessage, Vote  # only who draws several needs them

UNNOTICED_S = 0.3
"""How long whoever leaves may wait for a preparation that is nearly over: then all of it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    prompt: str
    reply: Reply
    record: Record


class ChatSession:
    """One conversation. A turn that was refused, failed or gave no answer leaves the history as it was.

    With a store every turn is kept, the failed ones, too; `notices` says what could not be. `chat` is the number of a
    kept chat to go on with; `begins` is what its first prompt is known to begin with. Errors of making one:
    `UnknownChat`, `HistoryUnusable`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        store: Store | None = None,
        kind: ChatKind = "chat",
        chat: int | None = None,
        begins: str = "",
    ) -> None:
        self.engine = engine
        self.system = system if system is not None else engine.system
        self.think: Thinking = engine.settings.think
        self.schema: str | None = None
        """A JSON Schema, as text, that answers have to match."""
        self.last_reply: Reply | None = None
        self.unanswered: str | None = None
        """The prompt said last, where no answer to it was kept; `regenerate` asks it again."""
        self.warming: Warming | None = None
        """What is read for the next prompt while nobody waits, or how that ended; None where nothing was."""
        self.restored: StateMoved | None = None
        """What came of the kept KV state that the newest request was to find; None where there was none."""
        self._is_chat, self._begins, self._store = kind == "chat", begins, store
        self._failed: Record | None = None
        """The record of that prompt."""
        self._turns: list[_Turn] = []
        self._recorder = Recorder(store, kind=kind, chat=chat)
        self._resuming = Resuming(States(store.path.parent, engine.settings.state_cache_gb) if store else None)
        if store is not None and chat is not None:
            self._take_up(store, chat, has_system=system is not None)
            self._resuming.look_for_chat(chat)
        elif begins:
            self._resuming.look_for_start(engine, self._next(begins))

    @property
    def messages(self) -> tuple[Message, ...]:
        """Return the conversation as the model is shown it."""
        shown = [Message(role="system", content=self.system)] if self.system else []
        for turn in self._turns:
            shown.append(Message(role="user", content=turn.prompt))
            shown.append(Message(role="assistant", content=turn.reply.answer))
        return tuple(shown)

    @property
    def turns(self) -> tuple[tuple[str, Reply], ...]:
        """Return every prompt with its reply, thinking included, oldest first."""
        return tuple((turn.prompt, turn.reply) for turn in self._turns)

    @property
    def chat(self) -> int | None:
        """Return the number under which the conversation is kept; None where it is not (yet)."""
        return self._recorder.chat

    @property
    def notices(self) -> list[str]:
        """Return what a person is to be told of the keeping; whoever tells it takes it out of this list."""
        return self._recorder.notices

    def send(self, text: str, control: Control | None = None) -> Iterator[StreamEvent]:
        """Say something; yield the reply's events. Errors: those of `Engine.stream`.

        In a chat, what the next prompt will begin with is prepared once the reply is over.
        """
        self.unanswered, self._failed = text, None
        request = self._request(text)
        self._restore()
        facts = facts_of(self.engine.plan, request)
        with self._recorder.turn(text, model=self.engine.reference, system=self.system, facts=facts) as record:
            self._failed = record
            for event in self.engine.stream(request, control):
                record.feed(event)
                if isinstance(event, Done):
                    self._recorder.finish(record)
                    self._answered(text, event.reply, record)
                yield event
        if self._is_chat:
            self.prepare()

    def prepare(self, begins: str = "") -> None:
        """Have what the next prompt will begin with read while nobody waits; returns at once, and never fails.

        `begins` is what is known of the text that will be said next.
        """
        messages, restore = self._next(begins), self._resuming.restoring(self.engine)
        is_known = len(messages) > 1 or begins
        self.warming = self.engine.prepare(messages, think=self.think, restore=restore) if is_known else None

    def keep(self, on_wait: Waiting) -> str:
        """Save the KV state of the conversation, which is about to be left, beside the history; return why not.

        It blocks; Ctrl-C ends it, and the engine with it. Of a single question nothing is kept but what it begins
        with, where that is known and long; a conversation that was gone on with is kept whole.
        """
        leaving = self._leaving()
        if leaving is None or self._store is None:
            return ""
        if self.warming is not None:
            self.warming.wait(UNNOTICED_S)
        try:
            self._store.chat(leaving.chat)
        except (UnknownChat, HistoryUnusable) as error:
            return error.message
        return self._resuming.keep(self.engine, leaving, on_wait)

    def _leaving(self) -> Leaving | None:
        """Return what is to be kept of the conversation; None for nothing."""
        chat, is_start = self.chat, len(self._turns) < 2 and not self._is_chat
        if chat is None or not self._turns or (is_start and not self._begins):
            return None
        system = tuple(message for message in self.messages if message.role == "system")
        known = (*system, Message(role="user", content=self._begins)) if is_start else self._next("")
        return Leaving(chat=chat, messages=known, think=self.think, is_start=is_start)

    def _next(self, text: str) -> tuple[Message, ...]:
        return (*self.messages, Message(role="user", content=text))

    def sample(
        self, text: str, seeds: Sequence[int], *, stops_early: bool = False, control: Control | None = None
    ) -> Iterator[SampleMessage]:
        """Say something and have it answered once for each seed; yield what happens. It goes on with the winner.

        Every sample is kept once it ended, sample 0 while it comes. Errors: those of `samples.draw`,
        `UsageError` as `samples.check_variety`.
        """
        from slm_local import samples

        self.unanswered, self._failed = text, None
        engine = self.engine
        count = len(seeds)
        samples.check_variety(count, engine.settings.sampling)
        request = samples.varied(self._request(text), count)
        self._restore()

        def facts(seed: int) -> PlanFacts:
            return facts_of(engine.plan, samples.seeded(request, seed), samples=count if count > 1 else None)

        recorder, model = self._recorder, engine.reference
        records: dict[int, Record] = {}
        last: Vote | None = None
        try:
            with recorder.turn(text, model=model, system=self.system, facts=facts(seeds[0])) as first:
                for message in samples.draw(engine, request, seeds=seeds, stops_early=stops_early, control=control):
                    match message:
                        case samples.SampleEvent(sample=0):
                            first.feed(message.event)
                        case samples.Sample(number=number, seed=seed):
                            other = Record(prompt=text, model=model, system=self.system, facts=facts(seed))
                            record = records[number] = first if number == 0 else other
                            record.ending, record.state = (message.reply, message.error), "sample"
                            recorder.finish(record)
                        case samples.Vote():
                            last = message
                    yield message
        finally:
            self._take_sample(text, last, records)

    def _take_sample(self, text: str, vote: Vote | None, records: Mapping[int, Record]) -> None:
        """Go on with the winner of a vote, without one with the first sample, as with a reply that was cut."""
        if vote is None:
            return
        chosen = vote.winner or vote.samples[0]
        self._recorder.mark(records[chosen.number], "done")
        self._answered(text, chosen.reply, records[chosen.number])

    def _restore(self) -> None:
        restore = self._resuming.restoring(self.engine)
        self.restored = restore() if restore is not None else None

    def _request(self, text: str) -> GenerationRequest:
        return replace(self.engine.request(self._next(text), think=self.think), schema=self.schema)

    def regenerate(self, control: Control | None = None) -> Iterator[StreamEvent]:
        """Answer the last prompt anew; the old answer stays when there is no new one. Errors: `UsageError`."""
        if (text := self.unanswered) is not None:
            failed = self._failed
            yield from self.send(text, control)
            self._recorder.mark(failed, "replaced")
            return
        if not self._turns:
            raise UsageError("there is no answer to write anew", hint="say something first")
        old = self._turns.pop()
        before = len(self._turns)
        try:
            yield from self.send(old.prompt, control)
        finally:
            if len(self._turns) == before:
                self._turns.append(old)
                self.unanswered = None
                self._recorder.mark(self._failed, "undone")
            else:
                self._recorder.mark(old.record, "replaced")

    def undo(self) -> str | None:
        """Remove the newest turn; return its prompt, or None when there is none."""
        if not self._turns:
            return None
        turn = self._turns.pop()
        self._recorder.mark(turn.record, "undone")
        return turn.prompt

    def drop(self) -> int:
        """Remove the oldest turn; return how many messages went."""
        if not self._turns:
            return 0
        self._recorder.mark(self._turns.pop(0).record, "dropped")
        return 2

    def clear(self) -> None:
        """Begin a new conversation; the system prompt stays, and what was kept stays kept.

        The KV state of the old one is saved meanwhile, in a thread of its own.
        """
        if (leaving := self._leaving()) is not None:
            arguments = (self.engine, leaving, lambda waited_s: None)
            threading.Thread(target=self._resuming.keep, args=arguments, name="keeping", daemon=True).start()
        self._turns.clear()
        self.unanswered = self._failed = None
        self._recorder.begin_anew()

    def switch(self, engine: Engine) -> None:
        """Go on with another model; the history is kept, the old engine is the caller's to close."""
        self.engine = engine

    def export_markdown(self) -> str:
        """Return the conversation as Markdown, thinking in block quotes."""
        exchanges = (Exchange(prompt=p, thinking=reply.thinking, answer=reply.answer) for p, reply in self.turns)
        return markdown(f"Chat with {self.engine.spec.id}", self.system, exchanges)

    def _answered(self, text: str, reply: Reply, record: Record) -> None:
        self.last_reply = reply
        if reply.answer:
            self._turns.append(_Turn(prompt=text, reply=reply, record=record))
            self.unanswered = self._failed = None

    def _take_up(self, store: Store, number: int, *, has_system: bool) -> None:
        """Go on where a kept chat was left."""
        chat = store.chat(number)
        if not has_system and chat.system is not None:
            self.system = chat.system
        for turn in chat.turns:
            record = self._recorder.known(turn)
            if turn.is_shown_to_the_model:
                self._turns.append(_Turn(prompt=turn.prompt, reply=turn.reply, record=record))
        last = chat.turns[-1]
        if last.state in ("done", "interrupted") and not last.is_shown_to_the_model:
            self.unanswered, self._failed = last.prompt, record
