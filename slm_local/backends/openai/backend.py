"""The seam's remote end: a model on a server that speaks OpenAI's protocol.

The server renders, samples and batches; here its streams become pieces, and where it lets a client go on behind token
ids, thinking is ended as on any engine. It runs in threads of the parent, no process: nothing is computed.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Sequence
from dataclasses import replace

from slm_local.backends.base import known_ids, misbegun, prompt_too_long
from slm_local.backends.openai.address import Address, address_of
from slm_local.backends.openai.bodies import check, sampling_fields
from slm_local.backends.openai.finding import find
from slm_local.backends.openai.flights import Flight, Injection, Session
from slm_local.backends.openai.kinds import OTHER, Server
from slm_local.backends.openai.link import ANSWER_S, Link
from slm_local.backends.openai.rendering import Renderer, prompt_of
from slm_local.backends.openai.schemas import format_of
from slm_local.errors import RemoteFailed, UsageError
from slm_local.generation import (
    Control,
    GenerationRequest,
    Handle,
    LoadSettings,
    ModelFacts,
    Prompt,
    Sampling,
    ThinkControl,
    Update,
)
from slm_local.governor import Closing, closing_for, closing_texts

WAIT_S = 0.02
"""Longest wait of a step: other requests begin, and limits of time are looked at, between steps."""

MOST_REQUESTS = 64
"""At once, to a server that does not say how many it serves: it queues them itself."""


class OpenAiBackend:
    """One model of one server."""

    def __init__(self) -> None:
        self.capabilities: frozenset[str] = frozenset({"chat"})
        self.max_sequences = MOST_REQUESTS
        self._session: Session | None = None
        self._link: Link | None = None
        self._flights: dict[int, Flight] = {}
        self._handles = itertools.count(1)
        self._ids_of: dict[str, tuple[int, ...]] = {}
        self._woken_by: Control | None = None

    def load(self, settings: LoadSettings, control: Control, on_progress: Callable[[float], None]) -> ModelFacts:
        """Find the server and the model. Errors: `RemoteFailed`, `UnknownModel`, `UsageError`, `Interrupted`."""
        if settings.template is not None:
            raise UsageError("a remote engine has its own chat template", hint="leave --template out")
        address = address_of(settings.model_path, settings.remote_model, settings.key_env)
        link = Link(address)
        try:
            server = link.run(find(link, address), control=control)
            self._session = link.run(self._session_of(link, server, settings), control=control)
        except BaseException:
            link.close()
            raise
        self._link = link
        self.capabilities = frozenset(_capabilities(server))
        self.max_sequences = server.places or MOST_REQUESTS
        on_progress(1.0)
        return self._facts(address, server, settings)

    def prompt_for(self, request: GenerationRequest, control: Control) -> Prompt:
        """Return a request's prompt, rendered where the server tells how. Errors: see `Chats`."""
        session, link = self._opened()
        server = session.server
        check(request, server)
        if request.schema is not None and request.think == "auto" and server.goes_on_for_schema:
            request = replace(request, think="open")  # where the answer begins must not be for the model to decide
        if request.prompt_ids is not None:
            if server.kind is OTHER:
                raise UsageError("this server takes no token ids", hint="ask it in words: slm run MODEL '...'")
            ids = request.prompt_ids
            if server.vocabulary_size is not None:
                ids = tuple(known_ids(ids, server.vocabulary_size))
            return Prompt(ids=ids, think_state="closed", request=request)
        if not server.is_rendering:
            return Prompt(request=request, is_kept=self._keeps(request))
        prompt = link.run(
            prompt_of(session.renderer, request, session.tags, session.think), within_s=ANSWER_S, control=control
        )
        if prompt.opening or prompt.think_state == "closed" or not self._keeps(request):
            return prompt
        return Prompt(
            request=request,
            rendered=prompt.rendered,
            think_state=prompt.think_state,
            switch=prompt.switch,
            is_kept=True,
        )

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt's tokens, as far as the server tells them."""
        return list(prompt.ids if prompt.ids is not None else prompt.rendered)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Refuse to look at tokens one by one. Errors: `UsageError`."""
        del ids
        raise UsageError("the tokens of a remote engine can't be looked at from here", hint="ask it: /tokenize")

    def add(self, prompt: Prompt, sampling: Sampling | None) -> Handle:
        """Queue a request; nothing is sent before the next step. Errors: `PromptTooLong`, `UsageError`."""
        session, _ = self._opened()
        sampling = sampling or Sampling()
        sampling_fields(sampling, session.server)
        known = len(self.token_ids(prompt)) + (self.token_count(prompt.opening) if prompt.opening else 0)
        context = session.server.context_tokens
        if context is not None and known >= context:
            raise prompt_too_long(known, context, context)
        handle = Handle(id=next(self._handles), prompt_tokens=known or None, cached_tokens=None)
        self._flights[handle.id] = Flight(session=session, handle=handle, prompt=prompt, sampling=sampling)
        return handle

    def step(self, control: Control) -> list[Update]:
        """Hand out what came, at most one piece a sequence; wait for it a moment."""
        session, _ = self._opened()
        if control is not self._woken_by:
            self._woken_by = control
            control.on_cancel(lambda: session.inbox.put(None))
        for flight in self._flights.values():
            if flight.is_idle:
                flight.begin()
        self._collect(session)
        return [update for flight in list(self._flights.values()) for update in flight.next()]

    def inject(self, handle: Handle, text: str) -> None:
        """Go on behind a text. Errors: `RemoteFailed` where the server won't say its tokens."""
        self._flights[handle.id].inject(Injection(text=text, ids=self._ids(text)))

    def check_schema(self, schema: str) -> None:
        """Ask the server whether it can hold an answer to a schema. Errors: `UsageError`, `RemoteFailed`."""
        session, link = self._opened()
        if schema not in session.formats:
            session.formats[schema] = link.run(format_of(schema, link, session.server))

    def constrain(self, handle: Handle, schema: str, begun: str = "") -> None:
        """Go on with a completion that matches a schema. Errors: `SlmError` for an answer that began otherwise."""
        if begun.strip():
            raise misbegun(begun)
        self._flights[handle.id].constrain(schema)

    def fork(self, handle: Handle, text: str, sampling: Sampling) -> Handle | None:
        """Return None: there are no forks of what runs elsewhere."""
        del handle, text, sampling
        return None

    def token_count(self, text: str) -> int:
        """Return how many tokens `inject` makes of a text."""
        return len(self._ids(text))

    def remove(self, handle: Handle) -> None:
        """Give a reply up: its connection is closed."""
        flight = self._flights.pop(handle.id, None)
        if flight is not None:
            flight.give_up()

    def close(self) -> None:
        """Give everything up."""
        self._flights.clear()
        if self._link is not None:
            self._link.close()

    def _collect(self, session: Session) -> None:
        """Take what the link told, waiting for it where nothing is at hand."""
        waits = not any(flight.has_news for flight in self._flights.values())
        try:
            while True:
                told = session.inbox.get(timeout=WAIT_S) if waits else session.inbox.get_nowait()
                waits = False
                if told is not None:
                    flight, leg, event = told
                    flight.take(leg, event)
        except queue.Empty:
            return

    async def _session_of(self, link: Link, server: Server, settings: LoadSettings) -> Session:
        renderer = Renderer(link, server)
        closing, bridge, close_id = Injection(text="", ids=()), "", None
        open_ids: tuple[int, ...] = ()
        if settings.tags is not None and server.is_rendering:
            whole, bare = closing_texts(settings.tags, settings.bridge)
            bridge = whole[: whole.index(settings.tags.close)]
            for text in (whole, bare):
                self._ids_of[text] = await renderer.tokens(text)
            closing = Injection(text=whole, ids=self._ids_of[whole])
            tag = await renderer.tokens(settings.tags.close)
            close_id = tag[0] if len(tag) == 1 else None
            open_ids = await renderer.tokens(settings.tags.open)
        return Session(
            link=link,
            server=server,
            renderer=renderer,
            tags=settings.tags,
            think=settings.think or ThinkControl(),
            closing=closing,
            bridge=bridge,
            close_id=close_id,
            open_ids=open_ids,
            inbox=queue.SimpleQueue(),
        )

    def _keeps(self, request: GenerationRequest) -> bool:
        """Tell whether a limit of thinking's tokens is the server's to keep."""
        session, _ = self._opened()
        if request.think_tokens is None or not session.server.kind.budget or session.tags is None:
            return False
        if not session.server.kind.counts:
            return True
        closing = session.closing
        return closing_for(request.max_tokens, (Closing(text=closing.text, tokens=len(closing.ids)),)) is not None

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._ids_of:
            session, link = self._opened()
            self._ids_of[text] = link.run(session.renderer.tokens(text))
        return self._ids_of[text]

    def _facts(self, address: Address, server: Server, settings: LoadSettings) -> ModelFacts:
        what = f"{server.kind.name} {server.version}".strip()
        return ModelFacts(
            architecture="",
            name=server.model,
            context_tokens=min(settings.context_tokens, server.context_tokens or settings.context_tokens),
            trained_context_tokens=server.trained_context_tokens or server.context_tokens or settings.context_tokens,
            vocabulary_size=server.vocabulary_size or server.known_ids,
            chat_template=server.template,
            bos_text=server.bos_text,
            eos_text=server.eos_text,
            adds_bos=False,
            control_texts=(),
            capabilities=tuple(sorted(self.capabilities)),
            notes=(f"{what} at {address.host}",),
        )

    def _opened(self) -> tuple[Session, Link]:
        if self._session is None or self._link is None:
            raise RemoteFailed("the server was not asked yet")
        return self._session, self._link


def _capabilities(server: Server) -> list[str]:
    kind = server.kind
    found = ["chat"]
    if kind is not OTHER:
        found.append("ids")
    if kind.tells_cached:
        found.append("cached_tokens")
    if server.is_rendering:
        found.append("inject")
    if kind.budget:
        found.append("budget")
    if kind.counts:
        found.append("counts")
    if kind.schema or server.goes_on_for_schema:
        found.append("schema")
    if kind.schema:
        found.append("own_schema")
    return found
