"""What a Hub reference stands for, asked of a stand-in for the Hub: forms, headers by range, what is here already."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slm_local.config import Settings
from slm_local.download.hub import Hub
from slm_local.download.places import Record, write_record
from slm_local.download.ranged import FIRST_BYTES, MOST_BYTES, remote_header
from slm_local.download.remote import fill
from slm_local.errors import DownloadFailed, ModelBroken, UsageError
from slm_local.gguf_header import read_header
from slm_local.hardware import Hardware
from slm_local.model import ModelSpec, Variant
from slm_local.registry import load_registry
from tests.gguf_files import MIB, U16, Draft, scalar, small_model, text
from tests.hub.fixtures import OPENVINO_REPO, TINY_REPO, hub, serve_openvino, serve_tiny  # noqa: F401
from tests.hub.misbehaviour import Fault
from tests.hub.server import HubServer
from tests.test_quants import machine

REPO = "maker/Small-GGUF"


@dataclass
class Place:
    """Folders of their own, and `fill` as the engine calls it."""

    models_dir: Path
    cache_dir: Path
    models: tuple[ModelSpec, ...] = field(default_factory=lambda: load_registry().models)

    def fill(
        self,
        reference: str,
        *,
        offline: bool = False,
        quant: str | None = None,
        hardware: Hardware | None = None,
    ) -> tuple[ModelSpec, tuple[str, ...]]:
        resolved = load_registry().resolve(reference)
        settings, to_use = Settings(quant=quant), hardware or machine()
        return fill(resolved, Hub(offline=offline), to_use, settings, self.models, self.cache_dir, self.models_dir)

    def variant(self, reference: str, **options: str | bool) -> Variant:
        spec, _ = self.fill(reference, **options)  # type: ignore[arg-type]
        assert len(spec.variants) == 1
        return spec.variants[0]

    def put(self, repo: str, file: str, content: bytes, *, commit: str | None = None) -> Path:
        """Lay a file where a download would, with a record where a commit is given."""
        path = self.models_dir / repo / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if commit is not None:
            write_record(
                path,
                Record(
                    repo=repo,
                    file=file,
                    commit=commit,
                    etag=None,
                    size_bytes=len(content),
                    sha256="0" * 64,
                    verified_against="sha256",
                ),
            )
        return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "models", tmp_path / "cache")


def small(quant: str) -> bytes:
    """Return the small model with another name, so that the files of a repository differ."""
    draft = small_model()
    draft.keys["general.name"] = text(f"Small {quant}")
    return draft.encode()


def serve_small(server: HubServer, *quants: str, repo: str = REPO) -> str:
    """Serve the small model under the names of several quantizations; return the commit."""
    return server.add(repo, {f"Small-{quant}.gguf": small(quant) for quant in quants}).id


def spread(size_bytes: int) -> bytes:
    """Return a model whose header alone has that many bytes and more."""
    draft = small_model()
    draft.keys["a.long"] = text("x" * size_bytes)
    return draft.encode()


def test_only_the_chosen_files_header_is_read_and_only_once(hub: HubServer, place: Place) -> None:  # noqa: F811
    commit = serve_small(hub, "Q8_0", "Q4_K_M", "BF16")

    spec, notes = place.fill(f"hf:{REPO}")

    assert spec.id == f"hf:{REPO}:Q4_K_M"
    (variant,) = spec.variants
    assert (variant.repo, variant.file, variant.revision) == (REPO, "Small-Q4_K_M.gguf", commit)
    assert (variant.quant, variant.size_bytes, variant.path) == ("Q4_K_M", len(small("Q4_K_M")), None)
    assert notes[0] == f"{REPO}: Q4_K_M (116 kB), the usual balance of size and quality"
    assert "Small-Q4_K_M.gguf is not in the registry" in notes[1]
    assert {seen.file for seen in hub.seen("resolve")} == {"Small-Q4_K_M.gguf"}

    asked = len(hub.transfers())
    assert place.fill(f"hf:{REPO}") == (spec, notes)
    assert len(hub.transfers()) == asked


def test_a_header_from_the_hub_says_what_the_file_says(
    hub: HubServer,  # noqa: F811
    place: Place,
    tmp_path: Path,
) -> None:
    serve_small(hub, "Q8_0")
    path = tmp_path / "small.gguf"
    path.write_bytes(small("Q8_0"))
    repo = Hub().repository(REPO)

    header = remote_header(repo, repo.files[0], Hub(), place.cache_dir)

    assert header.path == f"{REPO}/Small-Q8_0.gguf"
    local = read_header(path)
    assert header.parameters == local.parameters
    assert (header.shape, header.decode_bytes, header.think_tokens) == (
        local.shape,
        local.decode_bytes,
        local.think_tokens,
    )


def test_an_embedded_model_is_known_again_by_its_digest(hub: HubServer, place: Place) -> None:  # noqa: F811
    serve_tiny(hub)
    spec, notes = place.fill(f"hf:{TINY_REPO}:tiny-reasoner")
    assert spec.id == "tiny-reasoner"
    assert spec.variants[0].repo == TINY_REPO
    assert "tiny-reasoner.gguf is tiny-reasoner" in notes[1]


def test_a_header_longer_than_a_range_takes_few_that_grow(hub: HubServer, place: Place) -> None:  # noqa: F811
    weights = bytes(20 * MIB)
    draft = small_model()
    draft.keys["a.long"] = text("x" * 7 * MIB)
    hub.add(REPO, {"Small-Q8_0.gguf": draft.encode() + weights})

    place.fill(f"hf:{REPO}")

    ranges = [seen.range for seen in hub.transfers("Small-Q8_0.gguf")]
    ends = [FIRST_BYTES, 3 * FIRST_BYTES, 3 * FIRST_BYTES + MOST_BYTES]
    assert ranges == [f"bytes={start}-{end - 1}" for start, end in zip([0, *ends], ends, strict=False)]


def test_a_header_without_end_is_not_fetched_beyond_the_limit(
    hub: HubServer,  # noqa: F811
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slm_local.gguf_header.reader.MAX_HEADER_BYTES", 3 * MIB)
    monkeypatch.setattr("slm_local.download.ranged.MAX_HEADER_BYTES", 3 * MIB)
    hub.add(REPO, {"Small-Q8_0.gguf": spread(8 * MIB)})
    with pytest.raises(ModelBroken, match="has a header of more than 3,145,728 bytes"):
        place.fill(f"hf:{REPO}")
    assert sum(seen.sent_bytes for seen in hub.transfers()) <= 3 * MIB


def test_a_new_commit_is_read_anew(hub: HubServer, place: Place) -> None:  # noqa: F811
    serve_small(hub, "Q8_0")
    first = place.variant(f"hf:{REPO}")
    hub.add(REPO, {"Small-Q8_0.gguf": spread(100)})
    second = place.variant(f"hf:{REPO}")
    assert first.revision != second.revision
    assert len(hub.transfers("Small-Q8_0.gguf")) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>no</html>", "holds a web page"),
        (b"", "is empty"),
        (small("Q8_0")[:-64], "is truncated"),
        (small("Q8_0")[:200], "is truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    ],
)
def test_a_broken_file_is_refused_before_it_is_fetched(
    content: bytes,
    says: str,
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    hub.add(REPO, {"Small-Q8_0.gguf": content})
    with pytest.raises(ModelBroken, match=says) as caught:
        place.fill(f"hf:{REPO}")
    assert caught.value.message.startswith(str(Path(REPO, "Small-Q8_0.gguf")))
    assert caught.value.hint == "slm ls --all"


def split_small() -> dict[str, bytes]:
    first, second = small_model(), Draft()
    first.keys |= {"split.no": scalar(U16, 0), "split.count": scalar(U16, 2)}
    second.keys = {"split.no": scalar(U16, 1), "split.count": scalar(U16, 2)}
    first.tensors, second.tensors = first.tensors[:8], first.tensors[8:]
    parts = zip((1, 2), (first, second), strict=True)
    return {f"Q8_0/Small-Q8_0-{number:05d}-of-00002.gguf": part.encode() for number, part in parts}


def test_a_split_model_is_one_variant_of_all_its_bytes(hub: HubServer, place: Place) -> None:  # noqa: F811
    files = split_small()
    hub.add(REPO, files)

    variant = place.variant(f"hf:{REPO}:Q8_0")

    assert (variant.file, variant.size_bytes) == (next(iter(files)), sum(map(len, files.values())))
    assert variant.sha256 is None
    assert {seen.file for seen in hub.transfers()} == set(files)


def test_a_split_model_is_known_here_when_all_parts_are(hub: HubServer, place: Place) -> None:  # noqa: F811
    files = split_small()
    hub.add(REPO, files)
    paths = [place.put(REPO, name, content) for name, content in files.items()]
    assert place.variant(f"hf:{REPO}", offline=True).path == str(paths[0])
    paths[1].unlink()
    assert place.variant(f"hf:{REPO}").path is None


def test_a_page_of_a_file_at_a_revision_is_that_file(hub: HubServer, place: Place) -> None:  # noqa: F811
    old = serve_small(hub, "Q8_0", "Q4_K_M")
    serve_small(hub, "Q4_K_M", "Q5_K_M")

    spec, _ = place.fill(f"{hub_page(REPO)}/blob/{old}/Small-Q8_0.gguf")

    assert (spec.variants[0].quant, spec.variants[0].revision) == ("Q8_0", old)
    assert spec.id == f"hf.co/{REPO}/blob/{old}/Small-Q8_0.gguf"
    assert load_registry().resolve(spec.id).file == "Small-Q8_0.gguf"


def hub_page(repo: str) -> str:
    return f"https://huggingface.co/{repo}"


def test_the_quantization_of_the_settings_counts_where_the_reference_has_none(
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    serve_small(hub, "Q8_0", "Q4_K_M")
    assert place.variant(f"hf:{REPO}", quant="q8_0").quant == "Q8_0"
    assert place.variant(f"hf:{REPO}:Q4_K_M", quant="Q8_0").quant == "Q4_K_M"


def test_a_quantization_that_the_repository_lacks_is_an_error_of_usage(
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    serve_small(hub, "Q8_0", "Q4_K_M")
    with pytest.raises(UsageError, match="has no Q3_K_S; there is Q4_K_M, Q8_0"):
        place.fill(f"hf:{REPO}:Q3_K_S")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("hf:maker/Nothing-GGUF", "no repository maker/Nothing-GGUF"),
        (f"{hub_page(REPO)}/blob/main/gone.gguf", "has no model in gone.gguf"),
        (f"{hub_page(REPO)}/tree/{'0' * 40}", "has no such revision"),
    ],
)
def test_what_the_hub_does_not_have_is_a_failed_download(
    reference: str,
    says: str,
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    serve_small(hub, "Q8_0")
    with pytest.raises(DownloadFailed, match=says):
        place.fill(reference)


def test_a_gated_repository_says_how_to_get_in(hub: HubServer, place: Place) -> None:  # noqa: F811
    hub.add(REPO, {"Small-Q8_0.gguf": small("Q8_0")}, gated=True)
    with pytest.raises(DownloadFailed, match="gated"):
        place.fill(f"hf:{REPO}")


def test_a_name_that_would_leave_the_folder_is_refused(hub: HubServer, place: Place) -> None:  # noqa: F811
    hub.add(REPO, {"a/../../../Small-Q8_0.gguf": small("Q8_0")})
    with pytest.raises(DownloadFailed, match="is refused"):
        place.fill(f"hf:{REPO}")
    assert not hub.transfers()


@pytest.mark.parametrize(
    ("fault", "transfers"),
    [(Fault(drop_after=100), 2), (Fault(status=503), 2), (Fault(ignores_range=True), 1)],
    ids=["cut", "503", "no ranges"],
)
def test_a_header_comes_whole_in_spite_of_one_fault(
    fault: Fault,
    transfers: int,
    hub: HubServer,  # noqa: F811
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slm_local.download.client.time.sleep", lambda _: None)
    serve_small(hub, "Q8_0")
    hub.faults.add(fault, route="cdn")
    assert place.variant(f"hf:{REPO}").decode_bytes
    assert len(hub.seen("cdn")) == transfers


def test_what_was_fetched_is_run_without_asking_the_hub(hub: HubServer, place: Place) -> None:  # noqa: F811
    commit = serve_small(hub, "Q8_0", "Q4_K_M")
    path = place.put(REPO, "Small-Q8_0.gguf", small("Q8_0"), commit=commit)

    for reference in (f"hf:{REPO}", f"hf:{REPO}:Q8_0", f"{hub_page(REPO)}/blob/{commit}/Small-Q8_0.gguf"):
        spec, notes = place.fill(reference)
        assert (spec.variants[0].path, spec.variants[0].revision) == (str(path), commit)
        assert notes[0] == f"{REPO}: Q8_0 is here"
    assert not hub.requests


def test_another_quantization_than_the_one_here_is_asked_for_at_the_hub(
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    commit = serve_small(hub, "Q8_0", "Q4_K_M")
    place.put(REPO, "Small-Q8_0.gguf", small("Q8_0"), commit=commit)
    assert place.variant(f"hf:{REPO}:Q4_K_M").path is None


def test_a_file_of_another_commit_is_not_the_one_asked_for(hub: HubServer, place: Place) -> None:  # noqa: F811
    commit = serve_small(hub, "Q8_0")
    place.put(REPO, "Small-Q8_0.gguf", small("Q8_0"), commit="f" * 40)
    variant = place.variant(f"{hub_page(REPO)}/blob/{commit}/Small-Q8_0.gguf")
    assert (variant.path, variant.revision) == (None, commit)


@pytest.mark.parametrize("reference", [f"hf:{REPO}", f"hf:{REPO}:Q4_K_M"])
def test_offline_what_is_not_here_is_named_and_no_socket_is_opened(
    reference: str,
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    serve_small(hub, "Q8_0", "Q4_K_M")
    with pytest.raises(DownloadFailed, match=f"{reference} is not here") as caught:
        place.fill(reference, offline=True)
    assert caught.value.exit_code == 3
    assert not hub.requests


def test_a_partial_file_is_not_here(hub: HubServer, place: Place) -> None:  # noqa: F811
    place.put(REPO, "Small-Q8_0.gguf.part", small("Q8_0")[:100])
    with pytest.raises(DownloadFailed, match="is not here"):
        place.fill(f"hf:{REPO}", offline=True)


def test_a_link_that_leads_out_is_not_here(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(small("Q8_0"))
    link = place.models_dir / REPO / "Small-Q8_0.gguf"
    link.parent.mkdir(parents=True)
    try:
        link.symlink_to(outside)
    except OSError:
        pytest.skip("links need rights here")
    with pytest.raises(DownloadFailed, match="is not here"):
        place.fill(f"hf:{REPO}", offline=True)


def test_a_registry_models_repository_needs_no_network(place: Place) -> None:
    spec, notes = place.fill("hf:unsloth/Qwen3-4B-GGUF:Q4_K_M", offline=True)
    assert (spec.id, notes) == ("qwen3-4b", ())
    assert [variant.quant for variant in spec.variants] == ["Q4_K_M"]


def test_a_quantization_that_the_registry_does_not_list_is_asked_for_at_the_hub(
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    serve_small(hub, "Q3_K_M", repo="unsloth/Qwen3-4B-GGUF")
    variant = place.variant("hf:unsloth/Qwen3-4B-GGUF", quant="Q3_K_M")
    assert (variant.file, variant.quant) == ("Small-Q3_K_M.gguf", "Q3_K_M")


def test_a_broken_file_counts_as_not_here_where_the_hub_can_bring_it_anew(
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    commit = serve_small(hub, "Q8_0")
    file = place.put(REPO, "Small-Q8_0.gguf", small("Q8_0"), commit=commit)
    file.write_bytes(small("Q8_0")[:5000])
    assert place.variant(f"hf:{REPO}").path is None
    with pytest.raises(ModelBroken) as caught:
        place.fill(f"hf:{REPO}", offline=True)
    assert caught.value.hint == f"slm verify hf:{REPO}"
    file.write_bytes(b"GGUF" + bytes(len(small("Q8_0")) - 4))
    with pytest.raises(ModelBroken) as caught:
        place.fill(f"hf:{REPO}")
    assert caught.value.hint == f"slm verify hf:{REPO}", "its record vouches for it: a pull would trust it"


def test_an_openvino_folder_is_a_variant_of_its_own_kind(hub: HubServer, place: Place) -> None:  # noqa: F811
    commit = serve_openvino(hub).id

    spec, notes = place.fill(f"hf:{OPENVINO_REPO}")

    (variant,) = spec.variants
    assert (variant.kind, variant.quant, variant.file, variant.revision) == ("openvino", "int4", None, commit)
    assert variant.size_bytes is not None
    assert variant.size_bytes > 150_000
    assert notes == (f"{OPENVINO_REPO} is an OpenVINO folder (int4)",)
    with pytest.raises(UsageError, match="has no Q4_K_M; there is int4"):
        place.fill(f"hf:{OPENVINO_REPO}:Q4_K_M")


def test_an_openvino_folder_that_is_here_needs_no_network(hub: HubServer, place: Place) -> None:  # noqa: F811
    for name, blob in serve_openvino(hub).files.items():
        place.put(OPENVINO_REPO, name, blob.content)
    variant = place.variant(f"hf:{OPENVINO_REPO}", offline=True)
    assert (variant.kind, variant.path) == ("openvino", str(place.models_dir / OPENVINO_REPO))
    assert place.variant(f"hf:{OPENVINO_REPO}:int4", offline=True) == variant
    with pytest.raises(DownloadFailed, match="int8 is not here"):
        place.fill(f"hf:{OPENVINO_REPO}:int8", offline=True)


def checkpoint(server: HubServer, repo: str) -> None:
    server.add(repo, {"config.json": b"{}", "model-00001-of-00001.safetensors": bytes(100), "README.md": b"#"})


@pytest.mark.parametrize(
    ("repo", "serve", "says", "hint"),
    [
        (
            "Qwen/Qwen3-8B",
            checkpoint,
            "original checkpoint, with no GGUF file to run: the registry knows one: qwen3-8b",
            "slm show qwen3-8b",
        ),
        ("maker/Small", checkpoint, "look for Small-GGUF", "slm ls --all"),
        ("maker/Data", lambda server, repo: server.add(repo, {"a.csv": b"1"}), "neither a GGUF file", "slm ls --all"),
    ],
)
def test_a_repository_with_nothing_to_run_says_what_it_is(
    repo: str,
    serve: Callable[[HubServer, str], object],
    says: str,
    hint: str,
    hub: HubServer,  # noqa: F811
    place: Place,
) -> None:
    serve(hub, repo)
    with pytest.raises(DownloadFailed, match=says) as caught:
        place.fill(f"hf:{repo}")
    assert caught.value.hint == hint


def test_a_cache_that_is_lost_does_no_harm(hub: HubServer, place: Place) -> None:  # noqa: F811
    serve_small(hub, "Q8_0")
    before = place.fill(f"hf:{REPO}")
    shutil.rmtree(place.cache_dir)
    assert place.fill(f"hf:{REPO}") == before
