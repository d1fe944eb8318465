"""Which files of a repository a variant means, and what of them counts as being here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from slm_local.download import places
from slm_local.download.hub import Hub
from slm_local.download.order import look, order_at, order_of
from slm_local.download.places import PartRecord, Record
from slm_local.download.values import Order, OrderedFile, RemoteFile, RemoteRepo
from slm_local.errors import DownloadFailed
from slm_local.model import Variant, VariantKind

REPO = "maker/model"
COMMIT = "c" * 40
CONTENT = b"0123456789"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BLOB = "b" * 40


def large(path: str) -> RemoteFile:
    return RemoteFile(path=path, size_bytes=len(CONTENT), sha256=SHA256)


def repository(*files: RemoteFile | str, commit: str = COMMIT) -> RemoteRepo:
    made = tuple(large(each) if isinstance(each, str) else each for each in files)
    return RemoteRepo(repo=REPO, commit=commit, files=made)


def order(found: RemoteRepo, models_dir: Path, file: str | None = None, kind: VariantKind = "gguf") -> Order:
    return order_at(found, Variant(kind=kind, quant="Q8_0", repo=REPO, file=file), models_dir)


def names(made: Order) -> list[str]:
    return [each.remote.path for each in made.files]


def test_a_gguf_is_one_file_of_the_repository(tmp_path: Path) -> None:
    made = order(repository("a.gguf", "b.gguf", "README.md"), tmp_path, "b.gguf")
    assert names(made) == ["b.gguf"]
    assert made.target == tmp_path / REPO / "b.gguf"
    assert (made.total_bytes, made.missing_bytes) == (10, 10)


def test_what_came_of_another_version_counts_as_nothing(tmp_path: Path) -> None:
    place = tmp_path / REPO / "a.gguf"
    place.parent.mkdir(parents=True)
    places.part_of(place).write_bytes(CONTENT[:4])
    for digest, here in ((SHA256, 4), ("0" * 64, 0)):
        places.write_part_record(place, PartRecord(commit=COMMIT, etag=None, size_bytes=10, digest=digest))
        assert order(repository("a.gguf"), tmp_path, "a.gguf").missing_bytes == 10 - here
    places.forget_part(place)
    assert order(repository("a.gguf"), tmp_path, "a.gguf").missing_bytes == 10


def test_a_split_gguf_is_all_its_parts(tmp_path: Path) -> None:
    parts = [f"Q4/m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    made = order(repository(*reversed(parts), "Q4/n-00001-of-00003.gguf"), tmp_path, parts[0])
    assert names(made) == parts
    assert made.target == tmp_path / REPO / "Q4" / "m-00001-of-00003.gguf"


def test_a_split_gguf_without_a_part_is_refused_by_the_part_s_name(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="m-00002-of-00002"):
        order(repository("m-00001-of-00002.gguf"), tmp_path, "m-00001-of-00002.gguf")


def test_a_file_that_is_not_there_names_those_that_are_close(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"model-Q4_K_M\.gguf") as caught:
        order(repository("model-Q4_K_M.gguf", "README.md"), tmp_path, "model-Q4_K_S.gguf")
    assert "README" not in caught.value.message
    assert caught.value.hint == f"slm show hf:{REPO}"


@pytest.mark.parametrize("file", ["model.zip", "model.tar.gz", "MODEL.7Z"])
def test_an_archive_is_refused_though_the_hub_has_it(tmp_path: Path, file: str) -> None:
    with pytest.raises(DownloadFailed, match="archive"):
        order(repository(file), tmp_path, file)


OPENVINO = ["openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "openvino_tokenizer.bin"]


def test_an_openvino_folder_is_what_runs_and_its_graphs_come_last(tmp_path: Path) -> None:
    wanted = [*OPENVINO, "config.json", "chat_template.jinja", "merges.txt", "spiece.model"]
    other = ["README.md", ".gitattributes", "photo.png", "images/a.json", "model.safetensors", "pytorch_model.pt"]
    made = order(repository(*wanted, *other), tmp_path, kind="openvino")
    assert sorted(names(made)) == sorted(wanted)
    assert names(made)[-2:] == ["openvino_model.xml", "openvino_tokenizer.xml"]
    assert made.target == tmp_path / REPO


def test_a_checkpoint_has_no_pickles_no_doubles_and_no_subfolders(tmp_path: Path) -> None:
    wanted = ["model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.model", "merges.txt"]
    other = ["pytorch_model.bin", "a.pt", "a.pth", "consolidated.safetensors", "original/x.safetensors", "README.md"]
    made = order(repository(*wanted, *other), tmp_path, kind="checkpoint")
    assert sorted(names(made)) == sorted(wanted)
    assert names(made)[-1] == "config.json"


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("openvino", ("config.json", "openvino_tokenizer.xml")),
        ("checkpoint", ("config.json", "pytorch_model.bin")),
        ("checkpoint", ("model.safetensors",)),
    ],
)
def test_a_repository_without_what_would_run_is_refused(
    tmp_path: Path, kind: VariantKind, files: tuple[str, ...]
) -> None:
    with pytest.raises(DownloadFailed, match="has no file"):
        order(repository(*files), tmp_path, kind=kind)


def test_names_that_differ_by_case_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="case"):
        order(repository(*OPENVINO, "Config.json", "config.json"), tmp_path, kind="openvino")


def test_a_file_without_a_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="digest"):
        order(repository(RemoteFile(path="a.gguf", size_bytes=1)), tmp_path, "a.gguf")


def test_a_variant_without_a_repository_can_t_be_ordered(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="no repository"):
        order_of(Variant(kind="gguf", quant="Q8_0", file="a.gguf"), Hub(offline=True), tmp_path)


def put(
    models_dir: Path,
    content: bytes = CONTENT,
    *,
    sha256: str | None = None,
    commit: str = COMMIT,
    etag: str | None = None,
) -> None:
    """Put a file in its place; with a digest, record it as fetched."""
    place = places.place_of(models_dir, REPO, "a.gguf")
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    if sha256 is not None:
        places.write_record(
            place,
            Record(
                repo=REPO,
                file="a.gguf",
                commit=commit,
                etag=etag,
                size_bytes=len(content),
                sha256=sha256,
                verified_against="sha256",
            ),
        )


def seen(models_dir: Path, remote: RemoteFile | None = None) -> OrderedFile:
    return order(repository(remote or large("a.gguf")), models_dir, "a.gguf").files[0]


def test_a_recorded_file_is_here_whatever_commit_it_came_from(tmp_path: Path) -> None:
    put(tmp_path, sha256=SHA256, commit="d" * 40)
    assert seen(tmp_path).is_here


def test_a_file_that_someone_put_there_needs_a_check(tmp_path: Path) -> None:
    put(tmp_path)
    file = seen(tmp_path)
    assert (file.is_here, file.needs_check, file.here_bytes) == (False, True, 10)


def test_a_recorded_file_of_another_digest_is_stale(tmp_path: Path) -> None:
    put(tmp_path, b"9876543210", sha256="d" * 64)
    file = seen(tmp_path)
    assert (file.is_here, file.is_stale, file.needs_check, file.here_bytes) == (False, True, False, 0)


def test_a_recorded_file_that_was_cut_is_stale(tmp_path: Path) -> None:
    put(tmp_path, sha256=SHA256)
    places.place_of(tmp_path, REPO, "a.gguf").write_bytes(CONTENT[:5])
    file = seen(tmp_path)
    assert (file.is_here, file.is_stale, file.here_bytes) == (False, True, 0)


def test_a_stale_file_beside_a_whole_partial_one_is_not_here(tmp_path: Path) -> None:
    put(tmp_path, b"9876543210", sha256="d" * 64)
    place = places.place_of(tmp_path, REPO, "a.gguf")
    places.part_of(place).write_bytes(CONTENT)
    places.write_part_record(place, PartRecord(commit=COMMIT, etag=None, size_bytes=10, digest=SHA256))
    file = seen(tmp_path)
    assert (file.is_here, file.here_bytes) == (False, 10)


@pytest.mark.parametrize(("commit", "etag"), [(COMMIT, None), ("d" * 40, BLOB)])
def test_a_small_file_is_here_by_its_commit_or_by_its_blob(tmp_path: Path, commit: str, etag: str | None) -> None:
    put(tmp_path, sha256=SHA256, commit=commit, etag=etag)
    assert seen(tmp_path, RemoteFile(path="a.gguf", size_bytes=10, git_blob=BLOB)).is_here


def test_a_small_file_of_another_commit_and_blob_needs_a_check(tmp_path: Path) -> None:
    put(tmp_path, sha256=SHA256, commit="d" * 40, etag="e" * 40)
    assert seen(tmp_path, RemoteFile(path="a.gguf", size_bytes=10, git_blob=BLOB)).needs_check


def test_a_partial_file_counts_what_it_holds_unless_it_is_too_long(tmp_path: Path) -> None:
    file = seen(tmp_path)
    file.place.parent.mkdir(parents=True)
    places.write_part_record(file.place, PartRecord(commit=COMMIT, etag=None, size_bytes=10, digest=SHA256))
    for held, counted in ((4, 4), (10, 10), (40, 0)):
        places.part_of(file.place).write_bytes(b"x" * held)
        assert look(file, COMMIT).here_bytes == counted
        assert not look(file, COMMIT).is_here


def test_the_registry_s_digest_goes_with_the_file_it_is_of(tmp_path: Path) -> None:
    parts = [f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    variant = Variant(kind="gguf", quant="Q8_0", repo=REPO, file=parts[0], sha256="d" * 64)
    made = order_at(repository(*parts), variant, tmp_path)
    assert [each.known_sha256 for each in made.files] == ["d" * 64, None]
