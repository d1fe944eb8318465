"""How slm was installed, so that a hint to add a part of it is a line that works here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

NAME = "slm-local"


def add_line(*extras: str) -> str:
    """Return the command that adds extras to slm as it was installed: by pip, pipx or uv, and from where.

    Without extras it adds what slm itself needs and is not there.
    """
    match _installer():
        case "pipx":
            return f"pipx install --force {quote(_what(extras))}"
        case "uv":
            return f"uv tool install --force {quote(_what(extras))}"
        case _:
            flag = " -e" if _direct_url().get("dir_info", {}).get("editable") else ""
            return f"{_pip()} install{flag} {quote(_what(extras))}"


def reinstall_line(*packages: str, extras: Sequence[str] = (), from_source: bool = False, cmake: str = "") -> str:
    """Return the command that installs packages that slm needs anew, `from_source` built for this machine.

    A package may have its version, as `name==1.0`; `extras` are those of slm that need them, `cmake` what their build
    is told.
    """
    names = [each.partition("==")[0] for each in packages]
    if _installer() == "uv":
        each_one = [f"--reinstall-package {name}" + f" --no-binary-package {name}" * from_source for name in names]
        line = " ".join(["uv tool install --force --no-cache", *each_one, quote(_what(extras))])
    else:
        pip = f"pipx runpip {NAME}" if _installer() == "pipx" else _pip()
        source = f" --no-binary {','.join(names)}" if from_source else ""
        line = f"{pip} install --force-reinstall --no-deps --no-cache-dir{source} {' '.join(packages)}"
    if not cmake:
        return line
    return f"$env:CMAKE_ARGS='{cmake}'; {line}" if sys.platform == "win32" else f"CMAKE_ARGS={quote(cmake)} {line}"


def _installer() -> str:
    places = {part.lower() for part in Path(sys.prefix).parts}
    if {"pipx", "venvs"} <= places:
        return "pipx"
    return "uv" if {"uv", "tools"} <= places else "pip"


def _pip() -> str:
    return "pip" if os.environ.get("VIRTUAL_ENV") == sys.prefix else f"{quote(sys.executable)} -m pip"


def _what(extras: Sequence[str]) -> str:
    name, _, address = _source().partition(" @ ")
    return name + (f"[{','.join(extras)}]" if extras else "") + (f" @ {address}" if address else "")


def _source() -> str:
    """Return what to give to an installer: the folder or address that slm came from, else its name."""
    record = _direct_url()
    url = str(record.get("url", ""))
    if not url.startswith("file:"):
        control = record.get("vcs_info", {}).get("vcs")
        return f"{NAME} @ {f'{control}+' if control else ''}{url}" if url else NAME
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return url2pathname(urlsplit(url).path)


def _direct_url() -> dict[str, Any]:
    """Return the record of a package that did not come from an index (PEP 610); empty where it did."""
    from importlib.metadata import PackageNotFoundError, distribution  # takes a while, and few ask

    try:
        text = distribution(NAME).read_text("direct_url.json")
        record = json.loads(text) if text else {}
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
