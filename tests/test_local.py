"""Which forms of a model lie in the models folder: by place, by size, by name; whole ones only, and nothing outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm_local.model import ModelSpec, Variant, VariantKind
from slm_local.registry import find_local, scan
from slm_local.registry.local import checkpoint_here, parts_of, size_of

OPENVINO_FILES = tuple(
    f"openvino_{part}{suffix}" for part in ("model", "tokenizer", "detokenizer") for suffix in (".xml", ".bin")
)


def model(*variants: Variant) -> ModelSpec:
    return ModelSpec(id="m", name="M", variants=variants)


def variant(repo: str, file: str | None = "x.gguf", *, kind: VariantKind = "gguf", size: int | None = None) -> Variant:
    return Variant(kind=kind, quant="Q8_0", repo=repo, file=file, size_bytes=size)


def put(path: Path, content: bytes = b"GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_record(place: Path, repo: str, size: int) -> None:
    values = {"repo": repo, "file": place.name, "size_bytes": size}
    put(place.parent / ".slm" / f"{place.name}.json", json.dumps(values).encode())


def put_folder(folder: Path) -> Path:
    for name in OPENVINO_FILES:
        put(folder / name, name.encode())
    return folder


def test_a_file_in_a_repositorys_own_folder_is_that_repositorys(tmp_path: Path) -> None:
    place = put(tmp_path / "b" / "two" / "x.gguf")
    (found,) = find_local(model(variant("a/one", size=4), variant("b/two", size=999)), tmp_path)
    assert (found.repo, found.path, found.size_bytes) == ("b/two", str(place), 4)


def test_a_file_in_a_folder_of_its_repository_is_found(tmp_path: Path) -> None:
    place = put(tmp_path / "a" / "one" / "Q8_0" / "x.gguf")
    (found,) = find_local(model(variant("a/one", "Q8_0/x.gguf")), tmp_path)
    assert found.path == str(place)


def test_a_file_put_anywhere_by_hand_counts_by_its_name(tmp_path: Path) -> None:
    place = put(tmp_path / "mine" / "x.gguf")
    (found,) = find_local(model(variant("a/one")), tmp_path)
    assert found.path == str(place)


def test_a_file_fetched_from_another_repository_counts_only_when_its_size_agrees(tmp_path: Path) -> None:
    place = put(tmp_path / "other" / "model" / "x.gguf")
    put_record(place, "other/model", 4)
    assert find_local(model(variant("a/one", size=5)), tmp_path) == ()
    assert [each.path for each in find_local(model(variant("a/one", size=4)), tmp_path)] == [str(place)]


def test_partial_files_are_not_here(tmp_path: Path) -> None:
    put(tmp_path / "a" / "one" / "x.gguf.part")
    assert find_local(model(variant("a/one")), tmp_path) == ()
    assert scan(tmp_path) == {}


def test_a_link_out_of_the_folder_is_passed_over_and_one_within_is_not(tmp_path: Path) -> None:
    models = tmp_path / "models"
    outside = put(tmp_path / "x.gguf")
    inside = put(models / "store" / "blob")
    (models / "x.gguf").symlink_to(outside)
    (models / "elsewhere").symlink_to(tmp_path)
    (models / "y.gguf").symlink_to(inside)
    assert scan(models) == {"y.gguf": [models / "y.gguf"]}


def test_a_models_folder_that_is_itself_a_link_is_looked_into(tmp_path: Path) -> None:
    put(tmp_path / "disk" / "x.gguf")
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    assert scan(tmp_path / "models") == {"x.gguf": [tmp_path / "models" / "x.gguf"]}


def test_a_split_model_is_here_when_all_its_parts_are(tmp_path: Path) -> None:
    names = [f"x-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    spec = model(variant("a/one", names[0]))
    for name in names[:2]:
        put(tmp_path / "a" / "one" / name)
    assert find_local(spec, tmp_path) == ()
    put(tmp_path / "a" / "one" / names[2], b"GGUF more")
    (found,) = find_local(spec, tmp_path)
    assert found.path == str(tmp_path / "a" / "one" / names[0])
    assert found.size_bytes == 4 + 4 + 9
    assert list(scan(tmp_path)) == [names[0]]


def test_a_part_without_a_first_is_still_seen(tmp_path: Path) -> None:
    put(tmp_path / "x-00002-of-00003.gguf")
    assert list(scan(tmp_path)) == ["x-00002-of-00003.gguf"]


@pytest.mark.parametrize("name", ["x.gguf", "x-00001-of-00000.gguf", "x-1-of-2.gguf"])
def test_a_name_that_says_no_parts_is_one_file(name: str) -> None:
    assert list(parts_of(Path(name))) == [Path(name)]


def test_an_openvino_folder_is_here_when_it_is_whole(tmp_path: Path) -> None:
    folder = put_folder(tmp_path / "OpenVINO" / "M-int4-ov")
    (found,) = find_local(model(variant("OpenVINO/M-int4-ov", None, kind="openvino")), tmp_path)
    assert (found.path, found.size_bytes) == (str(folder), sum(map(len, OPENVINO_FILES)))


def test_an_openvino_model_that_also_sees_names_its_graph_otherwise(tmp_path: Path) -> None:
    folder = put_folder(tmp_path / "OpenVINO" / "M-int4-ov")
    for suffix in (".xml", ".bin"):
        (folder / f"openvino_model{suffix}").rename(folder / f"openvino_language_model{suffix}")
    assert scan(tmp_path) == {"M-int4-ov": [folder]}


@pytest.mark.parametrize("name", OPENVINO_FILES)
def test_an_openvino_folder_that_lacks_a_file_is_not_here(tmp_path: Path, name: str) -> None:
    folder = put_folder(tmp_path / "OpenVINO" / "M-int4-ov")
    (folder / name).unlink()
    assert find_local(model(variant("OpenVINO/M-int4-ov", None, kind="openvino")), tmp_path) == ()


def test_an_openvino_folder_with_a_file_still_coming_is_not_here(tmp_path: Path) -> None:
    folder = put_folder(tmp_path / "OpenVINO" / "M-int4-ov")
    put(folder / "tokenizer.json.part")
    assert scan(tmp_path) == {}


@pytest.mark.parametrize("size", [1, 999])
def test_an_openvino_folder_whose_file_has_not_its_recorded_size_is_not_here(tmp_path: Path, size: int) -> None:
    folder = put_folder(tmp_path / "OpenVINO" / "M-int4-ov")
    put_record(folder / "openvino_model.bin", "OpenVINO/M-int4-ov", len("openvino_model.bin"))
    assert scan(tmp_path) == {"M-int4-ov": [folder]}
    put_record(folder / "openvino_model.bin", "OpenVINO/M-int4-ov", size)
    assert scan(tmp_path) == {}


def test_an_openvino_folder_that_lacks_a_recorded_file_is_not_here(tmp_path: Path) -> None:
    folder = put_folder(tmp_path / "OpenVINO" / "M-int4-ov")
    put_record(folder / "config.json", "OpenVINO/M-int4-ov", 2)
    assert scan(tmp_path) == {}


def test_an_openvino_folder_whose_weights_lie_elsewhere_is_not_here(tmp_path: Path) -> None:
    folder = put_folder(tmp_path / "models" / "M-int4-ov")
    outside = put(tmp_path / "weights")
    (folder / "openvino_model.bin").unlink()
    (folder / "openvino_model.bin").symlink_to(outside)
    assert scan(tmp_path / "models") == {}


@pytest.mark.parametrize("record", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'{"repo": 7}'])
def test_a_damaged_record_hides_no_file(tmp_path: Path, record: bytes) -> None:
    place = put(tmp_path / "a" / "one" / "x.gguf")
    put(place.parent / ".slm" / "x.gguf.json", record)
    assert [each.path for each in find_local(model(variant("a/one")), tmp_path)] == [str(place)]


def test_the_size_of_what_is_not_there_is_unknown(tmp_path: Path) -> None:
    assert size_of(tmp_path / "x.gguf") is None


def test_original_weights_are_here_once_all_of_them_are(tmp_path: Path) -> None:
    assert checkpoint_here("a/one", tmp_path) is None
    put(tmp_path / "a" / "one" / "config.json")
    assert checkpoint_here("a/one", tmp_path) is None
    weights = put(tmp_path / "a" / "one" / "model.safetensors")
    assert checkpoint_here("a/one", tmp_path) == tmp_path / "a" / "one"
    part = put(weights.with_name("model-2.safetensors.part"))
    assert checkpoint_here("a/one", tmp_path) is None
    part.unlink()
    put_record(weights, "a/one", 5)
    assert checkpoint_here("a/one", tmp_path) is None
    put(weights, b"whole")
    assert checkpoint_here("a/one", tmp_path) == tmp_path / "a" / "one"
