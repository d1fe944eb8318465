"""`slm ls`: what is here, ours and other programs', and running it where it lies."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm_local.download.places import PartRecord, part_of, place_of, write_part_record
from slm_local.registry.local import size_of
from slm_local.sanitize import shell_word
from tests.command import Result, slm, slm_process
from tests.gguf_files import small_model, text
from tests.keeping import begun, fetched, fetched_folder
from tests.layouts import as_hub, as_ollama, blob, copied, digest_of, entry, manifest, name_in_ollama

__all__ = ["slm"]

Slm = Callable[..., Result]

ORIGINAL = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


@pytest.fixture
def tiny_direct(tiny_reasoner: Path) -> Path:
    return tiny_reasoner.with_name("tiny-direct.gguf")


@pytest.fixture
def own_registry(slm_home: Path, tiny_reasoner: Path) -> None:
    """Have the user's registry know the embedded reasoner's file as a model of a repository, by its digest."""
    (slm_home / "config").mkdir()
    (slm_home / "config" / "models.toml").write_text(entry("known", tiny_reasoner), encoding="utf-8")


def others(slm: Slm) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(slm("ls", "--json").out)
    assert [row["model"] for row in rows[:2]] == ["tiny-reasoner", "tiny-direct"]
    return rows[2:]


def written(path: Path, title: str, seed: int = 0) -> Path:
    draft = small_model(seed=seed)
    draft.keys["general.name"] = text(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draft.encode())
    return path


@pytest.mark.usefixtures("own_registry")
def test_models_of_ollama_and_lm_studio_are_found_recognised_and_run_in_place(
    slm: Slm, user_home: Path, slm_home: Path, tiny_reasoner: Path, tiny_direct: Path
) -> None:
    in_ollama = as_ollama(user_home / ".ollama" / "models", tiny_reasoner, "registry.ollama.ai/library/some/8b")
    in_studio = copied(tiny_direct, user_home / ".lmstudio" / "models" / "own" / "x-GGUF" / "x-Q8_0.gguf")
    before = {path: path.lstat().st_mtime_ns for path in user_home.rglob("*")}
    known, direct = others(slm)
    assert (known["model"], known["where"], known["found_as"]) == ("known", "ollama", "some:8b")
    assert (known["path"], known["reference"], known["quant"]) == (str(in_ollama), "known", "Q8_0")
    assert (direct["model"], direct["where"]) == ("tiny-direct", "LM Studio")
    assert (direct["path"], direct["here"]) == (str(in_studio), True)
    for reference in ("known", str(in_ollama)):
        done = slm_process("run", reference, "47 + 38 =", "--threads", "1", "--json")
        reply = json.loads(done.stdout)
        assert (done.returncode, reply["model"]) == (0, "known"), done.stderr
        assert reply["thinking"]
        assert "85" in reply["answer"]
    done = slm_process("run", str(in_studio), "47 + 38 =", "--threads", "1", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert {path: path.lstat().st_mtime_ns for path in user_home.rglob("*")} == before
    assert not (slm_home / "models").exists()


@pytest.mark.usefixtures("own_registry")
def test_the_table_says_whose_a_model_is(slm: Slm, user_home: Path, tiny_reasoner: Path) -> None:
    as_ollama(user_home / ".ollama" / "models", tiny_reasoner)
    lines = slm("ls").out.splitlines()
    assert lines[3].split()[0] == "known"
    assert lines[3].endswith("ollama")
    assert "file" not in lines[0]  # every model runs by its name


def test_a_file_that_the_registry_does_not_know_has_what_to_type(slm: Slm, user_home: Path) -> None:
    place = written(user_home / ".lmstudio" / "models" / "a b" / "it's" / "x.gguf", "Some")
    result = slm("ls")
    line = result.out.splitlines()[3]
    assert line.startswith("a b/it's/x.gguf ")
    assert "  LM Studio  " in line
    assert line.endswith(f" {shell_word(str(place))}")
    (row,) = others(slm)
    assert (row["model"], row["name"], row["reference"], row["origin"]) == ("x", "Some", str(place), "file")
    assert (row["context_tokens"], row["fit"] != "Unknown") == (256, True)
    assert slm("show", row["reference"]).code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows takes no such name")
def test_names_with_escapes_and_markup_are_shown_as_text(slm: Slm, user_home: Path) -> None:
    evil = "\x1b]0;owned\x07[bold]\x1b[2J[/]"
    folder = user_home / ".ollama" / "models"
    digest = blob(folder, written(user_home / "x.gguf", evil).read_bytes())
    name_in_ollama(folder, "registry.ollama.ai/library/[red]x\x1b[31m/latest", manifest(digest))
    name_in_ollama(folder, "registry.ollama.ai/library/\x1b[5mbad/latest", "{")
    result = slm("ls")
    assert "\x1b" not in result.out + result.err
    assert "[red]x␛[31m:latest" in result.out
    assert "␛[5mbad" in result.err
    (row,) = others(slm)
    assert (row["name"], row["found_as"]) == (evil, "[red]x\x1b[31m:latest")


def test_a_broken_file_is_listed_with_the_reason(slm: Slm, user_home: Path, slm_home: Path) -> None:
    whole = written(user_home / "x.gguf", "Some").read_bytes()
    folder = user_home / ".ollama" / "models"
    name_in_ollama(folder, "registry.ollama.ai/library/cut/latest", manifest(blob(folder, whole[:-9])))
    (slm_home / "models").mkdir()
    (slm_home / "models" / "mine.gguf").write_bytes(b"<html>")
    out = slm("ls").out
    mine, cut = others(slm)
    assert mine["problem"] == "holds a web page, not a model"
    assert cut["problem"].startswith("is truncated: ")
    assert (mine["here"], cut["fit"], cut["reference"]) == (True, "Unknown", cut["path"])
    assert "broken" in out
    assert "is truncated: " in out
    assert "holds a web page" in out
    assert len({line.find(" inside slm") for line in out.splitlines()[1:3]}) == 1
    assert out.splitlines()[0].endswith("where       file"), "reasons push the columns aside"


def test_a_fetched_file_that_is_broken_is_listed_with_the_reason(slm: Slm, slm_home: Path) -> None:
    place = place_of(slm_home / "models", "unsloth/Qwen3-4B-GGUF", "Qwen3-4B-Q4_K_M.gguf")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"GGUF")
    (row,) = others(slm)
    assert (row["where"], row["path"]) == ("here", str(place))
    assert row["problem"] is not None


def test_a_download_that_is_not_whole_says_how_it_goes_on(slm: Slm, slm_home: Path) -> None:
    models = slm_home / "models"
    known = place_of(models, "unsloth/DeepSeek-R1-Distill-Llama-8B-GGUF", "DeepSeek-R1-Distill-Llama-8B-Q4_K_M.gguf")
    other = place_of(models, "own/Some-GGUF", "sub/some.gguf")
    unsure = place_of(models, "own/Some-GGUF", "un sure.gguf")
    second = known.with_name("DeepSeek-R1-Distill-Llama-8B-Q8_0.gguf")
    loose = models / "loose.gguf"
    for place, size in ((known, 430), (second, 1_000), (other, 12_000), (unsure, 7_000), (loose, 9_000)):
        place.parent.mkdir(parents=True, exist_ok=True)
        part_of(place).write_bytes(bytes(size))
    for place, size in ((known, 1000), (other, 100_000)):
        write_part_record(place, PartRecord(commit="a" * 40, etag=None, size_bytes=size, digest="b" * 64))
    out = " ".join(slm("ls").out.split())
    assert "43% is here slm pull deepseek-r1-distill-llama-8b goes on" in out
    assert "12% is here slm pull hf.co/own/Some-GGUF/blob/main/sub/some.gguf goes on" in out
    assert f"7 kB is here slm pull {shell_word('hf.co/own/Some-GGUF/blob/main/un sure.gguf')} goes on" in out
    assert "1 kB is here slm pull deepseek-r1-distill-llama-8b@quant=Q8_0 goes on" in out
    assert "9 kB is here not whole" in out
    rows = {row["reference"]: row for row in others(slm)}
    row = rows["deepseek-r1-distill-llama-8b"]
    assert (row["where"], row["here"], row["done_bytes"], row["size_bytes"]) == ("partial", False, 430, 1000)
    assert rows["hf.co/own/Some-GGUF/blob/main/un sure.gguf"]["size_bytes"] is None
    assert {each["where"] for each in rows.values()} == {"partial"}


def test_a_model_here_that_other_programs_have_too_is_listed_once(slm: Slm, slm_home: Path, user_home: Path) -> None:
    own = written(slm_home / "models" / "some.gguf", "Some")
    linked = user_home / ".lmstudio" / "models" / "a" / "b" / "some.gguf"
    linked.parent.mkdir(parents=True)
    linked.hardlink_to(own)
    assert [row["where"] for row in others(slm)] == ["here"]


@pytest.mark.usefixtures("own_registry")
def test_a_file_of_ours_is_recognised_by_what_was_recorded_of_it(slm: Slm, slm_home: Path, tiny_reasoner: Path) -> None:
    place = copied(tiny_reasoner, slm_home / "models" / "renamed.gguf")
    assert [row["model"] for row in others(slm)] != ["known"]
    record = place.parent / ".slm" / "renamed.gguf.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"sha256": digest_of(place)}), encoding="utf-8")
    (row,) = others(slm)
    assert (row["model"], row["reference"], row["path"]) == ("known", str(place), str(place))


def test_a_second_copy_of_a_model_is_listed_with_what_runs_that_copy(
    slm: Slm, user_home: Path, tiny_reasoner: Path
) -> None:
    place = copied(tiny_reasoner, user_home / ".lmstudio" / "models" / "own" / "x" / "x.gguf")
    (row,) = others(slm)
    assert (row["model"], row["reference"]) == ("tiny-reasoner", str(place))
    assert slm("ls").out.splitlines()[3].endswith(f"  {shell_word(str(place))}")


def test_original_weights_are_listed_apart_from_what_runs(slm: Slm, slm_home: Path) -> None:
    for repo in (ORIGINAL, "own/other"):
        for name in ("config.json", "model.safetensors"):
            fetched(slm_home / "models", b"weights", repo, name)
    ours, other = others(slm)
    assert (ours["model"], ours["kind"], ours["quant"]) == ("deepseek-r1-distill-llama-8b", "checkpoint", "original")
    assert (ours["size_bytes"], ours["fit"], ours["expected_decode_tps"]) == (14, "Unknown", None)
    assert (other["model"], other["kind"]) == ("own/other", "checkpoint")
    out = slm("ls").out
    assert out.splitlines()[3].split()[:3] == ["deepseek-r1-distill-llama-8b", "checkpoint", "original"]
    assert "slm convert deepseek-r1-distill-llama-8b makes" in out
    assert "  ?  " not in out


def test_original_weights_that_are_not_whole_say_how_they_go_on(slm: Slm, slm_home: Path) -> None:
    for repo in (ORIGINAL, "own/other"):
        begun(slm_home / "models", repo, "model.safetensors", bytes(3000))
    out = slm("ls").out
    assert "slm pull deepseek-r1-distill-llama-8b --checkpoint goes on" in out
    assert "slm pull hf:own/other --checkpoint goes on" in out


def test_an_openvino_folder_is_listed_by_its_own_config(slm: Slm, slm_home: Path) -> None:
    folder = fetched_folder(slm_home / "models", "own/small-int4-ov")
    config = {"model_type": "llama", "max_position_embeddings": 4096, "num_hidden_layers": 2}
    fetched(slm_home / "models", json.dumps(config).encode(), "own/small-int4-ov", "config.json")
    (row,) = others(slm)
    assert (row["kind"], row["quant"], row["context_tokens"]) == ("openvino", "int4", 4096)
    assert row["size_bytes"] == size_of(folder)
    fetched(slm_home / "models", b"{", "own/small-int4-ov", "config.json")
    assert "can't be read" in others(slm)[0]["problem"]


def test_a_models_context_is_read_from_its_file_where_the_registry_has_none(
    slm: Slm, slm_home: Path, tiny_reasoner: Path
) -> None:
    (slm_home / "config").mkdir()
    (slm_home / "config" / "models.toml").write_text(entry("known", tiny_reasoner), encoding="utf-8")
    copied(tiny_reasoner, slm_home / "models" / "own" / "known-GGUF" / "known-Q8_0.gguf")
    (row,) = others(slm)
    assert (row["model"], row["context_tokens"]) == ("known", 512)


def test_a_slow_model_has_a_speed_above_none(slm: Slm) -> None:
    speeds = [line.split("/s")[0].split()[-1] for line in slm("ls", "--all").out.splitlines() if "/s" in line]
    assert any("." in speed for speed in speeds)
    assert "0" not in speeds


def test_what_could_not_be_read_is_said_and_the_rest_is_listed(slm: Slm, user_home: Path, tiny_direct: Path) -> None:
    folder = user_home / ".ollama" / "models"
    name_in_ollama(folder, "registry.ollama.ai/library/bad/latest", "{")
    as_hub(user_home / ".cache" / "huggingface" / "hub", "own/x-GGUF", "x.gguf", tiny_direct)
    result = slm("ls", "--json")
    assert result.code == 0
    assert [row["where"] for row in json.loads(result.out)] == ["inside slm", "inside slm", "Hub cache"]
    assert "is damaged: it is no JSON" in result.err


def test_what_is_found_is_not_listed_as_absent(slm: Slm, user_home: Path, smollm2: Path) -> None:
    copied(smollm2, user_home / ".lmstudio" / "models" / "own" / "x-GGUF" / smollm2.name)
    rows = [row for row in json.loads(slm("ls", "--all", "--json").out) if row["model"] == "smollm2-135m-instruct"]
    assert [(row["where"], row["quant"]) for row in rows] == [("LM Studio", "Q4_1")]


def test_the_registry_is_listed_with_what_suits_this_machine_first(slm: Slm) -> None:
    rows = [row for row in json.loads(slm("ls", "--all", "--json").out) if not row["here"]]
    places = {"Tight": 1, "Unknown": 2, "Too large": 3}
    keys = [(-places.get(row["fit"], 0), row["released"] or "", row["thinks"]) for row in rows]
    assert keys == sorted(keys, reverse=True)
    assert {row["where"] for row in rows} == {"registry"}


def test_headers_of_found_files_are_remembered(slm: Slm, slm_home: Path, user_home: Path) -> None:
    for seed in range(3):
        written(user_home / ".lmstudio" / "models" / "a" / "b" / f"{seed}.gguf", "Some", seed)
    slm("ls")
    kept = [path.read_text(encoding="utf-8") for path in (slm_home / "cache" / "headers").iterdir()]
    assert sum(json.dumps(str(user_home))[1:-1] in text for text in kept) == 3


def test_models_of_the_user_that_run_elsewhere_are_listed_without_asking_their_servers(
    slm: Slm, slm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"somebody was called: {arguments}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    (slm_home / "config").mkdir()
    of_registry, other = "https://box:8000/v1#big", "http://10.0.0.1:8000/v1#own/model"
    entries = f'[models.lab]\nbase = "r1-8b"\nremote = "{of_registry}"\n[models.bare]\nremote = "{other}"\n'
    (slm_home / "config" / "models.toml").write_text(entries, encoding="utf-8")
    lab, bare = others(slm)
    assert [row["address"] for row in (lab, bare)] == [of_registry, other]
    assert {(row["kind"], row["where"], row["here"], row["memory_bytes"]) for row in (lab, bare)} == {
        ("remote", "elsewhere", False, 0)
    }
    assert [row["reference"] for row in (lab, bare)] == ["lab", "bare"]
    assert (lab["thinks"], bare["context_tokens"]) == (True, None)
    lines = slm("ls").out.splitlines()
    assert lines[3].split() == ["lab", "remote", "131,072", "thinks", "elsewhere", of_registry]
    assert lines[4].split() == ["bare", "remote", "elsewhere", other]
    assert sum(line.startswith("lab ") for line in slm("ls", "--all").out.splitlines()) == 1
