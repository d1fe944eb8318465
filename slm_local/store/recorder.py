"""Keeps a conversation while it happens: the prompt before it is answered, the text every second, the end at once.

Whatever happens to the store, the conversation goes on: what could not be kept becomes a notice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from slm_local.errors import SlmError
from slm_local.generation import AnswerDelta, Done, Finish, Reply, StreamEvent, ThinkDelta
from slm_local.metrics import Collector
from slm_local.store.store import Store
from slm_local.store.values import ChatKind, KeptTurn, PlanFacts, TurnState, UnknownChat

KEEP_EVERY_S = 0.5
"""At most one second of text may be lost; the rest of the second is for a busy processor and the disk."""


@dataclass(slots=True, kw_only=True, eq=False)
class Record:
    """A turn on its way into the store."""

    prompt: str
    model: str
    """The reference as typed."""
    system: str | None
    facts: PlanFacts
    id: int | None = None
    """Its number in the store; None: not kept (yet)."""
    generation: int = 0
    """The store's when the number was given."""
    ending: tuple[Reply, SlmError | None] | None = None
    state: TurnState = "live"
    kept: tuple[int, int] = (0, 0)
    """How many pieces of thinking and answer the store has."""
    thinking: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    collector: Collector = field(default_factory=Collector)
    stopped: threading.Event = field(default_factory=threading.Event)
    keeper: threading.Thread | None = None
    """Keeps its text while it grows; None where it does not."""

    def feed(self, event: StreamEvent) -> None:
        """Take note of an event; costs next to nothing."""
        self.collector.feed(event)
        match event:
            case ThinkDelta():
                self.thinking.append(event.text)
            case AnswerDelta():
                self.answer.append(event.text)
            case Done():
                self.ending = (event.reply, None)
            case _:
                pass


class Recorder:
    """Writes one conversation into a store; without a store it does nothing. One turn grows at a time."""

    def __init__(self, store: Store | None, *, kind: ChatKind = "chat", chat: int | None = None) -> None:
        self.chat = chat
        """The chat's number; None until its first turn is kept."""
        self.notices: list[str] = []
        """What a person is to be told; whoever tells it takes it out."""
        self._store = store
        self._kind: ChatKind = kind
        self._generation = store.generation if store is not None else 0
        self._described: tuple[str, str | None] | None = None
        """Model and system prompt that the store has of the chat."""
        self._unkept: list[Record] = []
        """Turns that ended while the store failed; written when it works again."""
        self._trouble = ""
        self._lock = threading.RLock()

    @contextmanager
    def turn(self, prompt: str, *, model: str, system: str | None, facts: PlanFacts) -> Iterator[Record]:
        """Keep a turn from its prompt to its end; feed the record every event, `finish` it at `Done`.

        One that is left before is kept as cancelled, one in which something was raised with its error.
        """
        record = Record(prompt=prompt, model=model, system=system, facts=facts)
        self._attempt(lambda store: self._begin(store, record))
        if self._store is not None:
            record.keeper = threading.Thread(target=self._keep_up, args=(record,), name="slm-recorder", daemon=True)
            record.keeper.start()
        finish: Finish = "cancelled"
        failure: SlmError | None = None
        try:
            yield record
        except Exception as error:
            finish, failure = "error", error if isinstance(error, SlmError) else SlmError(repr(error))
            raise
        finally:
            if record.ending is None:
                record.ending = (record.collector.reply(finish), failure)
            self.finish(record)

    def finish(self, record: Record) -> None:
        """Keep the end of a turn, at once, also of one that never grew here; a second call does nothing."""
        if record.stopped.is_set():
            return
        record.stopped.set()
        if record.keeper is not None:
            record.keeper.join()
        if not self._attempt(lambda store: self._end(store, record)):
            self._unkept.append(record)

    def known(self, turn: KeptTurn) -> Record:
        """Return the record of a turn that the store has already."""
        return Record(
            prompt=turn.prompt,
            model=turn.facts.model,
            system=None,
            facts=turn.facts,
            id=turn.id,
            generation=self._generation,
            ending=(turn.reply, None),
        )

    def mark(self, record: Record | None, state: TurnState) -> None:
        """Mark a finished turn with one of `MARKED_STATES`; None: there is none."""
        if record is not None:
            record.state = state
            self._attempt(lambda store: self._mark(store, record))

    def begin_anew(self) -> None:
        """Let what is said next be a chat of its own."""
        self.chat = self._described = None

    def _keep_up(self, record: Record) -> None:
        while not record.stopped.wait(KEEP_EVERY_S):
            self._attempt(lambda store: self._grow(store, record))

    def _grow(self, store: Store, record: Record) -> None:
        """Keep the text that came since the last time."""
        if self._is_unknown(store, record):
            self._begin(store, record)
        until = (len(record.thinking), len(record.answer))
        if until != record.kept:
            assert record.id is not None
            thinking, answer = record.thinking[record.kept[0] : until[0]], record.answer[record.kept[1] : until[1]]
            store.add_text(record.id, "".join(thinking), "".join(answer))
            record.kept = until

    def _begin(self, store: Store, record: Record) -> None:
        """Write a prompt, behind the turns that could not be written before."""
        self._note_generation(store)
        while self._unkept:
            self._end(store, self._unkept[0])
            del self._unkept[0]
        self._write(store, record)

    def _end(self, store: Store, record: Record) -> None:
        self._note_generation(store)
        if self._is_unknown(store, record):
            self._write(store, record)
        assert record.id is not None
        assert record.ending is not None
        store.end_turn(record.id, *record.ending)
        self._mark(store, record)

    def _write(self, store: Store, record: Record) -> None:
        """Write a prompt into the chat, which is begun if it must be."""
        with store.together():
            try:
                chat = self._described_chat(store, record)
                number = store.begin_turn(chat, record.prompt, record.facts)
            except UnknownChat:
                self.notices.append(f"chat {self.chat} was removed from the history; from here on it is a new one")
                self.begin_anew()
                chat = self._described_chat(store, record)
                number = store.begin_turn(chat, record.prompt, record.facts)
        self.chat, self._described = chat, (record.model, record.system)
        record.id, record.generation, record.kept = number, self._generation, (0, 0)

    def _described_chat(self, store: Store, record: Record) -> int:
        """Return the chat, its model and system prompt as they are now. Errors: `UnknownChat`."""
        if self.chat is None:
            return store.begin_chat(model=record.model, kind=self._kind, system=record.system)
        if self._described != (record.model, record.system):
            store.change_chat(self.chat, model=record.model, system=record.system)
        return self.chat

    def _mark(self, store: Store, record: Record) -> None:
        if record.state != "live" and not self._is_unknown(store, record):
            assert record.id is not None
            store.mark(record.id, record.state)

    def _is_unknown(self, store: Store, record: Record) -> bool:
        return record.id is None or record.generation != store.generation

    def _note_generation(self, store: Store) -> None:
        """Begin anew where the file is another one: a number of the old one may be another chat's in it."""
        if self._generation != store.generation:
            self.begin_anew()
            self._generation = store.generation

    def _attempt(self, action: Callable[[Store], None]) -> bool:
        """Do something with the store; return whether that went well, or there is none."""
        if self._store is None:
            return True
        with self._lock:  # a turn that grows is kept in a thread of its own
            try:
                action(self._store)
                self._trouble = ""
            except SlmError as error:
                if error.message != self._trouble:
                    self.notices.append(" · ".join(filter(None, (f"not kept: {error.message}", error.hint))))
                self._trouble = error.message
            self.notices += self._store.take_notices()
            return not self._trouble
