"""The child process: how it is spoken to, how its death is seen, how it never outlives its parent."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from slm_local import worker as worker_module
from slm_local.errors import FailureRecord, ModelBroken, SlmError, WorkerCrashed
from slm_local.generation import (
    AnswerDelta,
    Control,
    Done,
    GenerationRequest,
    LoadSettings,
    Message,
    ModelFacts,
    ReasoningTags,
    Sampling,
    StreamEvent,
    ThinkDelta,
)
from slm_local.metrics import Collector
from slm_local.worker import Child, Worker, ahead, channels
from slm_local.worker.ahead import Likely
from slm_local.worker.wire import from_line, to_line
from tests.conftest import ScriptWriter
from tests.contract.runners import Heard, ask
from tests.governed import BRIDGE, CASES, END, OPEN, VARIED, Case
from tests.loading import THINK_TAGS, load_settings_for

pytestmark = pytest.mark.real_child
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


def wait_until(is_so: Callable[[], object], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[Path], Worker]]:
    made: list[Worker] = []

    def open_script(path: Path) -> Worker:
        made.append(Worker(Child(tmp_path)))
        settings = load_settings_for("scripted", path, context=4096, tags=THINK_TAGS)
        made[-1].load(settings, Control(), lambda waited, fraction: None)
        return made[-1]

    yield open_script
    for each in made:
        each.close()


def collect(stream: Iterator[StreamEvent], into: list[StreamEvent]) -> None:
    for event in stream:
        into.append(event)


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, AnswerDelta))


@posix_only
def test_a_child_that_dies_while_it_streams_leaves_what_it_said_and_a_cause(
    opened: Callable[[Path], Worker], script: ScriptWriter, tmp_path: Path
) -> None:
    die = tmp_path / "die"
    rows = ({"text": "half a"}, {"text": " sentence", "delay": 0.05}, {"until": str(die), "fault": "segv"})
    worker = opened(script(*rows))
    events: list[StreamEvent] = []

    def heard() -> Iterator[StreamEvent]:
        for event in worker.stream(ask("go"), Control()):
            yield event
            if text_of(events) == "half a sentence":
                die.touch()

    with pytest.raises(WorkerCrashed, match="SIGSEGV") as caught:
        collect(heard(), events)
    assert text_of(events) == "half a sentence"
    assert caught.value.exit_code == 8
    assert caught.value.hint is not None
    assert str(worker.log_path) in caught.value.hint
    assert worker.log_path is not None
    assert worker.log_path.exists()


def test_text_is_on_its_way_before_a_slow_step_ends(opened: Callable[[Path], Worker], script: ScriptWriter) -> None:
    worker = opened(script({"text": "a"}, {"text": "b"}, {"text": "c"}, {"text": "never", "delay": 600.0}))
    control = Control()
    events: list[StreamEvent] = []
    for event in worker.stream(ask("go"), control):
        events.append(event)
        if text_of(events) == "abc":
            control.cancel()
    assert text_of(events) == "abc"


@posix_only
def test_a_child_killed_from_outside_is_seen(opened: Callable[[Path], Worker], script: ScriptWriter) -> None:
    worker = opened(script({"text": "on and "}, {"text": "on", "delay": 60.0}))
    stream = worker.stream(ask("go"), Control())
    while not isinstance(next(stream), AnswerDelta):
        pass
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerCrashed, match="out of memory"):
        next(stream)
    assert not worker.is_alive


def test_a_child_that_leaves_by_itself_is_seen(opened: Callable[[Path], Worker], script: ScriptWriter) -> None:
    worker = opened(script({"fault": "exit"}))
    with pytest.raises(WorkerCrashed, match="exited with status 3"):
        list(worker.stream(ask("go"), Control()))


def test_a_child_that_does_not_answer_a_cancel_is_ended(
    opened: Callable[[Path], Worker], script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_stop = Worker._follow_stop

    def be_short(worker: Worker, message: dict[str, Any]) -> None:
        if message.get("stops"):  # it said that the request is over; from here on it hangs
            monkeypatch.setattr(worker_module, "KILL_GRACE_S", 0.2)
        follow_stop(worker, message)

    monkeypatch.setattr(Worker, "_follow_stop", be_short)
    worker = opened(script({"text": "some"}, {"fault": "hang"}))
    control = Control()
    events: list[StreamEvent] = []

    def cancel_once_it_speaks() -> None:
        wait_until(lambda: bool(text_of(events)))
        control.cancel()

    threading.Thread(target=cancel_once_it_speaks).start()
    collect(worker.stream(ask("go"), control), events)
    assert isinstance(events[-1], Done)
    assert events[-1].reply.finish == "cancelled"
    assert text_of(events) == events[-1].reply.answer == "some"
    with pytest.raises(WorkerCrashed, match="did not stop when asked"):
        list(worker.stream(ask("next"), Control()))
    assert not psutil.pid_exists(worker.pid or -1) or not worker.is_alive


class Said:
    """A channel to an engine that says what a test has it say."""

    name = "the engine"
    pid = None
    log_path = None
    crash_hint = "none"

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._over = threading.Event()

    def say(self, request_id: int, event: StreamEvent) -> None:
        self._lines.put(to_line({"op": "event", "id": request_id, "event": event}))

    def write(self, line: bytes) -> None:
        pass

    def lines(self) -> Iterator[bytes]:
        return iter(self._lines.get, None)

    def wait(self, seconds: float) -> str | None:
        return "it ended" if self._over.wait(seconds) else None

    def kill(self) -> None:
        self._over.set()
        self._lines.put(None)

    hang_up = kill


class Clock:
    """A clock that goes on when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.mark.parametrize("others_go_on_s", [3.0, None])
def test_a_child_that_serves_others_has_longer_to_answer_a_cancel(
    monkeypatch: pytest.MonkeyPatch, others_go_on_s: float | None
) -> None:
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(worker_module, "LIVENESS_POLL_S", 0.02)
    monkeypatch.setattr(worker_module, "KILL_GRACE_S", 2.0)
    if others_go_on_s is None:
        monkeypatch.setattr(worker_module, "KILL_AT_LAST_S", 0.5)
    engine = Said()
    worker = Worker(engine)
    control = Control()
    control.cancel()

    def serve_others() -> None:
        begun_s = clock.now_s
        while worker.is_alive and (others_go_on_s is None or clock.now_s - begun_s < others_go_on_s):
            clock.now_s += 0.2
            engine.say(2, AnswerDelta(text="on", tokens=1))
            wait_until(lambda: worker._heard_at == clock.now_s or not worker.is_alive)
            time.sleep(0.03)  # in which the parent looks
        engine.say(1, Done(reply=Collector().reply("cancelled")))

    others = threading.Thread(target=serve_others)
    others.start()
    stream = worker.stream(ask("go"), control)
    if others_go_on_s is None:
        with pytest.raises(WorkerCrashed, match="did not stop when asked"):
            list(stream)
    else:
        assert isinstance(list(stream)[-1], Done)
        assert worker.is_alive
        worker.kill()
    others.join()


def test_a_bug_in_the_child_fails_the_request_and_not_the_child(
    opened: Callable[[Path], Worker], script: ScriptWriter
) -> None:
    worker = opened(script({"text": "a"}, {"fault": "raise"}, {"end": "stop"}, {"text": "b"}, {"end": "stop"}))
    with pytest.raises(SlmError, match="a bug of slm in the engine process: RuntimeError"):
        list(worker.stream(ask("go"), Control()))
    assert worker.is_alive
    events = list(worker.stream(ask("again"), Control()))
    assert text_of(events) == "b"
    assert worker.log_path is not None
    assert "Traceback" in worker.log_path.read_text()


def test_a_consumer_that_walks_away_leaves_a_child_that_still_answers(
    opened: Callable[[Path], Worker], script: ScriptWriter
) -> None:
    worker = opened(
        script(
            *({"text": "first"}, {"text": "never heard", "delay": 60.0}, {"end": "stop"}),
            *({"text": "second"}, {"end": "stop"}),
        )
    )
    stream = worker.stream(ask("go"), Control())
    while not isinstance(next(stream), AnswerDelta):
        pass
    stream.close()  # type: ignore[attr-defined]
    assert text_of(list(worker.stream(ask("again"), Control()))) == "second"


@posix_only
def test_the_child_ends_when_its_parent_is_killed(script: ScriptWriter, tmp_path: Path) -> None:
    path = script({"text": "on and "}, {"text": "on", "delay": 600.0})
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from slm_local.generation import Control\n"
        "from slm_local.worker import Child, Worker\n"
        "from tests.contract.runners import ask\n"
        "from tests.loading import load_settings_for\n"
        "worker = Worker(Child(Path(sys.argv[2])))\n"
        "worker.load(load_settings_for('scripted', Path(sys.argv[1])), Control(), lambda waited, fraction: None)\n"
        "for event in worker.stream(ask('go'), Control()):\n"
        "    print(worker.pid, flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not psutil.pid_exists(child))


def test_the_child_gets_no_secrets_and_a_process_group_of_its_own(
    opened: Callable[[Path], Worker], script: ScriptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    worker = opened(script({"end": "stop"}))
    assert worker.pid is not None
    environment = psutil.Process(worker.pid).environ()
    assert "hf_planted" not in environment.values()
    assert environment["GGML_NO_BACKTRACE"] == "1"
    if sys.platform != "win32":
        assert os.getpgid(worker.pid) == worker.pid


@posix_only
def test_what_native_code_prints_goes_to_the_log_and_the_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    program = (
        "import os, sys\n"
        "from slm_local.worker.__main__ import LOG_LIMIT_BYTES, bound_log, redirect_output\n"
        "pipe = redirect_output(sys.argv[1])\n"
        "os.write(1, b'x' * (LOG_LIMIT_BYTES + 1)); os.write(2, b'native words')\n"
        "size = os.fstat(2).st_size\n"
        "bound_log()\n"
        "os.write(pipe, b'%d %d' % (size > LOG_LIMIT_BYTES, os.fstat(2).st_size))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(log)], capture_output=True, check=True, cwd=Path(__file__).parents[1]
    )
    grown, size = (int(word) for word in done.stdout.split())
    assert grown == 1
    assert size < 100
    assert b"log emptied" in log.read_bytes()
    assert done.stderr == b""


@pytest.fixture
def started_ahead(tmp_path: Path) -> Iterator[Worker]:
    """A child that was started before anybody asked for one."""
    ahead.start(tmp_path, Likely("scripted"))
    ((started, _),) = ahead._ahead
    yield started
    ahead.end()
    started.close()


def test_a_child_started_ahead_is_taken_once(started_ahead: Worker, script: ScriptWriter, tmp_path: Path) -> None:
    path = script({"text": "here", "end": "stop"})
    assert ahead.take(tmp_path, "scripted", str(path)) is started_ahead
    other = ahead.take(tmp_path, "scripted", str(path))
    assert other is not started_ahead
    other.close()
    settings = load_settings_for("scripted", path, context=4096, tags=THINK_TAGS)
    started_ahead.load(settings, Control(), lambda waited, fraction: None)
    assert text_of(list(started_ahead.stream(ask("x"), Control()))) == "here"


def test_a_child_started_for_another_backend_is_not_taken(started_ahead: Worker, tmp_path: Path) -> None:
    other = ahead.take(tmp_path, "llamacpp", "m.gguf")
    assert other is not started_ahead
    assert other.is_alive
    assert not started_ahead.is_alive
    other.close()


def test_a_child_that_reads_another_file_is_not_taken(tmp_path: Path) -> None:
    ahead.start(tmp_path, Likely("scripted", "one"))
    ((started, _),) = ahead._ahead
    other = ahead.take(tmp_path, "scripted", "another")
    assert other is not started
    assert not started.is_alive
    other.close()


def test_a_child_started_ahead_that_died_is_replaced(started_ahead: Worker, tmp_path: Path) -> None:
    psutil.Process(started_ahead.pid).kill()
    wait_until(lambda: not started_ahead.is_alive)
    other = ahead.take(tmp_path, "scripted", "")
    assert other is not started_ahead
    other.close()


def test_a_child_that_nobody_takes_ends_with_the_command(started_ahead: Worker) -> None:
    ahead.end()
    wait_until(lambda: not started_ahead.is_alive)


def test_nothing_is_said_of_a_child_that_could_not_be_started_ahead(tmp_path: Path) -> None:
    ahead.start(tmp_path / "missing", Likely("scripted"))
    assert not ahead._ahead


def test_a_model_that_was_read_ahead_is_not_read_again(tiny_reasoner: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    ahead.start(tmp_path, Likely("llamacpp", str(tiny_reasoner)))
    worker = ahead.take(tmp_path, "llamacpp", str(tiny_reasoner))
    try:
        facts = worker.load(load_settings_for("llamacpp", tiny_reasoner), Control(), lambda waited, fraction: None)
        assert facts.vocabulary_size > 0
        assert worker.log_path is not None
        assert worker.log_path.read_text(errors="replace").count("loaded meta data") == 1
    finally:
        worker.close()


def test_a_broken_file_read_ahead_is_said_when_it_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    ahead.start(tmp_path, Likely("llamacpp", str(broken)))
    worker = ahead.take(tmp_path, "llamacpp", str(broken))
    with pytest.raises(ModelBroken, match=r"broken\.gguf"):
        worker.load(load_settings_for("llamacpp", broken), Control(), lambda waited, fraction: None)


def test_it_is_remembered_what_a_reference_opened_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_text("weights")
    assert ahead.likely_for(tmp_path, ["m"], None) == Likely("llamacpp")
    ahead.remember(tmp_path, "m", "openvino", str(file))
    assert ahead.likely_for(tmp_path, ["m"], None) == Likely("openvino", str(file))
    assert ahead.likely_for(tmp_path, ["m"], "llamacpp") == Likely("llamacpp")
    assert ahead.likely_for(tmp_path, ["scripted:x"], None) == Likely("scripted")
    assert ahead.likely_for(tmp_path, ["http://box/v1#m"], None) == Likely(ahead.ELSEWHERE)
    ahead.remember(tmp_path, "lab", ahead.ELSEWHERE, "http://box/v1")
    assert ahead.likely_for(tmp_path, ["lab", "hello"], None).backend == ahead.ELSEWHERE
    ahead.start(tmp_path, Likely(ahead.ELSEWHERE))
    assert not list(tmp_path.glob("worker-*.log"))  # no child was started for it
    assert ahead.likely_for(tmp_path, ["--seed", "1", "m", "hello"], None).path == str(file)
    file.write_text("other weights")
    assert ahead.likely_for(tmp_path, ["m"], None) == Likely("openvino")


@pytest.mark.parametrize("text", ["{", "[]", '{"m": 3}', '{"m": {"backend": 1, "path": "x", "file": []}}'])
def test_a_memory_that_can_not_be_read_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / ahead.FILE).write_text(text)
    assert ahead.likely_for(tmp_path, ["m"], None) == Likely("llamacpp")


def test_a_memory_that_can_not_be_kept_is_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_text("weights")
    ahead.remember(file / "no-folder", "m", "llamacpp", str(file))
    (tmp_path / ahead.FILE).mkdir()
    ahead.remember(tmp_path, "m", "llamacpp", str(file))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.gguf", ahead.FILE]


def test_only_so_many_references_are_remembered(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_text("weights")
    for number in range(ahead.KEPT + 3):
        ahead.remember(tmp_path, f"m{number}", "llamacpp", str(file))
    assert ahead.likely_for(tmp_path, ["m0"], None).path == ""
    assert ahead.likely_for(tmp_path, [f"m{ahead.KEPT + 2}"], None).path == str(file)


def test_old_logs_are_cleared_away(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"worker-2026-{number:02d}.log").write_text("old")
    Worker(Child(tmp_path)).close()
    assert len(list(tmp_path.glob("worker-*.log"))) == channels.KEPT_LOGS


@posix_only
def test_a_log_that_another_program_clears_away_meanwhile_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "worker-2026-00.log").symlink_to(tmp_path / "gone")  # listed, and not there when it is looked at
    assert channels.new_log(tmp_path).exists()


@pytest.mark.parametrize(
    "value",
    [
        GenerationRequest(
            messages=(Message(role="user", content="a\n\u2028😀"),), sampling=Sampling(seed=3), stop=("x",)
        ),
        GenerationRequest(prompt_ids=(1, 2, 3)),
        LoadSettings(
            backend="llamacpp",
            model_path="m",
            context_tokens=1,
            threads=1,
            tags=ReasoningTags("a", "b", skip=("c",)),
        ),
        FailureRecord(type="UsageError", message="m", hint=None, exit_code=2),
        ModelFacts(
            architecture="llama",
            name="n",
            context_tokens=1,
            trained_context_tokens=2,
            vocabulary_size=3,
            chat_template=None,
            bos_text="",
            eos_text="",
            adds_bos=True,
            control_texts=("<a>",),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_cross_the_pipe_unchanged(value: object) -> None:
    line = to_line({"op": "x", "value": value})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert from_line(line) == {"op": "x", "value": value}


@pytest.mark.parametrize("line", [b"[]\n", b"{\n", b'{"value":{"_":"Popen"}}\n', b"1\n"])
def test_a_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_line(line)


def test_the_parent_never_imports_a_runtime(script: ScriptWriter, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from slm_local import open_model\n"
        "with open_model('scripted:' + sys.argv[1]) as engine:\n"
        "    answer = engine.reply('go').answer\n"
        "print(answer, [name for name in ('llama_cpp', 'openvino', 'numpy', 'jinja2') if name in sys.modules])\n"
    )
    path = script({"text": "said"}, {"end": "stop"})
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "SLM_SCRIPTED": "1", "SLM_HOME": str(tmp_path)},
    )
    assert done.stdout.strip() == "said []"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whatever_a_model_does_it_comes_to_the_end_that_was_promised(
    case: Case, opened: Callable[[Path], Worker], script: ScriptWriter
) -> None:
    request = replace(ask("go", max_tokens=case.max_tokens), think_tokens=case.think_tokens)
    heard = Heard(list(opened(script(*case.rows)).stream(request, Control())))
    reply = heard.reply
    assert (reply.finish, reply.cut) == (case.finish, case.cut)
    assert reply.thinking.endswith(case.thinking_end)
    assert reply.answer == (reply.answer if case.answer is None else case.answer)
    assert (heard.thinking, heard.answer.rstrip()) == (reply.thinking, reply.answer.rstrip())


def test_the_answer_begins_when_it_is_asked_for(opened: Callable[[Path], Worker], script: ScriptWriter) -> None:
    thoughts = {"text": VARIED, "times": 900, "delay": 0.1}
    worker = opened(script(OPEN, thoughts, END, {"text": "at once", "end": "stop"}))
    control = Control()
    events: list[StreamEvent] = []
    for event in worker.stream(ask("go", max_tokens=None), control):
        events.append(event)
        if isinstance(event, ThinkDelta):
            control.end_thinking()
    reply = Heard(events).reply
    assert (reply.finish, reply.cut, reply.answer) == ("stop", "user", "at once")
    assert reply.thinking.endswith(BRIDGE)


def test_an_answer_asked_for_before_the_start_has_no_thinking(
    opened: Callable[[Path], Worker], script: ScriptWriter
) -> None:
    worker = opened(script({"text": VARIED, "times": 900, "delay": 0.2}, END, {"text": "at once", "end": "stop"}))
    control = Control()
    control.end_thinking()
    reply = Heard(list(worker.stream(ask("x " * 1000, max_tokens=None, think="on"), control))).reply
    assert (reply.cut, reply.answer) == ("user", "at once")


def test_time_for_thinking_is_over_though_the_model_is_slow(
    opened: Callable[[Path], Worker], script: ScriptWriter
) -> None:
    thoughts = {"text": VARIED, "times": 900, "delay": 0.05}
    worker = opened(script(OPEN, thoughts, END, {"text": "in time", "end": "stop"}))
    reply = Heard(list(worker.stream(replace(ask("go", max_tokens=None), think_s=0.3), Control()))).reply
    assert (reply.cut, reply.answer) == ("time", "in time")
