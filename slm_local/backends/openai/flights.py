"""One reply that is on its way from a server: begun, read, gone on with behind a text of ours, given up."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slm_local.backends.openai.bodies import chat_body, completion_body
from slm_local.backends.openai.kinds import Server
from slm_local.backends.openai.link import Event, Link, Stream
from slm_local.backends.openai.reading import Reader
from slm_local.backends.openai.refusals import broken_off
from slm_local.backends.openai.rendering import Renderer
from slm_local.backends.openai.watching import Watch
from slm_local.errors import RemoteFailed, SlmError
from slm_local.generation import (
    Failed,
    Handle,
    Note,
    Piece,
    Prompt,
    PromptProgress,
    ReasoningTags,
    Sampling,
    ThinkControl,
    ThinkState,
    Update,
)
from slm_local.reasoning import ReasoningParser
from slm_local.sanitize import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """A text that is put behind a reply, and its tokens."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What all replies of an open model share."""

    link: Link
    server: Server
    renderer: Renderer
    tags: ReasoningTags | None
    think: ThinkControl
    closing: Injection
    """What ends thinking in the model's place."""
    bridge: str
    """The part of it before the closing tag."""
    close_id: int | None
    """The closing tag's token, where it is one."""
    open_ids: tuple[int, ...]
    """The opening tag's tokens."""
    inbox: queue.SimpleQueue[tuple[Flight, int, Event] | None]
    refused: set[str] = field(default_factory=set)
    """Fields of its kind that this very server turned out not to take."""
    formats: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The form in which the server takes each schema, by its text."""


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """One reply. One thread; what the link's thread tells waits in the session's inbox."""

    session: Session
    handle: Handle
    prompt: Prompt
    sampling: Sampling
    text: str = ""
    """All that was handed out, tags among it: what the next prompt holds behind the rendered one."""
    ids: list[int] | None = field(default_factory=list)
    """Its tokens; None where not all are known."""
    generated: int = 0
    is_over: bool = False
    _leg: int = 0
    """Counts the streams that were begun: what an earlier one still tells is passed over."""
    _stream: Stream | None = None
    _reader: Reader | None = None
    _asked: int | None = None
    """Most tokens that this leg was asked for."""
    _due: deque[Update] = field(default_factory=deque)
    _is_read: bool = False
    _schema: str | None = None
    """What all that comes from here on is held to."""
    _watch: Watch | None = None
    """Follows thinking, where the server is to keep to a limit of it and counts its tokens."""

    def __post_init__(self) -> None:
        request, session = self.prompt.request, self.session
        most = request.think_tokens if request is not None else None
        if self.prompt.is_kept and session.server.kind.counts and session.tags is not None and most is not None:
            self._watch = Watch(most, session.tags, self.prompt.think_state, session.closing.text)

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is asked for that would be: it is to begin."""
        return self._stream is None and not self._due and not self.is_over

    @property
    def has_news(self) -> bool:
        """Return whether there is something to hand out."""
        return bool(self._due)

    def begin(self) -> None:
        """Ask for the reply, or for more of it behind what there is."""
        is_fresh = not self.text and self._schema is None
        is_chat = is_fresh and not self.prompt.opening and self.prompt.ids is None
        self._leg += 1
        leg, inbox = self._leg, self.session.inbox
        self._reader = Reader(
            kind=self.session.server.kind,
            tags=self.session.tags,
            state=self._state(),
            is_chat=is_chat,
            close_id=self.session.close_id,
            end_text=self.session.server.eos_text,
            prompt_tokens=self.handle.prompt_tokens,
        )
        path, body = ("chat/completions", self._chat) if is_chat else ("completions", self._completion)
        self._stream = self.session.link.stream(path, body, lambda event: inbox.put((self, leg, event)))

    def take(self, leg: int, event: Event) -> None:
        """Take what the link told."""
        if leg != self._leg or self._reader is None or self.is_over:
            return
        budget = self.session.server.kind.budget
        if isinstance(event, SlmError) and self.prompt.is_kept and budget in event.message and not self.text:
            self.session.refused.add(budget)  # vLLM without a reasoning parser: the limit is kept to from here
            self.begin()
        elif isinstance(event, SlmError):
            self._fail(event)
        elif event is not None:
            self._read(event, self._reader)
        elif self._reader.is_ended:
            self._end(self._reader)
        else:
            address = self.session.link.address
            self._fail(broken_off(address, RemoteFailed("the stream ended before the reply did")))

    def next(self) -> list[Update]:
        """Return what is next: progress, then at most one piece, as the governor is asked between pieces."""
        found: list[Update] = []
        while self._due:
            update = self._due.popleft()
            if not isinstance(update, Piece):
                found.append(update)
                continue
            released, is_over = self._watch.released(update) if self._watch is not None else ([update], False)
            for piece in released:
                self._keep(piece)
            found += released
            if is_over:
                self.inject(self.session.closing)
            elif released:
                break
        return found

    def inject(self, what: Injection) -> None:
        """Go on behind a text, dropping what was not handed out yet."""
        self.give_up()
        self.is_over = False
        if self._watch is not None:
            self._watch.drop()
        self._due = deque(each for each in self._due if isinstance(each, PromptProgress | Note))
        self._due += self._whole_prompt()
        self._due.append(Piece(handle=self.handle, text=what.text, ids=what.ids, injected=True))

    def constrain(self, schema: str) -> None:
        """Go on under a schema, dropping what the server wrote and was not handed out yet."""
        self.give_up()
        self.is_over = False
        self._schema = schema
        self._due = deque(each for each in self._due if not isinstance(each, Piece | Failed) or _is_ours(each))

    def give_up(self) -> None:
        """Close the connection, if there is one."""
        self._leg += 1
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def _chat(self) -> dict[str, Any]:
        session, request = self.session, self.prompt.request
        self._asked = request.max_tokens if request is not None else None
        begun = 0
        if session.server.kind.budget_holds_prompt:
            begun = tokens_behind(session.open_ids, self.prompt.rendered)
        body = chat_body(self.prompt, self.sampling, session.server, session.think, session.bridge, begun)
        return {name: value for name, value in body.items() if name not in session.refused}

    async def _completion(self) -> dict[str, Any]:
        prompt, request = self.prompt, self.prompt.request
        assert request is not None
        if prompt.ids is not None:
            ids = list(prompt.ids)
        else:
            ids = [*prompt.rendered, *await self.session.renderer.tokens(prompt.opening)]
        ids += self.ids if self.ids is not None else await self.session.renderer.tokens(self.text)
        left = request.max_tokens
        if left is not None and self.session.server.kind.counts:
            left = max(1, left - self.generated)
        self._asked = left
        schema = self._schema
        if schema is None and self.session.server.kind.schema:
            schema = request.schema
        response_format = self.session.formats[schema] if schema is not None else None
        body = completion_body(ids, self.sampling, self.session.server, left, response_format)
        tags, shown = self.session.tags, self.session.server.kind.shown
        return {**body, shown: [tags.open, tags.close, *tags.skip]} if tags is not None and shown else body

    def _state(self) -> ThinkState:
        """Return how the text so far leaves thinking."""
        if self.prompt.ids is not None or not self.text or self.session.tags is None:
            return self.prompt.think_state
        parser = ReasoningParser(self.session.tags, state=self.prompt.think_state)
        parser.feed(self.text)
        return "open" if parser.in_thinking else "closed"

    def _read(self, event: dict[str, Any], reader: Reader) -> None:
        stretches = reader.feed(event)
        if self._learn(reader) and reader.read_tokens is not None and not self._is_read:
            done, total = reader.read_tokens, self.handle.prompt_tokens or 0
            if done < total:
                self._due.append(PromptProgress(handle=self.handle, done_tokens=done, total_tokens=total))
        for each in stretches:
            self._due += self._whole_prompt()
            self._due.append(Piece(handle=self.handle, text=each.text, ids=each.ids, tokens=each.tokens))

    def _learn(self, reader: Reader) -> bool:
        """Note what the server says of the prompt; True where its length is known. Later legs read it again."""
        if self._leg == 1 and reader.prompt_tokens is not None:
            self.handle = replace(self.handle, prompt_tokens=reader.prompt_tokens, cached_tokens=reader.cached_tokens)
        return self.handle.prompt_tokens is not None

    def _whole_prompt(self) -> list[Update]:
        """Return the progress that says that all of the prompt was read, once."""
        total = self.handle.prompt_tokens
        if self._is_read or total is None:
            self._is_read = True
            return []
        self._is_read = True
        return [PromptProgress(handle=self.handle, done_tokens=total, total_tokens=total)]

    def _end(self, reader: Reader) -> None:
        self._stream = None
        last, end, told = reader.end(self._asked)
        if told is not None and self._leg > 1:  # what it counted is only what came after the last text of ours
            told = replace(
                told,
                prompt_tokens=self.handle.prompt_tokens,
                cached_tokens=None,
                generated_tokens=None,
                think_tokens=None,
            )
        self._due += [Note(handle=self.handle, text=f"the server says: {one_line(each)}") for each in reader.warnings]
        self._due += self._whole_prompt()
        self._due.append(
            Piece(handle=self.handle, text=last.text, ids=last.ids, tokens=last.tokens, end=end, told=told)
        )

    def _fail(self, error: SlmError) -> None:
        self.give_up()
        self.is_over = True
        self._due.append(Failed(handle=self.handle, record=error.record()))

    def _keep(self, piece: Piece) -> None:
        """Note what is handed out: text and tokens that a later prompt goes on behind."""
        self.text += piece.text
        self.generated += piece.count
        if self._watch is not None:
            self._watch.took(piece)
        if piece.end is not None:
            self.is_over = True
            return  # the token that ended it is no part of what is gone on behind
        if self.ids is not None and len(piece.ids) == piece.count and (piece.ids or not piece.text):
            self.ids += piece.ids
        else:
            self.ids = None


def tokens_behind(tag: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many tokens of a prompt stand behind its last opening tag; 0 where there is none."""
    for at in range(len(prompt) - len(tag), -1, -1):
        if tag and tuple(prompt[at : at + len(tag)]) == tuple(tag):
            return len(prompt) - at - len(tag)
    return 0


def _is_ours(update: Update) -> bool:
    return isinstance(update, Piece) and update.injected
