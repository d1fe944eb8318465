"""What leaves this machine in a pull and where it goes: what is needed, encrypted, to whom it must; offline nothing."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from slm_local.errors import DownloadFailed
from slm_local.paths import paths
from tests.command import child_environment
from tests.hub.fixtures import TINY_REPO, WEIGHTS, serve_tiny, some_bytes
from tests.hub.misbehaviour import SERVER_BUSY, Fault, Route
from tests.hub.pulling import FILE, REPO, child, ended, is_clean, is_right, outcome, place, pull, variant
from tests.hub.repository import Blob
from tests.hub.server import HubServer

ROUTES_OF_A_PULL = {("GET", "info"), ("GET", "resolve"), ("GET", "cdn")}


HEADERS_OF_A_PULL = {"host", "accept", "accept-encoding", "connection", "user-agent", "range", "authorization"}


CONTENT = some_bytes(300_000)


def serve(hub: HubServer) -> Blob:
    return hub.add(REPO, {FILE: CONTENT}).files[FILE]


def test_a_pull_asks_for_what_it_needs_and_tells_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    serve_tiny(hub)
    pull(tmp_path, variant(TINY_REPO, "tiny-direct.gguf"))
    trace = [(each.method, each.route) for each in hub.requests]
    assert trace == [("GET", "info"), ("GET", "resolve"), ("GET", "cdn")]
    for each in hub.requests:
        assert set(each.asked.headers) <= HEADERS_OF_A_PULL, each.text
        assert not each.asked.body
        assert each.asked.headers["user-agent"].startswith("slm-local/")
    assert not any(each.is_authorized for each in hub.requests)


def test_a_pull_with_drops_and_resumes_asks_nobody_else(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(drop_after=1000), times=3)
    hub.faults.add(SERVER_BUSY, route="resolve", skip=1)
    pull(tmp_path)
    assert {(each.method, each.route) for each in hub.requests} <= ROUTES_OF_A_PULL


def test_nothing_is_said_of_the_machine_to_the_hub(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    pull(tmp_path)
    told = "\n".join(each.text for each in hub.requests).lower()
    for word in (socket.gethostname().lower(), "torch", "agent/", str(Path.home()).lower() + "/", "telemetry"):
        assert word not in told.replace("user-agent", "")


@pytest.mark.parametrize("route", ["info", "resolve", "cdn"])
@pytest.mark.parametrize("location", ["{url}", "{path}", "{url}&again"])
def test_a_redirect_loop_ends(hub: HubServer, tmp_path: Path, route: Route, location: str) -> None:
    serve(hub)
    hub.faults.add(Fault(location=location), route=route, times=None)
    assert isinstance(outcome(tmp_path), DownloadFailed)
    assert len(hub.requests) <= 25
    assert is_clean(tmp_path)


@pytest.mark.parametrize(
    "location",
    [
        "http://models.invalid/x",
        "http://127.0.0.1.models.invalid/x",
        "http://localhost@models.invalid/x",
        "file:///etc/passwd",
        "ftp://models.invalid/x",
        "//models.invalid/x",
        "data:text/plain,x",
        "javascript:x",
        "https://",
        "http://[::1",
        "http://localhost:0/",
        "http://localhost:99999/",
        "\x01",
    ],
)
@pytest.mark.parametrize("route", ["info", "resolve"])
def test_a_redirect_away_from_what_is_safe_is_refused_and_never_followed(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: Route, location: str
) -> None:
    serve(hub)
    asked: list[str] = []
    real = socket.getaddrinfo

    def note(host: str, *rest: object, **more: object) -> object:
        asked.append(str(host))
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", note)
    hub.faults.add(Fault(headers={"Location": location}, status=302), route=route, times=None)
    error = outcome(tmp_path)
    assert isinstance(error, DownloadFailed)
    assert error.message.isprintable()
    assert set(asked) <= {"127.0.0.1", "localhost"}
    assert is_clean(tmp_path)
    assert len(hub.requests) <= 25


def test_https_is_not_given_up_on_the_way(tmp_path: Path) -> None:
    """The Hub over TLS, with a CDN without: even on this machine that is a step down."""
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with HubServer(tls=context) as hub:
        serve(hub)
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
        unknown = ended(child(tmp_path / "models", variables=variables))
        assert (unknown.code, hub.requests) == (3, [])
        known = ended(child(tmp_path / "models", variables={**variables, "SSL_CERT_FILE": str(certificate)}))
        assert known.code == 3
        assert "encryption" in known.last["message"]
        assert [each.route for each in hub.requests] == ["info", "resolve"]
    assert not hub.failures


def self_signed(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 that nobody trusts who is not told to."""
    openssl = shutil.which("openssl")
    if openssl is None or sys.platform != "linux":
        pytest.skip("takes the openssl command, and a system whose trust SSL_CERT_FILE names")
    made = folder / "stand-in.pem"
    asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=stand-in"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(made.with_suffix(".key")), "-out", str(made)]
    subprocess.run([openssl, *asked.split(), *more], check=True, capture_output=True)
    return made


OFFLINE = [
    ((), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
    (("--offline",), {}, "--offline (or offline in config.toml)"),
    (("--offline",), {"SLM_OFFLINE": "true"}, "SLM_OFFLINE"),
    ((), {"TRANSFORMERS_OFFLINE": "YES"}, "TRANSFORMERS_OFFLINE"),
]


@pytest.mark.parametrize(("flags", "variables", "named"), OFFLINE)
def test_offline_opens_no_socket_and_says_what_is_missing(
    hub: HubServer, tmp_path: Path, flags: tuple[str, ...], variables: dict[str, str], named: str
) -> None:
    serve(hub)
    end = ended(child(tmp_path, "--no-sockets", *flags, variables=variables))
    assert (end.code, end.last["type"]) == (3, "DownloadFailed"), end.err
    assert REPO in end.last["message"]
    assert f"and {named} allows no network" in end.last["message"]
    assert not hub.requests


def test_what_is_here_is_listed_planned_and_pulled_offline_without_a_socket(hub: HubServer) -> None:
    file = "tiny-reasoner-Q8_0.gguf"
    hub.add(REPO, {file: (WEIGHTS / "tiny-reasoner.gguf").read_bytes()})
    here = pull(paths().models_dir, variant(file=file)).target
    hub.requests.clear()
    for command in (["ls"], ["plan", str(here)], ["pull", f"hf:{REPO}"]):
        done = slm_without_sockets(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert not hub.requests


def slm_without_sockets(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from tests.hub.pulling import deny_sockets; deny_sockets(); from slm_local.cli.app import main; "
    )
    return subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main(sys.argv[1:]))", *arguments],
        input="",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=child_environment({"HF_HUB_OFFLINE": "1"}),
    )


def test_the_guard_against_sockets_does_guard(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    end = ended(child(tmp_path, "--no-sockets"))
    assert end.code == 99
    assert not hub.requests


def test_a_hub_that_can_t_be_reached_is_an_error_soon(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as gone:
        pass
    monkeypatch.setenv("HF_ENDPOINT", gone.url)
    error = outcome(tmp_path)
    assert isinstance(error, DownloadFailed)
    assert urlsplit(gone.url).netloc in error.message
    assert not place(tmp_path).exists()


@pytest.mark.parametrize(
    "endpoint", ["http://models.invalid", "ftp://127.0.0.1", "file:///tmp", "not an address", "https://u:p@h.invalid"]
)
def test_an_endpoint_that_is_not_safe_is_refused_before_any_socket(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    error = outcome(tmp_path)
    assert isinstance(error, DownloadFailed)
    assert "HF_ENDPOINT" in error.message
    assert not hub.requests


def test_the_proxies_of_the_environment_are_used(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = serve(hub)
    monkeypatch.delenv("NO_PROXY")
    with HubServer() as proxy:  # it answers what it is asked to pass on
        serve(proxy)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        pull(tmp_path)
        assert [each.route for each in proxy.requests] == ["info", "resolve", "cdn"]
        assert all(each.path.startswith("http://") for each in proxy.requests)
    assert is_right(tmp_path, blob)
    assert not hub.requests


def test_two_hubs_in_one_process_keep_to_themselves(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_ENDPOINT changed between two pulls: the second goes where it now leads."""
    serve(hub)
    pull(tmp_path / "one")
    before = len(hub.requests)
    with HubServer() as other:
        blob = other.add(REPO, {FILE: CONTENT[:1000]}).files[FILE]
        monkeypatch.setenv("HF_ENDPOINT", other.url)
        pull(tmp_path / "two")
        assert is_right(tmp_path / "two", blob)
        assert other.seen("resolve")
    assert len(hub.requests) == before
