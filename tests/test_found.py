"""What other programs keep is found where it lies: by their layouts, without a change, an error or a loop."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.download import found_ollama, found_search
from slm_local.download.found import Findings, found_models, found_variants, look_around
from slm_local.download.found_folders import yaml_values
from slm_local.model import ModelSpec, Shape, Variant
from slm_local.registry import load_registry
from tests.gguf_files import small_model, text
from tests.layouts import (
    ADAPTER,
    MODEL,
    PROJECTOR,
    as_hub,
    as_ollama,
    blob,
    copied,
    digest_of,
    manifest,
    name_in_ollama,
)

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows takes no such name, link or right")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(small_model().encode())
    return path


def look(home: Path, platform: str = "linux", **variables: str) -> Findings:
    return look_around({"HOME": str(home), "USERPROFILE": str(home), **variables}, platform)


def names(findings: Findings) -> list[tuple[str, str]]:
    return [(each.program, each.name) for each in findings.models]


# ---- ollama


def test_ollamas_names_lead_to_their_blobs(user_home: Path, small: Path) -> None:
    folder = user_home / ".ollama" / "models"
    place = as_ollama(folder, small, "registry.ollama.ai/library/deepseek-r1/8b")
    other = user_home / "other.gguf"
    other.write_bytes(small_model(seed=1).encode())
    as_ollama(folder, other, "hf.co/own/Some-GGUF/Q8_0")
    found = {each.name: each for each in found_models()}
    assert set(found) == {"deepseek-r1:8b", "hf.co/own/Some-GGUF:Q8_0"}
    model = found["deepseek-r1:8b"]
    assert (model.path, model.sha256, model.size_bytes) == (place, digest_of(small), small.stat().st_size)
    assert found["hf.co/own/Some-GGUF:Q8_0"].repo == "own/Some-GGUF"


def test_ollama_models_names_another_folder_and_quotes_around_it_are_dropped(user_home: Path, small: Path) -> None:
    as_ollama(user_home / "elsewhere", small, "registry.ollama.ai/me/tiny/q8")
    findings = look(user_home, OLLAMA_MODELS=f'"{user_home / "elsewhere"}" ')
    assert names(findings) == [("ollama", "me/tiny:q8")]


def test_the_folder_of_ollamas_service_is_looked_into_on_linux(
    user_home: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found_ollama, "SERVICE_FOLDER", str(user_home / "service"))
    as_ollama(user_home / "service", small)
    assert names(look(user_home)) == [("ollama", "tiny:latest")]
    assert names(look(user_home, "darwin")) == []


@posix_only
def test_blobs_with_a_colon_in_their_name_are_older_ollamas(user_home: Path, small: Path) -> None:
    folder = user_home / ".ollama" / "models"
    digest = blob(folder, small.read_bytes(), separator=":")
    name_in_ollama(folder, "registry.ollama.ai/library/tiny/latest", manifest(digest))
    assert [each.path.name[:7] for each in look(user_home).models] == ["sha256:"]


@posix_only
def test_newer_manifests_are_links_to_blobs_and_go_before_older_ones(user_home: Path, small: Path) -> None:
    folder = user_home / ".ollama" / "models"
    written = json.dumps(manifest(blob(folder, small.read_bytes()))).encode()
    newer = folder / "manifests-v2" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    newer.parent.mkdir(parents=True)
    newer.symlink_to(folder / "blobs" / blob(folder, written).replace(":", "-"))
    name_in_ollama(folder, "registry.ollama.ai/library/tiny/latest", "damaged")
    findings = look(user_home)
    assert names(findings) == [("ollama", "tiny:latest")]
    assert findings.remarks == ()


@pytest.mark.parametrize("is_whole", [True, False])
def test_of_a_list_of_manifests_the_one_with_gguf_weights_is_taken(
    user_home: Path, small: Path, is_whole: bool
) -> None:
    folder = user_home / ".ollama" / "models"
    inner = manifest(blob(folder, small.read_bytes()))
    reference = inner if is_whole else {"digest": blob(folder, json.dumps(inner).encode())}
    children = [{"runner": "mlx", "format": "safetensors", "layers": []}, {"runner": "llamacpp", **reference}]
    listed = {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": children}
    name_in_ollama(folder, "registry.ollama.ai/library/tiny/latest", listed)
    assert [each.sha256 for each in look(user_home).models] == [digest_of(small)]


def test_what_ollama_would_add_to_a_model_is_noted(user_home: Path, small: Path) -> None:
    folder = user_home / ".ollama" / "models"
    others = [(kind, "sha256:" + "1" * 64) for kind in (PROJECTOR, ADAPTER)]
    digest = blob(folder, small.read_bytes())
    name_in_ollama(folder, "registry.ollama.ai/library/sees/latest", manifest(digest, *others))
    (model,) = look(user_home).models
    assert model.notes == ("its adapter is not applied", "text only: its projector is not used")


def test_a_model_in_the_cloud_is_nothing_here(user_home: Path) -> None:
    folder = user_home / ".ollama" / "models"
    name_in_ollama(folder, "registry.ollama.ai/library/cloud/latest", {"schemaVersion": 2, "layers": []})
    assert look(user_home) == Findings(models=(), remarks=())


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{", "is damaged: it is no JSON"),
        ("[" * 100_000, "is damaged: it is no JSON"),
        ("[]", "bad:latest is passed over, its manifest is damaged"),
        ('{"layers": {}}', "bad:latest is passed over, its manifest is damaged"),
        ('{"layers": [1]}', "bad:latest is passed over, its manifest is damaged"),
        ("\xff", "is damaged: it is no JSON"),
        (json.dumps(manifest("sha256:" + "2" * 64)), "bad:latest is passed over, its file is not there: ollama pull"),
        (json.dumps(manifest("sha256-../../../../secret")), "its file is not there"),
        (json.dumps({"layers": [{"mediaType": MODEL}]}), "its file is not there"),
        (json.dumps({"layers": [{"mediaType": MODEL, "digest": ["sha256"]}]}), "its file is not there"),
    ],
)
def test_a_damaged_manifest_is_passed_over_and_said(user_home: Path, small: Path, written: str, says: str) -> None:
    folder = user_home / ".ollama" / "models"
    as_ollama(folder, small)
    name_in_ollama(folder, "registry.ollama.ai/library/bad/latest", written)
    findings = look(user_home)
    assert names(findings) == [("ollama", "tiny:latest")]
    assert len(findings.remarks) == 1
    assert findings.remarks[0].startswith("ollama: ")
    assert says in findings.remarks[0]


def test_a_digest_that_leads_out_reads_nothing_outside(user_home: Path) -> None:
    folder = user_home / ".ollama" / "models"
    (folder / "blobs").mkdir(parents=True)
    (folder / "secret").write_bytes(small_model().encode())
    for written in ("sha256:../secret", "../secret", str(folder / "secret"), "sha256-" + "a" * 63 + "/"):
        name_in_ollama(folder, "registry.ollama.ai/library/bad/latest", manifest(written))
        assert look(user_home).models == ()


# ---- LM Studio


def test_lm_studios_folders_are_publisher_model_and_file(user_home: Path, small: Path) -> None:
    place = copied(small, user_home / ".lmstudio" / "models" / "own" / "Small-GGUF" / "Small-F32.gguf")
    copied(small, place.with_name("mmproj-Small-F16.gguf"))
    place.with_name("config.json").write_text("{}", encoding="utf-8")
    (model,) = look(user_home).models
    assert (model.program, model.name, model.path) == ("LM Studio", "own/Small-GGUF/Small-F32.gguf", place)
    assert (model.repo, model.file, model.sha256) == ("own/Small-GGUF", "Small-F32.gguf", None)


def test_lm_studios_home_may_be_pointed_to_and_its_models_be_elsewhere(user_home: Path, small: Path) -> None:
    copied(small, user_home / ".cache" / "lm-studio" / "models" / "a" / "b" / "old.gguf")
    home = user_home / "moved"
    home.mkdir()
    (user_home / ".lmstudio-home-pointer").write_text(f"{home}\n", encoding="utf-8")
    settings = {"downloadsFolder": str(user_home / "disk")}
    (home / "settings.json").write_text("\ufeff" + json.dumps(settings), encoding="utf-8")
    copied(small, user_home / "disk" / "c" / "d" / "new.gguf")
    assert names(look(user_home)) == [("LM Studio", "c/d/new.gguf"), ("LM Studio", "a/b/old.gguf")]


def test_a_split_model_is_found_once_with_the_size_of_all_parts(user_home: Path, small: Path) -> None:
    folder = user_home / ".lmstudio" / "models" / "a" / "b"
    for number in (1, 2, 3):
        copied(small, folder / f"big-0000{number}-of-00003.gguf")
    (model,) = look(user_home).models
    assert (model.path.name, model.size_bytes) == ("big-00001-of-00003.gguf", 3 * small.stat().st_size)


@posix_only
def test_links_are_followed_but_never_in_a_circle(user_home: Path, small: Path) -> None:
    folder = user_home / ".lmstudio" / "models"
    copied(small, user_home / "disk" / "model" / "far.gguf")
    folder.mkdir(parents=True)
    (folder / "publisher").symlink_to(user_home / "disk")
    (user_home / "disk" / "round").symlink_to(folder)
    (folder / "nothing.gguf").symlink_to(folder / "gone.gguf")
    (folder / "self.gguf").symlink_to(folder / "self.gguf")
    findings = look(user_home)
    assert names(findings) == [("LM Studio", "publisher/model/far.gguf")]
    assert findings.remarks == ()


@posix_only
def test_what_only_looks_like_a_file_is_not_opened(user_home: Path) -> None:
    folder = user_home / ".lmstudio"
    (folder / "models").mkdir(parents=True)
    os.mkfifo(folder / "models" / "pipe.gguf")
    os.mkfifo(folder / "settings.json")
    findings = look(user_home)
    assert findings.models == ()
    assert findings.remarks == (f"LM Studio: {folder / 'settings.json'} is not a regular file",)


def test_too_many_files_end_the_search_of_one_program_and_are_said(
    user_home: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found_search, "MAX_ENTRIES", 5)
    for number in range(8):
        copied(small, user_home / ".lmstudio" / "models" / "a" / "b" / f"{number}.gguf")
    as_hub(user_home / ".cache" / "huggingface" / "hub", "own/x-GGUF", "x.gguf", small)
    findings = look(user_home)
    assert [each.program for each in findings.models] == ["LM Studio"] * 3 + ["Hub cache"]
    assert len(findings.remarks) == 1
    assert "LM Studio: more than 5 files" in findings.remarks[0]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="rights that bind this user")
def test_a_folder_that_may_not_be_read_is_a_remark(user_home: Path, small: Path) -> None:
    closed = user_home / ".ollama" / "models"
    as_ollama(closed, small)
    copied(small, user_home / ".lmstudio" / "models" / "a" / "b" / "x.gguf")
    closed.chmod(0)
    try:
        findings = look(user_home)
    finally:
        closed.chmod(0o700)
    assert [each.program for each in findings.models] == ["LM Studio"]
    assert findings.remarks == (f"ollama: {closed} can't be looked into: Permission denied",)


# ---- the Hub's cache and llama.cpp's


def test_the_hubs_cache_knows_repository_file_and_digest(user_home: Path, small: Path) -> None:
    place = as_hub(user_home / ".cache" / "huggingface" / "hub", "own/Small-GGUF", "F32/small.gguf", small)
    (model,) = look(user_home).models
    assert (model.program, model.path, model.name) == ("Hub cache", place, "own/Small-GGUF/F32/small.gguf")
    assert (model.repo, model.file, model.sha256) == ("own/Small-GGUF", "F32/small.gguf", digest_of(small))


def test_without_links_the_hubs_cache_states_no_digest(user_home: Path, small: Path) -> None:
    as_hub(user_home / "hub", "own/Small-GGUF", "small.gguf", small, links=False)
    (model,) = look(user_home, HF_HUB_CACHE=str(user_home / "hub")).models
    assert (model.repo, model.sha256) == ("own/Small-GGUF", None)


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("LLAMA_CACHE", ""),
    ],
)
def test_variables_move_the_cache(user_home: Path, small: Path, variable: str, below: str) -> None:
    as_hub(user_home / "moved" / below, "own/Small-GGUF", "small.gguf", small)
    findings = look(user_home, **{variable: str(user_home / "moved")})
    assert [each.name for each in findings.models] == ["own/Small-GGUF/small.gguf"]


def test_a_repository_name_that_is_none_is_passed_over(user_home: Path, small: Path) -> None:
    hub = user_home / ".cache" / "huggingface" / "hub"
    as_hub(hub, "own/Small-GGUF", "small.gguf", small)
    for name in ("models--..--..", "models--", "datasets--own--data", "version.txt"):
        (hub / name).mkdir()
    assert len(look(user_home).models) == 1


def test_an_openvino_folder_counts_when_all_of_it_is_there(user_home: Path, small: Path) -> None:
    hub = user_home / ".cache" / "huggingface" / "hub"
    for part in ("model", "tokenizer", "detokenizer"):
        for suffix in (".xml", ".bin"):
            assert look(user_home).models == ()
            folder = as_hub(hub, "OpenVINO/x-int4-ov", f"openvino_{part}{suffix}", small).parent
    (model,) = look(user_home).models
    assert (model.kind, model.path, model.size_bytes) == ("openvino", folder, 6 * small.stat().st_size)
    variant = Variant(kind="openvino", quant="int4", repo="OpenVINO/x-int4-ov")
    spec = ModelSpec(id="x", name="x", variants=(variant,))
    (here,) = found_variants(spec, [spec], [model], user_home)
    assert here == replace(variant, path=str(folder), size_bytes=model.size_bytes)


@pytest.mark.parametrize(
    ("platform", "below"),
    [
        ("linux", ".cache/llama.cpp"),
        ("darwin", "Library/Caches/llama.cpp"),
        ("win32", "AppData/Local/llama.cpp"),
    ],
)
def test_llama_cpps_older_cache_is_flat_with_a_manifest_a_model(
    user_home: Path, small: Path, platform: str, below: str
) -> None:
    folder = user_home / below
    copied(small, folder / "own_Small-GGUF_F32_small.gguf")
    stored = {"sha256": digest_of(small), "size": small.stat().st_size}
    gguf = {"rfilename": "F32/small.gguf", "size": small.stat().st_size, "lfs": stored}
    (folder / "manifest=own=Small-GGUF=latest.json").write_text(json.dumps({"ggufFile": gguf}), encoding="utf-8")
    (folder / "manifest=own=Other=latest.json").write_text("[]", encoding="utf-8")
    (model,) = look(user_home, platform).models
    assert (model.program, model.repo, model.file) == ("llama.cpp", "own/Small-GGUF", "F32/small.gguf")
    assert model.sha256 == digest_of(small)


def test_a_manifest_of_another_size_states_no_digest(user_home: Path, small: Path) -> None:
    folder = user_home / ".cache" / "llama.cpp"
    copied(small, folder / "own_Small-GGUF_small.gguf")
    gguf = {"rfilename": "small.gguf", "size": 1, "blobId": "sha256:" + "1" * 64}
    (folder / "manifest=own=Small-GGUF=latest.json").write_text(json.dumps({"ggufFile": gguf}), encoding="utf-8")
    (model,) = look(user_home).models
    assert (model.repo, model.sha256) == ("own/Small-GGUF", None)


# ---- Jan


@pytest.mark.parametrize(
    ("platform", "below"),
    [
        ("linux", ".local/share/Jan/data"),
        ("linux", ".config/Jan/data"),
        ("darwin", "Library/Application Support/Jan/data"),
        ("win32", "AppData/Roaming/Jan/data"),
        ("linux", "jan"),
    ],
)
def test_jans_models_are_those_with_a_description(user_home: Path, small: Path, platform: str, below: str) -> None:
    data = user_home / below
    place = copied(small, data / "llamacpp" / "models" / "own" / "Small" / "model.gguf")
    copied(small, place.with_name("mmproj.gguf"))
    place.with_name("model.yml").write_text(
        f"model_path: llamacpp/models/own/Small/model.gguf\nname: Small\nmodel_sha256: {digest_of(small)}\n",
        encoding="utf-8",
    )
    (model,) = look(user_home, platform).models
    assert (model.program, model.name, model.path) == ("Jan", "own/Small", place)
    assert model.sha256 == digest_of(small)


def test_a_model_that_jan_imported_is_found_by_its_path(user_home: Path, small: Path) -> None:
    place = copied(small, user_home / "my models" / "small.gguf")
    data = user_home / "data"
    described = data / "llamacpp" / "models" / "mine" / "model.yml"
    described.parent.mkdir(parents=True)
    described.write_text(f"model_path: '{place}'\n", encoding="utf-8")
    older = data / "models" / "imported" / "other.yml"
    older.parent.mkdir(parents=True)
    other = user_home / "other.gguf"
    other.write_bytes(small_model(seed=1).encode())
    older.write_text(f"model: other\nfiles:\n- {other}\nengine: llama-cpp\n", encoding="utf-8")
    findings = look(user_home, JAN_DATA_FOLDER=str(data))
    assert [(each.name, each.path) for each in findings.models] == [("mine", place), ("imported/other", other)]


def test_jans_settings_move_its_data(user_home: Path, small: Path) -> None:
    settings = user_home / ".local" / "share" / "Jan" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"data_folder": str(user_home / "moved")}), encoding="utf-8")
    copied(small, user_home / "moved" / "models" / "trinity" / "trinity.gguf")
    assert names(look(user_home)) == [("Jan", "trinity/trinity.gguf")]


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("key: a b.gguf", ["a b.gguf"]),
        ("key: 'it''s'", ["it's"]),
        (r'key: "C:\\models\\\u00fc.gguf"', ["C:\\models\\ü.gguf"]),
        ("key: x # why", ["x"]),
        ("key:\n  - one\n  - 'two'\nother: 3\n  - not", ["one", "two"]),
        ("key:\n- one\n# - no\n- two", ["one", "two"]),
        ("keys: x\n key: y", []),
        ("key: |\n  x", []),
        ("key: >-\n  x", []),
        ('key: "open', []),
        ("key: 'open", []),
        ("key: [a, b]", []),
        ("key: &anchor x", []),
        ("key:", []),
        ("", []),
    ],
)
def test_single_values_are_read_from_yaml(content: str, values: list[str]) -> None:
    assert yaml_values(content, "key") == values


# ---- all together


def test_a_file_found_twice_is_listed_once_with_its_other_names(user_home: Path, small: Path) -> None:
    place = as_ollama(user_home / ".ollama" / "models", small)
    as_ollama(user_home / ".ollama" / "models", small, "registry.ollama.ai/library/tiny/q8")
    hard = user_home / ".lmstudio" / "models" / "a" / "hard.gguf"
    hard.parent.mkdir(parents=True)
    hard.hardlink_to(place)
    as_hub(user_home / ".cache" / "huggingface" / "hub", "own/Small-GGUF", "small.gguf", small)
    (model,) = look(user_home).models
    assert (model.program, model.name, model.repo) == ("ollama", "tiny:latest", "own/Small-GGUF")
    assert model.also == ("ollama tiny:q8", "LM Studio a/hard.gguf", "Hub cache own/Small-GGUF/small.gguf")


def test_nothing_is_changed(user_home: Path, small: Path) -> None:
    as_ollama(user_home / ".ollama" / "models", small)
    copied(small, user_home / ".lmstudio" / "models" / "a" / "b" / "x.gguf")
    before = {path: path.lstat().st_mtime_ns for path in user_home.rglob("*")}
    look(user_home)
    assert {path: path.lstat().st_mtime_ns for path in user_home.rglob("*")} == before


def test_without_other_programs_nothing_is_found_and_nothing_said(user_home: Path) -> None:
    for platform in ("linux", "darwin", "win32"):
        assert look(user_home, platform) == Findings(models=(), remarks=())


# ---- which of them are registry models

SMALL = ModelSpec(
    id="small-random",
    name="Small Random",
    architecture="llama",
    parameters=30_000,
    shape=Shape(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, vocabulary=264),
    variants=(
        Variant(kind="gguf", quant="Q4_K_M", repo="own/Small-GGUF", file="Small-Random-Q4_K_M.gguf"),
        Variant(kind="gguf", quant="F32", repo="own/Small-GGUF", file="Small-Random-F32.gguf"),
    ),
)


def test_a_found_model_is_the_registrys_by_digest_or_by_header(user_home: Path, small: Path, tmp_path: Path) -> None:
    stated = replace(SMALL.variants[1], sha256=digest_of(small))
    spec = replace(SMALL, variants=(SMALL.variants[0], stated))
    copied(small, user_home / ".lmstudio" / "models" / "else" / "Small" / "x.gguf")
    place = as_ollama(user_home / ".ollama" / "models", small)
    found = sorted(look(user_home).models, key=lambda each: each.program)
    assert [each.program for each in found] == ["LM Studio", "ollama"]
    first, second = found_variants(spec, [spec], found, tmp_path)
    assert first.path == str(place)
    assert replace(first, path=None, decode_bytes=None, size_bytes=None) == stated
    assert (second.repo, second.file, second.quant) == ("else/Small", "x.gguf", "F32")
    assert (second.size_bytes, second.size_is_exact) == (small.stat().st_size, True)


def test_ollamas_name_is_no_proof(user_home: Path, small: Path, tmp_path: Path) -> None:
    registry = load_registry()
    as_ollama(user_home / ".ollama" / "models", small, "registry.ollama.ai/library/deepseek-r1/8b")
    spec = registry.get("deepseek-r1:8b")
    assert spec is not None
    assert found_variants(replace(spec, parameters=None), registry.models, found_models(), tmp_path) == ()


def test_a_file_that_is_only_called_like_a_model_is_not_it(user_home: Path, tmp_path: Path) -> None:
    draft = small_model()
    draft.keys["general.name"] = text("Else")
    file = user_home / ".lmstudio" / "models" / "a" / "b" / "small-random.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(draft.encode())
    other = replace(SMALL, shape=replace(SMALL.shape, layers=3))
    assert found_variants(other, [other], look(user_home).models, tmp_path) == ()


def test_a_broken_file_is_no_variant(user_home: Path, small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()[:-100]
    folder = user_home / ".ollama" / "models"
    digest = blob(folder, content)
    name_in_ollama(folder, "registry.ollama.ai/library/tiny/latest", manifest(digest))
    spec = replace(SMALL, variants=(replace(SMALL.variants[1], sha256=digest.removeprefix("sha256:")),))
    assert found_variants(spec, [spec], look(user_home).models, tmp_path) == ()


def test_files_that_can_not_be_it_by_their_size_are_not_opened(user_home: Path, small: Path, tmp_path: Path) -> None:
    copied(small, user_home / ".lmstudio" / "models" / "a" / "b" / "x.gguf")
    huge = replace(SMALL, parameters=8_000_000_000)
    assert found_variants(huge, [huge], look(user_home).models, tmp_path) == ()
    assert not (tmp_path / "headers").exists()
