"""The ways a request can be run, behind one face: a driver in this process, or a worker in its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from slm_local.backends import backend_named
from slm_local.driver import Driver
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    LoadSettings,
    Message,
    ModelFacts,
    Reply,
    Sampling,
    Started,
    StreamEvent,
    ThinkDelta,
    ThinkMode,
    TokenOrder,
    Tokens,
)
from slm_local.worker import Child, Threads, Worker
from tests.llama_server import ALIAS, llama_server
from tests.loading import THINK_TAGS, load_settings_for
from tests.slm_server import slm_server


class Runner(Protocol):
    """A loaded model that runs requests."""

    facts: ModelFacts

    def stream(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]: ...

    def tokens(self, order: TokenOrder) -> Tokens: ...

    def close(self) -> None: ...


class InProcess:
    """A driver in this very process."""

    def __init__(self, settings: LoadSettings) -> None:
        self.driver = Driver(backend_named(settings.backend))
        self.facts = self.driver.load(settings, Control(), lambda fraction: None)

    def stream(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]:
        return self.driver.run(request, control)

    def tokens(self, order: TokenOrder) -> Tokens:
        return self.driver.tokens(order)

    def close(self) -> None:
        self.driver.close()


class InWorker:
    """A child process; threads of this one for an engine elsewhere."""

    def __init__(self, settings: LoadSettings, logs: Path) -> None:
        self.worker = Worker(Threads() if settings.backend == "openai" else Child(logs))
        self.facts = self.worker.load(settings, Control(), lambda waited, fraction: None)

    def stream(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]:
        return self.worker.stream(request, control)

    def tokens(self, order: TokenOrder) -> Tokens:
        return self.worker.tokens(order)

    def close(self) -> None:
        self.worker.close()


REMOTE_VARIABLE = "SLM_CONTRACT_REMOTE"
"""Names a server of any kind, as `http://host/v1#model`, that the suite is to run against, too: docs/remote has one
script that does."""


class Elsewhere:
    """A runner whose model a server of its own has."""

    def __init__(self, settings: LoadSettings, folder: Path, *, is_worker: bool) -> None:
        self._server = ExitStack()
        url, name = os.environ.get(REMOTE_VARIABLE, ""), ALIAS
        model, context = Path(settings.model_path), settings.context_tokens
        if settings.remote_model == REMOTE_VARIABLE:
            url, _, name = url.partition("#")
        elif settings.remote_model == "slm":
            url, name = self._server.enter_context(slm_server(model, folder / "home", context=context))
        else:
            url = self._server.enter_context(llama_server(model, context=context))
        settings = replace(settings, model_path=url, remote_model=name)
        self.inner: Runner = InWorker(settings, folder) if is_worker else InProcess(settings)
        self.facts = self.inner.facts

    def stream(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]:
        return self.inner.stream(request, control)

    def tokens(self, order: TokenOrder) -> Tokens:
        return self.inner.tokens(order)

    def close(self) -> None:
        self.inner.close()
        self._server.close()


CASES = (
    *("scripted", "scripted-worker", "llamacpp", "llamacpp-worker"),
    *("openvino", "openvino-worker", "openvino-tiny", "openvino-tiny-worker"),
    *("openai-worker", "openai-slm-worker"),
    *(["openai-remote-worker"] if os.environ.get(REMOTE_VARIABLE) else []),
)
"""A backend; `tiny`: with the embedded model in place of SmolLM2-135M; `worker`: in a process of its own, or, for a
server elsewhere, in threads; `slm`: that server is `slm serve`, not llama-server."""


def runner_for(case: str, model: Path, folder: Path, *, context: int) -> Runner:
    """Load a model as one of `CASES` says; `folder` is for logs and compiled models."""
    backend = case.partition("-")[0]
    settings = replace(load_settings_for(backend, model, context=context), cache_dir=str(folder / "compiled"))
    if "slm" in case:
        settings = replace(settings, remote_model="slm")
    elif "remote" in case:
        settings = replace(settings, remote_model=REMOTE_VARIABLE, tags=THINK_TAGS)
    return running(settings, folder, is_worker=case.endswith("-worker"))


def running(settings: LoadSettings, folder: Path, *, is_worker: bool) -> Runner:
    """Load a model in one of the ways; a server is begun where one is needed."""
    if settings.backend == "openai":
        return Elsewhere(settings, folder, is_worker=is_worker)
    return InWorker(settings, folder) if is_worker else InProcess(settings)


def ask(
    text: str, *, max_tokens: int | None = 48, think: ThinkMode = "auto", stop: tuple[str, ...] = ()
) -> GenerationRequest:
    return GenerationRequest(
        messages=(Message(role="user", content=text),),
        sampling=Sampling(),
        max_tokens=max_tokens,
        think=think,
        stop=stop,
    )


@dataclass
class Heard:
    """Everything that one request said."""

    events: list[StreamEvent]

    @property
    def started(self) -> Started:
        first = self.events[0]
        assert isinstance(first, Started)
        return first

    @property
    def reply(self) -> Reply:
        last = self.events[-1]
        assert isinstance(last, Done)
        return last.reply

    @property
    def thinking(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, ThinkDelta))

    @property
    def answer(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, AnswerDelta))


def hear(runner: Runner, request: GenerationRequest, control: Control | None = None) -> Heard:
    return Heard(list(runner.stream(request, control or Control())))
