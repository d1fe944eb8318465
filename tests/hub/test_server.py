"""The stand-in for the Hub, asked by the real huggingface_hub client and by plain HTTP."""

from __future__ import annotations

import hashlib
import socket
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata, hf_hub_url
from huggingface_hub.hf_api import RepoFile

from tests.hub.fixtures import TINY_REPO, WEIGHTS, serve_openvino, serve_tiny, some_bytes
from tests.hub.misbehaviour import RATE_LIMITED, Fault, wrong_bytes
from tests.hub.server import HubServer

get, head = (partial(each, timeout=60.0) for each in (httpx.get, httpx.head))

TINY_FILE = "tiny-reasoner.gguf"
REPO = "maker/model"


def api(hub: HubServer, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def test_the_real_client_reads_a_models_info_with_digests(hub: HubServer) -> None:
    commit = serve_tiny(hub)
    info = api(hub).model_info(TINY_REPO, files_metadata=True)
    siblings = {each.rfilename: each for each in info.siblings or []}
    content = (WEIGHTS / TINY_FILE).read_bytes()
    large, small = siblings[TINY_FILE].lfs, siblings["README.md"]
    assert info.sha == commit.id
    assert large is not None
    assert large.sha256 == hashlib.sha256(content).hexdigest()
    assert siblings[TINY_FILE].size == len(content)
    assert small.lfs is None
    card = commit.files["README.md"].content
    assert small.blob_id == hashlib.sha1(b"blob %d\0" % len(card) + card).hexdigest()
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"


def test_info_without_blobs_lists_only_names_and_expand_only_what_was_asked_for(hub: HubServer) -> None:
    serve_tiny(hub)
    plain = api(hub).model_info(TINY_REPO)
    assert [each.size for each in plain.siblings or []] == [None] * 3
    assert api(hub).model_info(TINY_REPO, expand=["gated"]).siblings is None


@pytest.mark.parametrize("expand", [False, True])
def test_the_real_client_pages_through_a_tree(hub: HubServer, expand: bool) -> None:
    names = {f"part/{number:03d}.bin" for number in range(120)}
    hub.add(REPO, {name: name.encode() for name in names})
    hub.page_size = 7
    listed = list(api(hub).list_repo_tree(REPO, recursive=True, expand=expand))
    assert {each.path for each in listed if isinstance(each, RepoFile)} == names
    assert len(hub.seen("tree")) == (3 if expand else 18)


def test_a_folders_own_entries_are_listed_and_paths_are_told_of(hub: HubServer) -> None:
    hub.add(REPO, {"a/b/c.bin": b"1", "a/d.txt": b"2", "e.txt": b"3"})
    assert {each.path for each in api(hub).list_repo_tree(REPO)} == {"a", "e.txt"}
    assert {each.path for each in api(hub).list_repo_tree(REPO, "a")} == {"a/b", "a/d.txt"}
    told = api(hub).get_paths_info(REPO, ["a/d.txt", "not there"])
    assert [each.path for each in told] == ["a/d.txt"]


@pytest.mark.parametrize("file", [TINY_FILE, "README.md"])
def test_the_real_client_downloads_through_the_redirect(hub: HubServer, tmp_path: Path, file: str) -> None:
    commit = serve_tiny(hub)
    got = hf_hub_download(TINY_REPO, file, endpoint=hub.url, token=False, cache_dir=tmp_path)
    assert Path(got).read_bytes() == commit.files[file].content
    assert commit.id in got
    assert [each.route for each in hub.seen()] == (["cdn"] if file == TINY_FILE else ["cache"])


def test_metadata_come_from_the_redirect(hub: HubServer) -> None:
    commit = serve_tiny(hub)
    told = get_hf_file_metadata(hf_hub_url(TINY_REPO, TINY_FILE, endpoint=hub.url), endpoint=hub.url, token=False)
    blob = commit.files[TINY_FILE]
    assert (told.commit_hash, told.etag, told.size) == (commit.id, blob.sha256, len(blob.content))
    assert told.location.startswith(hub.cdn_url)
    assert told.xet_file_data is None


def test_a_renamed_repository_is_found_by_its_old_name(hub: HubServer, tmp_path: Path) -> None:
    hub.add("old/name", {"a.bin": b"abc"})
    hub.rename("old/name", "new/name")
    assert api(hub).model_info("old/name").id == "new/name"
    got = hf_hub_download("old/name", "a.bin", endpoint=hub.url, token=False, cache_dir=tmp_path)
    assert Path(got).read_bytes() == b"abc"


def test_what_is_not_there_is_told_apart(hub: HubServer) -> None:
    hub.add(REPO, {"a.bin": b"abc"})
    with pytest.raises(RepositoryNotFoundError):
        api(hub).model_info("maker/none")
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info(REPO, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        get_hf_file_metadata(f"{hub.url}/{REPO}/resolve/main/none.bin", token=False)


def test_a_gated_repository_is_listed_but_its_files_need_a_granted_token(hub: HubServer) -> None:
    hub.add(REPO, {"a.bin": b"abc"}, gated=True)
    hub.grant("hf_other")
    hub.grant("hf_granted", REPO)
    url = f"{hub.url}/{REPO}/resolve/main/a.bin"
    assert api(hub).model_info(REPO).gated == "manual"
    for token, status in ((False, 401), ("hf_other", 403)):
        with pytest.raises(GatedRepoError) as caught:
            get_hf_file_metadata(url, token=token)
        assert caught.value.response.status_code == status
    assert get_hf_file_metadata(url, token="hf_granted").size == 3


def test_a_wrong_token_is_refused_and_a_private_repository_hides(hub: HubServer) -> None:
    hub.add(REPO, {"a.bin": b"abc"}, private=True)
    hub.grant("hf_granted", REPO)
    with pytest.raises(RepositoryNotFoundError):
        api(hub).model_info(REPO)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api(hub, "hf_wrong").model_info(REPO)
    assert api(hub, "hf_granted").model_info(REPO).private


def test_the_real_client_sends_its_token_to_the_hub_alone(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {"a.bin": b"abc"})
    hub.grant("hf_planted")
    hf_hub_download(REPO, "a.bin", endpoint=hub.url, token="hf_planted", cache_dir=tmp_path)
    assert all(each.is_authorized == (each.route != "cdn") for each in hub.requests)
    assert {each.route for each in hub.requests} >= {"resolve", "cdn"}


@pytest.mark.parametrize(
    ("asked", "status", "told", "part"),
    [
        ("bytes=10-19", 206, "bytes 10-19/1000", slice(10, 20)),
        ("bytes=990-", 206, "bytes 990-999/1000", slice(990, 1000)),
        ("bytes=990-5000", 206, "bytes 990-999/1000", slice(990, 1000)),
        ("bytes=-5", 206, "bytes 995-999/1000", slice(995, 1000)),
        ("bytes=1000-", 416, "bytes */1000", slice(0, 0)),
        ("lines=1-2", 200, None, slice(0, 1000)),
    ],
)
def test_ranges(hub: HubServer, asked: str, status: int, told: str | None, part: slice) -> None:
    content = some_bytes(1000)
    blob = hub.add(REPO, {"a.bin": content}).files["a.bin"]
    answer = get(hub.signed_url(blob), headers={"Range": asked})
    assert answer.status_code == status
    assert answer.headers.get("Content-Range") == told
    assert answer.content == content[part]
    assert answer.headers.get("ETag") == (f'"{blob.sha256}"' if status != 416 else None)
    assert [each.range for each in hub.seen("cdn")] == [asked]


def test_small_files_are_compressed_for_who_accepts_it_and_then_without_ranges(hub: HubServer) -> None:
    commit = hub.add(REPO, {"config.json": b"{}" * 100})
    url = f"{hub.url}/api/resolve-cache/models/{REPO}/{commit.id}/config.json"
    squeezed = get(url, headers={"Accept-Encoding": "gzip", "Range": "bytes=5-"})
    assert (squeezed.status_code, squeezed.headers["Content-Encoding"], squeezed.content) == (200, "gzip", b"{}" * 100)
    assert get(url, headers={"Accept-Encoding": "identity", "Range": "bytes=5-"}).status_code == 206


def test_a_signed_address_expires_and_a_new_one_is_given(hub: HubServer) -> None:
    commit = hub.add(REPO, {"a.bin": b"abc"})
    old = hub.signed_url(commit.files["a.bin"])
    hub.expire_signatures()
    assert get(old).status_code == 403
    assert get(f"{hub.url}/{REPO}/resolve/main/a.bin", follow_redirects=True).content == b"abc"


def test_a_push_moves_main_and_old_commits_stay(hub: HubServer) -> None:
    first = hub.add(REPO, {"a.bin": b"one"})
    second = hub.add(REPO, {"a.bin": b"two"})
    for revision, content in (("main", b"two"), (first.id, b"one"), (second.id, b"two")):
        got = get(f"{hub.url}/{REPO}/resolve/{revision}/a.bin", follow_redirects=True)
        assert got.content == content


def test_faults_match_route_file_method_and_turn(hub: HubServer) -> None:
    commit = hub.add(REPO, {"a.bin": b"abc", "b.bin": b"def"})
    hub.faults.add(Fault(status=500), file="a.*", skip=1, times=2)
    turns = [get(hub.signed_url(commit.files["a.bin"])).status_code for _ in range(4)]
    assert turns == [200, 500, 500, 200]
    hub.faults.add(RATE_LIMITED, file="a.bin", method="HEAD", times=None)
    assert get(hub.signed_url(commit.files["a.bin"])).status_code == 200
    assert head(hub.signed_url(commit.files["b.bin"])).status_code == 200
    assert head(hub.signed_url(commit.files["a.bin"])).headers["Retry-After"] == "7"


@pytest.mark.parametrize("resets", [False, True])
def test_a_connection_is_dropped_after_so_many_bytes(hub: HubServer, resets: bool) -> None:
    blob = hub.add(REPO, {"a.bin": some_bytes(200_000)}).files["a.bin"]
    hub.faults.add(Fault(drop_after=150_001, resets=resets))
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        get(hub.signed_url(blob))
    assert [each.sent_bytes for each in hub.seen("cdn")] == [150_001]


def test_a_stall_lasts_until_it_is_released(hub: HubServer) -> None:
    blob = hub.add(REPO, {"a.bin": some_bytes(200_000)}).files["a.bin"]
    hub.faults.add(Fault(stall_after=100_000))
    url = urlsplit(hub.signed_url(blob))
    with socket.create_connection((url.hostname or "", url.port or 0)) as plain, plain.makefile("rb") as answer:
        plain.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        while answer.readline() != b"\r\n":
            pass
        assert answer.read(100_000) == blob.content[:100_000]
        assert hub.stalled.wait(60)
        plain.settimeout(0.2)
        with pytest.raises(TimeoutError):
            answer.read(1)
    hub.faults.add(Fault(stall_after=100_000, then=hub.expire_signatures))
    hub.release()
    assert get(hub.signed_url(blob)).content == blob.content


def test_bytes_and_lengths_can_be_wrong(hub: HubServer) -> None:
    blob = hub.add(REPO, {"a.bin": some_bytes(1000)}).files["a.bin"]
    hub.faults.add(Fault(change=wrong_bytes))
    got = get(hub.signed_url(blob)).content
    assert len(got) == 1000
    assert sum(a != b for a, b in zip(got, blob.content, strict=True)) == 1
    hub.faults.add(Fault(stated_length=1200))
    with pytest.raises(httpx.RemoteProtocolError):
        get(hub.signed_url(blob))
    hub.faults.add(Fault(range_shift=3))
    shifted = get(hub.signed_url(blob), headers={"Range": "bytes=10-"})
    assert shifted.headers["Content-Range"] == "bytes 13-999/1000"
    hub.faults.add(Fault(ignores_range=True))
    assert get(hub.signed_url(blob), headers={"Range": "bytes=10-"}).status_code == 200


def test_hostile_names_are_served_as_they_are(hub: HubServer) -> None:
    names = ["../../x.gguf", "/etc/passwd", "C:\\x.gguf", "a\x1b[31m.gguf", "[red]x.gguf"]
    hub.add(REPO, dict.fromkeys(names, b"x"))
    info = api(hub).model_info(REPO, files_metadata=True)
    assert [each.rfilename for each in info.siblings or []] == names


def test_an_openvino_folder_has_large_and_small_files(hub: HubServer) -> None:
    commit = serve_openvino(hub)
    kinds = {blob.path: blob.is_large for blob in commit.files.values()}
    assert kinds["openvino_model.bin"]
    assert not kinds["openvino_model.xml"]
