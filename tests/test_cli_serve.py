"""`slm serve` as a process: what it prints, whom it lets in, how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from slm_local.cli.pasting import lines_to_paste
from tests.command import Result, child_environment, slm, slm_process
from tests.conftest import ScriptWriter
from tests.test_template_files import FOLDER
from tests.test_worker import wait_until

__all__ = ["slm"]

Slm = Callable[..., Result]
Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "slm_local", "serve", "--port", "0", *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=child_environment()))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def reference(script: ScriptWriter) -> str:
    return f"scripted:{script({'text': 'yes', 'end': 'stop'}, name='sure')}"


def address_of(process: subprocess.Popen[str]) -> str:
    """Return the address that a server prints first; its `/v1` taken off."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert re.fullmatch(r"http://\S+:\d+/v1", line), process.stderr.read() if process.stderr else ""
    return line.removesuffix("/v1")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_server_says_what_to_paste_answers_and_ends_when_told(
    serve: Serve, reference: str, number: signal.Signals, code: int
) -> None:
    process = serve(reference, "--ollama")
    address = address_of(process)
    body = {"messages": [{"role": "user", "content": "sure?"}]}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120.0).json()
    assert answer["choices"][0]["message"]["content"] == "yes"
    process.send_signal(number)
    out, err = process.communicate(timeout=120.0)
    assert (process.returncode, out) == (code, "")
    for program in ("llm", "aider", "Continue", "Zed", "VS Code"):
        assert re.search(rf"^{program}\b.*:$", err, re.MULTILINE)
    assert f"llm openai endpoint {address}/v1 -m sure" in err
    assert f"OLLAMA_HOST={address.removeprefix('http://')}\n" in err
    assert "serves sure · without a key, for this machine only" in err
    assert "Traceback" not in err
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health", timeout=120.0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_a_stream_under_way_is_told_that_the_server_ends(serve: Serve, script: ScriptWriter) -> None:
    rows = [{"text": "on and on ", "delay": 0.01, "times": 5000}]
    process = serve(f"scripted:{script(*rows, name='long')}@loop-guard=false")
    body = {"messages": [{"role": "user", "content": "go"}], "stream": True}
    url = f"{address_of(process)}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=120.0) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        last = [line for line in lines if line][-1]
    assert '"code":"stopped"' in last
    process.communicate(timeout=120.0)
    assert process.returncode == 0


def test_a_key_is_made_where_there_is_none_and_then_needed(serve: Serve, reference: str, tmp_path: Path) -> None:
    file = tmp_path / "slm.key"
    process = serve(reference, "--host", "0.0.0.0", "--key-file", str(file))
    address = address_of(process)
    key = file.read_text().strip()
    assert len(key) == 32
    assert sys.platform == "win32" or stat.S_IMODE(file.stat().st_mode) == 0o600
    with httpx.Client(base_url=address, timeout=120.0) as http:
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    process.terminate()
    assert f"from elsewhere: this machine's address, port {address.rpartition(':')[2]}" in process.communicate()[1]


def test_a_key_file_that_can_not_be_made_says_why_in_plain_words(slm: Slm, reference: str, tmp_path: Path) -> None:
    result = slm("serve", reference, "--key-file", str(tmp_path / "no" / "slm.key"))
    assert result.code == 2
    assert "No such file or directory" in result.err
    assert "Errno" not in result.err


def test_what_other_machines_reach_takes_a_key(slm: Slm, reference: str) -> None:
    result = slm("serve", reference, "--host", "0.0.0.0")
    assert result.code == 2
    assert "takes a key" in result.err
    assert "--key-file" in result.err


def test_a_key_that_can_be_guessed_is_refused(slm: Slm, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_SERVE_KEY", "secret")
    result = slm("serve", reference)
    assert result.code == 2
    assert "16 or more" in result.err
    assert "secret" not in result.err


def test_a_server_in_the_background_gives_way(slm: Slm, serve: Serve, reference: str) -> None:
    assert slm_process("run", reference, "hi", "--keep-alive", "10m").returncode == 0
    before = json.loads(slm("ps", "--json").out)["server"]
    ending = psutil.Process(before["pid"])
    process = serve(reference)
    address = address_of(process)
    assert process.stderr is not None
    assert f"the server in the background (process {before['pid']}) gives way" in process.stderr.readline()
    now = json.loads(slm("ps", "--json").out)["server"]
    assert (now["pid"], now["address"]) == (process.pid, address)
    wait_until(lambda: not ending.is_running())
    assert slm("run", reference, "hi", "-v").err.count(f"open in the server (process {process.pid}") == 1
    second = slm("serve", reference, "--port", "0")
    assert (second.code, f"runs already at {address}" in second.err) == (2, True)


def test_a_port_that_is_taken_is_named(slm: Slm, reference: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = slm("serve", reference, "--port", str(port))
    assert result.code == 2
    assert f"port {port} of 127.0.0.1 can't be had" in result.err
    assert f"slm serve --port {port + 1}" in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nonsense-model",), "no model is named"),
        (("tiny-reasoner", "tiny"), "named twice"),
        (("tiny-reasoner", "--keep-alive", "soon"), "keep-alive"),
        (("tiny-reasoner", "--port", "70000"), "70000"),
    ],
    ids=["unknown", "twice", "keep-alive", "port"],
)
def test_what_can_not_be_served_is_said_before_anything_listens(slm: Slm, words: tuple[str, ...], said: str) -> None:
    result = slm("serve", *words)
    assert result.code == 2
    assert said in result.err
    assert result.out == ""


def test_lines_to_paste_quote_what_a_shell_would_read() -> None:
    lines = dict(lines_to_paste("http://127.0.0.1:1", "a b'c", context_tokens=512, takes_tools=False, has_key=True))
    assert "-m 'a b'\"'\"'c' --key KEY" in lines["llm"] or sys.platform == "win32"
    assert "--openai-api-key KEY" in lines["aider"]


@pytest.mark.parametrize(
    ("template", "takes_tools"), [("Qwen-Qwen3-0.6B", True), ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", False)]
)
def test_editors_are_told_whether_the_models_template_takes_tools(
    serve: Serve, reference: str, template: str, takes_tools: bool
) -> None:
    process = serve(reference, "--template", str(FOLDER / f"{template}.jinja"))
    address_of(process)
    assert process.stderr is not None
    said = ""
    while "VS Code" not in said:
        said += process.stderr.readline()
    said += process.stderr.readline()
    assert f'"toolCalling": {str(takes_tools).lower()}' in said
    assert f'"capabilities": {{"tools": {str(takes_tools).lower()}, ' in said
    assert ("capabilities: [tool_use]" in said) == takes_tools
