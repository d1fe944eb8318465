"""The token goes to the Hub alone, and is shown nowhere: no message, no traceback, no log, no file."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from slm_local.download.hub import Hub
from slm_local.errors import DownloadFailed, SlmError
from tests.command import child_environment
from tests.hub.fixtures import WEIGHTS, some_bytes
from tests.hub.misbehaviour import LOGIN_PAGE, RATE_LIMITED, SERVER_BUSY, Fault, Route, wrong_bytes
from tests.hub.pulling import FILE, REPO, is_clean, is_right, outcome, pull
from tests.hub.repository import Blob
from tests.hub.server import HubServer

TOKEN = "hf_PlantedTokenThatNobodyMaySee"
CONTENT = some_bytes(300_000)


def serve(hub: HubServer) -> Blob:
    return hub.add(REPO, {FILE: CONTENT}).files[FILE]


@pytest.fixture
def token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plant a token that is good for everything."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.grant(TOKEN, REPO)
    return TOKEN


def test_the_token_goes_to_the_hub_and_not_to_its_cdn(hub: HubServer, tmp_path: Path, token: str) -> None:
    blob = serve(hub)
    pull(tmp_path)
    assert is_right(tmp_path, blob)
    assert all(each.is_authorized for each in hub.requests if each.route in ("info", "resolve"))
    assert is_told_to_the_hub_alone(hub)


def is_told_to_the_hub_alone(hub: HubServer) -> bool:
    """Tell whether no request to another origin than the Hub's had the token in it, wherever."""
    elsewhere = [each for each in hub.requests if each.asked.host != urlsplit(hub.url).netloc]
    return bool(elsewhere) and not any(TOKEN in each.text or each.is_authorized for each in elsewhere)


@pytest.mark.parametrize("route", ["info", "resolve"])
def test_a_redirect_to_another_host_gets_no_token(hub: HubServer, tmp_path: Path, token: str, route: Route) -> None:
    blob = serve(hub)
    hub.faults.add(Fault(location=hub.cdn_url + "{path}"), route=route, times=None)
    result = outcome(tmp_path)
    assert is_told_to_the_hub_alone(hub)
    assert is_clean(tmp_path) if isinstance(result, DownloadFailed) else is_right(tmp_path, blob)


FAILURES: dict[str, tuple[Route, Fault]] = {
    "401": ("info", Fault(status=401)),
    "403": ("resolve", Fault(status=403)),
    "404": ("resolve", Fault(status=404)),
    "429": ("resolve", RATE_LIMITED),
    "500": ("resolve", SERVER_BUSY),
    "wrong bytes": ("cdn", Fault(change=wrong_bytes)),
    "a login page": ("info", LOGIN_PAGE),
    "a hang-up": ("resolve", Fault(hangs_up=True)),
    "a loop": ("resolve", Fault(location="{url}")),
    "an address that is none": ("resolve", Fault(status=302, headers={"Location": "http://[::1"})),
    "a header that can't be": ("resolve", Fault(headers={"X-Error-Message": "\x1b[2J"}, status=400)),
    "the token sent back": (
        "resolve",
        Fault(status=403, body=b"no", headers={"X-Error-Message": f"no access for {TOKEN}", "X-Error-Code": "no"}),
    ),
    "the token sent back in the body": ("info", Fault(status=400, body=b'{"error": "bad %s"}' % TOKEN.encode())),
    "the token in an address": ("resolve", Fault(location=f"http://models.invalid/{TOKEN}")),
}


ECHOES = {name for name in FAILURES if name.startswith("the token")}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_shows_no_token_anywhere(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    token: str,
    name: str,
) -> None:
    serve(hub)
    monkeypatch.setenv("SLM_DEBUG", "1")
    caplog.set_level(logging.DEBUG)
    route, fault = FAILURES[name]
    hub.faults.add(fault, route=route, times=None)
    with pytest.raises(SlmError) as caught:
        pull(tmp_path)
    error = caught.value
    shown = [error.message, error.hint or "", repr(error), repr(error.record()), repr(Hub()), *capfd.readouterr()]
    if name not in ECHOES:  # the libraries' own logs and causes, which only debugging shows, tell what the server said
        shown += [caplog.text, *traceback.format_exception(error)]
    shown += [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in shown if TOKEN in text]


def test_a_success_leaves_no_token_anywhere(
    hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], token: str
) -> None:
    hub.add(REPO, {FILE: CONTENT}, gated=True)
    pull(tmp_path)
    assert is_told_to_the_hub_alone(hub)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize("failing", [True, False])
def test_the_command_shows_no_token(hub: HubServer, slm_home: Path, token: str, failing: bool) -> None:
    hub.add(REPO, {"tiny-reasoner-Q8_0.gguf": (WEIGHTS / "tiny-reasoner.gguf").read_bytes()}, gated=True)
    if failing:
        hub.faults.add(Fault(change=wrong_bytes), times=None)
    done = subprocess.run(
        [sys.executable, "-m", "slm_local", "pull", f"hf:{REPO}", "--force"],
        input=b"",
        capture_output=True,
        check=False,
        timeout=120,
        env=child_environment({"SLM_DEBUG": "1", "HF_DEBUG": "1"}),
    )
    assert done.returncode == (3 if failing else 0), done.stderr.decode()
    assert TOKEN.encode() not in done.stdout + done.stderr
    assert not [path for path in slm_home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize("bad", ["hf_sécret", "hf_se\x07cret", "hf_se cret", "hf_se\r\nX-Injected: cret"])
def test_a_token_that_can_t_be_one_is_refused_without_being_shown(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    serve(hub)
    monkeypatch.setenv("HF_TOKEN", bad)
    with pytest.raises(SlmError) as caught:
        pull(tmp_path)
    assert "cret" not in "".join(traceback.format_exception(caught.value)).replace("secrets", "")
    assert not [each for each in hub.requests if "x-injected" in each.asked.headers]


GATES = {
    "no token": (None, ()),
    "a token without access": (TOKEN, ()),
    "a wrong token": ("hf_wrong", None),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gated_repository_says_what_to_do(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub.add(REPO, {FILE: CONTENT}, gated=True)
    given, granted = GATES[name]
    if given:
        monkeypatch.setenv("HF_TOKEN", given)
    if granted is not None and given:
        hub.grant(given, *granted)
    error = outcome(tmp_path)
    assert isinstance(error, DownloadFailed)
    assert error.hint
    assert "auth login" in error.hint or "HF_TOKEN" in error.hint
    if given != "hf_wrong":
        assert f"{hub.url}/{REPO}" in error.message, "the page where the licence is accepted"
    else:
        assert "token" in error.message
    assert not hub.transfers()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.grant(TOKEN, REPO)
    pull(tmp_path)


def test_a_token_saved_by_a_login_is_used(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    hub.add(REPO, {FILE: CONTENT}, gated=True)
    hub.grant(TOKEN, REPO)
    saved = tmp_path / "token"
    saved.write_text(TOKEN + "\n")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(saved))
    pull(tmp_path / "models")
    assert is_told_to_the_hub_alone(hub)


def test_a_proxys_password_is_not_shown_where_it_does_not_answer(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hub)
    with HubServer() as gone:
        pass
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", gone.url.replace("://", f"://person:{TOKEN}@"))
    error = outcome(tmp_path)
    assert isinstance(error, DownloadFailed)
    assert TOKEN not in "".join(traceback.format_exception(error))
