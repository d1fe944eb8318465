"""What an engine said before it died is heard, however late its parent comes to read it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from slm_local import worker as worker_module
from slm_local.errors import WorkerCrashed
from slm_local.generation import AnswerDelta, Control, StreamEvent
from slm_local.worker import Worker
from slm_local.worker.wire import to_line
from tests.contract.runners import ask

WORDS = ("all ", "that ", "was said")


class Late:
    """A channel to an engine that is dead before anything it said is read."""

    name = "the engine"
    pid = None
    log_path = None
    crash_hint = "none"

    def __init__(self, *, ends: bool) -> None:
        self._ends = ends
        self._looked, self._over = threading.Event(), threading.Event()

    def write(self, line: bytes) -> None:
        pass

    def lines(self) -> Iterator[bytes]:
        self._looked.wait()  # its parent has seen that it is dead
        for word in WORDS:
            yield to_line({"op": "event", "id": 1, "event": AnswerDelta(text=word, tokens=1)})
        if not self._ends:
            self._over.wait()

    def wait(self, seconds: float) -> str | None:
        self._looked.set()
        return "it ended"

    def kill(self) -> None:
        self._over.set()

    hang_up = kill


@pytest.mark.parametrize("ends", [True, False], ids=["its pipe ends", "what it started holds its pipe open"])
def test_what_a_dead_engine_said_is_heard_before_its_death_is_told(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    monkeypatch.setattr(worker_module, "LIVENESS_POLL_S", 0.01)
    worker = Worker(Late(ends=ends))
    heard: list[StreamEvent] = []
    with pytest.raises(WorkerCrashed, match="the engine is gone: it ended"):
        heard.extend(worker.stream(ask("go"), Control()))
    assert [event.text for event in heard if isinstance(event, AnswerDelta)] == list(WORDS)
