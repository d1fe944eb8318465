"""What is asked for before a download, info and ranges of a header: lies and noise end in the truth or in an error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from slm_local.download.client import ranged_bytes
from slm_local.download.hub import Hub
from slm_local.download.values import PATIENCE, Fetched
from slm_local.errors import DownloadFailed
from tests.hub.fixtures import some_bytes
from tests.hub.misbehaviour import LOGIN_PAGE, SERVER_BUSY, Fault, Route, longer, shorter
from tests.hub.pulling import FILE, QUICK, REPO, is_clean, is_right, outcome, pull
from tests.hub.server import HubServer

CONTENT = some_bytes(600_000)


def serve(hub: HubServer) -> str:
    return hub.add(REPO, {FILE: CONTENT}).id


LIES: dict[str, tuple[bytes, bytes]] = {
    "a size too small": (b'"size": 600000', b'"size": 599999'),
    "a size too large": (b'"size": 600000', b'"size": 600001'),
    "a size of nothing": (b'"size": 600000', b'"size": 0'),
    "a size below nothing": (b'"size": 600000', b'"size": -5'),
    "a size beyond every disk": (b'"size": 600000', b'"size": 9999999999999999999999'),
    "a size that is a text": (b'"size": 600000', b'"size": "600000"'),
    "a size with a fraction": (b'"size": 600000', b'"size": 600000.5'),
    "a size that is true": (b'"size": 600000', b'"size": true'),
    "no size": (b'"size": 600000', b'"size": null'),
    "a digest that is a path": (b'"sha256": "', b'"sha256": "../../'),
    "another digest": (b'"sha256": "', b'"sha256": "%s", "x": "' % (b"a" * 64)),
    "a digest that is a number": (b'"sha256": "', b'"sha256": 5, "x": "'),
    "a commit that is a path": (b'"sha": "', b'"sha": "../../'),
    "no commit": (b'"sha": "', b'"was": "'),
    "another commit": (b'"sha": "', b'"sha": "%s", "x": "' % (b"a" * 40)),
    "a name that is a number": (b'"rfilename": "', b'"rfilename": 5, "x": "'),
    "files that are none": (b'"siblings": [', b'"siblings": [5, '),
    "dates that are none": (b'"lastModified": "', b'"lastModified": "soon '),
    "tags that are none": (b'"tags": [', b'"tags": 5, "x": ['),
    "a card that is none": (b'"cardData": {', b'"cardData": 5, "x": {'),
}
"""What is written in a model's info, and what stands there in its place."""


@pytest.mark.parametrize("name", LIES)
def test_an_info_that_lies_never_ends_in_a_wrong_file(hub: HubServer, tmp_path: Path, name: str) -> None:
    serve(hub)
    blob = hub.repositories[REPO].commits[0].files[FILE]
    told, lie = LIES[name]
    hub.faults.add(Fault(change=lambda body: changed(body, told, lie)), route="info")
    match outcome(tmp_path):
        case Fetched():
            assert is_right(tmp_path, blob)
        case DownloadFailed() as error:
            assert "\n" not in error.message
            assert is_clean(tmp_path)
            pull(tmp_path)
            assert is_right(tmp_path, blob)


def changed(body: bytes, told: bytes, lie: bytes) -> bytes:
    assert told in body
    return body.replace(told, lie)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe", b"", b"null", b"5", b'"text"'])
def test_an_info_that_is_none_is_an_error(hub: HubServer, tmp_path: Path, body: bytes) -> None:
    serve(hub)
    hub.faults.add(Fault(status=200, body=body), route="info", times=None)
    assert isinstance(outcome(tmp_path), DownloadFailed)


def test_an_info_that_does_not_come_is_given_up(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_local.download.hub.INFO_TIMEOUT_S", 0.2)
    serve(hub)
    hub.faults.add(Fault(is_mute=True), route="info", times=None)
    assert isinstance(outcome(tmp_path), DownloadFailed)


RANGE_FAULTS: dict[str, tuple[Route, Fault]] = {
    "dropped": ("cdn", Fault(drop_after=500)),
    "reset": ("cdn", Fault(drop_after=500, resets=True)),
    "hung up": ("cdn", Fault(hangs_up=True)),
    "busy": ("cdn", SERVER_BUSY),
    "range passed over": ("cdn", Fault(ignores_range=True)),
    "range passed over and dropped": ("cdn", Fault(ignores_range=True, drop_after=5000)),
    "another range": ("cdn", Fault(range_shift=7)),
    "a login page": ("resolve", LOGIN_PAGE),
    "compressed": ("cdn", Fault(gzips=True)),
    "a shorter file": ("cdn", Fault(change=shorter)),
    "a longer file": ("cdn", Fault(change=longer)),
    "expired": ("cdn", Fault(status=403)),
}


@pytest.mark.parametrize("name", RANGE_FAULTS)
@pytest.mark.parametrize("times", [1, None], ids=["once", "always"])
def test_a_range_is_the_right_bytes_or_an_error(hub: HubServer, name: str, times: int | None) -> None:
    commit = serve(hub)
    route, fault = RANGE_FAULTS[name]
    hub.faults.add(fault, route=route, times=times)
    with contextlib.suppress(DownloadFailed):
        assert ranged_bytes(Hub(), REPO, commit, FILE, 10_000, 12_000, QUICK) == CONTENT[10_000:12_000]


def test_a_server_that_asks_for_a_long_wait_before_a_header_is_not_waited_for_in_silence(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = serve(hub)
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    hub.faults.add(Fault(status=429, headers={"Retry-After": "200"}), route="resolve", times=None)
    with pytest.raises(DownloadFailed, match="200 s"):
        ranged_bytes(Hub(), REPO, commit, FILE, 0, 10, PATIENCE)
    assert sum(waited) <= 10
