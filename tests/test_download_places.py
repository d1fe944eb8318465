"""Places, records and partial files below a models folder; unsafe names are in tests/hub/test_names.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from slm_local.download import places
from slm_local.download.places import PartRecord, Record
from slm_local.errors import DownloadFailed

RECORD = Record(
    repo="maker/model-GGUF",
    file="sub/model.gguf",
    commit="c" * 40,
    etag="a" * 64,
    size_bytes=12,
    sha256="a" * 64,
    verified_against="sha256",
)
PART_RECORD = PartRecord(commit="c" * 40, etag=None, size_bytes=12, digest="a" * 64)


def place(tmp_path: Path) -> Path:
    return places.place_of(tmp_path, RECORD.repo, RECORD.file)


def test_a_file_lies_below_owner_name_and_its_own_folders(tmp_path: Path) -> None:
    assert place(tmp_path) == tmp_path / "maker" / "model-GGUF" / "sub" / "model.gguf"


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    places.write_record(place(tmp_path), RECORD)
    assert places.read_record(place(tmp_path)) == RECORD
    assert (place(tmp_path).parent / ".slm" / "model.gguf.json").is_file()


def test_a_verified_file_s_record_ends_that_of_its_partial_one(tmp_path: Path) -> None:
    places.write_part_record(place(tmp_path), PART_RECORD)
    assert places.read_part_record(place(tmp_path)) == PART_RECORD
    places.write_record(place(tmp_path), RECORD)
    assert places.read_part_record(place(tmp_path)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"repo": "a/b"}',
        json.dumps({"size_bytes": "12"}),
        "[" * 100_000,
        '{"size_bytes": -1}',
        '{"sha256": "../../x", "repo": "a/b", "file": "f", "commit": "c", "etag": null, "size_bytes": 1, '
        '"verified_against": "sha256"}',
    ],
)
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    places.write_record(place(tmp_path), RECORD)
    (place(tmp_path).parent / ".slm" / "model.gguf.json").write_text(text)
    assert places.read_record(place(tmp_path)) is None


def test_what_a_later_version_adds_to_a_record_is_passed_over(tmp_path: Path) -> None:
    places.write_record(place(tmp_path), RECORD)
    path = place(tmp_path).parent / ".slm" / "model.gguf.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "blue"}))
    assert places.read_record(place(tmp_path)) == RECORD


def test_forgetting_a_file_leaves_no_record_and_no_empty_folder(tmp_path: Path) -> None:
    places.write_record(place(tmp_path), RECORD)
    places.write_part_record(place(tmp_path), PART_RECORD)
    place(tmp_path).write_bytes(b"x" * 12)
    places.forget(place(tmp_path))
    assert places.read_record(place(tmp_path)) is None
    assert not (place(tmp_path).parent / ".slm").exists()
    assert place(tmp_path).exists(), "the file itself is its owner's to remove"


def test_forgetting_one_file_leaves_the_records_of_others(tmp_path: Path) -> None:
    other = place(tmp_path).with_name("other.gguf")
    for each in (place(tmp_path), other):
        places.write_record(each, RECORD)
    places.forget(place(tmp_path))
    assert places.read_record(other) == RECORD


def test_partial_files_are_listed_with_what_is_known_of_them(tmp_path: Path) -> None:
    places.write_part_record(place(tmp_path), PART_RECORD)
    places.part_of(place(tmp_path)).write_bytes(b"12345")
    stray = tmp_path / "maker" / "stray.gguf"
    places.part_of(stray).write_bytes(b"1")
    assert sorted(places.partials(tmp_path)) == [(place(tmp_path), 5, 12), (stray, 1, None)]


def test_no_models_folder_has_no_partial_files(tmp_path: Path) -> None:
    assert places.partials(tmp_path / "none") == []


@pytest.mark.parametrize("file", ["x.gguf.part", "x.gguf.damaged", ".slm/x.json", "sub/.SLM/x.json"])
def test_names_that_downloads_use_themselves_are_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(DownloadFailed, match="kept for downloads"):
        places.place_of(tmp_path, "maker/model", file)


def test_a_name_too_long_for_its_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="too long"):
        places.place_of(tmp_path, "maker/model", "x" * 250)
    longest = places.place_of(tmp_path, "maker/model", "x" * 240)
    places.write_part_record(longest, PART_RECORD)
    assert places.read_part_record(longest) == PART_RECORD


@pytest.mark.skipif(sys.platform == "win32", reason="Windows inherits such rights")
def test_records_are_their_owners_alone(tmp_path: Path) -> None:
    places.write_record(place(tmp_path), RECORD)
    folder = place(tmp_path).parent / ".slm"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "model.gguf.json").stat().st_mode & 0o777 == 0o600
