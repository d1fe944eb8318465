"""Models of LM Studio and of Jan, which keep GGUF files under folders with readable names.

Sources: LM Studio's docs (`models/<publisher>/<model>/<file>.gguf`) and lms (findLMStudioHome.ts: the home is what
`~/.lmstudio-home-pointer` says, else `~/.cache/lm-studio` of versions before 0.3.6, else `~/.lmstudio`); its
`settings.json` names another models folder as `downloadsFolder`. Jan's llamacpp-extension (index.ts: a folder with
`model.yml`, whose `model_path` is absolute or below the data folder) and src-tauri (app/commands.rs: JAN_DATA_FOLDER,
then `data_folder` in `settings.json`, then `Jan/data`); before 0.6.3 all was below `models`, and before 0.5 in `~/jan`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from slm_local.download.found_search import Machine, Search, is_model_name
from slm_local.registry.recognise import plain_digest
from slm_local.registry.references import is_repository

LM_STUDIO_DEPTH = 4
"""Folders below LM Studio's models folder that are looked into; it uses two of them itself."""

JAN_DEPTH = 5


def find_lm_studio(machine: Machine, search: Search) -> None:
    """Add every GGUF file below LM Studio's models folders."""
    for folder in _lm_studio_folders(machine, search):
        for path in search.models_below(folder, LM_STUDIO_DEPTH):
            inside = path.relative_to(folder)
            repo = "/".join(inside.parts[:2])
            is_repo = len(inside.parts) > 2 and is_repository(repo)
            file = "/".join(inside.parts[2:])
            search.add(path, inside.as_posix(), repo=repo if is_repo else None, file=file if is_repo else None)


def _lm_studio_folders(machine: Machine, search: Search) -> list[Path]:
    pointed = (search.text(machine.home / ".lmstudio-home-pointer") or "").strip()
    homes = [machine.home / ".lmstudio", machine.home / ".cache" / "lm-studio"]
    if pointed and Path(pointed).is_absolute():
        homes.insert(0, Path(pointed))
    found: list[Path] = []
    for home in dict.fromkeys(homes):
        settings = search.json(home / "settings.json")
        chosen = settings.get("downloadsFolder") if isinstance(settings, dict) else None
        if isinstance(chosen, str) and chosen and (folder := machine.below_home(chosen)).is_absolute():
            found.append(folder)
        found.append(home / "models")
    return list(dict.fromkeys(found))


def find_jan(machine: Machine, search: Search) -> None:
    """Add every model that Jan knows by a `model.yml`, and the files in the folders of its older versions."""
    for data in _jan_folders(machine, search):
        for models in (data / "llamacpp" / "models", data / "models"):
            _take_jan(data, models, search)


def _jan_folders(machine: Machine, search: Search) -> list[Path]:
    match machine.platform:
        case "win32":
            bases = [machine.folder("APPDATA") or machine.home / "AppData" / "Roaming"]
        case "darwin":
            bases = [machine.home / "Library" / "Application Support"]
        case _:
            bases = [
                machine.folder("XDG_DATA_HOME") or machine.home / ".local" / "share",
                machine.folder("XDG_CONFIG_HOME") or machine.home / ".config",
            ]
    found = [machine.folder("JAN_DATA_FOLDER")]
    for base in bases:
        settings = search.json(base / "Jan" / "settings.json")
        chosen = settings.get("data_folder") if isinstance(settings, dict) else None
        if isinstance(chosen, str) and chosen and (folder := machine.below_home(chosen)).is_absolute():
            found.append(folder)
        found.append(base / "Jan" / "data")
    found.append(machine.home / "jan")
    return [each for each in dict.fromkeys(found) if each is not None]


def _take_jan(data: Path, models: Path, search: Search) -> None:
    named: set[Path] = set()
    files = list(search.files_below(models, JAN_DEPTH))
    for config in files:
        if config.suffix == ".yml":
            for path, name, sha256 in _jan_models(config, data, models, search):
                named.add(path)
                search.add(path, name, sha256=sha256)
    for path in files:
        if path not in named and is_model_name(path.name):
            search.add(path, path.relative_to(models).as_posix())


def _jan_models(config: Path, data: Path, models: Path, search: Search) -> Iterator[tuple[Path, str, str | None]]:
    """Give the file that a description names, the model's id and its digest, where one is stated."""
    content = search.text(config)
    if content is None:
        return
    written = yaml_values(content, "model_path") or yaml_values(content, "files")[:1]
    stated = yaml_values(content, "model_sha256")
    inside = config.parent if config.name == "model.yml" else config.with_suffix("")
    for each in written:
        path = data / each  # an absolute path stays what it is
        if is_model_name(path.name):
            yield path, inside.relative_to(models).as_posix(), plain_digest(stated[0]) if stated else None


def yaml_values(content: str, key: str) -> list[str]:
    """Return the texts that a key on YAML's uppermost level has: one behind it, or a list of them below it.

    Read are plain, single and double quoted texts on one line, which is what serde_yaml and js-yaml write for paths;
    anything else is not a value.
    """
    found: list[str] = []
    is_inside = False
    for line in content.splitlines():
        if line.startswith(f"{key}:"):
            is_inside = True
            found += _scalar(line[len(key) + 1 :])
        elif is_inside and line.lstrip().startswith("- "):
            found += _scalar(line.lstrip()[2:])
        elif line.strip() and not line.startswith((" ", "#")):
            is_inside = False
    return found


def _scalar(written: str) -> list[str]:
    text = written.strip()
    if text.startswith('"'):
        try:
            value = json.loads(text)
        except ValueError:
            return []
        return [value] if isinstance(value, str) else []
    if text.startswith("'"):
        return [text[1:-1].replace("''", "'")] if len(text) > 1 and text.endswith("'") else []
    text = text.partition(" #")[0].rstrip()
    return [] if not text or text[0] in "|>[]{}&*!%@`#" else [text]
