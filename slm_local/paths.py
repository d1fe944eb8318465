"""Where things live: settings, data, cache, logs and models, each a folder of this program's own.

`SLM_HOME` moves them all into one folder; else each lies where the platform keeps such things (XDG on Linux,
Library on macOS, LocalAppData on Windows). Nothing is created here before something is to be written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slm_local.errors import ConfigError

APPLICATION = "slm-local"

UNSET_HINT = {"win32": "Remove-Item Env:SLM_HOME"}
"""What takes `SLM_HOME` away, where it is not `unset SLM_HOME`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """The folders of this program, absolute; they need not exist yet (`make_folder`)."""

    config: Path
    data: Path
    cache: Path
    logs: Path
    models_dir: Path
    """Where fetched models lie."""

    @property
    def server_file(self) -> Path:
        """Return the file that is there while a server of this user runs: where it listens, and its key."""
        return self.data / "server.json"


def paths(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Paths:
    """Return where things live.

    `ConfigError` where `SLM_HOME` is not a folder or there is no home folder. A relative XDG folder is passed over,
    as its specification says.
    """
    environment = os.environ if environment is None else environment
    if environment.get("SLM_HOME"):
        return _all_below(environment["SLM_HOME"], platform)
    match platform:
        case "win32":
            own = _given(environment, "LOCALAPPDATA", "AppData/Local") / APPLICATION
            config, data, cache, logs = own / "config", own / "data", own / "cache", own / "logs"
        case "darwin":
            library = _home() / "Library"
            config = library / "Application Support" / APPLICATION / "config"
            data = library / "Application Support" / APPLICATION / "data"
            cache, logs = library / "Caches" / APPLICATION, library / "Logs" / APPLICATION
        case _:
            config = _given(environment, "XDG_CONFIG_HOME", ".config") / APPLICATION
            data = _given(environment, "XDG_DATA_HOME", ".local/share") / APPLICATION
            cache = _given(environment, "XDG_CACHE_HOME", ".cache") / APPLICATION
            logs = _given(environment, "XDG_STATE_HOME", ".local/state") / APPLICATION / "logs"
    return Paths(config=config, data=data, cache=cache, logs=logs, models_dir=data / "models")


def make_folder(folder: Path) -> Path:
    """Create a folder that only its owner may enter, parents likewise, and return it.

    Folders that are there already keep their rights. `ConfigError` where it can't be created.
    """
    missing = [folder]
    while not (parent := missing[-1].parent).exists() and parent != missing[-1]:
        missing.append(parent)
    try:
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create the folder {folder}: {error.strerror}",
            hint="set SLM_HOME to a folder you may write, or free its name",
        ) from error
    return folder


def _all_below(given: str, platform: str) -> Paths:
    try:
        home = Path(given).expanduser().absolute()
        is_other = home.exists() and not home.is_dir()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"SLM_HOME can't be used: {error}", hint=_unset(platform)) from error
    if is_other:
        raise ConfigError(f"SLM_HOME is not a folder: {home}", hint=_unset(platform))
    return Paths(
        config=home / "config", data=home / "data", cache=home / "cache", logs=home / "logs", models_dir=home / "models"
    )


def _unset(platform: str) -> str:
    return UNSET_HINT.get(platform, "unset SLM_HOME")


def _given(environment: Mapping[str, str], variable: str, below_home: str) -> Path:
    value = Path(environment.get(variable, ""))
    return value if value.is_absolute() else _home() / below_home


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError("there is no home folder on this machine", hint="SLM_HOME=./slm-home slm ls") from error
