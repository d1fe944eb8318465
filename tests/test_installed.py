"""The line that adds a part of slm is the one that works for how it was installed."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from slm_local import installed


class Installed:
    def __init__(self, record: dict[str, Any] | None) -> None:
        self._text = None if record is None else json.dumps(record)

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._text


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(prefix: str, record: dict[str, Any] | None = None, *, is_active: bool = False) -> None:
        monkeypatch.setattr(sys, "prefix", prefix)
        monkeypatch.setattr(sys, "executable", f"{prefix}/bin/python")
        monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed(record))
        monkeypatch.setenv("VIRTUAL_ENV", prefix if is_active else "/elsewhere")

    return put


def test_an_active_environment_needs_pip_alone(install: Any) -> None:
    install("/home/a/.venv", is_active=True)
    assert installed.add_line("llamacpp") == "pip install 'slm-local[llamacpp]'"


def test_an_environment_that_is_not_active_is_named(install: Any) -> None:
    install("/home/a b/.venv")
    assert installed.add_line("llamacpp") == "'/home/a b/.venv/bin/python' -m pip install 'slm-local[llamacpp]'"


def test_pipx_and_uv_have_commands_of_their_own(install: Any) -> None:
    install("/home/a/.local/pipx/venvs/slm-local")
    assert installed.add_line("llamacpp", "convert") == "pipx install --force 'slm-local[llamacpp,convert]'"
    install("/home/a/.local/share/uv/tools/slm-local")
    assert installed.add_line("convert") == "uv tool install --force 'slm-local[convert]'"


def test_what_slm_itself_needs_is_added_without_extras(install: Any) -> None:
    install("/home/a/.venv", is_active=True)
    assert installed.add_line() == "pip install slm-local"


def test_a_package_is_built_anew_where_it_lies(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    package, extras = "llama-cpp-python==0.3.36", ["llamacpp"]
    anew = "install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36"
    install("/home/a/.venv", is_active=True)
    assert installed.reinstall_line(package, extras=extras, from_source=True) == f"pip {anew}"
    install("/home/a/.local/pipx/venvs/slm-local")
    assert installed.reinstall_line(package, extras=extras, from_source=True) == f"pipx runpip slm-local {anew}"
    install("/home/a/.local/share/uv/tools/slm-local")
    assert installed.reinstall_line(package, extras=extras, from_source=True, cmake="-DGGML_CUDA=on") == (
        "CMAKE_ARGS=-DGGML_CUDA=on uv tool install --force --no-cache --reinstall-package llama-cpp-python "
        "--no-binary-package llama-cpp-python 'slm-local[llamacpp]'"
    )


def test_a_package_that_comes_ready_made_is_fetched_anew(install: Any) -> None:
    install("/home/a/.venv", is_active=True)
    assert installed.reinstall_line("a", "b") == "pip install --force-reinstall --no-deps --no-cache-dir a b"


def test_powershell_sets_variables_in_a_way_of_its_own(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install("/home/a/.venv", is_active=True)
    monkeypatch.setattr(sys, "platform", "win32")
    assert installed.reinstall_line("x", cmake="-DA=on").startswith("$env:CMAKE_ARGS='-DA=on'; pip install ")


def test_what_came_from_a_folder_is_added_to_from_there(install: Any, tmp_path: Path) -> None:
    folder = tmp_path / "my slm"
    install("/v", {"url": folder.as_uri(), "dir_info": {"editable": True}}, is_active=True)
    assert installed.add_line("convert") == f"pip install -e '{folder}[convert]'"


def test_what_came_from_an_address_is_added_to_from_there(install: Any) -> None:
    install("/v", {"url": "ssh://host/slm.git", "vcs_info": {"vcs": "git"}}, is_active=True)
    assert installed.add_line("convert") == "pip install 'slm-local[convert] @ git+ssh://host/slm.git'"


@pytest.mark.parametrize("record", [None, {}])
def test_without_a_record_the_name_is_used(install: Any, record: dict[str, Any] | None) -> None:
    install("/v", record, is_active=True)
    assert installed.add_line("llamacpp") == "pip install 'slm-local[llamacpp]'"


def test_a_program_that_is_not_installed_still_has_a_line(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install("/v", is_active=True)

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    assert installed.add_line("llamacpp") == "pip install 'slm-local[llamacpp]'"
