"""Every misbehaviour of the Hub ends in a right file or in a clear error with exit code 3, never in a wrong file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.download.fetch import fetch
from slm_local.download.hub import Hub
from slm_local.download.order import order_of
from slm_local.download.stopping import Stop
from slm_local.download.values import PATIENCE, Fetched, FetchProgress, Patience
from slm_local.errors import DownloadFailed
from tests.hub.fixtures import some_bytes
from tests.hub.misbehaviour import (
    LOGIN_PAGE,
    RATE_LIMITED,
    SERVER_BUSY,
    Fault,
    Route,
    longer,
    shorter,
    wrong_bytes,
)
from tests.hub.pulling import (
    FILE,
    QUICK,
    REPO,
    RESTLESS,
    UNTIRING,
    is_clean,
    is_right,
    outcome,
    part,
    place,
    pull,
    variant,
)
from tests.hub.server import HubServer

SIZE = 600_000
CONTENT = some_bytes(SIZE)
CARD = b"# A model\n"

MOST_REQUESTS = 60
"""A pull that fails for good has given up by then: some tries, each of a few requests."""

PASSING: dict[str, tuple[Route, Fault, int]] = {
    "dropped at 30 %": ("cdn", Fault(drop_after=SIZE * 3 // 10), 1),
    "dropped three times": ("cdn", Fault(drop_after=SIZE // 5), 3),
    "dropped before the first byte": ("cdn", Fault(drop_after=0), 1),
    "dropped before the last byte": ("cdn", Fault(drop_after=SIZE - 1), 1),
    "reset at 30 %": ("cdn", Fault(drop_after=SIZE * 3 // 10, resets=True), 1),
    "hung up on without an answer": ("cdn", Fault(hangs_up=True), 1),
    "the Hub hung up without an answer": ("resolve", Fault(hangs_up=True), 1),
    "stalled at the start": ("cdn", Fault(stall_after=0), 1),
    "stalled in the middle": ("cdn", Fault(stall_after=SIZE // 2), 1),
    "mute": ("cdn", Fault(is_mute=True), 1),
    "the Hub is mute": ("resolve", Fault(is_mute=True), 1),
    "cut, and no length told": ("cdn", Fault(drop_after=SIZE // 3, headers={"Content-Length": None}), 1),
    "503 from the CDN, then well": ("cdn", SERVER_BUSY, 2),
    "503 from the Hub, then well": ("resolve", SERVER_BUSY, 2),
    "500, then well": ("cdn", Fault(status=500), 1),
    "502, then well": ("resolve", Fault(status=502), 1),
    "429, then well": ("resolve", RATE_LIMITED, 1),
    "429 from the CDN, then well": ("cdn", RATE_LIMITED, 1),
    "a length too long": ("cdn", Fault(stated_length=SIZE + 1000), 1),
    "an address that has expired already": ("cdn", Fault(status=403, body=b"<Error>Request has expired</Error>"), 1),
}
"""What a network does and what passes: each ends in the right file."""

EITHER: dict[str, tuple[Route, Fault, int]] = {
    "a length too short": ("cdn", Fault(stated_length=SIZE - 1000), 1),
    "a length of nothing": ("cdn", Fault(stated_length=0), 1),
    "wrong bytes once": ("cdn", Fault(change=wrong_bytes), 1),
    "a shorter body once": ("cdn", Fault(change=shorter), 1),
    "a longer body once": ("cdn", Fault(change=longer), 1),
    "an empty body once": ("cdn", Fault(change=lambda _: b""), 1),
    "a body that is compressed": ("cdn", Fault(gzips=True), 1),
    "compression claimed of bytes that are not": ("cdn", Fault(headers={"Content-Encoding": "gzip"}), 1),
    "a login page in place of the file": ("cdn", LOGIN_PAGE, 1),
    "a login page in place of the redirect": ("resolve", LOGIN_PAGE, 1),
    "a redirect that leads nowhere": ("resolve", Fault(headers={"Location": None}), 1),
    "a redirect that is no address": ("resolve", Fault(headers={"Location": "http://[::1"}), 1),
    "no ETag": ("resolve", Fault(headers={"X-Linked-ETag": None, "ETag": None}), 1),
    "another ETag": ("resolve", Fault(headers={"X-Linked-ETag": '"other"', "ETag": '"other"'}), 1),
    "an ETag that is a path": ("resolve", Fault(headers={"X-Linked-ETag": '"../../x"', "ETag": '"../../x"'}), 1),
    "no commit": ("resolve", Fault(headers={"X-Repo-Commit": None}), 1),
    "another commit": ("resolve", Fault(headers={"X-Repo-Commit": "f" * 40}), 1),
    "a commit that is a path": ("resolve", Fault(headers={"X-Repo-Commit": "../../x"}), 1),
    "another linked size": ("resolve", Fault(headers={"X-Linked-Size": "12"}), 1),
    "a size that is no number": ("resolve", Fault(headers={"X-Linked-Size": "many"}), 1),
    "addresses of Xet storage": ("resolve", Fault(headers={"X-Xet-Hash": "a" * 64, "Link": '<x>; rel="xet-auth"'}), 9),
    "a part where all was asked for": ("cdn", Fault(status=206, body=CONTENT[:5000]), 1),
    "no content": ("cdn", Fault(status=204), 1),
    "not modified": ("cdn", Fault(status=304), 1),
    "a longer body and no length": ("cdn", Fault(change=longer, headers={"Content-Length": None}), 1),
    "a length that is no number": ("cdn", Fault(headers={"Content-Length": "many"}), 1),
}
"""What servers and meddlers between do: the right file or an error."""


def serve(hub: HubServer) -> None:
    hub.add(REPO, {FILE: CONTENT, "README.md": CARD})


def patience_for(fault: Fault, *, stalled: Patience = RESTLESS) -> Patience:
    return stalled if fault.is_mute or fault.stall_after is not None else QUICK


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_ends_in_the_right_file(hub: HubServer, tmp_path: Path, name: str) -> None:
    serve(hub)
    route, fault, times = PASSING[name]
    hub.faults.add(fault, route=route, times=times)
    pull(tmp_path, patience=patience_for(fault, stalled=UNTIRING))
    assert is_right(tmp_path, hub.repositories[REPO].commits[0].files[FILE])
    assert is_clean(tmp_path, but=(FILE,))
    assert not part(tmp_path).exists()


@pytest.mark.parametrize("name", EITHER)
def test_what_meddles_never_ends_in_a_wrong_file(hub: HubServer, tmp_path: Path, name: str) -> None:
    serve(hub)
    blob = hub.repositories[REPO].commits[0].files[FILE]
    route, fault, times = EITHER[name]
    hub.faults.add(fault, route=route, times=times)
    match outcome(tmp_path):
        case Fetched():
            assert is_right(tmp_path, blob)
        case DownloadFailed():
            assert is_clean(tmp_path)
            hub.faults.clear()
            pull(tmp_path)
            assert is_right(tmp_path, blob), "what was left behind was trusted"


FOR_GOOD = {
    name: (route, fault)
    for name, (route, fault, _) in {**PASSING, **EITHER}.items()
    if name not in ("dropped at 30 %", "dropped three times", "reset at 30 %", "dropped before the last byte")
} | {
    "dropped again and again": ("cdn", Fault(drop_after=10)),
    "a range that begins elsewhere": ("cdn", Fault(drop_after=100_000, range_shift=17)),
    "ranges passed over and dropped": ("cdn", Fault(ignores_range=True, drop_after=200_000)),
}


@pytest.mark.parametrize("name", FOR_GOOD)
def test_what_does_not_pass_is_given_up_with_an_error(hub: HubServer, tmp_path: Path, name: str) -> None:
    serve(hub)
    route, fault = FOR_GOOD[name]
    blob = hub.repositories[REPO].commits[0].files[FILE]
    hub.faults.add(fault, route=route, times=None)
    match outcome(tmp_path, patience=patience_for(fault)):
        case Fetched():
            assert is_right(tmp_path, blob)
        case DownloadFailed() as error:
            assert "Traceback" not in error.message
            assert "\n" not in error.message
            assert is_clean(tmp_path)
    assert len(hub.requests) <= MOST_REQUESTS


@pytest.mark.parametrize("name", ["stalled in the middle", "503 from the CDN, then well", "wrong bytes once"])
def test_what_lasts_is_an_error_and_not_a_file(hub: HubServer, tmp_path: Path, name: str) -> None:
    serve(hub)
    route, fault, _ = {**PASSING, **EITHER}[name]
    hub.faults.add(replace(fault, ignores_range=True), route=route, times=None)
    assert isinstance(outcome(tmp_path, patience=patience_for(fault)), DownloadFailed)
    assert not place(tmp_path).exists()


def test_wrong_bytes_of_the_right_length_are_removed_and_both_digests_shown(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(change=wrong_bytes), times=None)
    blob = hub.repositories[REPO].commits[0].files[FILE]
    error = outcome(tmp_path)
    assert isinstance(error, DownloadFailed)
    wrong = hub.add("maker/wrong", {FILE: wrong_bytes(CONTENT)}).files[FILE]
    assert blob.sha256[:12] in error.message
    assert wrong.sha256[:12] in error.message
    assert is_clean(tmp_path)
    assert not part(tmp_path).exists()


def test_a_dropped_connection_is_resumed_by_range(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(drop_after=SIZE * 3 // 10))
    fetched = pull(tmp_path)
    first, second = hub.seen("cdn")
    assert (first.range in (None, "bytes=0-"), second.status) == (True, 206)
    assert second.range is not None
    assert 0 < int(second.range.removeprefix("bytes=").split("-")[0]) <= SIZE * 3 // 10
    assert fetched.received_bytes == SIZE


def test_each_try_starts_at_the_resolve_address_again(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(drop_after=100_000, then=hub.expire_signatures))
    pull(tmp_path)
    assert len({each.path for each in hub.seen("cdn")}) == 2
    assert [each.status for each in hub.seen("cdn")] == [200, 206]


def test_a_server_that_passes_over_range_costs_time_not_truth(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(drop_after=200_000))
    hub.faults.add(Fault(ignores_range=True))
    fetched = pull(tmp_path)
    assert is_right(tmp_path, hub.repositories[REPO].commits[0].files[FILE])
    assert [each.status for each in hub.seen("cdn")] == [200, 200]
    assert fetched.received_bytes > SIZE


def test_a_range_that_can_t_be_satisfied_is_begun_anew(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(drop_after=200_000))
    hub.faults.add(Fault(status=416, headers={"Content-Range": "bytes */12"}))
    pull(tmp_path)
    assert is_right(tmp_path, hub.repositories[REPO].commits[0].files[FILE])


def test_a_range_that_begins_elsewhere_is_not_appended(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(drop_after=200_000))
    hub.faults.add(Fault(range_shift=-100_000))
    pull(tmp_path)
    assert is_right(tmp_path, hub.repositories[REPO].commits[0].files[FILE])


def test_a_push_between_two_tries_does_not_mix_two_revisions(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    other = some_bytes(SIZE, 2)
    hub.faults.add(Fault(drop_after=200_000, then=lambda: hub.add(REPO, {FILE: other})))
    pull(tmp_path)
    first, second = hub.repositories[REPO].commits
    assert is_right(tmp_path, first.files[FILE]) or is_right(tmp_path, second.files[FILE])


def test_a_commit_whose_file_changes_between_two_tries_is_no_mix(hub: HubServer, tmp_path: Path) -> None:
    """A mirror that breaks its promise: the same commit, another file and ETag."""
    serve(hub)
    first = hub.repositories[REPO].commits[0]

    def replace_the_commit() -> None:
        hub.repositories[REPO].commits.clear()
        hub.add(REPO, {FILE: some_bytes(SIZE, 2)}, commit=first.id)

    hub.faults.add(Fault(drop_after=200_000, then=replace_the_commit))
    result = outcome(tmp_path)
    now = hub.repositories[REPO].commits[0].files[FILE]
    assert is_clean(tmp_path) if isinstance(result, DownloadFailed) else is_right(tmp_path, now)


def test_the_registrys_digest_differing_from_the_hubs_is_a_warning(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    fetched = pull(tmp_path, variant(sha256="0" * 64))
    assert is_right(tmp_path, hub.repositories[REPO].commits[0].files[FILE])
    assert any("0000" in warning for warning in fetched.warnings)


def test_a_small_file_is_checked_against_its_git_blob(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {"config.json": b'{"a": 1}'})
    wanted = variant(file="config.json")
    hub.faults.add(Fault(change=wrong_bytes), route="cache", times=None)
    assert isinstance(outcome(tmp_path, wanted), DownloadFailed)
    assert is_clean(tmp_path)
    hub.faults.clear()
    pull(tmp_path, wanted)
    assert is_right(tmp_path, hub.repositories[REPO].commits[0].files["config.json"])


STATUSES: dict[str, tuple[Route, Fault, tuple[str, ...]]] = {
    "429 for good": ("resolve", RATE_LIMITED, ("429", "too many", "rate", "busy", "wait")),
    "500 for good": ("resolve", Fault(status=500), ("500",)),
    "403 for good": ("resolve", Fault(status=403), ("403", "refuse", "forbid", "not allowed")),
    "a page in place of the model's info": ("info", LOGIN_PAGE, ("answer", "hub", "json")),
    "500 in place of the model's info": ("info", Fault(status=500), ("500",)),
    "an info without its end": ("info", Fault(change=shorter), ("answer", "hub")),
    "an info that is a list": ("info", Fault(status=200, body=b"[]"), ("answer", "hub")),
    "an info without siblings": ("info", Fault(status=200, body=b'{"id": "a/b"}'), ("answer", "hub", "file")),
    "a hang-up in place of the info": ("info", Fault(hangs_up=True), ("connect", "network", "answer", "hub")),
}


@pytest.mark.parametrize("name", STATUSES)
def test_what_the_hub_refuses_is_told_apart(hub: HubServer, tmp_path: Path, name: str) -> None:
    serve(hub)
    route, fault, words = STATUSES[name]
    hub.faults.add(fault, route=route, times=None)
    if route == "info":  # whichever of the two ways is used to list files
        hub.faults.add(fault, route="tree", times=None)
    error = outcome(tmp_path)
    assert isinstance(error, DownloadFailed)
    assert any(word in error.message.lower() for word in words), error.message
    assert is_clean(tmp_path)


AGAIN = "slm pull hf:maker/model-GGUF:Q8_0"

ASKED_AGAIN: dict[str, tuple[Route, Fault]] = {
    "500 in place of the info": ("info", Fault(status=500)),
    "429 in place of the info": ("info", RATE_LIMITED),
    "a page in place of the info": ("info", LOGIN_PAGE),
    "500": ("resolve", Fault(status=500)),
    "400": ("resolve", Fault(status=400)),
    "429": ("resolve", RATE_LIMITED),
    "compressed": ("cdn", Fault(gzips=True)),
    "redirects in a circle": ("resolve", Fault(location="{url}")),
    "a login page": ("cdn", LOGIN_PAGE),
    "wrong bytes": ("cdn", Fault(change=wrong_bytes)),
}


@pytest.mark.parametrize("name", ASKED_AGAIN)
def test_a_hint_is_the_line_that_was_typed(hub: HubServer, tmp_path: Path, name: str) -> None:
    serve(hub)
    route, fault = ASKED_AGAIN[name]
    hub.faults.add(fault, route=route, times=None)
    asked = Hub(patience=QUICK, again=AGAIN)
    with pytest.raises(DownloadFailed) as caught:
        fetch(order_of(variant(), asked, tmp_path), asked, patience=QUICK)
    assert caught.value.hint == AGAIN


def test_a_line_given_for_one_download_is_in_the_hubs_hints_too(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(gzips=True), times=None)
    asked = Hub(patience=QUICK)
    with pytest.raises(DownloadFailed) as caught:
        fetch(order_of(variant(), asked, tmp_path), asked, patience=QUICK, again=AGAIN)
    assert caught.value.hint == AGAIN


@pytest.mark.parametrize(("route", "skip"), [("cdn", 0), ("resolve", 1)])
def test_a_login_page_is_said_at_once_and_what_came_is_kept(
    hub: HubServer, tmp_path: Path, route: Route, skip: int
) -> None:
    serve(hub)
    hub.faults.add(Fault(drop_after=SIZE // 2))
    hub.faults.add(LOGIN_PAGE, route=route, skip=skip, times=None)
    told: list[str] = []
    with pytest.raises(DownloadFailed, match="is this network's login page open") as caught:
        pull(tmp_path, on_progress=lambda progress: told.append(progress.message or ""))
    assert "web page" in caught.value.message
    assert len([each for each in told if "trying again" in each]) == 1
    assert len(hub.requests) <= 5
    assert part(tmp_path).stat().st_size > 0


def test_what_is_not_there_is_told_apart(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    messages = set()
    for wanted in (variant("maker/none"), variant(file="none.gguf"), variant(revision="v9")):
        error = outcome(tmp_path, wanted)
        assert isinstance(error, DownloadFailed)
        messages.add(error.message)
    assert len(messages) == 3
    assert not hub.transfers()


def test_refusals_are_told_apart_from_each_other(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    messages = []
    for status in (401, 403, 404, 429, 500):
        hub.faults.add(Fault(status=status), route="resolve", times=None)
        error = outcome(tmp_path)
        assert isinstance(error, DownloadFailed)
        messages.append(error.message)
        hub.faults.clear()
    assert len(set(messages)) == len(messages), messages


def test_a_renamed_repository_is_pulled_by_its_old_name(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    blob = hub.repositories[REPO].commits[0].files[FILE]
    hub.rename(REPO, "other/name-GGUF")
    pull(tmp_path)
    assert is_right(tmp_path, blob)


@pytest.mark.parametrize(
    "file", ["a file of 50% #1 + é.gguf", "folder/über/x.gguf", "a&b=c;d.gguf", "[red]x.gguf", "-x"]
)
def test_names_with_signs_of_their_own_meaning_in_addresses_are_fetched(
    hub: HubServer, tmp_path: Path, file: str
) -> None:
    blob = hub.add(REPO, {file: CONTENT}).files[file]
    pull(tmp_path, variant(file=file))
    assert is_right(tmp_path, blob)


@pytest.mark.parametrize(
    ("asked", "waited_s"),
    [("7", 7.0), ("1000000", 300.0), ("9" * 500, 300.0), ("-5", 1.0), ("soon", 1.0), ("nan", 1.0)],
)
def test_a_retry_after_is_waited_for_and_said(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, waited_s: float
) -> None:
    serve(hub)
    hub.faults.add(Fault(status=429, headers={"Retry-After": asked}), route="resolve")
    waited: list[float] = []
    monkeypatch.setattr(Stop, "wait", lambda _, seconds: waited.append(seconds))
    said: list[FetchProgress] = []
    pull(tmp_path, on_progress=said.append, patience=PATIENCE)
    messages = [each.message for each in said if each.stage == "retrying" and each.message]
    assert waited == [waited_s]
    assert any(f"{waited_s:.0f} s" in message for message in messages), messages


def test_waits_between_tries_grow_and_end(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(hub)
    hub.faults.add(SERVER_BUSY, times=None)
    waited: list[float] = []
    monkeypatch.setattr(Stop, "wait", lambda _, seconds: waited.append(seconds))
    with pytest.raises(DownloadFailed):
        pull(tmp_path, patience=PATIENCE)
    assert len(waited) == 6
    assert waited == sorted(set(waited))


def test_every_try_again_is_said_once(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    hub.faults.add(Fault(drop_after=50_000), times=3)
    said: list[FetchProgress] = []
    pull(tmp_path, on_progress=said.append)
    assert len([each for each in said if each.stage == "retrying" and each.message]) == 3
    done = [each.done_bytes for each in said if each.stage == "downloading"]
    assert done == sorted(done)
    assert {each.total_bytes for each in said} == {SIZE}
