"""`slm pull`, and the same on first use by `run`: against the stand-in for the Hub, with the real client."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from slm_local.download.values import FetchProgress
from slm_local.engine import open_model
from slm_local.errors import DownloadFailed
from slm_local.forecast.offers import pace
from tests.command import Result, child_environment, slm
from tests.hub.fixtures import TINY_REPO, hub, serve_openvino, serve_split, serve_tiny
from tests.hub.server import HubServer
from tests.pressing import press

__all__ = ["hub", "slm"]

Slm = Callable[..., Result]

PAGE = f"hf.co/{TINY_REPO}/blob/main/tiny-reasoner.gguf"

OWN_MODELS = f"""
schema = 1
[models.my-tiny]
name = "My tiny"
parameters = 1771200
context_tokens = 512
sampling = {{ temperature = 0.0 }}
tags = {{ open = "<think>", close = "</think>" }}
think = {{ switch = "enable_thinking" }}
variants = [
  {{ quant = "Q8_0", repo = "{TINY_REPO}", file = "tiny-reasoner.gguf", size_bytes = SIZE, sha256 = "DIGEST" }},
]

[models.my-giant]
name = "My giant"
parameters = 700000000000
architecture = "llama"
shape = {{ layers = 80, hidden = 8192, heads = 64, kv_heads = 8, head_dim = 128, vocabulary = 128256 }}
context_tokens = 4096
variants = [{{ quant = "Q8_0", repo = "{TINY_REPO}", file = "tiny-direct.gguf", size_bytes = 900000000000 }}]
"""


@pytest.fixture
def own(slm_home: Path, tiny_reasoner: Path) -> Path:
    """Name a model of the user's own that the stand-in serves; return where it would lie."""
    text = OWN_MODELS.replace("SIZE", str(tiny_reasoner.stat().st_size)).replace("DIGEST", "0" * 64)
    (slm_home / "config").mkdir()
    (slm_home / "config" / "models.toml").write_text(text, encoding="utf-8")
    return slm_home / "models" / "slm-local" / "tiny-GGUF" / "tiny-reasoner.gguf"


def test_what_is_fetched_is_told_first_and_its_path_is_the_output(
    hub: HubServer, slm: Slm, own: Path, tiny_reasoner: Path
) -> None:
    serve_tiny(hub)
    pulled = slm("pull", "my-tiny")
    assert pulled.code == 0, pulled.err
    assert pulled.out == f"{own}\n"
    assert own.read_bytes() == tiny_reasoner.read_bytes()
    assert "fetching my-tiny Q8_0: 2 MB from slm-local/tiny-GGUF" in pulled.err
    assert "whole and verified" in pulled.err


def test_another_digest_than_the_registrys_is_a_warning(hub: HubServer, slm: Slm, own: Path) -> None:
    serve_tiny(hub)
    pulled = slm("pull", "my-tiny", "-q")
    assert pulled.code == 0
    assert "0" * 12 in pulled.err


def test_a_second_pull_fetches_nothing(hub: HubServer, slm: Slm, own: Path) -> None:
    serve_tiny(hub)
    slm("pull", "my-tiny")
    before = len([seen for seen in hub.requests if seen.route == "cdn"])
    again = slm("pull", "my-tiny")
    assert again.code == 0
    assert len([seen for seen in hub.requests if seen.route == "cdn"]) == before
    assert "fetching" not in again.err


def test_a_first_run_fetches_and_answers(hub: HubServer, slm: Slm, own: Path) -> None:
    serve_tiny(hub)
    ran = slm("run", "my-tiny", "What is 47 + 38?", "--json", "--threads", "1")
    assert ran.code == 0, ran.err
    assert "85" in json.loads(ran.out)["answer"]
    assert "fetching my-tiny" in ran.err
    assert own.exists()


def test_what_was_pulled_runs_offline_by_every_name(hub: HubServer, slm: Slm, own: Path) -> None:
    serve_tiny(hub)
    slm("pull", "my-tiny")
    asked = len(hub.requests)
    for reference in ("my-tiny", PAGE, str(own)):
        ran = slm("run", reference, "What is 2 + 3?", "--offline", "--threads", "1")
        assert ran.code == 0, ran.err
    assert len(hub.requests) == asked


@pytest.mark.parametrize("command", [("run", "my-tiny", "Hello"), ("pull", "my-tiny")])
@pytest.mark.parametrize("how", ["flag", "variable"])
def test_offline_says_what_is_missing(
    hub: HubServer, slm: Slm, own: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = slm(*command, *(["--offline"] if how == "flag" else []))
    assert ran.code == 3
    assert "tiny-reasoner.gguf of slm-local/tiny-GGUF, 2 MB" in ran.err
    assert "slm import DIR" in ran.err
    assert not hub.requests


def test_a_model_that_is_too_large_is_refused_before_a_byte_and_forced_on_demand(
    hub: HubServer, slm: Slm, own: Path
) -> None:
    serve_tiny(hub)
    refused = slm("pull", "my-giant")
    assert refused.code == 5
    assert "--force" in refused.err
    assert not [seen for seen in hub.requests if seen.route == "cdn"]
    assert slm("run", "my-giant", "Hello").code == 5
    forced = slm("pull", "my-giant", "--force")
    assert forced.code == 0, forced.err


def test_a_model_whose_size_nobody_stated_is_weighed_by_the_hubs_and_its_header(
    hub: HubServer, slm: Slm, slm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_tiny(hub)
    (slm_home / "config").mkdir()
    (slm_home / "config" / "models.toml").write_text(
        f'schema = 1\n[models.unknown]\nname = "Unknown"\n'
        f'variants = [{{ quant = "Q8_0", repo = "{TINY_REPO}", file = "tiny-reasoner.gguf" }}]\n',
        encoding="utf-8",
    )
    monkeypatch.setattr("slm_local.system.available_memory_bytes", lambda: 20_000_000)
    for command in (("pull", "unknown"), ("run", "unknown", "Hello")):
        refused = slm(*command)
        assert refused.code == 5, refused.err
        assert "short" in refused.err
    assert not list((slm_home / "models").rglob("*.gguf*"))
    forced = slm("pull", "unknown", "--force")
    assert forced.code == 0, forced.err


def test_the_end_of_input_at_the_question_fetches_nothing(
    hub: HubServer, slm: Slm, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import click

    serve_tiny(hub)

    def ended() -> str:
        raise EOFError

    monkeypatch.setattr(click, "getchar", ended)
    monkeypatch.setattr("slm_local.cli.fetching.can_ask", lambda terminal: True)
    declined = slm("pull", "my-tiny")
    assert declined.code == 130
    assert "nothing was fetched" in declined.err
    assert not own.exists()


def test_an_original_checkpoint_of_the_hub_is_fetched_seen_and_not_fetched_twice(
    hub: HubServer, slm: Slm, slm_home: Path
) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle", "README.md": b"#"}
    hub.add("maker/Original", files)
    pulled = slm("pull", "hf:maker/Original", "--checkpoint")
    assert pulled.code == 0, pulled.err
    folder = Path(pulled.out.strip())
    assert folder == slm_home / "models" / "maker" / "Original"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"config.json", "model.safetensors"}
    asked = len(hub.requests)
    offline = slm("pull", "hf:maker/Original", "--checkpoint", "--offline")
    assert offline.code == 0, offline.err
    assert len(hub.requests) == asked


def test_a_repository_that_is_not_there_is_exit_3(hub: HubServer, slm: Slm, own: Path) -> None:
    for reference in ("my-tiny", "hf:nobody/nothing"):
        missing = slm("pull", reference)
        assert missing.code == 3
        assert "hint:" in missing.err


def test_a_file_that_is_not_there_is_exit_3(hub: HubServer, slm: Slm, own: Path) -> None:
    hub.add(TINY_REPO, {"README.md": b"# empty\n"})
    missing = slm("pull", "my-tiny")
    assert missing.code == 3
    assert "tiny-reasoner.gguf" in missing.err


def test_the_embedded_models_need_no_fetching(hub: HubServer, slm: Slm) -> None:
    pulled = slm("pull", "tiny-reasoner")
    assert pulled.code == 0
    assert "nothing to fetch" in pulled.err
    assert Path(pulled.out.strip()).exists()
    assert not hub.requests


def test_a_model_goes_to_a_folder_for_another_machine(hub: HubServer, slm: Slm, own: Path, tmp_path: Path) -> None:
    serve_tiny(hub)
    stick = tmp_path / "stick"
    stick.mkdir()
    straight = slm("pull", "my-tiny", "--to", str(stick))
    assert straight.code == 0, straight.err
    assert Path(straight.out.strip()).is_relative_to(stick)
    assert not own.exists()
    imported = slm("import", str(stick))
    assert imported.code == 0, imported.err
    assert own.exists()
    other = tmp_path / "other"
    other.mkdir()
    copied = slm("pull", "my-tiny", "--to", str(other))
    assert copied.code == 0, copied.err
    assert Path(copied.out.strip()).read_bytes() == own.read_bytes()


def test_a_repository_in_parts_and_a_folder_are_fetched_whole(
    hub: HubServer, slm: Slm, slm_home: Path, tmp_path: Path
) -> None:
    serve_split(hub)
    serve_openvino(hub)
    (slm_home / "config").mkdir()
    variants = (
        '{ quant = "Q4_K_M", repo = "maker/split-GGUF", file = "Q4_K_M/split-Q4_K_M-00001-of-00003.gguf" }',
        '{ kind = "openvino", quant = "int4", repo = "OpenVINO/small-int4-ov" }',
    )
    (slm_home / "config" / "models.toml").write_text(
        f'schema = 1\n[models.parts]\nname = "Parts"\nshape = {{ layers = 1, kv_heads = 1, head_dim = 8 }}\n'
        f"variants = [{', '.join(variants)}]\n",
        encoding="utf-8",
    )
    parts = slm("pull", "parts", "--quant", "Q4_K_M")
    assert parts.code == 0, parts.err
    first = Path(parts.out.strip())
    assert sorted(path.name for path in first.parent.glob("*.gguf")) == [
        f"split-Q4_K_M-{part:05d}-of-00003.gguf" for part in (1, 2, 3)
    ]
    folder = slm("pull", "parts", "--quant", "int4")
    assert folder.code == 0, folder.err
    names = {path.name for path in Path(folder.out.strip()).iterdir()}
    assert {"openvino_model.xml", "openvino_model.bin", "chat_template.jinja"} <= names
    assert not {"README.md", "images"} & names


def test_python_fetches_at_once_and_may_refuse(hub: HubServer, own: Path) -> None:
    serve_tiny(hub)

    def refuse(offer: object) -> None:
        raise DownloadFailed("not now")

    with pytest.raises(DownloadFailed, match="not now"):
        open_model("my-tiny", confirm=refuse)
    assert not own.exists()
    with open_model("my-tiny@threads=1") as engine:
        assert "85" in engine.reply("What is 47 + 38?").answer


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a POSIX terminal")
class TestOnATerminal:
    def spawn(self, *arguments: str) -> pexpect.spawn:
        environment = {**child_environment(), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        return pexpect.spawn(
            sys.executable, ["-m", "slm_local", *arguments], env=environment, encoding="utf-8", timeout=60
        )

    def test_one_key_agrees(self, hub: HubServer, own: Path) -> None:
        serve_tiny(hub)
        child = self.spawn("pull", "my-tiny")
        child.expect("fetch it\\?")
        assert not own.exists()
        press(child, "y")
        child.expect("whole and verified")
        child.expect(pexpect.EOF)
        assert child.wait() == 0
        assert own.exists()

    def test_another_key_fetches_nothing(self, hub: HubServer, own: Path) -> None:
        serve_tiny(hub)
        child = self.spawn("run", "my-tiny", "Hello")
        child.expect("fetch it\\?")
        press(child, "n")
        child.expect("nothing was fetched")
        child.expect(pexpect.EOF)
        assert child.wait() == 130
        assert not own.exists()


def test_times_and_sizes_read_well() -> None:
    progress = FetchProgress(
        stage="downloading", file="a", done_bytes=1, total_bytes=10**10, bytes_per_s=7.1e6, remaining_s=730
    )
    assert pace(progress) == "7 MB/s · 12 min left"
