"""One HTTP request's generation: it runs in a thread of its own, its events come to the event loop, leaving ends it.

It knows the pool and events, but nothing of what any face calls them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from slm_local.engine import Engine
from slm_local.errors import Interrupted
from slm_local.generation import AnswerDelta, Control, Done, GenerationRequest, Reply, StreamEvent, ThinkDelta
from slm_local.server.faults import CLIENT_LEFT, Refused
from slm_local.server.pool import Lease, Pool
from slm_local.server.served import Served
from slm_local.worker.attached import STALL_S

CHOICES_AT_ONCE = 4
"""So many of a request's choices run at once: a client that asks for many leaves room for others."""

T = TypeVar("T")

Ask = Callable[[Lease], Sequence[GenerationRequest]]
"""Makes a request's generations, one for each choice, once the model is open. Errors: `SlmError`, `Refused`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What happened in one of a request's choices."""

    choice: int
    event: StreamEvent


@dataclass(slots=True)
class Course:
    """When what came, in seconds from the request: for metrics."""

    first_token_s: float | None = None
    first_answer_s: float | None = None
    replies: list[Reply] = field(default_factory=list)


class Post(Generic[T]):
    """Items from any threads to the event loop, taken several at a time: a loop woken for each would wake all day."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._items: deque[T] = deque()
        self._has_some = asyncio.Event()
        self._is_told = False

    def put(self, item: T) -> None:
        """Add an item, from any thread."""
        with self._lock:
            self._items.append(item)
            is_told, self._is_told = self._is_told, True
        if not is_told:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read it
                self._loop.call_soon_threadsafe(self._has_some.set)

    async def take(self) -> list[T]:
        """Wait for items and return all there are."""
        await self._has_some.wait()
        with self._lock:
            items = list(self._items)
            self._items.clear()
            self._is_told = False
            self._has_some.clear()
        return items


class Generation:
    """The choices of one request, from the wait for a place to the last event. Made inside the event loop."""

    def __init__(self, pool: Pool, served: Served, ask: Ask, at_end: Callable[[Course], None]) -> None:
        self.served = served
        self.course = Course()
        self.engine: Engine | None = None
        """The open model; None while it waits for it."""
        self._pool, self._ask, self._at_end = pool, ask, at_end
        self._control = Control()
        self._post: Post[Said | Exception | None] = Post()
        self._held: list[Said] = []
        self._failure: Exception | None = None
        self._is_over = self._is_left = False
        self._begun = time.monotonic()
        threading.Thread(target=self._run, name="slm-request", daemon=True).start()

    def leave(self) -> None:
        """End it soon, for its client is gone; from any thread, more than once."""
        self._is_left = True
        self._control.cancel()

    async def opened(self) -> Engine:
        """Wait until the first choice began, or failed. Errors: the pool's, the engine's, `Refused`."""
        self._held = await self._next()
        assert self.engine is not None
        return self.engine

    async def batches(self) -> AsyncIterator[list[Said]]:
        """Yield what happens, as much of it as there is at a time. Errors: as `opened`, behind what came before."""
        while batch := self._held or await self._next():
            self._held = []
            yield batch

    async def _next(self) -> list[Said]:
        """Return what comes next; empty at the end."""
        batch: list[Said] = []
        while not batch and not self._is_over:
            for item in await self._post.take():
                if isinstance(item, Said):
                    batch.append(item)
                else:
                    self._is_over, self._failure = True, item
        if not batch and self._failure is not None:
            raise Refused(CLIENT_LEFT) if self._is_left else self._failure
        return batch

    def _run(self) -> None:
        """Wait for a place, generate, give the place back; whatever happens is told to the loop."""
        failure: Exception | None = None
        try:
            with self._pool.lease(self.served.reference, self.served.settings, self._control) as lease:
                self.engine = lease.engine
                self._stream(lease.engine, self._ask(lease))
        except Exception as error:  # the thread's border: a bug is told like any other failure
            failure = error
        self._at_end(self.course)
        self._post.put(failure)

    def _stream(self, engine: Engine, requests: Sequence[GenerationRequest]) -> None:
        if len(requests) == 1:
            self._choice(engine, requests[0], 0)
            return
        with ThreadPoolExecutor(CHOICES_AT_ONCE, "slm-choice") as threads:
            running = [threads.submit(self._choice, engine, each, n) for n, each in enumerate(requests)]
            for each in running:
                each.result()

    def _choice(self, engine: Engine, request: GenerationRequest, number: int) -> None:
        control = Control()
        self._control.on_cancel(control.cancel)
        try:
            for event in engine.stream(request, control):
                self._note(event)
                if isinstance(event, Done) and event.reply.finish == "cancelled":
                    raise Interrupted("the reply was stopped: its model was closed, or the server ends")
                self._post.put(Said(choice=number, event=event))
        except BaseException:
            self._control.cancel()  # the others end with it
            raise

    def _note(self, event: StreamEvent) -> None:
        course, now_s = self.course, time.monotonic() - self._begun
        if isinstance(event, (ThinkDelta, AnswerDelta)) and course.first_token_s is None:
            course.first_token_s = now_s
        if isinstance(event, AnswerDelta) and course.first_answer_s is None:
            course.first_answer_s = now_s
        if isinstance(event, Done):
            course.replies.append(event.reply)


def merged(batch: Sequence[Said]) -> list[Said]:
    """Return a batch in which text that follows text of its kind is one event: so many fewer to send."""
    found: list[Said] = []
    for said in batch:
        last, event = found[-1] if found else None, said.event
        before = last.event if last is not None and last.choice == said.choice else None
        if isinstance(event, ThinkDelta) and isinstance(before, ThinkDelta) and event.injected == before.injected:
            tokens = before.tokens + event.tokens
            both: StreamEvent = replace(event, text=before.text + event.text, tokens=tokens)
        elif isinstance(event, AnswerDelta) and isinstance(before, AnswerDelta) and event.injected == before.injected:
            tokens, scores = before.tokens + event.tokens, (*before.scores, *event.scores)
            both = replace(event, text=before.text + event.text, tokens=tokens, scores=scores)
        else:
            found.append(said)
            continue
        found[-1] = replace(said, event=both)
    return found


@contextlib.asynccontextmanager
async def ended_by_leaving(receive: Receive, leave: Callable[[], None]) -> AsyncIterator[None]:
    """Call `leave` when the client hangs up meanwhile, or when this is torn down before its end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    watching = asyncio.create_task(watch())
    is_done = False
    try:
        yield
        is_done = True
    finally:
        watching.cancel()
        if not is_done:
            leave()


class EventStream(Response):
    """An answer that is sent as it comes into being.

    A client that hangs up ends what it comes from, and so does one that takes nothing for `STALL_S`: its connection is
    closed before the answer is whole, which it sees when it reads again.
    """

    def __init__(self, chunks: AsyncIterator[bytes], leave: Callable[[], None], *, media_type: str) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._chunks, self._leave = chunks, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the chunks."""
        del scope
        with contextlib.suppress(TimeoutError):
            async with ended_by_leaving(receive, self._leave):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for chunk in self._chunks:
                    async with asyncio.timeout(STALL_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                async with asyncio.timeout(STALL_S):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
