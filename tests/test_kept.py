"""What is kept: which files make a model, how they go, and whether they are still whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm_local.download.course import Course
from slm_local.download.kept import DAMAGED, KeptModel, held, kept_models, kept_of, known, not_removable, remove
from slm_local.download.places import read_record
from slm_local.download.recheck import Finding, look_again, set_aside
from slm_local.download.values import FetchProgress
from slm_local.errors import UsageError
from slm_local.model import ModelSpec, Variant
from slm_local.registry import Resolved, find_local
from tests.keeping import (
    FILE,
    GGUF,
    OPENVINO_FILES,
    OPENVINO_REPO,
    REPO,
    SPEC,
    SPLIT_FILE,
    begun,
    fetched,
    fetched_folder,
    left,
    put,
    record_of,
)


def resolved(kind: str = "registry", **more: object) -> Resolved:
    values = {"reference": "model", "kind": kind, "spec": SPEC if kind == "registry" else None, **more}
    return Resolved(**values)  # type: ignore[arg-type]


def only(models_dir: Path) -> KeptModel:
    (model,) = kept_models(models_dir)
    return model


def findings(models_dir: Path, specs: tuple[ModelSpec, ...] = (SPEC,)) -> list[Finding]:
    course = Course("verifying", 0, None)
    ours = known(kept_models(models_dir), specs, models_dir)
    return [finding for model in ours for finding in look_again(model, models_dir.parent / "cache", course)]


def verdict(models_dir: Path, specs: tuple[ModelSpec, ...] = (SPEC,)) -> str:
    (finding,) = findings(models_dir, specs)
    return finding.verdict


# ---- what makes a model


def test_nothing_is_kept_where_there_is_no_folder(tmp_path: Path) -> None:
    assert kept_models(tmp_path / "models") == ()


def test_parts_of_a_split_model_are_one_model_and_a_partial_part_belongs_to_it(tmp_path: Path) -> None:
    fetched(tmp_path, b"one", file="m-00001-of-00002.gguf")
    begun(tmp_path, file="m-00002-of-00002.gguf", content=b"tw")
    model = only(tmp_path)
    assert model.target == tmp_path / REPO / "m-00001-of-00002.gguf"
    assert (len(model.files), model.size_bytes, model.is_whole) == (2, 5, False)


def test_an_openvino_folder_is_one_model(tmp_path: Path) -> None:
    folder = fetched_folder(tmp_path)
    model = only(tmp_path)
    assert (model.target, len(model.files), model.is_whole) == (folder, len(OPENVINO_FILES) + 1, True)


def test_a_folder_that_has_only_begun_to_come_is_one_model(tmp_path: Path) -> None:
    fetched(tmp_path, b"{}", OPENVINO_REPO, "config.json")
    begun(tmp_path, OPENVINO_REPO, "openvino_model.bin")
    model = only(tmp_path)
    assert (model.target, model.is_whole) == (tmp_path / OPENVINO_REPO, False)


def test_what_lies_beside_models_and_is_none_is_not_kept(tmp_path: Path) -> None:
    fetched(tmp_path)
    put(tmp_path / REPO / "README.md")
    put(tmp_path / "notes.txt")
    assert [file.path.name for file in only(tmp_path).files] == [FILE]


def test_a_link_that_leads_out_is_not_kept(tmp_path: Path) -> None:
    outside = put(tmp_path / "x.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.gguf").symlink_to(outside)
    assert kept_models(tmp_path / "models") == ()


def test_the_quantization_comes_from_the_registry_else_from_the_name(tmp_path: Path) -> None:
    fetched_folder(tmp_path)
    fetched(tmp_path, file="other-Q5_K_M.gguf")
    ours = known(kept_models(tmp_path), (SPEC,), tmp_path)
    assert [(each.model, each.quant) for each in ours] == [("model", "int4"), (None, "Q5_K_M")]


# ---- by reference


def test_a_name_of_the_registry_gives_its_files_finished_or_not_and_those_put_by_hand(tmp_path: Path) -> None:
    fetched(tmp_path)
    begun(tmp_path, file=SPLIT_FILE)
    put(tmp_path / "mine" / FILE)
    fetched(tmp_path, file="other-Q5_K_M.gguf")
    found = kept_of(resolved(), (SPEC,), tmp_path)
    assert [(each.quant, each.is_whole) for each in found] == [("Q8_0", True), ("Q4_0", False), ("Q8_0", True)]


def test_a_hub_reference_gives_what_its_repository_has_here(tmp_path: Path) -> None:
    fetched(tmp_path)
    fetched(tmp_path, file="other-Q5_K_M.gguf")
    fetched_folder(tmp_path)
    for more, expected in (
        ({}, ["Q8_0", "Q5_K_M"]),
        ({"quant": "q5_k_m"}, ["Q5_K_M"]),
        ({"file": FILE}, ["Q8_0"]),
        ({"quant": "Q2_K"}, []),
    ):
        found = kept_of(resolved("hf", repo=REPO, **more), (SPEC,), tmp_path)
        assert [each.quant for each in found] == expected


def test_a_path_gives_the_model_or_one_unfinished_file_of_it(tmp_path: Path) -> None:
    place = fetched(tmp_path)
    part = begun(tmp_path)
    (whole,) = kept_of(resolved("path", path=str(place)), (), tmp_path)
    (partial,) = kept_of(resolved("path", path=str(part)), (), tmp_path)
    assert [file.path for file in whole.files] == [place, part]
    assert [file.path for file in partial.files] == [part]
    assert kept_of(resolved("path", path=str(tmp_path.parent / "x.gguf")), (), tmp_path) == ()


def test_what_runs_elsewhere_has_nothing_here(tmp_path: Path) -> None:
    fetched(tmp_path)
    assert kept_of(resolved("url", url="http://localhost/v1"), (SPEC,), tmp_path) == ()


# ---- removal


def test_removal_leaves_no_file_no_record_and_no_empty_folder(tmp_path: Path) -> None:
    fetched(tmp_path, b"12345")
    begun(tmp_path, content=b"123")
    assert remove(only(tmp_path), tmp_path) == 8
    assert left(tmp_path) == []
    assert tmp_path.is_dir()


def test_removal_of_one_model_leaves_the_others_and_what_is_not_ours(tmp_path: Path) -> None:
    fetched(tmp_path, file="a-Q8_0.gguf")
    other = fetched(tmp_path, file="b-Q8_0.gguf")
    put(tmp_path / REPO / "README.md")
    remove(kept_models(tmp_path)[0], tmp_path)
    assert sorted(each.name for each in (tmp_path / REPO).iterdir()) == [".slm", "README.md", "b-Q8_0.gguf"]
    assert read_record(other) is not None


def test_removal_of_a_partial_file_keeps_the_finished_one_and_its_record(tmp_path: Path) -> None:
    place = fetched(tmp_path)
    part = begun(tmp_path)
    (partial,) = kept_of(resolved("path", path=str(part)), (), tmp_path)
    assert remove(partial, tmp_path) == 4
    assert (place.exists(), part.exists()) == (True, False)
    assert findings(tmp_path)[0].verdict == "whole"


def test_removal_of_a_folder_takes_all_of_it(tmp_path: Path) -> None:
    fetched_folder(tmp_path)
    remove(only(tmp_path), tmp_path)
    assert left(tmp_path) == []


def test_a_file_that_another_process_is_fetching_is_not_removed(tmp_path: Path) -> None:
    place = fetched(tmp_path)
    with held(place), pytest.raises(UsageError, match="is being fetched by another slm"):
        remove(only(tmp_path), tmp_path)
    assert place.exists()


def test_a_file_that_the_system_keeps_is_named() -> None:
    used = PermissionError(13, "Permission denied")
    used.winerror = 32  # type: ignore[attr-defined]
    assert not_removable(Path("x.gguf"), used).message == "x.gguf is in use by another program"
    kept = not_removable(Path("x.gguf"), OSError(30, "Read-only file system"))
    assert kept.message == "x.gguf can't be removed: Read-only file system"


# ---- looking again


def test_what_has_its_recorded_bytes_is_whole(tmp_path: Path) -> None:
    fetched(tmp_path)
    (finding,) = findings(tmp_path)
    record = read_record(finding.file.place)
    assert record is not None
    assert (finding.verdict, finding.sha256) == ("whole", record.sha256)


@pytest.mark.parametrize("content", [b"bytez", b"byte", b"bytes and more", b""])
def test_other_bytes_are_damage(tmp_path: Path, content: bytes) -> None:
    fetched(tmp_path).write_bytes(content)
    assert verdict(tmp_path) == "damaged"


def test_every_file_of_a_folder_is_looked_at(tmp_path: Path) -> None:
    folder = fetched_folder(tmp_path)
    (folder / "config.json").write_bytes(b"config.jsoN")
    assert {each.file.path.name for each in findings(tmp_path) if each.verdict == "damaged"} == {"config.json"}
    assert sum(each.verdict == "whole" for each in findings(tmp_path)) == len(OPENVINO_FILES)


def test_what_nobody_recorded_and_the_registry_does_not_pin_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    put(tmp_path / "mine.gguf", GGUF)
    (finding,) = findings(tmp_path)
    assert (finding.verdict, finding.sha256) == ("unpinned", None)


def test_an_unrecorded_file_with_a_broken_header_is_damaged(tmp_path: Path) -> None:
    put(tmp_path / "mine.gguf", GGUF[:-1])
    (finding,) = findings(tmp_path)
    assert finding.verdict == "damaged"
    assert finding.remark.startswith("is truncated")


def pinned(content: bytes) -> tuple[ModelSpec, ...]:
    digest = record_of(content).sha256
    variant = Variant(kind="gguf", quant="Q8_0", repo=REPO, file=FILE, sha256=digest)
    return (ModelSpec(id="m", name="M", variants=(variant,)),)


def test_an_unrecorded_file_is_compared_with_the_registry(tmp_path: Path) -> None:
    put(tmp_path / FILE, GGUF)
    assert verdict(tmp_path, pinned(GGUF)) == "whole"
    assert verdict(tmp_path, pinned(b"another upload")) == "differs"


def test_a_fetched_file_that_the_registry_has_otherwise_is_whole_and_says_so(tmp_path: Path) -> None:
    fetched(tmp_path)
    (finding,) = findings(tmp_path, pinned(b"another upload"))
    assert finding.verdict == "whole"
    assert "another upload" in finding.remark


def test_a_partial_file_is_told_as_one(tmp_path: Path) -> None:
    begun(tmp_path)
    assert verdict(tmp_path) == "partial"


def test_a_damaged_file_is_set_aside_and_nothing_takes_it_for_the_model(tmp_path: Path) -> None:
    place = fetched(tmp_path)
    place.write_bytes(b"bytez")
    (finding,) = findings(tmp_path)
    aside = set_aside(finding.file)
    assert (aside.path.name, aside.path.read_bytes()) == (f"{FILE}{DAMAGED}", b"bytez")
    assert (place.exists(), read_record(place)) == (False, None)
    assert find_local(SPEC, tmp_path) == ()
    assert verdict(tmp_path) == "damaged"


def test_a_folder_with_a_file_set_aside_is_not_here(tmp_path: Path) -> None:
    folder = fetched_folder(tmp_path)
    assert len(find_local(SPEC, tmp_path)) == 1
    (folder / "openvino_model.bin").write_bytes(b"OPENVINO_MODEL.BIN")
    (damaged,) = [each for each in findings(tmp_path) if each.verdict == "damaged"]
    set_aside(damaged.file)
    assert find_local(SPEC, tmp_path) == ()


def test_what_was_set_aside_and_replaced_is_no_fault_any_more(tmp_path: Path) -> None:
    place = fetched(tmp_path)
    put(place.with_name(place.name + DAMAGED))
    assert sorted(each.verdict for each in findings(tmp_path)) == ["set aside", "whole"]
    remove(only(tmp_path), tmp_path)
    assert left(tmp_path) == []


def test_progress_counts_all_files_together_and_ends_at_their_sum(tmp_path: Path) -> None:
    fetched_folder(tmp_path)
    told: list[FetchProgress] = []
    model = only(tmp_path)
    course = Course("verifying", model.size_bytes, told.append)
    assert all(finding.verdict == "whole" for finding in look_again(model, tmp_path, course))
    assert (told[-1].stage, told[-1].done_bytes, told[-1].total_bytes) == ("verifying", *[model.size_bytes] * 2)
    assert [each.done_bytes for each in told] == sorted(each.done_bytes for each in told)
