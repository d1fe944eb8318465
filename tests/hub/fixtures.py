"""The fixture `hub`: a stand-in for the Hub that this process and its children take for the real one.

Tests outside this folder use it by `from tests.hub.fixtures import hub` (and `# noqa: F401`). The `serve_*` functions
put whole repositories on its shelves.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.repository import Commit
from tests.hub.server import HubServer

WEIGHTS = Path(__file__).parents[2] / "slm_local" / "tiny" / "weights"

TINY_REPO = "slm-local/tiny-GGUF"
SPLIT_REPO = "maker/split-GGUF"
OPENVINO_REPO = "OpenVINO/small-int4-ov"

UNWANTED_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DEBUG",
    "SLM_DEBUG",
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve a stand-in for the Hub and point HF_ENDPOINT at it; no token, no proxy, nothing offline."""
    with HubServer() as server:
        stand_in(server, tmp_path_factory.mktemp("hf-home"), monkeypatch)
        yield server
    close_sessions()
    assert server.failures == [], "the stand-in itself failed"


def stand_in(server: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub, loaded already or not, and children take the server for the Hub."""
    close_sessions()  # one that an earlier test left open goes by that test's proxies
    for name in UNWANTED_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    constants = sys.modules.get("huggingface_hub.constants")  # it reads the environment once, when it is imported
    if constants is None:
        return
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))


def close_sessions() -> None:
    """Close the connections that huggingface_hub keeps open for the whole process."""
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import close_session

        close_session()


def some_bytes(count: int, seed: int = 1) -> bytes:
    """Return bytes that don't compress and are the same every time."""
    return random.Random(seed).randbytes(count)


def serve_tiny(server: HubServer, repo: str = TINY_REPO) -> Commit:
    """Serve the embedded models as a GGUF repository, with a card."""
    models = {path.name: path.read_bytes() for path in sorted(WEIGHTS.glob("*.gguf"))}
    return server.add(repo, {"README.md": b"---\nlicense: apache-2.0\n---\n# tiny\n", **models})


def serve_split(server: HubServer, repo: str = SPLIT_REPO, *, parts: int = 3, part_bytes: int = 100_000) -> Commit:
    """Serve a GGUF in parts, below a folder named after the quantization, beside another one in a single file."""
    names = [f"Q4_K_M/split-Q4_K_M-{part:05d}-of-{parts:05d}.gguf" for part in range(1, parts + 1)]
    files = {name: some_bytes(part_bytes, seed) for seed, name in enumerate(names, 1)}
    return server.add(repo, {"README.md": b"# split\n", **files, "split-Q8_0.gguf": some_bytes(part_bytes, 99)})


def serve_openvino(server: HubServer, repo: str = OPENVINO_REPO) -> Commit:
    """Serve what an OpenVINO repository holds, with things beside it that nobody needs to run it."""
    models = ("openvino_model", "openvino_tokenizer", "openvino_detokenizer")
    files = {f"{name}.xml": f"<net name='{name}'/>".encode() for name in models}
    files |= {f"{name}.bin": some_bytes(50_000, seed) for seed, name in enumerate(models, 1)}
    files |= {f"{name}.json": b"{}" for name in ("config", "generation_config", "tokenizer_config", "openvino_config")}
    files |= {"tokenizer.json": b'{"version": "1.0"}', "chat_template.jinja": b"{{ messages }}"}
    files |= {"README.md": b"# IR\n", ".gitattributes": b"*.bin filter=lfs\n", "images/photo.png": some_bytes(5_000, 9)}
    return server.add(repo, files)
