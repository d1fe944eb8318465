"""Writes a file that was not there: what a person has is never written over, and text stays exactly what it was."""

from __future__ import annotations

from pathlib import Path

from slm_local.errors import UsageError
from slm_local.sanitize import shell_word


def write_new(path: Path, text: str, *, hint: str) -> None:
    """Write a new UTF-8 file, whole or not at all; `hint` is a command with `{}` for a file. Errors: `UsageError`."""
    try:
        with path.open("xb") as file:
            file.write(text.encode("utf-8", "surrogatepass"))
    except FileExistsError:
        free = next(each for n in range(2, 10_000) if not (each := path.with_stem(f"{path.stem}-{n}")).exists())
        raise UsageError(
            f"{path} is there already and stays as it is", hint=hint.format(shell_word(str(free)))
        ) from None
    except OSError as error:
        if error.filename is None:  # it was opened, so it is ours
            path.unlink(missing_ok=True)
        raise UsageError(f"{path} can't be written: {error.strerror}", hint=hint.format(f"~/{path.name}")) from error
