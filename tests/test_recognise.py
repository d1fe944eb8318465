"""A file of a store of blobs is known by the digest in its name; what it is called by others proves nothing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.gguf_header import GgufHeader, read_header
from slm_local.model import ModelSpec, Shape, Variant
from slm_local.registry.recognise import plain_digest, spec_for_file, stated_digest
from tests.gguf_files import small_model, text

HEXADECIMAL = "0123456789abcdef" * 4

SPEC = ModelSpec(
    id="known",
    name="Known",
    architecture="llama",
    shape=Shape(layers=2),
    variants=(
        Variant(kind="gguf", quant="Q4_0", repo="own/Known-GGUF", file="Known-Q4_0.gguf", size_bytes=1),
        Variant(kind="gguf", quant="Q8_0", repo="own/Known-GGUF", file="Known-Q8_0.gguf", sha256=HEXADECIMAL),
    ),
)


def written(path: Path, title: str | None = "Else") -> GgufHeader:
    draft = small_model()
    del draft.keys["general.name"]
    if title is not None:
        draft.keys["general.name"] = text(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draft.encode())
    return read_header(path)


@pytest.mark.parametrize("value", [HEXADECIMAL, f"sha256:{HEXADECIMAL}", f"sha256-{HEXADECIMAL}", HEXADECIMAL.upper()])
def test_a_digest_is_read_however_it_is_written(value: str) -> None:
    assert plain_digest(value) == HEXADECIMAL


@pytest.mark.parametrize("value", ["", HEXADECIMAL[1:], HEXADECIMAL + "0", "g" * 64, f"md5:{HEXADECIMAL}", None, 3])
def test_what_is_no_digest_is_none(value: object) -> None:
    assert plain_digest(value) is None


@pytest.mark.parametrize("name", [f"sha256-{HEXADECIMAL}", HEXADECIMAL])
def test_a_blobs_name_states_its_digest(tmp_path: Path, name: str) -> None:
    spec, line = spec_for_file(written(tmp_path / "blobs" / name), [SPEC])
    assert spec.id == "known"
    assert line == "Else is known by its digest: its sampling applies"
    (variant,) = spec.variants
    assert (variant.quant, variant.repo, variant.path) == ("Q8_0", "own/Known-GGUF", str(tmp_path / "blobs" / name))
    assert variant.size_bytes == (tmp_path / "blobs" / name).stat().st_size


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_a_blob_states_its_digest(tmp_path: Path) -> None:
    written(tmp_path / "blobs" / HEXADECIMAL)
    (tmp_path / "x.gguf").symlink_to(tmp_path / "blobs" / HEXADECIMAL)
    assert stated_digest(tmp_path / "x.gguf") == HEXADECIMAL
    spec, line = spec_for_file(read_header(tmp_path / "x.gguf"), [SPEC])
    assert (spec.id, line) == ("known", "x.gguf is known by its digest: its sampling applies")


def test_a_digest_outside_a_store_of_blobs_is_only_a_name(tmp_path: Path) -> None:
    assert stated_digest(tmp_path / HEXADECIMAL) is None
    spec, _ = spec_for_file(written(tmp_path / f"sha256-{HEXADECIMAL}"), [SPEC])
    assert spec.origin == "file"


def test_a_digest_in_a_name_does_not_outdo_the_header(tmp_path: Path) -> None:
    other = replace(SPEC, shape=Shape(layers=3))
    spec, _ = spec_for_file(written(tmp_path / "blobs" / HEXADECIMAL), [other])
    assert spec.origin == "file"


def test_a_record_goes_before_the_name(tmp_path: Path) -> None:
    header = written(tmp_path / "blobs" / HEXADECIMAL)
    spec, _ = spec_for_file(header, [SPEC], sha256="f" * 64)
    assert spec.origin == "file"


def test_the_name_in_the_repository_counts_where_the_file_lies_under_another(tmp_path: Path) -> None:
    header = written(tmp_path / "own_Known-GGUF_Known-Q4_0.gguf")
    exact = replace(SPEC, variants=(replace(SPEC.variants[0], size_bytes=header.size_bytes),))
    spec, line = spec_for_file(header, [exact], file="sub/Known-Q4_0.gguf")
    assert "is known by file name and size" in line
    assert spec.variants[0].file == "Known-Q4_0.gguf"


def test_a_file_keeps_the_origin_of_the_model_that_it_is(tmp_path: Path) -> None:
    mine = replace(SPEC, origin="/config/models.toml")
    spec, _ = spec_for_file(written(tmp_path / "blobs" / HEXADECIMAL), [mine])
    assert spec.origin == "/config/models.toml"


def test_a_blob_called_as_its_model_is_not_said_to_be_itself(tmp_path: Path) -> None:
    _, line = spec_for_file(written(tmp_path / "blobs" / f"sha256-{HEXADECIMAL}", "known"), [SPEC])
    assert line == "this file is known by its digest: its sampling applies"


@pytest.mark.parametrize(("title", "id_"), [("Else", "Else"), (None, f"sha256-{HEXADECIMAL[:12]}")])
def test_an_unknown_blob_is_called_what_it_calls_itself(tmp_path: Path, title: str | None, id_: str) -> None:
    spec, line = spec_for_file(written(tmp_path / f"sha256-{HEXADECIMAL}", title), [])
    assert spec.id == id_
    assert line.startswith(f"{id_} is not in the registry: ")
