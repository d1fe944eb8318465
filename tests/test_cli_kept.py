"""`slm rm`, `slm verify`, `slm import`: what goes, what is damaged and mended, what travels."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from slm_local.download.kept import DAMAGED
from slm_local.download.places import read_record
from slm_local.download.recheck import Verdict
from slm_local.sanitize import shell_word
from tests.command import Result, child_environment, slm
from tests.gguf_files import small_model
from tests.hub.fixtures import hub
from tests.hub.server import HubServer
from tests.keeping import FILE, GGUF, REPO, begun, fetched, fetched_folder, left, put
from tests.layouts import as_hub, as_ollama, blob, digest_of, entry, manifest, name_in_ollama

__all__ = ["hub", "slm"]

Slm = Callable[..., Result]

ORIGINAL = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
R1_REPO, R1_FILE = "unsloth/DeepSeek-R1-Distill-Llama-8B-GGUF", "DeepSeek-R1-Distill-Llama-8B-Q4_K_M.gguf"
OLLAMA_NAME = "registry.ollama.ai/library/$(touch pwned)/latest"
MINE = "own/mine-GGUF"
MINE_FILE = "mine-Q8_0.gguf"


@pytest.fixture
def models(slm_home: Path) -> Path:
    folder = slm_home / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def mine(models: Path, tiny_reasoner: Path) -> Path:
    """Have a model `mine` in the registry, with its digest; return where it would be fetched to."""
    put(models.parent / "config" / "models.toml", entry("mine", tiny_reasoner).encode())
    return models / MINE / MINE_FILE


# ---- rm


def test_rm_says_how_many_bytes_it_freed(slm: Slm, models: Path) -> None:
    fetched(models, GGUF)
    result = slm("rm", f"hf:{REPO}", "-y")
    assert result.code == 0
    assert result.out.splitlines() == [f"removed {REPO}/{FILE}", "1,909,632 bytes freed (2 MB)"]
    assert left(models) == []


def test_rm_asks_nobody_and_removes_nothing_off_a_terminal(slm: Slm, models: Path) -> None:
    place = fetched(models, GGUF)
    result = slm("rm", f"hf:{REPO}")
    assert (result.code, result.out) == (2, "")
    assert f"hint: slm rm hf:{REPO} -y" in result.err
    assert place.exists()


def test_rm_of_several_quantizations_wants_to_know_which(slm: Slm, models: Path) -> None:
    for name in ("m-Q8_0.gguf", "m-Q4_0.gguf"):
        fetched(models, GGUF, file=name)
    result = slm("rm", f"hf:{REPO}", "-y")
    assert result.code == 2
    assert "is here as Q4_0 (2 MB), Q8_0 (2 MB): which one?" in result.err
    assert slm("rm", f"hf:{REPO}", "--quant", "q8_0", "-y").code == 0
    assert [path.name for path in models.rglob("*.gguf")] == ["m-Q4_0.gguf"]
    assert slm("rm", f"hf:{REPO}", "--quant", "Q8_0", "-y").code == 2


def test_rm_all_takes_every_form(slm: Slm, models: Path) -> None:
    for name in ("m-Q8_0.gguf", "m-Q4_0.gguf"):
        fetched(models, GGUF, file=name)
    assert slm("rm", f"hf:{REPO}", "--all", "-y").code == 0
    assert left(models) == []


def test_rm_takes_what_hangs_on_the_reference(slm: Slm, models: Path) -> None:
    for name in ("m-Q8_0.gguf", "m-Q4_0.gguf"):
        fetched(models, GGUF, file=name)
    assert slm("rm", f"hf:{REPO}:Q4_0", "-y").code == 0
    assert [path.name for path in models.rglob("*.gguf")] == ["m-Q8_0.gguf"]


def test_rm_removes_a_download_that_has_only_begun(slm: Slm, mine: Path, models: Path) -> None:
    begun(models, MINE, MINE_FILE)
    assert slm("rm", "mine", "-y").out.endswith("4 bytes freed (0 kB)\n")
    assert left(models) == []


def test_rm_removes_an_openvino_folder(slm: Slm, models: Path) -> None:
    folder = fetched_folder(models)
    assert slm("rm", str(folder), "-y").code == 0
    assert left(models) == []


def test_rm_refuses_the_embedded_models(slm: Slm, tiny_reasoner: Path) -> None:
    for reference in ("tiny-reasoner", str(tiny_reasoner)):
        result = slm("rm", reference, "-y")
        assert result.code == 2
        assert "a part of slm itself" in result.err
    assert tiny_reasoner.exists()


def test_rm_names_the_program_that_a_model_belongs_to(
    slm: Slm, mine: Path, user_home: Path, tiny_reasoner: Path
) -> None:
    blob = as_ollama(user_home / ".ollama" / "models", tiny_reasoner)
    for reference in ("mine", str(blob)):
        result = slm("rm", reference, "-y")
        assert result.code == 2
        assert "is a model of ollama, which slm never changes" in result.err
        assert "hint: ollama rm tiny" in result.err
    assert blob.exists()


def test_rm_says_how_the_hubs_cache_is_emptied(slm: Slm, user_home: Path, tiny_reasoner: Path) -> None:
    place = as_hub(user_home / ".cache" / "huggingface" / "hub", "own/x-GGUF", "x-Q8_0.gguf", tiny_reasoner)
    result = slm("rm", str(place), "-y")
    assert "hint: hf cache rm model/own/x-GGUF" in result.err
    assert place.exists()


def test_rm_removes_ours_and_leaves_the_other_programs(
    slm: Slm, mine: Path, models: Path, user_home: Path, tiny_reasoner: Path
) -> None:
    blob = as_ollama(user_home / ".ollama" / "models", tiny_reasoner)
    fetched(models, GGUF, MINE, MINE_FILE)
    assert slm("rm", "mine", "-y").code == 0
    assert (mine.exists(), blob.exists()) == (False, True)


def test_rm_refuses_a_file_outside_the_models_folder(slm: Slm, tmp_path: Path) -> None:
    outside = put(tmp_path / "x.gguf", GGUF)
    result = slm("rm", str(outside), "-y")
    assert result.code == 2
    assert "hint: rm" not in result.err, "slm tells nobody to remove what it knows nothing of"
    assert outside.exists()


def test_rm_does_not_follow_a_link_out_of_the_models_folder(slm: Slm, models: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "x.gguf", GGUF)
    (models / "x.gguf").symlink_to(outside)
    assert slm("rm", str(models / "x.gguf"), "-y").code == 2
    assert outside.exists()


@pytest.mark.parametrize("reference", ["r1-8b", "hf:own/nothing", "http://localhost:1/v1#m"])
def test_rm_of_what_is_not_here_says_so(slm: Slm, models: Path, reference: str) -> None:
    result = slm("rm", reference, "-y")
    assert (result.code, result.out) == (2, "")
    assert "hint: slm ls" in result.err


@pytest.fixture
def original(models: Path) -> Path:
    """Have the original weights of a registry model here; return their folder."""
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors"):
        fetched(models, b"weights", ORIGINAL, name)
    return models / ORIGINAL


@pytest.mark.parametrize(
    "arguments", [("r1-8b",), ("r1-8b", "--all"), ("r1-8b", "--quant", "original"), (f"hf:{ORIGINAL}",), ("FOLDER",)]
)
def test_rm_removes_original_weights(slm: Slm, original: Path, models: Path, arguments: tuple[str, ...]) -> None:
    result = slm("rm", *(str(original) if each == "FOLDER" else each for each in arguments), "-y")
    assert (result.code, result.out.splitlines()) == (0, [f"removed {ORIGINAL}", "21 bytes freed (0 kB)"])
    assert left(models) == []


def test_rm_of_a_model_with_its_original_weights_wants_to_know_which(slm: Slm, original: Path, models: Path) -> None:
    fetched(models, GGUF, R1_REPO, R1_FILE)
    result = slm("rm", "r1-8b", "-y")
    assert result.code == 2
    assert "original (0 kB)" in result.err
    assert slm("rm", "r1-8b", "--quant", "original", "-y").code == 0
    assert (original.exists(), (models / R1_REPO / R1_FILE).exists()) == (False, True)


def test_verify_names_what_mends_original_weights(slm: Slm, original: Path) -> None:
    (original / "model-1.safetensors").write_bytes(b"others!")
    result = slm("verify", str(original))
    assert result.code == 5
    assert "hint: slm pull deepseek-r1-distill-llama-8b --checkpoint" in result.err


def test_show_says_where_original_weights_lie(slm: Slm, original: Path) -> None:
    assert "its original weights are in" in slm("show", "r1-8b").out
    (original / "model-2.safetensors").write_bytes(b"cut")
    assert "its original weights are in" not in slm("show", "r1-8b").out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows takes no such name, and the hint is read as a POSIX shell")
def test_hints_give_no_shell_anything_to_run(slm: Slm, models: Path, user_home: Path, tmp_path: Path) -> None:
    place = put(models / "$(touch pwned)`x`.gguf", GGUF[:-1])
    name_in_ollama(
        folder := user_home / ".ollama" / "models", OLLAMA_NAME, manifest(blob(folder, small_model().encode()))
    )
    (found,) = (folder / "blobs").iterdir()
    fetched(tmp_path / "stick", GGUF, "own/x", "$(touch pwned).gguf")
    fetched(models, b"other", "own/x", "$(touch pwned).gguf")
    hints = [
        (slm("verify", str(place)), ["slm", "rm", str(place)]),
        (slm("show", str(place)), ["slm", "verify", str(place)]),
        (slm("rm", str(place)), ["slm", "rm", str(place), "-y"]),
        (slm("rm", str(found)), ["ollama", "rm", "$(touch pwned):latest"]),
        (slm("import", str(tmp_path / "stick")), ["slm", "rm", str(models / "own/x/$(touch pwned).gguf")]),
    ]
    for result, words in hints:
        (hint,) = [line for line in result.err.splitlines() if line.startswith("hint: ")]
        assert shlex.split(hint)[1:] == words


# ---- rm on a terminal


def on_terminal(*arguments: str) -> Any:
    if os.name == "nt":
        pytest.skip("pexpect needs a POSIX pseudo-terminal")
    import pexpect

    return pexpect.spawn(
        sys.executable, ["-m", "slm_local", *arguments], env=child_environment({"TERM": "dumb"}), timeout=120
    )


@pytest.mark.parametrize(("typed", "code", "stays"), [("y", 0, False), ("n", 130, True), ("", 130, True)])
def test_rm_asks_with_what_will_go(models: Path, typed: str, code: int, stays: bool) -> None:
    place = fetched(models, GGUF)
    child = on_terminal("rm", f"hf:{REPO}")
    child.expect_exact("2 MB  maker/model-GGUF/model-Q8_0.gguf")
    child.expect_exact("Enter: no ")
    child.sendline(typed)
    child.expect_exact("bytes freed" if not stays else "nothing was removed")
    child.wait()
    assert (child.exitstatus, place.exists()) == (code, stays)


@pytest.mark.parametrize(
    ("typed", "names"), [("2", ["m-Q4_0.gguf"]), ("all", []), ("", ["m-Q4_0.gguf", "m-Q8_0.gguf"])]
)
def test_rm_of_several_asks_which(models: Path, typed: str, names: list[str]) -> None:
    for name in ("m-Q8_0.gguf", "m-Q4_0.gguf"):
        fetched(models, GGUF, file=name)
    child = on_terminal("rm", f"hf:{REPO}")
    child.expect_exact("Enter: none ")
    child.sendline(typed)
    child.expect_exact("nothing was removed" if typed == "" else "bytes freed")
    child.wait()
    assert sorted(path.name for path in models.rglob("*.gguf")) == names


# ---- verify


def test_verify_tells_whole_from_damaged_and_names_what_mends_it(slm: Slm, models: Path) -> None:
    fetched(models, GGUF, file="a-Q8_0.gguf")
    place = fetched(models, GGUF, file="b-Q8_0.gguf")
    place.write_bytes(GGUF[:-1] + b"\0")
    result = slm("verify")
    assert result.code == 5
    lines = [line.split() for line in result.out.splitlines()[1:]]
    assert [line[0] for line in lines] == ["whole", "damaged"]
    assert f"b-Q8_0.gguf{DAMAGED}" in result.out
    assert f"hint: slm pull hf.co/{REPO}/blob/main/b-Q8_0.gguf" in result.err
    assert not place.exists()


def test_verify_as_json_has_digest_and_verdict(slm: Slm, mine: Path, models: Path, tiny_reasoner: Path) -> None:
    fetched(models, GGUF, MINE, MINE_FILE)
    (row,) = json.loads(slm("verify", "mine", "--json").out)
    assert row == {
        "model": "mine",
        "quant": "Q8_0",
        "path": str(mine),
        "size_bytes": len(GGUF),
        "sha256": digest_of(tiny_reasoner),
        "verdict": "whole",
        "remark": "as the download has it",
    }


def test_the_docs_have_every_verdict() -> None:
    page = (Path(__file__).parents[1] / "docs" / "offline.md").read_text(encoding="utf-8")
    assert all(f"| `{verdict}` |" in page for verdict in get_args(Verdict))


def test_verify_with_nothing_here_is_no_error(slm: Slm, slm_home: Path) -> None:
    result = slm("verify")
    assert (result.code, result.out) == (0, "")
    assert json.loads(slm("verify", "--json").out) == []


@pytest.mark.parametrize("reference", ["tiny", "r1-8b"])
def test_verify_of_what_was_not_fetched_says_so(slm: Slm, models: Path, reference: str) -> None:
    assert slm("verify", reference).code == 2


def test_verify_leaves_a_damaged_file_that_was_put_by_hand(slm: Slm, models: Path) -> None:
    place = put(models / "mine.gguf", GGUF[:-1])
    result = slm("verify")
    assert result.code == 5
    assert f"hint: slm rm {shell_word(str(place))}" in result.err
    assert place.exists()


def test_verify_shows_hostile_names_as_text(slm: Slm, models: Path) -> None:
    put(models / "x\x1b[2J[bold].gguf", GGUF)
    out = slm("verify").out
    assert "x␛[2J[bold].gguf" in out
    assert "\x1b" not in out


def test_verify_quiet_tells_what_is_wrong_only(slm: Slm, models: Path) -> None:
    fetched(models, GGUF)
    assert slm("verify", "-q").out == ""


def test_pull_mends_what_verify_found_damaged(slm: Slm, hub: HubServer, mine: Path, models: Path) -> None:
    hub.add(MINE, {MINE_FILE: GGUF})
    assert slm("pull", "mine").code == 0
    mine.write_bytes(GGUF[:-1] + b"\0")
    found = slm("verify", "mine")
    assert found.code == 5
    (line,) = [line for line in found.err.splitlines() if line.startswith("hint: slm ")]
    assert slm(*line.removeprefix("hint: slm ").split()).code == 0
    assert mine.read_bytes() == GGUF
    again = slm("verify", "mine")
    assert again.code == 0
    assert [row.split()[0] for row in again.out.splitlines()[1:]] == ["whole", "set"]


def test_pull_mends_a_cut_file_of_a_repository_that_no_registry_knows(slm: Slm, hub: HubServer, models: Path) -> None:
    hub.add(REPO, {FILE: GGUF})
    assert slm("pull", f"hf:{REPO}").code == 0
    (models / REPO / FILE).write_bytes(GGUF[:-1000])
    result = slm("pull", f"hf:{REPO}")
    assert result.code == 0, result.err
    assert (models / REPO / FILE).read_bytes() == GGUF


def test_a_file_of_other_bytes_under_a_fetched_ones_name_is_mended_by_what_the_hints_say(
    slm: Slm, hub: HubServer, models: Path
) -> None:
    hub.add(REPO, {FILE: GGUF})
    assert slm("pull", f"hf:{REPO}").code == 0
    (models / REPO / FILE).write_bytes(b"GGUF" + bytes(len(GGUF) - 4))
    line = ["pull", f"hf:{REPO}"]
    for code in (5, 5, 0):  # pull: verify it; verify: pull it; pull
        result = slm(*line)
        assert result.code == code, result.err
        line = next((hint[10:] for hint in result.err.splitlines() if hint.startswith("hint: slm ")), "").split()
    assert (models / REPO / FILE).read_bytes() == GGUF


# ---- verify --remote


def test_verify_remote_is_content_where_the_hub_has_all(slm: Slm, hub: HubServer, mine: Path) -> None:
    hub.add(MINE, {MINE_FILE: GGUF})
    result = slm("verify", "mine", "--remote")
    assert (result.code, result.out) == (0, "")
    assert "1 as the registry says" in result.err


def test_verify_remote_tables_what_differs(slm: Slm, hub: HubServer, mine: Path) -> None:
    hub.add(MINE, {MINE_FILE: GGUF + b"more"})
    result = slm("verify", "mine", "--remote")
    assert result.code == 3
    assert result.out.splitlines()[1].split()[:4] == ["differs", "mine", "Q8_0", f"{MINE}/{MINE_FILE}"]
    (row,) = json.loads(slm("verify", "mine", "--remote", "--json").out)
    assert (row["outcome"], row["size_bytes"]) == ("differs", len(GGUF) + 4)


def test_verify_remote_asks_for_the_whole_registry(slm: Slm, hub: HubServer, mine: Path) -> None:
    hub.add(MINE, {MINE_FILE: GGUF})
    rows = json.loads(slm("verify", "--remote", "--json").out)
    assert len(rows) > 100
    assert [row["model"] for row in rows if row["outcome"] == "same"] == ["mine"]
    assert {row["outcome"] for row in rows} == {"same", "missing"}


def test_verify_remote_offline_is_an_error(slm: Slm, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = slm("verify", "--remote")
    assert result.code == 3
    assert "HF_HUB_OFFLINE" in result.err


def test_verify_remote_of_an_embedded_model_says_that_no_repository_has_it(slm: Slm, models: Path) -> None:
    result = slm("verify", "tiny-reasoner", "--remote")
    assert (result.code, result.out) == (0, "")
    assert result.err == "no repository is known of tiny-reasoner: it is a part of slm itself\n"


# ---- pull --to and import


@pytest.mark.parametrize("is_here", [True, False])
def test_a_model_travels_on_a_stick_to_a_machine_without_network(
    slm: Slm, hub: HubServer, mine: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    hub.add(MINE, {MINE_FILE: GGUF})
    stick = tmp_path / "stick"
    if is_here:
        slm("pull", "mine")
    assert slm("pull", "mine", "--to", str(stick)).code == 0
    assert (stick / MINE / MINE_FILE).read_bytes() == GGUF
    assert mine.exists() == is_here
    if is_here:
        slm("rm", "mine", "-y")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = slm("import", str(stick))
    assert (result.code, result.out.splitlines()[1].split()[0]) == (0, "copied")
    assert read_record(mine) is not None
    assert slm("verify", "mine").code == 0
    assert "is here" in slm("import", str(stick)).out


def test_import_tells_what_it_refused_and_exits_3(slm: Slm, models: Path, tmp_path: Path) -> None:
    put(tmp_path / "stick" / "good.gguf", GGUF)
    put(tmp_path / "stick" / "bad.gguf", GGUF[:-1])
    result = slm("import", str(tmp_path / "stick"))
    assert result.code == 3
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == ["refused", "copied"]
    assert left(models) == ["good.gguf"]
    assert "good.gguf" not in slm("import", "-q", str(tmp_path / "stick")).out


def test_import_says_how_to_make_room_for_another_file(slm: Slm, models: Path, tmp_path: Path) -> None:
    lies = fetched(models, GGUF)
    fetched(tmp_path / "stick", GGUF[:-1] + b"\0")
    result = slm("import", str(tmp_path / "stick"))
    assert result.code == 3
    assert f"hint: slm rm {shell_word(str(lies))}" in result.err
    assert lies.read_bytes() == GGUF


def test_import_of_nothing_is_a_mistake(slm: Slm, models: Path, tmp_path: Path) -> None:
    assert slm("import", str(tmp_path / "nowhere")).code == 2
    assert slm("import", str(tmp_path)).code == 2
