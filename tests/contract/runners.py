"""The ways a request can be run, behind one face: a driver in this process, or a worker in its own."""

from __future__ import annotations

from collections.abc import Iterator
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
)
from slm_local.worker import Worker
from tests.loading import load_settings_for


class Runner(Protocol):
    """A loaded model that runs requests."""

    facts: ModelFacts

    def stream(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]: ...

    def close(self) -> None: ...


class InProcess:
    """A driver in this very process."""

    def __init__(self, settings: LoadSettings) -> None:
        self.driver = Driver(backend_named(settings.backend))
        self.facts = self.driver.load(settings, Control(), lambda fraction: None)

    def stream(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]:
        return self.driver.run(request, control)

    def close(self) -> None:
        self.driver.close()


class InWorker:
    """A child process."""

    def __init__(self, settings: LoadSettings, logs: Path) -> None:
        self.worker = Worker(logs)
        self.facts = self.worker.load(settings, Control(), lambda waited, fraction: None)

    def stream(self, request: GenerationRequest, control: Control) -> Iterator[StreamEvent]:
        return self.worker.stream(request, control)

    def close(self) -> None:
        self.worker.close()


CASES = (
    *("scripted", "scripted-worker", "llamacpp", "llamacpp-worker"),
    *("openvino", "openvino-worker", "openvino-tiny", "openvino-tiny-worker"),
)
"""A backend; `tiny`: with the embedded model in place of SmolLM2-135M; `worker`: in a process of its own."""


def runner_for(case: str, model: Path, folder: Path, *, context: int) -> Runner:
    """Load a model as one of `CASES` says; `folder` is for logs and compiled models."""
    backend = case.partition("-")[0]
    settings = replace(load_settings_for(backend, model, context=context), cache_dir=str(folder / "compiled"))
    return InWorker(settings, folder) if case.endswith("-worker") else InProcess(settings)


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
