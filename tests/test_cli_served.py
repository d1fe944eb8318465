"""`slm ps`, `slm stop`, `--keep-alive` and `--fresh`: one warm model for one command after another."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from slm_local.config import load_settings
from slm_local.paths import paths
from slm_local.registry import load_registry
from slm_local.server.link import Link
from slm_local.server.pool import Pool
from tests.command import THINK_THEN_ANSWER, Result, slm, slm_process
from tests.conftest import ScriptWriter
from tests.keeping import GGUF, REPO, fetched
from tests.test_worker import wait_until

__all__ = ["slm"]

Slm = Callable[..., Result]


@pytest.fixture
def model(script: ScriptWriter) -> str:
    return f"scripted:{script(*THINK_THEN_ANSWER)}"


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(load_registry, lambda own: load_settings({}, reference_settings=own))
    link = Link(pool)
    link.start("http://127.0.0.1:11435")
    yield pool
    link.close()
    pool.close()


def server(slm: Slm) -> Any:
    return json.loads(slm("ps", "--json").out)


def test_a_model_that_is_kept_answers_the_next_command_until_it_is_stopped(slm: Slm, model: str) -> None:
    done = slm_process("run", model, "hi", "--keep-alive", "60s")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"It is **85**.\n"
    assert b"stays open for 1 min after its last use" in done.stderr
    wait_until(lambda: not any(each["is_needed"] for each in server(slm)["models"]))  # the client's end is seen there
    kept = server(slm)
    assert [each["state"] for each in kept["models"]] == ["idle"]
    assert 0.0 < kept["models"][0]["expires_s"] <= 60.0

    done = slm_process("run", model, "hi", "-v")
    assert done.stdout == b"It is **85**.\n"
    assert f"open in the server (process {kept['server']['pid']})".encode() in done.stderr
    assert [each["pid"] for each in server(slm)["models"]] == [each["pid"] for each in kept["models"]]

    fresh = slm_process("run", model, "hi", "-v", "--fresh")
    assert fresh.stdout == b"It is **85**.\n"
    assert b"is not used: --fresh" in fresh.stderr

    ending = psutil.Process(kept["server"]["pid"])
    stopped = slm("stop")
    assert (stopped.code, stopped.err) == (0, f"{model} was closed\n")
    wait_until(lambda: not ending.is_running())
    assert server(slm) == {"server": None, "models": []}
    assert not paths().server_file.exists()


def test_a_server_in_the_background_ends_when_nothing_is_kept_any_more(slm: Slm, model: str) -> None:
    assert slm("run", model, "hi", "--keep-alive", "0.1s").code == 0
    wait_until(lambda: not paths().server_file.exists())
    assert slm("run", model, "hi").out == "It is **85**.\n"


def test_nothing_is_started_where_nothing_is_to_be_kept(slm: Slm, model: str) -> None:
    done = slm("run", model, "hi", "--keep-alive", "0")
    assert (done.code, done.out) == (0, "It is **85**.\n")
    assert "stays open" not in done.err
    assert not paths().server_file.exists()


def test_ps_shows_what_is_open_and_for_how_long(slm: Slm, model: str, pool: Pool) -> None:
    assert slm("ps").err.endswith("it has no model open\n")
    attachment = pool.attach(model)
    line = slm("ps").out.splitlines()[1]
    assert re.search(r"scripted on cpu +16,384 +\d+ MB +1 attached +not while in use$", line)
    attachment.close()
    with pool.lease(model):
        assert "1 answering" in slm("ps").out
    shown = slm("ps")
    assert re.search(r"idle for \d+ s +in (5 min|4 min \d+ s)$", shown.out.splitlines()[1])
    assert "http://127.0.0.1:11435" in shown.err
    pool.attach(model, keep_alive_s=float("inf")).close()
    assert slm("ps").out.splitlines()[1].endswith("never")
    assert server(slm)["models"][0]["expires_s"] is None


def test_stop_closes_one_model_by_its_name_and_the_server_goes_on(slm: Slm, model: str, pool: Pool) -> None:
    pool.lease(model).release()
    pool.lease("tiny-reasoner").release()
    wrong = slm("stop", "tiny-direct")
    assert (wrong.code, "tiny-direct is not open" in wrong.err) == (2, True)
    done = slm("stop", "tiny")
    assert done.err.splitlines()[0] == "tiny-reasoner was closed"
    assert "http://127.0.0.1:11435" in done.err
    assert [each["model"] for each in server(slm)["models"]] == [model]


def test_what_is_removed_is_closed_in_the_server_first_unless_it_is_in_use(
    slm: Slm, pool: Pool, slm_home: Path
) -> None:
    place = fetched(slm_home / "models", GGUF)
    reference = f"hf:{REPO}"
    with pool.lease(reference):
        done = slm("rm", reference, "-y")
        assert (done.code, place.exists()) == (2, True)
        assert "is in use in the server" in done.err
    hint = shlex.split(done.err.rpartition("hint: slm ")[2])
    done = slm("rm", reference, "-y")
    assert (done.code, place.exists(), pool.running()) == (0, False, ())
    assert "was closed in the server" in done.err
    fetched(slm_home / "models", GGUF)
    attachment = pool.attach(reference)
    assert slm(*hint).code == 0
    assert slm("rm", reference, "-y").code == 0
    attachment.close()


def test_without_a_server_stop_has_nothing_to_do_but_a_name_is_an_error(slm: Slm) -> None:
    assert slm("stop").code == 0
    assert slm("stop", "tiny").code == 2
    assert "no server of yours runs" in slm("ps").err


def test_what_can_not_be_kept_says_how_it_is_written(slm: Slm, model: str) -> None:
    done = slm("run", model, "hi", "--keep-alive", "soon")
    assert done.code == 2
    assert "--keep-alive takes a time such as 90s, 10m, 2h, 0 or forever, not 'soon'" in done.err
    both = slm("run", model, "hi", "--keep-alive", "1m", "--fresh")
    assert (both.code, "contradict each other" in both.err) == (2, True)
    assert "hint: leave --fresh out" in both.err


def test_a_comparison_uses_the_server(slm: Slm, model: str, pool: Pool) -> None:
    done = slm("compare", model, f"{model}@temperature=0.5", "-p", "hi", "--json")
    assert done.code == 0, done.err
    assert [each["answer"] for each in json.loads(done.out)["results"]] == ["It is **85**."] * 2
    assert [each.model for each in pool.running()] == [model]


def test_a_chat_line_by_line_uses_the_server(slm: Slm, model: str, pool: Pool) -> None:
    done = slm("chat", model, "--plain", stdin=b"hi\nand again\n")
    assert done.out.count("It is **85**.") == 2
    assert [each.model for each in pool.running()] == [model]
