"""What was broken off is taken up again: killed, stopped, out of space, or pulled by several at once."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from slm_local.download import places
from slm_local.download.fetch import fetch, order_of
from slm_local.download.hub import Hub
from slm_local.download.values import Fetched, FetchProgress
from slm_local.errors import DownloadFailed, Interrupted, SlmError
from slm_local.generation import Control
from slm_local.model import Variant
from slm_local.paths import paths
from slm_local.registry.local import is_whole_folder, size_of
from tests.hub.fixtures import OPENVINO_REPO, SPLIT_REPO, serve_openvino, serve_split, some_bytes
from tests.hub.misbehaviour import Fault, Route, wrong_bytes
from tests.hub.pulling import (
    FILE,
    QUICK,
    REPO,
    UNTIRING,
    break_off,
    child,
    ended,
    is_clean,
    is_right,
    outcome,
    part,
    place,
    pull,
    variant,
    wait_until,
)
from tests.hub.repository import Blob, Commit
from tests.hub.server import HubServer

SIZE = 4_000_000
HALF = SIZE // 2
CONTENT = some_bytes(SIZE)


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


def serve(hub: HubServer, content: bytes = CONTENT) -> Blob:
    return hub.add(REPO, {FILE: content}).files[FILE]


def kill_at(hub: HubServer, models_dir: Path, after: int) -> None:
    """Kill a child that pulls, once so many bytes are here."""
    process = child(models_dir, "--patient")
    wait_until(lambda: part(models_dir).exists() and part(models_dir).stat().st_size == after)
    process.kill()
    ended(process)
    hub.faults.clear()
    hub.requests.clear()


def leave_half(hub: HubServer, models_dir: Path, after: int = HALF) -> None:
    """Leave a partial file behind, and no trace in the log."""
    hub.faults.add(Fault(stall_after=after))
    break_off(models_dir, after)
    hub.faults.clear()
    hub.requests.clear()


@pytest.mark.parametrize("after", [HALF, SIZE - 1])
def test_a_killed_pull_goes_on_by_range_and_the_digest_is_right(hub: HubServer, tmp_path: Path, after: int) -> None:
    blob = serve(hub)
    hub.faults.add(Fault(stall_after=after))
    kill_at(hub, tmp_path, after)
    assert is_clean(tmp_path)
    assert places.partials(tmp_path) == [(place(tmp_path), after, SIZE)]
    assert not order_of(variant(), Hub(), tmp_path).files[0].is_here
    fetched = pull(tmp_path)
    assert is_right(tmp_path, blob)
    assert fetched.received_bytes == SIZE - after
    assert [(each.range, each.status) for each in hub.seen("cdn")] == [(f"bytes={after}-", 206)]
    assert places.partials(tmp_path) == []


def test_what_was_killed_twice_leaves_one_partial_file(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    leave_half(hub, tmp_path)
    hub.faults.add(Fault(stall_after=HALF // 2))
    kill_at(hub, tmp_path, HALF + HALF // 2)
    assert [path.name for path in tmp_path.rglob("*.part")] == [part(tmp_path).name]
    pull(tmp_path)
    assert is_right(tmp_path, blob)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_keeps_what_came_and_exits_with_130(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    hub.faults.add(Fault(stall_after=HALF))
    process = child(tmp_path, "--patient")
    wait_until(lambda: part(tmp_path).exists() and part(tmp_path).stat().st_size == HALF)
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 130
    assert part(tmp_path).stat().st_size == HALF
    assert is_clean(tmp_path)
    assert pull(tmp_path).received_bytes == HALF
    assert is_right(tmp_path, blob)


@pytest.mark.parametrize(
    ("route", "fault", "after"),
    [("cdn", Fault(stall_after=HALF), HALF), ("cdn", Fault(stall_after=0), 0), ("resolve", Fault(is_mute=True), None)],
)
def test_a_cancel_ends_a_pull_that_hangs_and_keeps_what_came(
    hub: HubServer, tmp_path: Path, route: Route, fault: Fault, after: int | None
) -> None:
    serve(hub)
    hub.faults.add(fault, route=route, times=None)
    control = Control()

    def cancel_once_it_hangs() -> None:
        hub.stalled.wait()
        wait_until(lambda: not after or (part(tmp_path).exists() and part(tmp_path).stat().st_size == after))
        control.cancel()

    watcher = threading.Thread(target=cancel_once_it_hangs)
    watcher.start()
    with pytest.raises(Interrupted):
        pull(tmp_path, control=control, patience=UNTIRING if after is None else QUICK)
    watcher.join()
    assert not after or part(tmp_path).stat().st_size == after
    assert is_clean(tmp_path)


def test_a_pull_cancelled_before_it_began_sends_nothing(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    order = order_of(variant(), Hub(), tmp_path)
    control = Control()
    control.cancel()
    with pytest.raises(Interrupted):
        fetch(order, Hub(), control=control, patience=QUICK)
    assert not hub.transfers()


def test_a_stopped_process_goes_on_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    """A suspended laptop: the server has hung up in the meantime."""
    if sys.platform == "win32":
        pytest.skip("Windows has no SIGSTOP")
    blob = serve(hub)
    hub.faults.add(Fault(stall_after=HALF, drop_after=HALF + 1))
    process = child(tmp_path, "--patient")
    wait_until(lambda: part(tmp_path).exists() and part(tmp_path).stat().st_size == HALF)
    process.send_signal(signal.SIGSTOP)
    hub.release()
    wait_until(lambda: hub.seen("cdn")[0].sent_bytes == HALF + 1)
    process.send_signal(signal.SIGCONT)
    end = ended(process)
    assert end.code == 0, end.err
    assert is_right(tmp_path, blob)


TAMPERED: dict[str, Callable[[bytes], bytes]] = {
    "a flipped byte": wrong_bytes,
    "too long": lambda content: content + CONTENT,
    "empty": lambda _: b"",
    "zeros at its end": lambda content: content[:-4096] + bytes(4096),
    "another file's": lambda content: some_bytes(len(content), 7),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_damaged_partial_file_never_becomes_a_wrong_file(hub: HubServer, tmp_path: Path, name: str) -> None:
    blob = serve(hub)
    leave_half(hub, tmp_path)
    part(tmp_path).write_bytes(TAMPERED[name](part(tmp_path).read_bytes()))
    if isinstance(outcome(tmp_path), DownloadFailed):
        assert is_clean(tmp_path)
        pull(tmp_path)
    assert is_right(tmp_path, blob)


RECORDS = {
    "no record": None,
    "an empty record": b"",
    "a record that is a list": b"[[[]]]",
    "a record of another commit": b'{"commit": "%s", "etag": "x", "size_bytes": 4000000, "digest": "y"}' % (b"a" * 40),
    "a record nested without end": b"[" * 100_000,
    "a record that is no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_partial_file_of_unknown_origin_never_becomes_a_wrong_file(hub: HubServer, tmp_path: Path, name: str) -> None:
    blob = serve(hub)
    path = part(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(some_bytes(HALF, 5))
    told = RECORDS[name]
    if told is not None:
        (path.parent / ".slm").mkdir()
        (path.parent / ".slm" / f"{path.name}.json").write_bytes(told)
    if isinstance(outcome(tmp_path), DownloadFailed):
        pull(tmp_path)
    assert is_right(tmp_path, blob)


def test_a_push_between_two_runs_does_not_mix_two_revisions(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    leave_half(hub, tmp_path)
    now = serve(hub, some_bytes(SIZE, 2))
    pull(tmp_path)
    assert is_right(tmp_path, now)


def test_a_push_of_another_file_between_two_runs_does_not_start_over(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    leave_half(hub, tmp_path)
    blob = hub.add(REPO, {FILE: CONTENT, "README.md": b"# New\n"}).files[FILE]
    fetched = pull(tmp_path)
    assert is_right(tmp_path, blob)
    assert fetched.received_bytes == HALF


def test_a_pull_killed_between_last_byte_and_final_name_transfers_nothing_again(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    leave_half(hub, tmp_path, SIZE - 1)
    with part(tmp_path).open("ab") as file:
        file.write(CONTENT[-1:])
    assert pull(tmp_path).received_bytes == 0
    assert is_right(tmp_path, blob)


def test_a_pull_killed_between_final_name_and_record_is_verified_in_place(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    pull(tmp_path)
    places.forget(place(tmp_path))
    hub.requests.clear()
    pull(tmp_path)
    assert is_right(tmp_path, blob)
    assert not hub.transfers()


def test_what_is_here_and_verified_asks_for_no_bytes(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    pull(tmp_path)
    hub.requests.clear()
    assert pull(tmp_path).received_bytes == 0
    assert is_right(tmp_path, blob)
    assert not [each for each in hub.requests if each.route in ("resolve", "cdn")]


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", CONTENT + b"x"], ids=["short", "empty", "long"])
def test_a_recorded_file_of_another_size_is_not_taken_for_the_right_one(
    hub: HubServer, tmp_path: Path, content: bytes
) -> None:
    blob = serve(hub)
    pull(tmp_path)
    place(tmp_path).write_bytes(content)
    if isinstance(outcome(tmp_path), Fetched):
        assert is_right(tmp_path, blob)


def test_three_processes_share_one_transfer(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    hub.faults.add(Fault(stall_after=HALF))
    outs = [tmp_path / f"{number}.out" for number in range(3)]
    models_dir = tmp_path / "models"
    children = [child(models_dir, "--patient", out=out) for out in outs]
    wait_until(lambda: sum('"waiting"' in out.read_text() for out in outs) == 2, within_s=60)
    hub.release()
    codes = [ended(each) for each in children]
    assert [each.code for each in codes] == [0, 0, 0], [each.err for each in codes]
    assert len(hub.transfers(FILE)) == 1
    assert is_right(models_dir, blob)
    messages = [json.loads(line).get("message") for out in outs for line in out.read_text().splitlines()]
    assert any(message and "another" in message for message in messages)


def test_who_waited_goes_on_where_a_killed_one_stopped(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    hub.faults.add(Fault(stall_after=HALF))
    models_dir, out = tmp_path / "models", tmp_path / "second.out"
    first = child(models_dir, "--patient")
    wait_until(lambda: part(models_dir).exists() and part(models_dir).stat().st_size == HALF)
    second = child(models_dir, "--patient", out=out)
    wait_until(lambda: '"waiting"' in out.read_text())
    first.kill()
    ended(first)
    assert ended(second).code == 0
    assert is_right(models_dir, blob)
    assert [each.range for each in hub.seen("cdn")] == [None, f"bytes={HALF}-"]


def test_a_disk_without_room_is_said_before_the_first_byte(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(hub)
    models_dir, room = paths().models_dir, SIZE + 2**30
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - room + 1, room - 1))
    error = outcome(models_dir)
    assert isinstance(error, DownloadFailed)
    assert "GB" in error.message
    assert error.hint == "slm rm MODEL   or, onto another disk: slm pull MODEL --to DIR"
    assert not hub.transfers()
    assert not models_dir.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, room))
    pull(models_dir)


def test_room_is_asked_for_what_is_missing_only(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    blob, models_dir = serve(hub), paths().models_dir
    leave_half(hub, models_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, HALF + 2**30))
    pull(models_dir)
    assert is_right(models_dir, blob)


def test_a_stick_may_be_filled_up_to_its_records(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob, stick = serve(hub), tmp_path / "stick"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, SIZE + 2**20 - 1))
    assert isinstance(outcome(stick), DownloadFailed)
    assert not stick.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, SIZE + 2**20))
    pull(stick)
    assert is_right(stick, blob)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a file's size are POSIX")
def test_a_disk_that_fills_up_leaves_nothing_that_is_trusted(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    end = ended(child(tmp_path, f"--file-limit={HALF + 12345}"))
    assert (end.code, end.last["type"]) == (3, "DownloadFailed")
    assert "full" in end.last["message"]
    assert is_clean(tmp_path)
    assert not order_of(variant(), Hub(), tmp_path).files[0].is_here
    pull(tmp_path)
    assert is_right(tmp_path, blob)


def test_a_models_folder_that_is_a_file_is_an_error_that_says_so(hub: HubServer, tmp_path: Path) -> None:
    serve(hub)
    (tmp_path / "models").write_text("not a folder")
    with pytest.raises(SlmError) as caught:
        pull(tmp_path / "models")
    assert caught.value.exit_code in (2, 3)
    assert "models" in caught.value.message


@pytest.mark.parametrize("is_part", [True, False])
def test_a_folder_where_the_file_should_be_is_an_error(hub: HubServer, tmp_path: Path, is_part: bool) -> None:
    serve(hub)
    (part(tmp_path) if is_part else place(tmp_path)).mkdir(parents=True)
    assert isinstance(outcome(tmp_path), DownloadFailed)


def test_a_file_of_no_bytes_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub, b"")
    pull(tmp_path)
    assert is_right(tmp_path, blob)


def test_a_file_that_someone_put_there_is_never_overwritten(hub: HubServer, tmp_path: Path) -> None:
    blob = serve(hub)
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path).write_bytes(b"mine")
    assert isinstance(outcome(tmp_path), DownloadFailed)
    assert place(tmp_path).read_bytes() == b"mine"
    place(tmp_path).write_bytes(CONTENT)
    assert pull(tmp_path).received_bytes == 0
    assert is_right(tmp_path, blob)


def test_a_split_model_goes_on_in_the_part_where_it_stopped(hub: HubServer, tmp_path: Path) -> None:
    commit = serve_split(hub)
    parts = [path for path in commit.files if path.startswith("Q4_K_M/")]
    wanted = variant(SPLIT_REPO, parts[0])
    hub.faults.add(Fault(status=500), file=parts[1], times=None)
    assert isinstance(outcome(tmp_path, wanted), DownloadFailed)
    missing = [path for path in parts if not is_right(tmp_path, commit.files[path], SPLIT_REPO)]
    assert len(missing) == 2
    hub.faults.clear()
    hub.requests.clear()
    said: list[FetchProgress] = []
    fetched = pull(tmp_path, wanted, on_progress=said.append)
    assert fetched.target == place(tmp_path, SPLIT_REPO, parts[0])
    assert sorted(each.file for each in hub.transfers()) == missing
    assert all(is_right(tmp_path, commit.files[path], SPLIT_REPO) for path in parts)
    assert {each.total_bytes for each in said} == {300_000}
    assert not place(tmp_path, SPLIT_REPO, "split-Q8_0.gguf").exists()


def newer_split(hub: HubServer) -> tuple[Commit, list[str]]:
    """Serve a split model with other bytes in every part; return its commit and the parts' paths."""
    parts = [f"Q4_K_M/split-Q4_K_M-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    return hub.add(SPLIT_REPO, {path: some_bytes(100_000, seed) for seed, path in enumerate(parts, 50)}), parts


@pytest.mark.parametrize("is_begun", [False, True], ids=["nothing", "a partial file"])
def test_parts_of_two_versions_never_lie_here_as_one_model(hub: HubServer, tmp_path: Path, is_begun: bool) -> None:
    serve_split(hub)
    commit, parts = newer_split(hub)
    wanted = variant(SPLIT_REPO, parts[0])
    pull(tmp_path, replace(wanted, revision=hub.repositories[SPLIT_REPO].commits[0].id))
    if is_begun:
        places.part_of(place(tmp_path, SPLIT_REPO, parts[1])).write_bytes(b"begun")
    hub.faults.add(Fault(status=500), file=parts[0], times=None)
    assert isinstance(outcome(tmp_path, wanted), DownloadFailed)
    assert size_of(place(tmp_path, SPLIT_REPO, parts[0])) == 300_000  # the older one is whole as long as it can be
    hub.faults.clear()
    hub.faults.add(Fault(status=500), file=parts[1], times=None)
    assert isinstance(outcome(tmp_path, wanted), DownloadFailed)
    assert is_right(tmp_path, commit.files[parts[0]], SPLIT_REPO)
    assert size_of(place(tmp_path, SPLIT_REPO, parts[0])) is None
    hub.faults.clear()
    said: list[FetchProgress] = []
    pull(tmp_path, wanted, on_progress=said.append)
    assert all(is_right(tmp_path, commit.files[path], SPLIT_REPO) for path in parts)
    assert any("another version" in (each.message or "") for each in said)


def test_a_part_that_someone_put_there_is_refused_before_another_is_replaced(hub: HubServer, tmp_path: Path) -> None:
    older = serve_split(hub)
    _, parts = newer_split(hub)
    for path in parts[1:]:
        place(tmp_path, SPLIT_REPO, path).parent.mkdir(parents=True, exist_ok=True)
        place(tmp_path, SPLIT_REPO, path).write_bytes(older.files[path].content)
    assert isinstance(outcome(tmp_path, variant(SPLIT_REPO, parts[0])), DownloadFailed)
    assert not hub.transfers()
    assert size_of(place(tmp_path, SPLIT_REPO, parts[0])) is None


def test_files_of_two_versions_are_no_openvino_folder(hub: HubServer, tmp_path: Path) -> None:
    older = serve_openvino(hub)
    wanted = Variant(kind="openvino", quant="int4", repo=OPENVINO_REPO)
    folder = pull(tmp_path, wanted).target
    assert is_whole_folder(folder, tmp_path)
    changed = ("openvino_model.bin", "tokenizer.json")
    newer = {path: blob.content + (b"new" if path in changed else b"") for path, blob in older.files.items()}
    commit = hub.add(OPENVINO_REPO, newer)
    hub.faults.add(Fault(status=500), file=changed[0], times=None)
    assert isinstance(outcome(tmp_path, wanted), DownloadFailed)
    assert is_right(tmp_path, commit.files[changed[1]], OPENVINO_REPO)
    assert not is_whole_folder(folder, tmp_path)
    hub.faults.clear()
    pull(tmp_path, wanted)
    assert is_whole_folder(folder, tmp_path)


def test_an_openvino_folder_is_fetched_by_pattern(hub: HubServer, tmp_path: Path) -> None:
    commit = serve_openvino(hub)
    fetched = pull(tmp_path, Variant(kind="openvino", quant="int4", repo=OPENVINO_REPO))
    here = {str(path.relative_to(fetched.target)) for path in fetched.files}
    assert fetched.target == tmp_path.joinpath(*OPENVINO_REPO.split("/"))
    assert here >= {"openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.bin", "config.json"}
    assert not here & {"images/photo.png", ".gitattributes"}
    assert all(is_right(tmp_path, commit.files[path], OPENVINO_REPO) for path in here)
