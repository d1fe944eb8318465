"""Models that travel on a stick: copied out, taken in, verified on the way; nothing else gets in or is written over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.download.carry import COPY, Carried, Parcel, carry, deliver
from slm_local.download.importing import cargo_in
from slm_local.download.kept import held
from slm_local.download.places import part_of, read_part_record, read_record
from slm_local.download.values import FetchProgress
from slm_local.errors import DownloadFailed, ModelBroken, UsageError
from slm_local.model import ModelSpec, Variant
from slm_local.registry import find_local
from slm_local.sanitize import shell_word
from tests.command import child_environment
from tests.gguf_files import small_model
from tests.keeping import (
    FILE,
    GGUF,
    OPENVINO_FILES,
    OPENVINO_REPO,
    REPO,
    SPEC,
    begun,
    fetched,
    fetched_folder,
    left,
    put,
    record_of,
)


@pytest.fixture
def ours(slm_home: Path) -> Path:
    """Return the models folder."""
    folder = slm_home / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    folder = tmp_path / "stick"
    folder.mkdir()
    return folder


def here(models_dir: Path) -> Variant:
    (variant,) = find_local(SPEC, models_dir)
    return variant


def taken(stick: Path, ours: Path, specs: tuple[ModelSpec, ...] = (SPEC,)) -> list[Carried]:
    """Import a folder as the command does."""
    cargo = cargo_in(stick, ours, specs, ours.parent / "cache")
    return [*cargo.refused, *deliver(cargo.parcels, ours, 0)]


def refusal(stick: Path, ours: Path) -> str:
    """Import a folder of which one thing is refused, and nothing comes."""
    (carried,) = taken(stick, ours)
    assert carried.outcome == "refused"
    assert left(ours) == []
    return carried.remark


def move_home(stick: Path, ours: Path) -> None:
    """Have nothing here, as on the other machine."""
    shutil.rmtree(ours)
    ours.mkdir()


# ---- out and in again


def test_a_fetched_file_comes_back_from_a_stick_with_its_record(ours: Path, stick: Path) -> None:
    place = fetched(ours, GGUF)
    assert carry(here(ours), stick) == stick / REPO / FILE
    move_home(stick, ours)
    (carried,) = taken(stick, ours)
    assert (carried.outcome, carried.place, carried.remark) == ("copied", place, "")
    assert place.read_bytes() == GGUF
    assert read_record(place) == record_of(GGUF)


def test_a_folder_comes_back_from_a_stick_whole(ours: Path, stick: Path) -> None:
    folder = fetched_folder(ours)
    assert carry(here(ours), stick) == stick / OPENVINO_REPO
    before = left(folder)
    move_home(stick, ours)
    assert {each.outcome for each in taken(stick, ours)} == {"copied"}
    assert left(folder) == before
    assert here(ours).path == str(folder)


def test_all_parts_of_a_split_model_travel(ours: Path, stick: Path) -> None:
    names = [f"parts/model-Q4_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    for name in names:
        fetched(ours, name.encode(), file=name)
    assert carry(here(ours), stick) == stick / REPO / names[0]
    move_home(stick, ours)
    assert len(taken(stick, ours)) == 2
    assert here(ours).quant == "Q4_0"


def test_what_is_here_already_is_passed_over_unread(ours: Path, stick: Path) -> None:
    fetched(ours, GGUF)
    fetched(stick, GGUF)
    assert [each.outcome for each in taken(stick, ours)] == ["here"]


def test_carrying_twice_to_one_stick_copies_once(ours: Path, stick: Path) -> None:
    fetched(ours, GGUF)
    carry(here(ours), stick)
    before = (stick / REPO / FILE).stat().st_mtime_ns
    carry(here(ours), stick)
    assert (stick / REPO / FILE).stat().st_mtime_ns == before


def test_another_programs_file_is_carried_under_the_name_it_would_be_fetched_by(tmp_path: Path, stick: Path) -> None:
    blob = put(tmp_path / "blobs" / "sha256-abc", GGUF)
    assert carry(replace(SPEC.variants[0], path=str(blob)), stick) == stick / REPO / FILE
    assert (stick / REPO / FILE).read_bytes() == GGUF


def test_a_file_of_no_repository_is_carried_under_its_own_name(tmp_path: Path, stick: Path) -> None:
    mine = put(tmp_path / "mine.gguf", GGUF)
    assert carry(Variant(kind="gguf", quant="", path=str(mine)), stick / "new" / "folder").read_bytes() == GGUF


def test_a_file_damaged_here_is_not_carried(ours: Path, stick: Path) -> None:
    fetched(ours, GGUF).write_bytes(GGUF[:-1] + b"\0")
    with pytest.raises(ModelBroken, match="is damaged") as caught:
        carry(here(ours), stick)
    assert (caught.value.hint or "").startswith("slm verify")
    assert not (stick / REPO / FILE).exists()


@pytest.mark.parametrize("folder", ["", "stick"])
def test_the_models_folder_is_no_stick(ours: Path, folder: str) -> None:
    fetched(ours, GGUF)
    with pytest.raises(UsageError, match="where slm keeps its models"):
        carry(here(ours), ours / folder)


def test_a_file_is_no_stick(ours: Path, tmp_path: Path) -> None:
    fetched(ours, GGUF)
    with pytest.raises(UsageError, match="is no folder"):
        carry(here(ours), put(tmp_path / "file"))


def test_another_file_on_the_stick_is_not_written_over(ours: Path, stick: Path) -> None:
    fetched(ours, GGUF)
    lies = put(stick / REPO / FILE, b"another")
    with pytest.raises(UsageError, match="is not written over") as caught:
        carry(here(ours), stick)
    assert caught.value.hint == f"rm {shell_word(str(lies))}"
    assert lies.read_bytes() == b"another"


def test_progress_ends_at_all_bytes(ours: Path, stick: Path) -> None:
    fetched_folder(ours)
    told: list[FetchProgress] = []
    carry(here(ours), stick, told.append)
    assert (told[-1].stage, told[-1].done_bytes) == ("copying", told[-1].total_bytes)


# ---- folders that nothing is recorded of


def test_a_file_of_the_registrys_name_and_size_goes_where_it_would_be_fetched_to(ours: Path, stick: Path) -> None:
    put(stick / "Downloads" / FILE, GGUF)
    assert [each.place for each in taken(stick, ours)] == [ours / REPO / FILE]


def test_another_file_of_that_name_keeps_its_place_in_the_folder(ours: Path, stick: Path) -> None:
    put(stick / "Downloads" / FILE, small_model().encode())
    assert [each.place for each in taken(stick, ours)] == [ours / "Downloads" / FILE]


def test_a_file_that_is_not_the_upload_that_the_registry_pins_is_taken_and_told(ours: Path, stick: Path) -> None:
    put(stick / FILE, GGUF)
    pinned = replace(SPEC, variants=(replace(SPEC.variants[0], sha256="0" * 64),))
    (carried,) = taken(stick, ours, (pinned,))
    assert (carried.outcome, carried.remark) == ("copied", "not the upload that the registry knows")
    assert read_record(ours / REPO / FILE) is None


def test_an_openvino_folder_is_taken_with_what_its_engine_reads(ours: Path, stick: Path) -> None:
    for name in (*OPENVINO_FILES, "config.json", "chat_template.jinja", "setup.py", "README.md"):
        put(stick / "some" / "Own-ov" / name)
    assert len(taken(stick, ours)) == len(OPENVINO_FILES) + 2
    assert left(ours / "some" / "Own-ov") == sorted((*OPENVINO_FILES, "config.json", "chat_template.jinja"))


def test_the_folder_itself_may_be_the_model(ours: Path, stick: Path) -> None:
    for name in OPENVINO_FILES:
        put(stick / "Own-ov" / name)
    taken(stick / "Own-ov", ours)
    assert left(ours) == [f"Own-ov/{name}" for name in sorted(OPENVINO_FILES)]


def test_the_inner_folder_of_a_stick_brings_its_records(ours: Path, stick: Path) -> None:
    fetched_folder(stick)
    taken(stick / OPENVINO_REPO, ours)
    assert here(ours).path == str(ours / OPENVINO_REPO)
    assert read_record(ours / OPENVINO_REPO / "openvino_model.bin") is not None


def test_a_begun_download_of_the_same_file_is_replaced(ours: Path, stick: Path) -> None:
    part = begun(ours)
    fetched(stick, GGUF)
    taken(stick, ours)
    assert not part.exists()
    assert read_part_record(ours / REPO / FILE) is None


# ---- what is refused


def test_a_file_damaged_on_the_stick_is_refused(ours: Path, stick: Path) -> None:
    fetched(stick, GGUF).write_bytes(GGUF[:-1] + b"\0")
    assert refusal(stick, ours) == "is damaged: its bytes are not those that were fetched"


def test_a_file_cut_short_on_the_stick_is_refused_unread(ours: Path, stick: Path) -> None:
    fetched(stick, GGUF).write_bytes(GGUF[:-1])
    assert "bytes, not" in refusal(stick, ours)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"<!doctype html>", GGUF[:1000]])
def test_an_unrecorded_file_that_is_no_whole_model_is_refused(ours: Path, stick: Path, content: bytes) -> None:
    put(stick / "x.gguf", content)
    assert refusal(stick, ours)


def test_a_download_that_has_not_ended_is_refused(ours: Path, stick: Path) -> None:
    begun(stick)
    assert "has not ended" in refusal(stick, ours)


def test_a_split_model_that_lacks_a_part_is_refused(ours: Path, stick: Path) -> None:
    fetched(stick, b"one", file="m-00001-of-00002.gguf")
    assert "parts" in refusal(stick, ours)


def test_an_openvino_folder_that_lacks_a_file_is_refused(ours: Path, stick: Path) -> None:
    for name in OPENVINO_FILES[:-1]:
        put(stick / "Own-ov" / name)
    assert "no whole OpenVINO model" in refusal(stick, ours)


@pytest.mark.parametrize("name", ["con.gguf", "a:b.gguf", "back\\slash.gguf", "new\nline.gguf", "trailing /x.gguf"])
def test_a_name_that_is_not_safe_everywhere_is_refused(ours: Path, stick: Path, name: str) -> None:
    put(stick / name, GGUF)
    assert "not safe" in refusal(stick, ours)


@pytest.mark.first_run
@pytest.mark.parametrize(
    ("repo", "file"),
    [
        ("../..", FILE),
        ("/etc", FILE),
        ("maker/..", FILE),
        ("maker/model", f"../../{FILE}"),
        ("maker/model", f"/{FILE}"),
        ("maker/model", f"C:\\{FILE}"),
        ("maker/model", f".slm/{FILE}"),
        ("maker/model", "other.gguf"),
    ],
)
def test_a_record_can_name_no_place_outside_and_no_other_file(ours: Path, stick: Path, repo: str, file: str) -> None:
    place = fetched(stick, GGUF)
    record = place.parent / ".slm" / f"{FILE}.json"
    values = json.loads(record.read_bytes()) | {"repo": repo, "file": file}
    record.write_text(json.dumps(values), encoding="utf-8")
    assert refusal(stick, ours)
    assert left(ours.parent) == ["models"]


def test_links_out_of_the_folder_are_refused_and_told(ours: Path, stick: Path, tmp_path: Path) -> None:
    (stick / "x.gguf").symlink_to(put(tmp_path / "secret", GGUF))
    (stick / "more").symlink_to(tmp_path)
    assert {each.remark for each in taken(stick, ours)} == {"is a link that leads out of the folder"}
    assert left(ours) == []


def test_a_link_here_that_leads_out_is_not_written_through(ours: Path, stick: Path, tmp_path: Path) -> None:
    fetched(stick, GGUF)
    (tmp_path / "elsewhere").mkdir()
    (ours / "maker").symlink_to(tmp_path / "elsewhere")
    (carried,) = taken(stick, ours)
    assert "link leads out" in carried.remark
    assert left(tmp_path / "elsewhere") == []


def test_a_stick_whose_links_lead_elsewhere_is_not_written_through(ours: Path, stick: Path, tmp_path: Path) -> None:
    fetched(ours, GGUF)
    (tmp_path / "elsewhere").mkdir()
    (stick / REPO).mkdir(parents=True)
    (stick / REPO / ".slm").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelBroken, match="link leads out"):
        carry(here(ours), stick)
    assert left(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("lies", [b"other bytes", GGUF[:-1] + b"\0"])
def test_another_file_in_the_place_stays(ours: Path, stick: Path, lies: bytes) -> None:
    fetched(stick, GGUF)
    place = put(ours / REPO / FILE, lies)
    (carried,) = taken(stick, ours)
    assert carried.outcome == "refused"
    assert carried.remark == "another file lies there, and is not written over"
    assert place.read_bytes() == lies


def test_the_same_bytes_in_the_place_are_given_their_record(ours: Path, stick: Path) -> None:
    fetched(stick, GGUF)
    place = put(ours / REPO / FILE, GGUF)
    assert [each.outcome for each in taken(stick, ours)] == ["here"]
    assert read_record(place) == record_of(GGUF)


def test_a_file_that_is_being_fetched_is_left_to_that(ours: Path, stick: Path) -> None:
    fetched(stick, GGUF)
    begun(ours)
    (ours / REPO / ".slm").mkdir()
    with held(ours / REPO / FILE):
        (carried,) = taken(stick, ours)
    assert "is being fetched" in carried.remark
    assert part_of(ours / REPO / FILE).exists()


def test_what_an_import_that_was_killed_left_is_no_hindrance(ours: Path, stick: Path) -> None:
    fetched(stick, GGUF)
    put(ours / REPO / ".slm" / f"{FILE}{COPY}", b"half")
    assert [each.outcome for each in taken(stick, ours)] == ["copied"]
    assert not (ours / REPO / ".slm" / f"{FILE}{COPY}").exists()


def test_one_file_that_is_refused_does_not_keep_the_others_out(ours: Path, stick: Path) -> None:
    put(stick / "a.gguf", b"GGUF")
    put(stick / "b.gguf", GGUF)
    assert [each.outcome for each in taken(stick, ours)] == ["refused", "copied"]


@pytest.mark.parametrize(("make", "message"), [(lambda _: None, "holds neither"), (Path.rmdir, "there is no folder")])
def test_a_folder_without_models_is_no_import(
    ours: Path, stick: Path, make: Callable[[Path], None], message: str
) -> None:
    make(stick)
    with pytest.raises(UsageError, match=message):
        taken(stick, ours)


def test_the_models_folder_is_not_imported_into_itself(ours: Path) -> None:
    fetched(ours, GGUF)
    for folder in (ours, ours / "maker", ours.parent):
        with pytest.raises(UsageError, match="they are here"):
            taken(folder, ours)


# ---- disks


def test_space_is_asked_for_before_the_first_byte(ours: Path, stick: Path) -> None:
    parcel = Parcel(source=put(stick / "x", b"x"), place=ours / "x", size_bytes=2**62)
    with pytest.raises(DownloadFailed, match="are free there"):
        deliver([parcel], ours, 0)
    assert left(ours) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(ours: Path, stick: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "from slm_local.cli.app import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    fetched(stick, GGUF)
    done = subprocess.run(
        [sys.executable, "-c", code, "import", str(stick)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=child_environment(),
    )
    assert done.returncode == 3, done.stderr
    assert "takes no file of 2 MB" in done.stderr
    assert [name for name in left(ours) if not name.endswith((".slm", ".lock"))] == []


def test_a_file_that_can_not_be_read_is_refused(ours: Path, stick: Path) -> None:
    parcel = Parcel(source=stick / "gone", place=ours / "x", size_bytes=1)
    (carried,) = deliver([parcel], ours, 0)
    assert carried.remark == f"can't be copied: {os.strerror(2)}"
