"""No name of a repository or a file, wherever it comes from, has anything written outside the models folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from slm_local.download.hub import Hub
from slm_local.download.places import place_of
from slm_local.errors import DownloadFailed
from slm_local.model import Variant
from tests.hub.misbehaviour import Fault
from tests.hub.pulling import FILE, REPO, is_clean, is_right, outcome, part, place, pull, variant
from tests.hub.server import HubServer

UNSAFE_FILES = (
    # The kinds of names that huggingface_hub refuses since CVE-2026-15717 (pull request 4540), by both systems' rules.
    "../escape.gguf",
    "../../escape.gguf",
    "folder/../../escape.gguf",
    "..",
    "/etc/escape.gguf",
    "//server/share/escape.gguf",
    "..\\escape.gguf",
    "folder\\..\\..\\escape.gguf",
    "\\escape.gguf",
    "\\\\server\\share\\escape.gguf",
    "C:\\escape.gguf",
    "C:/escape.gguf",
    "C:escape.gguf",
    # And more: empty and dotted parts, streams, devices, what Windows cuts off, control characters, our own names.
    "",
    ".",
    "folder//escape.gguf",
    "folder/./escape.gguf",
    "folder/",
    "~/escape.gguf/..",
    "model.gguf:stream",
    "con",
    "NUL.gguf",
    "folder/COM1.gguf",
    "model.gguf.",
    "model.gguf ",
    "model\0.gguf",
    "model\n.gguf",
    "model\x1b[2J.gguf",
    "model\x7f.gguf",
    "model\u202e.gguf",
    "a*b.gguf",
    'a"b.gguf',
    "a|b.gguf",
    "x" * 300 + ".gguf",
    ".slm/model.gguf.json",
    "folder/.SLM/model.gguf.json",
    "model.gguf.part",
    "\ud800.gguf",
)

UNSAFE_REPOS = (
    "../../x",
    "a/b/c",
    "a",
    "",
    "a/..",
    "../b",
    "a/b.git",
    "a/" + "b" * 96,
    "a//b",
    "/a/b",
    "a\\b/c",
    "C:/b",
    "a/b\n",
    "a/b?x=1",
    "a/b#x",
    "a/%2e%2e",
    "http://a/b",
    "a/-b",
    "a/b--c",
    "á/b",
)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("file", UNSAFE_FILES)
def test_an_unsafe_file_name_has_no_place(tmp_path: Path, file: str) -> None:
    with pytest.raises(DownloadFailed) as caught:
        place_of(tmp_path / "models", REPO, file)
    assert caught.value.hint
    assert caught.value.message.isprintable()
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("repo", UNSAFE_REPOS)
def test_an_unsafe_repository_touches_neither_disk_nor_network(hub: HubServer, tmp_path: Path, repo: str) -> None:
    with pytest.raises(DownloadFailed):
        place_of(tmp_path / "models", repo, FILE)
    with pytest.raises(DownloadFailed):
        Hub().repository(repo)
    assert isinstance(outcome(tmp_path / "models", variant(repo)), DownloadFailed)
    assert not hub.requests
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("file", [name for name in UNSAFE_FILES if name.isprintable() and name])
def test_a_variant_of_an_unsafe_name_is_not_fetched(hub: HubServer, tmp_path: Path, file: str) -> None:
    hub.add(REPO, {file: b"x" * 100})
    assert isinstance(outcome(tmp_path / "models", variant(file=file)), DownloadFailed)
    assert not hub.transfers()
    assert {path for path in tree(tmp_path) if "escape" in path} == set()


@pytest.mark.parametrize("prefix", ["../", "/tmp/slm-escape/", "C:\\", "..\\..\\", "\\\\server\\share\\"])
def test_a_folder_with_unsafe_names_in_its_list_writes_none_of_them(
    hub: HubServer, tmp_path: Path, prefix: str
) -> None:
    files = {"openvino_model.xml": b"<net/>", "openvino_model.bin": b"x" * 100, "config.json": b"{}"}
    hub.add(REPO, {**files, f"{prefix}openvino_tokenizer.bin": b"y" * 100, f"{prefix}tokenizer.json": b"{}"})
    outcome(tmp_path / "models", Variant(kind="openvino", quant="int4", repo=REPO))
    written = {Path(path).name for path in tree(tmp_path)}
    assert not any("tokenizer" in name for name in written)
    assert tree(tmp_path) <= {str(Path("models", *each)) for each in _below("models", tmp_path)}


def _below(name: str, folder: Path) -> set[tuple[str, ...]]:
    """Return what lies in the models folder, as parts below it; the folder itself as none."""
    root = folder / name
    return {()} | {path.relative_to(root).parts for path in root.rglob("*")}


def test_names_that_a_redirect_or_an_etag_carries_name_nothing(hub: HubServer, tmp_path: Path) -> None:
    blob = hub.add(REPO, {FILE: b"x" * 1000}).files[FILE]
    disposition = {"Content-Disposition": 'attachment; filename="../../escape.gguf"', "ETag": '"../../escape"'}
    hub.faults.add(Fault(headers=disposition), times=None)
    outcome(tmp_path / "models")
    assert not [path for path in tree(tmp_path) if "escape" in path]
    assert is_right(tmp_path / "models", blob) or is_clean(tmp_path / "models")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("at", ["owner", "repository", "records"])
def test_a_link_that_leads_out_is_not_followed(hub: HubServer, tmp_path: Path, at: str) -> None:
    hub.add(REPO, {FILE: b"x" * 1000})
    outside = tmp_path / "outside"
    outside.mkdir()
    models = tmp_path / "models"
    link = {
        "owner": models / REPO.split("/")[0],
        "repository": models.joinpath(*REPO.split("/")),
        "records": models.joinpath(*REPO.split("/"), ".slm"),
    }[at]
    link.parent.mkdir(parents=True)
    link.symlink_to(outside, target_is_directory=True)
    assert isinstance(outcome(models), DownloadFailed)
    assert tree(outside) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("is_part", [True, False])
def test_a_file_that_is_a_link_is_not_written_through(hub: HubServer, tmp_path: Path, is_part: bool) -> None:
    hub.add(REPO, {FILE: b"x" * 1000})
    outside = tmp_path / "precious"
    outside.write_bytes(b"precious")
    link = part(tmp_path / "models") if is_part else place(tmp_path / "models")
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    outcome(tmp_path / "models")
    assert outside.read_bytes() == b"precious"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_models_folder_that_is_itself_a_link_is_the_persons_own_choice(hub: HubServer, tmp_path: Path) -> None:
    blob = hub.add(REPO, {FILE: b"x" * 1000}).files[FILE]
    (tmp_path / "big disk").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "big disk", target_is_directory=True)
    pull(tmp_path / "models")
    assert is_right(tmp_path / "big disk", blob)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps rights elsewhere")
def test_files_and_folders_are_the_persons_own(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {FILE: b"x" * 1000})
    pull(tmp_path / "models")
    for path in (tmp_path / "models").rglob("*"):
        assert os.stat(path).st_mode & 0o077 == 0, path


def test_archives_are_never_unpacked(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {"model.zip": b"PK\x03\x04" + b"x" * 100})
    outcome(tmp_path, variant(file="model.zip"))
    assert {Path(path).name for path in tree(tmp_path)} <= {"maker", REPO.split("/")[1], ".slm", "model.zip"} | {
        name for name in (Path(path).name for path in tree(tmp_path)) if name.startswith("model.zip.")
    }
