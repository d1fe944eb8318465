"""What the Hub has otherwise than the registry says, asked of the stand-in."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from slm_local.download.audit import FAILURES_IN_A_ROW, Audited, audit
from slm_local.download.hub import INFO_TRIES, Hub
from slm_local.errors import DownloadFailed
from slm_local.model import ModelSpec, Variant
from tests.hub.fixtures import OPENVINO_REPO, SPLIT_REPO, hub, serve_openvino, serve_split, some_bytes
from tests.hub.misbehaviour import Fault
from tests.hub.pulling import FILE, QUICK, REPO, variant
from tests.hub.server import HubServer

__all__ = ["hub"]

CONTENT = some_bytes(10_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def model(*variants: Variant, **more: object) -> ModelSpec:
    return ModelSpec(id="m", name="M", variants=variants, **more)  # type: ignore[arg-type]


def audited(*models: ModelSpec, told: list[str] | None = None) -> list[Audited]:
    asked: list[str] = [] if told is None else told
    return list(audit(models, Hub(patience=QUICK), Path("models"), asked.append))


def remark(*models: ModelSpec, outcome: str) -> str:
    (result,) = audited(*models)
    assert result.outcome == outcome
    return result.remark


def test_what_the_hub_has_as_stated_is_the_same(hub: HubServer) -> None:
    hub.add(REPO, {FILE: CONTENT})
    (result,) = audited(model(variant(size_bytes=len(CONTENT), sha256=SHA256)))
    assert (result.outcome, result.remark) == ("same", "")
    assert (result.size_bytes, result.sha256) == (len(CONTENT), SHA256)


def test_sizes_and_digests_that_differ_are_told_with_both(hub: HubServer) -> None:
    hub.add(REPO, {FILE: CONTENT})
    told = remark(model(variant(size_bytes=9_999, sha256="0" * 64)), outcome="differs")
    assert told == f"has 10,000 bytes; the registry says 9,999; has the sha256 {SHA256}; the registry says {'0' * 64}"


@pytest.mark.parametrize(("size", "outcome"), [(9_700, "same"), (9_000, "differs")])
def test_a_rounded_size_may_be_off_by_its_rounding(hub: HubServer, size: int, outcome: str) -> None:
    hub.add(REPO, {FILE: CONTENT})
    remark(model(variant(size_bytes=size, size_is_exact=False)), outcome=outcome)


def test_a_file_that_is_gone_is_missing_with_the_nearest_name(hub: HubServer) -> None:
    hub.add(REPO, {"model-Q8_K.gguf": CONTENT})
    assert "model-Q8_K.gguf" in remark(model(variant()), outcome="missing")


def test_a_repository_that_is_gone_is_missing(hub: HubServer) -> None:
    remark(model(variant()), outcome="missing")


def test_all_parts_and_all_files_of_a_folder_count(hub: HubServer) -> None:
    serve_split(hub, part_bytes=1000)
    serve_openvino(hub)
    split = variant(SPLIT_REPO, "Q4_K_M/split-Q4_K_M-00001-of-00003.gguf", size_bytes=3000)
    folder = Variant(kind="openvino", quant="int4", repo=OPENVINO_REPO)
    assert [each.outcome for each in audited(model(split, folder))] == ["same", "same"]
    assert remark(model(replace(split, size_bytes=2000)), outcome="differs").startswith("has 3,000 bytes")


def test_the_original_repository_must_be_there_and_as_gated_as_stated(hub: HubServer) -> None:
    hub.add("maker/original", {"config.json": b"{}"}, gated="manual")
    assert remark(model(original_repo="maker/original", gated=False), outcome="differs").startswith("is gated")
    remark(model(original_repo="maker/original", gated=True), outcome="same")
    remark(model(original_repo="maker/original"), outcome="same")
    remark(model(original_repo="maker/gone"), outcome="missing")


def test_a_repository_is_asked_for_once(hub: HubServer) -> None:
    hub.add(REPO, {FILE: CONTENT, "other.gguf": CONTENT})
    told: list[str] = []
    results = audited(model(variant(), variant(file="other.gguf"), original_repo=REPO), told=told)
    assert [each.outcome for each in results] == ["same"] * 3
    assert told == [f"asking about {REPO}"]


def test_one_that_can_not_be_reached_does_not_end_the_rest(hub: HubServer) -> None:
    hub.add(REPO, {FILE: CONTENT})
    hub.add("maker/other", {FILE: CONTENT})
    hub.faults.add(Fault(status=500), route="info", times=INFO_TRIES)
    results = audited(model(variant(), variant("maker/other")))
    assert [each.outcome for each in results] == ["unreached", "same"]
    assert "500" in results[0].remark


def test_without_a_network_the_rest_is_not_waited_for(hub: HubServer) -> None:
    hub.close()
    told: list[str] = []
    results = audited(model(*(variant(f"maker/m{number}") for number in range(9))), told=told)
    assert {each.outcome for each in results} == {"unreached"}
    assert len(told) == FAILURES_IN_A_ROW


def test_offline_nothing_is_asked(hub: HubServer) -> None:
    with pytest.raises(DownloadFailed, match="--offline"):
        list(audit((model(variant()),), Hub(offline=True), Path("models"), print))
    assert hub.requests == []


def test_models_without_a_repository_are_nothing_to_ask_about(hub: HubServer) -> None:
    assert audited(model(Variant(kind="gguf", quant="Q8_0", path="x.gguf"))) == []
    assert hub.requests == []
