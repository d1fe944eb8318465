"""Who may come in: names, origins, keys, forms and sizes of bodies; one gate before every route."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import openai
import pytest

from slm_local.errors import UsageError
from slm_local.server.gate import MAX_BODY_BYTES, is_loopback, rules_for
from tests.conftest import ScriptWriter
from tests.serving import Serving, serving

pytestmark = pytest.mark.usefixtures("scripted_allowed")

KEY = "a-key-that-nobody-guesses"
PAGE = "https://page.example"
ROUTES = (
    *(("GET", path) for path in ("/v1/models", "/v1/models/x", "/metrics", "/tokenizer_info", "/nowhere", "/docs")),
    *(("POST", path) for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")),
)
BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}]})


@pytest.fixture
def reference(script: ScriptWriter) -> str:
    return f"scripted:{script({'text': 'yes', 'end': 'stop'}, name='sure')}"


@pytest.fixture
def server(reference: str) -> Iterator[Serving]:
    with serving(reference) as running:
        yield running


def test_without_the_key_every_route_but_health_is_401(reference: str) -> None:
    with serving(reference, key=KEY) as server:
        for authorization in (None, "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY[:-1]}"):
            headers = {"Authorization": authorization} if authorization else {}
            with httpx.Client(base_url=server.address, headers=headers) as stranger:
                for method, path in ROUTES:
                    response = stranger.request(method, path)
                    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
                assert stranger.get("/health").json()["status"] == "ok"
        assert server.chat().status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.openai.with_options(api_key="wrong").models.list()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "localhost.evil.example", "127.0.0.1:1", ""])
def test_another_hosts_name_is_403_on_every_route(server: Serving, host: str) -> None:
    port = server.address.rpartition(":")[2]
    for method, path in (*ROUTES, ("GET", "/health"), ("OPTIONS", "/v1/models")):
        response = server.http.request(method, path, headers={"Host": host.format(port=port)})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


def test_this_machines_own_names_are_answered_to(server: Serving) -> None:
    port = server.address.rpartition(":")[2]
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "[::1]"):
        assert server.http.get("/v1/models", headers={"Host": f"{host}:{port}"}).status_code == 200


def test_a_page_of_another_origin_is_refused_and_so_is_its_preflight(server: Serving) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    for method, headers in (("POST", {"Origin": PAGE}), ("OPTIONS", asks), ("GET", {"Origin": "null"})):
        response = server.http.request(method, "/v1/chat/completions", headers=headers)
        assert response.status_code == 403
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_page_that_was_named_may_call(reference: str) -> None:
    with serving(reference, origins=(PAGE,), key=KEY) as server:
        asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Authorization": ""}
        preflight = server.http.options("/v1/chat/completions", headers=asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        answer = server.http.get("/v1/models", headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert server.http.get("/v1/models", headers={"Origin": f"{PAGE}.evil"}).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_a_page_could_send_unasked_is_415(server: Serving, kind: str) -> None:
    response = server.http.post("/v1/chat/completions", content=BODY, headers={"Content-Type": kind})
    assert response.status_code == 415


def test_a_huge_body_is_413_before_it_is_read(server: Serving) -> None:
    port = int(server.address.rpartition(":")[2])
    head = f"POST /tokenize HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: {50 * 2**20}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_huge_body_of_unknown_length_is_413(server: Serving) -> None:
    def drops() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 2**20 + 2):
            yield b" " * 2**20

    headers = {"Content-Type": "application/json"}
    try:
        assert server.http.post("/tokenize", content=drops(), headers=headers).status_code == 413
    except (httpx.NetworkError, httpx.RemoteProtocolError):  # it hung up, for it had read enough
        assert server.http.get("/health").status_code == 200


def test_nothing_manages_and_nothing_describes_the_server(server: Serving) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/api/pull", "/v1/models/x/unload", "/shutdown", "/slots"):
        for method in ("GET", "DELETE"):
            assert server.http.request(method, path).status_code in (404, 405)
    error = server.http.get("/nowhere").json()["error"]
    assert (error["code"], error["message"]) == ("not_found", "there is no GET /nowhere")
    wrong_way = server.http.delete("/v1/models")
    assert (wrong_way.json()["error"]["code"], wrong_way.headers["allow"]) == ("method_not_allowed", "GET")


def test_only_this_machines_own_addresses_are_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.4", "example.org", "")))


def test_listening_everywhere_takes_addresses_only_with_a_key() -> None:
    assert rules_for("0.0.0.0", 80, key=KEY).takes_addresses
    assert not rules_for("0.0.0.0", 80).takes_addresses
    named = rules_for("192.168.1.4", 11435, key=KEY, hosts=["box.lan"]).hosts
    assert {"192.168.1.4:11435", "box.lan:11435", "box.lan", "localhost:11435"} <= named


def test_a_page_named_with_a_slash_may_call_as_browsers_write_it(reference: str) -> None:
    with serving(reference, origins=(f"{PAGE}/",)) as server:
        answer = server.http.get("/v1/models", headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (200, PAGE)


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/path", "*", "null", "https://a b"])
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(UsageError, match="--allow-origin takes"):
        rules_for("127.0.0.1", 1, origins=[origin])


@pytest.mark.parametrize("name", ["a b", "http://box.lan", "box.lan/", ""])
def test_a_name_that_no_request_has_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(UsageError, match="--allow-host takes"):
        rules_for("127.0.0.1", 1, hosts=[name])


def test_a_wrong_key_is_told_from_none(reference: str) -> None:
    with serving(reference, key=KEY) as server:
        wrong = server.http.get("/v1/models", headers={"Authorization": "Bearer other"})
        missing = httpx.get(f"{server.address}/v1/models")
        assert (wrong.status_code, missing.status_code) == (401, 401)
        assert "takes another key" in wrong.text
        assert "needs its key" in missing.text
