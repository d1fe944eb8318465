"""HTTP to one server, every request of which can be given up at any moment: an event loop in a thread of its own.

Blocking sockets can't be: whoever waits for a first byte hears nothing else. It knows JSON and event streams only.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from slm_local import __version__
from slm_local.backends.openai.address import Address
from slm_local.backends.openai.refusals import broken_off, no_engine, refusal, unreachable
from slm_local.errors import Interrupted, RemoteFailed, SlmError
from slm_local.generation import Control

if TYPE_CHECKING:
    import httpx

CONNECT_S = 10.0
ANSWER_S = 30.0
"""Most that a question whose answer needs no model may take."""
KEPT_OPEN_S = 2.0
"""Idle connections are given up before servers do (uvicorn after 5 s): a request on one just closed would be lost."""
LONGEST_LINE = 8 * 2**20
LONGEST_ANSWER = 64 * 2**20

T = TypeVar("T")

Event = dict[str, Any] | SlmError | None
"""What a stream tells: an event's JSON, the error that ended it, or None for its end."""


class Link:
    """A connection with one server. `close` gives up whatever is under way."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._loop = asyncio.new_event_loop()
        self._client: httpx.AsyncClient | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="slm-remote", daemon=True)
        self._thread.start()

    def ask(self, path: str, body: dict[str, Any] | None = None, *, within_s: float = ANSWER_S) -> Any:
        """Return the JSON that a path answers, POSTed to where there is a body. Errors: `RemoteFailed`."""
        return self.run(self.answer(path, body), within_s=within_s)

    def run(self, asked: Coroutine[Any, Any, T], *, within_s: float = ANSWER_S, control: Control | None = None) -> T:
        """Wait for what several questions come to. Errors: `RemoteFailed`, `Interrupted` when cancelled."""
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(asked, within_s), self._loop)
        if control is not None:

            def give_up() -> None:
                future.cancel()

            control.on_cancel(give_up)
        try:
            return future.result()
        except CancelledError:
            raise Interrupted("the connection was given up") from None
        except TimeoutError:
            raise RemoteFailed(
                f"{self.address.host} did not answer within {within_s:g} s", hint=f"slm run {self.address.again}"
            ) from None

    async def answer(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON that a path answers. Errors: `RemoteFailed`, `PromptTooLong`."""
        import httpx

        client = self._opened()
        try:
            async with client.stream("GET" if body is None else "POST", self._url(path), json=body) as response:
                found = await self._read(response)
        except httpx.HTTPError as error:
            raise unreachable(self.address, error) from error
        if response.status_code != 200:
            raise refusal(self.address, response.status_code, found, response.headers.get("retry-after"))
        return found

    async def answer_if_any(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON that a path answers, None where the server has no such path or won't say."""
        try:
            return await self.answer(path, body)
        except SlmError:
            return None

    def stream(self, path: str, body: Callable[[], Coroutine[Any, Any, Any]], tell: Callable[[Event], None]) -> Stream:
        """Begin to read an event stream: `tell` is called in another thread, for an error or None last.

        `body` is awaited first. Once given up nothing is told any more.
        """
        return Stream(asyncio.run_coroutine_threadsafe(self._follow(path, body, tell), self._loop), self.address, tell)

    def close(self) -> None:
        """Give up what is under way and end the thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            await asyncio.sleep(0)  # a transport is closed by the loop's next turn
        await self._loop.shutdown_asyncgens()

    async def _follow(
        self, path: str, body: Callable[[], Coroutine[Any, Any, Any]], tell: Callable[[Event], None]
    ) -> None:
        import httpx

        try:
            async with self._opened().stream("POST", self._url(path), json=await body()) as response:
                if response.status_code != 200:
                    found = await self._read(response)
                    raise refusal(self.address, response.status_code, found, response.headers.get("retry-after"))
                async for event in self._events(response):
                    tell(event)
            tell(None)
        except SlmError as error:
            tell(error)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            tell(unreachable(self.address, error))
        except httpx.HTTPError as error:
            tell(broken_off(self.address, error))

    async def _events(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        """Yield the JSON of an event stream's data lines. Errors: `RemoteFailed` for what is none."""
        async for line in self._lines(response):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                raise no_engine(self.address, f"an event is no object: {self.address.without_key(repr(data[:80]))}")
            if event.get("error"):
                status = event["error"].get("code") if isinstance(event["error"], dict) else None
                raise refusal(self.address, status if isinstance(status, int) else 500, event)
            yield event

    async def _lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        rest = b""
        async for piece in response.aiter_bytes():
            *lines, rest = (rest + piece).split(b"\n")
            if max(map(len, (*lines, rest))) > LONGEST_LINE:
                raise no_engine(self.address, f"a line of more than {LONGEST_LINE // 2**20} MB")
            for line in lines:
                yield line
        yield rest

    async def _read(self, response: httpx.Response) -> Any:
        """Return an answer's JSON, or its text where it is none."""
        content = bytearray()
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > LONGEST_ANSWER:
                raise no_engine(self.address, f"an answer of more than {LONGEST_ANSWER // 2**20} MB")
        try:
            return json.loads(content)
        except ValueError:
            if response.status_code == 200:
                raise no_engine(self.address, "an answer is not JSON") from None
            return content[:1000].decode(errors="replace")

    def _url(self, path: str) -> str:
        """Return a path's address; one without a leading slash is below /v1."""
        return self.address.root + path if path.startswith("/") else f"{self.address.base}/{path}"

    def _opened(self) -> httpx.AsyncClient:
        """Return the client, made in the loop's thread: proxies of the environment, but none to this very machine."""
        import ssl

        import httpx
        import truststore

        if self._client is not None:
            return self._client
        headers = {"User-Agent": f"slm-local/{__version__}", "Accept-Encoding": "identity"}
        if self.address.key:
            headers["Authorization"] = f"Bearer {self.address.key}"
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                verify=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                timeout=httpx.Timeout(None, connect=CONNECT_S),
                limits=httpx.Limits(max_connections=None, keepalive_expiry=KEPT_OPEN_S),
                trust_env=not self.address.is_here,
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise RemoteFailed(
                f"the proxy that the environment names can't be used: {type(error).__name__}",
                hint="unset HTTPS_PROXY HTTP_PROXY ALL_PROXY",
            ) from None
        return self._client


class Stream:
    """An event stream under way."""

    def __init__(self, future: Future[None], address: Address, tell: Callable[[Event], None]) -> None:
        self._future = future

        def ended(future: Future[None]) -> None:
            error = None if future.cancelled() else future.exception()
            if error is not None:  # of a library, or a bug of ours: whoever waits must hear of it
                tell(broken_off(address, RemoteFailed(f"{type(error).__name__}: {error}")))

        future.add_done_callback(ended)

    def cancel(self) -> None:
        """Give it up: its connection is closed."""
        self._future.cancel()
