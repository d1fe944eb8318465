"""Fetching around the edges: files that lie here already, progress, facts asked for twice, ranges, import cost.

Faults, resumes, names and secrets are in tests/hub/.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from slm_local.download import places
from slm_local.download.address import endpoint_of, is_loopback
from slm_local.download.client import _retry_after, ranged_bytes
from slm_local.download.fetch import fetch, order_of
from slm_local.download.hub import Hub
from slm_local.download.order import order_at
from slm_local.download.partial import digests_of
from slm_local.download.progress import Progress
from slm_local.download.values import FetchProgress, Patience, RemoteFile, RemoteRepo
from slm_local.errors import DownloadFailed
from slm_local.model import Variant, gigabytes
from slm_local.sanitize import shell_word
from tests.hub.fixtures import hub, some_bytes  # noqa: F401
from tests.hub.misbehaviour import SERVER_BUSY, Fault, wrong_bytes
from tests.hub.server import HubServer

REPO, FILE = "maker/model-GGUF", "model.gguf"
CONTENT = some_bytes(300_000)
VARIANT = Variant(kind="gguf", quant="Q8_0", repo=REPO, file=FILE)
QUICK = Patience(connect_s=5, stall_s=1, waits_s=(0, 0, 0, 0, 0, 0), longest_wait_s=0)


def put(models_dir: Path, content: bytes) -> Path:
    place = places.place_of(models_dir, REPO, FILE)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place


def test_a_file_that_someone_put_there_is_hashed_and_not_fetched(hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    hub.add(REPO, {FILE: CONTENT})
    place = put(tmp_path, CONTENT)
    said: list[FetchProgress] = []
    fetched = fetch(order_of(VARIANT, Hub(), tmp_path), Hub(), on_progress=said.append, patience=QUICK)
    assert fetched.received_bytes == 0
    assert not hub.transfers()
    assert "checking" in {each.stage for each in said}
    record = places.read_record(place)
    assert record is not None
    assert record.sha256 == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("content", [wrong_bytes(CONTENT), CONTENT[:-1]], ids=["other bytes", "another size"])
def test_a_different_file_that_someone_put_there_is_not_overwritten(
    hub: HubServer,  # noqa: F811
    tmp_path: Path,
    content: bytes,
) -> None:
    hub.add(REPO, {FILE: CONTENT})
    place = put(tmp_path, content)
    with pytest.raises(DownloadFailed, match="not overwritten") as caught:
        fetch(order_of(VARIANT, Hub(), tmp_path), Hub(), patience=QUICK)
    assert str(place) in caught.value.message
    assert caught.value.hint == f"mv {shell_word(str(place))} {shell_word(f'{place}.old')}"
    assert place.read_bytes() == content
    assert not hub.transfers()


def test_an_older_version_is_replaced_by_the_new_one_and_that_is_said(hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    hub.add(REPO, {FILE: CONTENT})
    fetch(order_of(VARIANT, Hub(), tmp_path), Hub(), patience=QUICK)
    newer = some_bytes(300_000, 2)
    hub.add(REPO, {FILE: newer})
    said: list[FetchProgress] = []
    fetched = fetch(order_of(VARIANT, Hub(), tmp_path), Hub(), on_progress=said.append, patience=QUICK)
    assert fetched.target.read_bytes() == newer
    assert any("another version" in (each.message or "") for each in said)


def test_facts_are_asked_for_again_where_the_hub_has_a_fault_of_its_own(hub: HubServer) -> None:  # noqa: F811
    hub.add(REPO, {FILE: CONTENT})
    hub.faults.add(SERVER_BUSY, route="info", times=2)
    assert Hub(patience=QUICK).repository(REPO).files[0].size_bytes == len(CONTENT)


def test_a_repository_tells_its_commit_licence_gate_and_digests(hub: HubServer) -> None:  # noqa: F811
    commit = hub.add(REPO, {FILE: CONTENT, "config.json": b"{}"}, gated=True, licence="mit")
    found = Hub().repository(REPO)
    assert (found.commit, found.licence, found.gated) == (commit.id, "mit", True)
    by_path = {each.path: each for each in found.files}
    assert by_path[FILE].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert by_path["config.json"].git_blob == hashlib.sha1(b"blob 2\0{}").hexdigest()


def test_a_refused_download_leaves_no_empty_file(hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    hub.add(REPO, {FILE: CONTENT}, gated=True)
    with pytest.raises(DownloadFailed, match="gated"):
        fetch(order_of(VARIANT, Hub(), tmp_path), Hub(), patience=QUICK)
    assert places.partials(tmp_path) == []


def test_a_failed_download_says_how_to_go_on(hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    hub.add(REPO, {FILE: CONTENT})
    hub.faults.add(Fault(status=500), times=None)
    with pytest.raises(DownloadFailed) as caught:
        fetch(order_of(VARIANT, Hub(), tmp_path), Hub(), patience=QUICK, again="slm pull mine --quant Q8_0")
    assert caught.value.hint == "slm pull mine --quant Q8_0"


@pytest.mark.parametrize(("start", "end"), [(0, 10), (100, 1000), (299_990, 300_500)])
@pytest.mark.parametrize("ignores_range", [False, True])
def test_a_range_of_a_file_is_exactly_that(
    hub: HubServer,  # noqa: F811
    start: int,
    end: int,
    ignores_range: bool,
) -> None:
    commit = hub.add(REPO, {FILE: CONTENT})
    hub.faults.add(Fault(hangs_up=True))
    hub.faults.add(Fault(ignores_range=ignores_range))
    assert ranged_bytes(Hub(), REPO, commit.id, FILE, start, end, QUICK) == CONTENT[start:end]


def test_a_range_beyond_the_end_is_an_error(hub: HubServer) -> None:  # noqa: F811
    commit = hub.add(REPO, {FILE: CONTENT})
    with pytest.raises(DownloadFailed, match="ends before"):
        ranged_bytes(Hub(), REPO, commit.id, FILE, 400_000, 400_010, QUICK)


def test_a_proxy_that_can_t_be_used_is_an_error_that_shows_no_password(
    hub: HubServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = hub.add(REPO, {FILE: CONTENT})
    monkeypatch.setenv("HTTP_PROXY", "gopher://someone:secret@proxy.example")
    with pytest.raises(DownloadFailed, match="proxy") as caught:
        ranged_bytes(Hub(), REPO, commit.id, FILE, 0, 10, QUICK)
    assert "secret" not in caught.value.message


def test_importing_the_rooms_loads_neither_http_nor_hub() -> None:
    rooms = sorted(path.stem for path in Path(places.__file__).parent.glob("[a-z]*.py"))
    imports = ", ".join(f"slm_local.download.{room}" for room in rooms)
    heavy = ("httpx", "httpx2", "huggingface_hub", "filelock", "ssl", "truststore")
    code = f"import sys, {imports}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_counts_all_files_and_tells_at_once_of_a_new_stage(tmp_path: Path) -> None:
    files = tuple(RemoteFile(path=f"m-0000{n}-of-00002.gguf", size_bytes=100, sha256="0" * 64) for n in (1, 2))
    found = RemoteRepo(repo=REPO, commit="c" * 40, files=files)
    order = order_at(found, Variant(kind="gguf", quant="Q8_0", repo=REPO, file=files[0].path), tmp_path)
    told: list[FetchProgress] = []
    progress = Progress(order, told.append)
    first, second = order.files
    progress.at("downloading", first, 100)
    progress.at("verifying", first, 100)
    progress.at("downloading", second, 30)
    progress.at("downloading", second, 31, "a sentence")
    assert [(each.stage, each.done_bytes, each.total_bytes) for each in told] == [
        ("downloading", 100, 200),
        ("verifying", 100, 200),
        ("downloading", 130, 200),
        ("downloading", 131, 200),
    ]
    assert [each.message for each in told] == [None, None, None, "a sentence"]


def test_the_mean_speed_is_told_of_a_megabyte_at_least(tmp_path: Path) -> None:
    remote = RemoteFile(path=FILE, size_bytes=3_000_000, sha256="0" * 64)
    progress = Progress(order_at(RemoteRepo(repo=REPO, commit="c" * 40, files=(remote,)), VARIANT, tmp_path), None)
    progress.received(999_999, 0.5)
    assert progress.mean_bytes_per_s is None
    progress.received(1_000_001, 0.5)
    assert progress.mean_bytes_per_s == 2_000_000


def test_digests_are_those_of_sha256sum_and_of_git(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    found = digests_of(path, 6, lambda _: None)
    assert found.sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert found.git_blob == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert _retry_after("7") == 7.0
    soon = _retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert soon is not None
    assert 30 < soon <= 90
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert [_retry_after(each) for each in ("", "soon", "-5", "1e9")] == [None] * 4


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_this_machine_may_speak_plain_http(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", [None, "", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "0.0.0.0"])
def test_no_other_machine_may(host: str | None) -> None:
    assert not is_loopback(host)


def test_an_endpoint_is_huggingface_co_unless_it_is_named() -> None:
    assert endpoint_of("") == "https://huggingface.co"
    assert endpoint_of("https://mirror.example/hub/") == "https://mirror.example/hub"
    assert endpoint_of("http://127.0.0.1:8080") == "http://127.0.0.1:8080"


def test_sizes_are_written_as_people_read_them() -> None:
    assert [gigabytes(each) for each in (12_345, 98_000_000, 4_920_000_000)] == ["12 kB", "98 MB", "4.9 GB"]
