"""Where things live, on every platform, and how folders come to be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from slm_local.errors import ConfigError
from slm_local.paths import Paths, make_folder, paths


def test_slm_home_moves_everything_into_one_folder(tmp_path: Path) -> None:
    home = tmp_path / "slm"
    assert paths({"SLM_HOME": str(home)}) == Paths(
        config=home / "config", data=home / "data", cache=home / "cache", logs=home / "logs", models_dir=home / "models"
    )
    assert not home.exists()


def test_slm_home_is_read_from_the_environment(slm_home: Path) -> None:
    assert paths().config == slm_home / "config"


def test_a_relative_slm_home_counts_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths({"SLM_HOME": "mine"}).data == tmp_path / "mine" / "data"


@pytest.mark.parametrize(("platform", "hint"), [("linux", "unset SLM_HOME"), ("win32", "Remove-Item Env:SLM_HOME")])
def test_an_slm_home_that_is_a_file_is_refused(platform: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="SLM_HOME is not a folder") as caught:
        paths({"SLM_HOME": str(file)}, platform)
    assert caught.value.hint == hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("home", ["~nobody-has-this-name/slm", "x" * 5000])
def test_an_slm_home_that_no_folder_can_have_is_refused(home: str) -> None:
    with pytest.raises(ConfigError, match="SLM_HOME can't be used"):
        paths({"SLM_HOME": home})


@pytest.mark.parametrize("empty", [{}, {"SLM_HOME": ""}, {"XDG_CONFIG_HOME": "relative", "XDG_DATA_HOME": ""}])
def test_on_linux_folders_are_those_of_xdg(empty: dict[str, str]) -> None:
    found, home = paths(empty, "linux"), Path.home()
    assert found.config == home / ".config" / "slm-local"
    assert found.data == home / ".local" / "share" / "slm-local"
    assert found.cache == home / ".cache" / "slm-local"
    assert found.logs == home / ".local" / "state" / "slm-local" / "logs"
    assert found.models_dir == found.data / "models"


def test_xdg_variables_move_their_folders(tmp_path: Path) -> None:
    names = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
    found = paths({name: str(tmp_path / name) for name in names}, "linux")
    assert found.config == tmp_path / "XDG_CONFIG_HOME" / "slm-local"
    assert found.models_dir == tmp_path / "XDG_DATA_HOME" / "slm-local" / "models"
    assert found.cache == tmp_path / "XDG_CACHE_HOME" / "slm-local"
    assert found.logs == tmp_path / "XDG_STATE_HOME" / "slm-local" / "logs"


def test_on_macos_folders_are_those_of_the_library() -> None:
    found, library = paths({}, "darwin"), Path.home() / "Library"
    assert found.config == library / "Application Support" / "slm-local" / "config"
    assert found.models_dir == library / "Application Support" / "slm-local" / "data" / "models"
    assert found.cache == library / "Caches" / "slm-local"
    assert found.logs == library / "Logs" / "slm-local"


def test_on_windows_folders_are_below_local_app_data(tmp_path: Path) -> None:
    found = paths({"LOCALAPPDATA": str(tmp_path)}, "win32")
    assert found.config == tmp_path / "slm-local" / "config"
    assert found.models_dir == tmp_path / "slm-local" / "data" / "models"
    assert paths({}, "win32").cache == Path.home() / "AppData" / "Local" / "slm-local" / "cache"


def test_a_machine_without_a_home_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="no home folder") as caught:
        paths({}, "linux")
    assert caught.value.hint is not None
    assert "SLM_HOME" in caught.value.hint


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such rights")
def test_folders_are_made_for_their_owner_alone_and_others_left_as_they_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = make_folder(tmp_path / "a" / "b")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent, tmp_path)] == [0o700, 0o700, 0o755]


def test_making_a_folder_twice_is_no_fault(tmp_path: Path) -> None:
    assert make_folder(make_folder(tmp_path / "a")) == tmp_path / "a"


@pytest.mark.parametrize("below", ["file", "file/folder"])
def test_a_folder_that_cannot_be_made_is_named(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot create the folder") as caught:
        make_folder(tmp_path / below)
    assert str(tmp_path / below) in caught.value.message
    assert caught.value.hint is not None
