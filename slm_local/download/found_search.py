"""What the search in other programs' folders speaks of and is bounded by; which programs there are, it does not know.

It lists folders, asks for the size of files and reads small texts: no model is opened, nothing is hashed or changed.
What can't be read is a remark, never an error.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slm_local.gguf_header.facts import PART_NAME
from slm_local.registry.local import parts_of
from slm_local.sanitize import one_line

MAX_TEXT_BYTES = 4 << 20
"""Largest manifest or setting that is read; those of models in thousands of tensors take some hundred kilobytes."""

MAX_ENTRIES = 50_000
"""Files and folders looked at for one program: one whose folder leads to a whole disk must not keep us for ever."""

BESIDE_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""How files are named that stand beside a model and are none. Source: llama.cpp's common/download.cpp (its list of
cached models passes them over; imatrix files hold statistics for quantizing)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model of another program, used where it lies; its names are that program's and untrusted."""

    path: Path
    """The file, a split model's first part, or the OpenVINO folder."""
    program: str
    """As people call it: `ollama`, `LM Studio`, `Hub cache`, `llama.cpp`, `Jan`."""
    name: str
    """As that program calls the model."""
    size_bytes: int
    """All parts of a split model together."""
    file_id: tuple[int, int]
    """Device and inode: the same file under two names has the same."""
    sha256: str | None = None
    """As that program's records say; nothing was hashed."""
    repo: str | None = None
    """The Hub repository it came from, where that is recorded."""
    file: str | None = None
    """Its name in that repository."""
    kind: Literal["gguf", "openvino"] = "gguf"
    also: tuple[str, ...] = ()
    """Where else the same file is, each as program and name."""
    notes: tuple[str, ...] = ()
    """What of it is not used here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What says where programs keep their models."""

    environment: Mapping[str, str]
    platform: str
    """As `sys.platform`."""
    home: Path

    def folder(self, *variables: str) -> Path | None:
        """Return the folder that the first of these variables names; None where none names an absolute one."""
        for variable in variables:
            value = self.environment.get(variable, "").strip("\"' ")
            if value and (path := self.below_home(value)).is_absolute():
                return path
        return None

    def below_home(self, written: str) -> Path:
        """Return a path with `~` and variables replaced."""
        if written == "~" or written.startswith(("~/", "~\\")):
            return self.home / written[2:]
        return Path(os.path.expandvars(written))


class Search:
    """One program's models and what could not be read; every listing and reading of the search goes through it."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.models: list[FoundModel] = []
        self.remarks: list[str] = []
        self._entries_left = MAX_ENTRIES
        self._seen: set[tuple[int, int]] = set()

    def remark(self, text: str) -> None:
        """Note something that was passed over, on one line that a terminal may be shown."""
        self.remarks.append(one_line(f"{self.program}: {text}"))

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return what is in a folder, by name, hidden ones left out; nothing where there is none."""
        try:
            with os.scandir(folder) as listing:
                found = sorted((each for each in listing if not each.name.startswith(".")), key=lambda each: each.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.remark(f"{folder} can't be looked into: {error.strerror}")
            return []
        if len(found) > self._entries_left:
            self.remark(f"more than {MAX_ENTRIES:,} files and folders are there; the rest was not looked at")
            found = found[: self._entries_left]
        self._entries_left -= len(found)
        return found

    def files_below(self, folder: Path, depth: int) -> Iterator[Path]:
        """Give the files in a folder and so many folders deep; each folder once, whatever links lead to it."""
        try:
            identity = _identity(folder.stat())
        except OSError:
            identity = None
        if identity is not None and identity in self._seen:
            return
        if identity is not None:
            self._seen.add(identity)
        for entry in self.entries(folder):
            if _is_dir(entry):
                if depth > 0:
                    yield from self.files_below(Path(entry.path), depth - 1)
            else:
                yield Path(entry.path)

    def models_below(self, folder: Path, depth: int) -> Iterator[Path]:
        """Give the GGUF files that `files_below` gives, without what only stands beside a model."""
        return (path for path in self.files_below(folder, depth) if is_model_name(path.name))

    def text(self, path: Path) -> str | None:
        """Read a small text; None, with a remark, where it can't be read, nothing where it is not there."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                self.remark(f"{path} is not a regular file")
                return None
            with path.open("rb") as file:
                content = file.read(MAX_TEXT_BYTES + 1)
            if len(content) > MAX_TEXT_BYTES:
                self.remark(f"{path} is too large to be what it should be")
                return None
            return content.decode("utf-8-sig")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.remark(f"{path} can't be read: {error.strerror}")
        except UnicodeDecodeError:
            self.remark(f"{path} is no UTF-8 text")
        return None

    def json(self, path: Path) -> object:
        """Read a small JSON file as `text` does; None where it is damaged, with a remark."""
        content = self.text(path)
        if content is None:
            return None
        try:
            value: object = json.loads(content)
        except (ValueError, RecursionError):
            self.remark(f"{path} is damaged: it is no JSON")
            return None
        return value

    def add(
        self,
        path: Path,
        name: str,
        *,
        sha256: str | None = None,
        repo: str | None = None,
        file: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Take a GGUF file as a model of this program, unless it is no file (a link to nothing, a folder)."""
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                return
            size = sum(part.stat().st_size for part in parts_of(path) if part.is_file())
        except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            return
        self.models.append(
            FoundModel(
                path=path,
                program=self.program,
                name=name,
                size_bytes=size,
                file_id=_identity(found),
                sha256=sha256,
                repo=repo,
                file=file,
                notes=notes,
            )
        )


def is_model_name(name: str) -> bool:
    """Tell whether a file's name is that of a model, for a split one of its first part."""
    plain = name.lower()
    if not plain.endswith(".gguf") or "mmproj" in plain or plain.startswith(BESIDE_MODELS):
        return False
    part = PART_NAME.fullmatch(name)
    return part is None or int(part["number"]) == 1


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return (found.st_dev, found.st_ino)
