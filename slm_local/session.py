"""A conversation with an open model: history plus engine, kept while it happens where there is a store.

The history holds no thinking, whatever the model's template would do with it, and nothing leaves it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from slm_local import samples
from slm_local.engine import Engine
from slm_local.errors import UsageError
from slm_local.generation import Control, Done, GenerationRequest, Message, Reply, StreamEvent, Thinking
from slm_local.samples import Sample, SampleEvent, SampleMessage, Vote
from slm_local.samples.variety import seeded
from slm_local.store import ChatKind, Exchange, PlanFacts, Record, Recorder, Store, facts_of, markdown


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    prompt: str
    reply: Reply
    record: Record


class ChatSession:
    """One conversation. A turn that was refused, failed or gave no answer leaves the history as it was.

    With a store every turn is kept, the failed ones, too; `notices` says what could not be. `chat` is the number of a
    kept chat to go on with. Errors of making one: `UnknownChat`, `HistoryUnusable`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        store: Store | None = None,
        kind: ChatKind = "chat",
        chat: int | None = None,
    ) -> None:
        self.engine = engine
        self.system = system if system is not None else engine.system
        self.think: Thinking = engine.settings.think
        self.last_reply: Reply | None = None
        self.unanswered: str | None = None
        """The prompt said last, where no answer to it was kept; `regenerate` asks it again."""
        self._failed: Record | None = None
        """The record of that prompt."""
        self._turns: list[_Turn] = []
        self._recorder = Recorder(store, kind=kind, chat=chat)
        if store is not None and chat is not None:
            self._take_up(store, chat, has_system=system is not None)

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
        """Say something; yield the reply's events. Errors: those of `Engine.stream`."""
        self.unanswered, self._failed = text, None
        request = self._request(text)
        facts = facts_of(self.engine.plan, request)
        with self._recorder.turn(text, model=self.engine.reference, system=self.system, facts=facts) as record:
            self._failed = record
            for event in self.engine.stream(request, control):
                record.feed(event)
                if isinstance(event, Done):
                    self._recorder.finish(record)
                    self._answered(text, event.reply, record)
                yield event

    def sample(
        self, text: str, seeds: Sequence[int], *, stops_early: bool = False, control: Control | None = None
    ) -> Iterator[SampleMessage]:
        """Say something and have it answered once for each seed; yield what happens. It goes on with the winner.

        Every sample is kept once it ended, sample 0 while it comes. Errors: those of `samples.draw`,
        `UsageError` as `samples.check_variety`.
        """
        self.unanswered, self._failed = text, None
        engine = self.engine
        count = len(seeds)
        samples.check_variety(count, engine.settings.sampling)
        request = samples.varied(self._request(text), count)

        def facts(seed: int) -> PlanFacts:
            return facts_of(engine.plan, seeded(request, seed), samples=count if count > 1 else None)

        recorder, model = self._recorder, engine.reference
        records: dict[int, Record] = {}
        last: Vote | None = None
        try:
            with recorder.turn(text, model=model, system=self.system, facts=facts(seeds[0])) as first:
                for message in samples.draw(engine, request, seeds=seeds, stops_early=stops_early, control=control):
                    match message:
                        case SampleEvent(sample=0):
                            first.feed(message.event)
                        case Sample(number=number, seed=seed):
                            other = Record(prompt=text, model=model, system=self.system, facts=facts(seed))
                            record = records[number] = first if number == 0 else other
                            record.ending, record.state = (message.reply, message.error), "sample"
                            recorder.finish(record)
                        case Vote():
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

    def _request(self, text: str) -> GenerationRequest:
        return self.engine.request((*self.messages, Message(role="user", content=text)), think=self.think)

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
        """Begin a new conversation; the system prompt stays, and what was kept stays kept."""
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
